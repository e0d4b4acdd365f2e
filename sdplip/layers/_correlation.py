"""Row sums of |WᵀW| for matrices and convolutions, at the least cost in products.

WᵀW of a convolution is the autocorrelation of its kernel. It is symmetric, S_ij(δ) = S_ji(-δ), so
that half of its shifts are enough, and of the shift zero the upper triangle; its derivative needs
each product once more.
"""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 512
"""Rows of a tile of the upper triangle: large enough for efficient products."""


class _Tile(NamedTuple):
    """Rows `a` at the taps `left` against rows `b` at the taps `right`."""

    a: slice
    b: slice
    left: tuple[slice, slice]
    right: tuple[slice, slice]

    @property
    def symmetric(self) -> bool:
        return self.left == self.right and self.a == self.b


def correlation_sums(K: Tensor, q: Tensor) -> Tensor:
    """r_i = Σ_δ Σ_j |Σ_{c,t} K_{i,c,t+δ} K_{j,c,t}| q_j over all shifts δ of the taps t.

    For one tap it is |K Kᵀ| q. Differentiable to any order, but for the kinks of |·|.

    Args:
        K: (*batch, n, m, k₁, k₂). q: (*batch, n).

    Returns:
        (*batch, n).
    """
    flat = K.reshape(-1, *K.shape[-4:])
    weights = q.expand(K.shape[:-3]).reshape(len(flat), -1)
    return _Sums.apply(flat, weights)[0].reshape(K.shape[:-3])


class _Sums(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        sums = _zeros(q.shape, K, q)
        products = []
        for tile in _tiles(K):
            S = _product(K, tile)
            size = S.abs()
            sums[:, tile.a] += _times(size, q[:, tile.b])
            if not tile.symmetric:
                sums[:, tile.b] += _times(size.mT, q[:, tile.a])
            products.append(S)
        return sums, *products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        K, q, *products = ctx.saved_tensors
        dK = _zeros(K.shape, K, q, g) if ctx.needs_input_grad[0] else None
        dq = _zeros(q.shape, K, q, g) if ctx.needs_input_grad[1] else None
        for tile, kept in zip(_tiles(K), products, strict=True):
            a, b, (y, x), (v, u) = tile
            # The kept product is a constant, which a second derivative must not take it for.
            S = _product(K, tile) if torch.is_grad_enabled() else kept
            if dq is not None:
                dq[:, b] += _times(S.abs().mT, g[:, a])
                if not tile.symmetric:
                    dq[:, a] += _times(S.abs(), g[:, b])
            if dK is not None:
                pairs = g[:, a, None] * q[:, None, b] + q[:, a, None] * g[:, None, b]
                M = S.sign() * pairs
                left, right = K[:, a, :, y, x], K[:, b, :, v, u]
                dK[:, a, :, y, x] += (M @ right.flatten(2)).view(left.shape)
                if not tile.symmetric:
                    dK[:, b, :, v, u] += (M.mT @ left.flatten(2)).view(right.shape)
        return dK, dq


def _tiles(K: Tensor) -> list[_Tile]:
    """What covers one half of the autocorrelation, the shift zero included."""
    n, height, width = K.shape[1], *K.shape[3:]
    rows = [slice(i, min(i + TILE, n)) for i in range(0, n, TILE)]
    everywhere = slice(0, height), slice(0, width)
    tiles = [_Tile(a, b, everywhere, everywhere) for a, b in combinations_with_replacement(rows, 2)]
    whole = slice(0, n)
    for down, across in product(range(height), range(1 - width, width)):
        if (down, across) > (0, 0):
            left = slice(down, height), slice(max(across, 0), width + min(across, 0))
            right = slice(0, height - down), slice(max(-across, 0), width - max(across, 0))
            tiles.append(_Tile(whole, whole, left, right))
    return tiles


def _product(K: Tensor, tile: _Tile) -> Tensor:
    a, b, left, right = tile
    return K[:, a, :, *left].flatten(2) @ K[:, b, :, *right].flatten(2).mT


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _zeros(shape: torch.Size, *like: Tensor) -> Tensor:
    """Zeros that vmap takes for batched where any of `like` is, as adding in place requires."""
    return sum(x.flatten()[:0] for x in like).new_zeros(shape)  # type: ignore[union-attr]
