"""Row sums of |WᵀW| for matrices and convolutions, at the least cost in products.

WᵀW of a convolution is the autocorrelation of its kernel. It is symmetric, S_ij(δ) = S_ji(-δ), so
that half of its shifts are enough, and of the shift zero the upper triangle; its derivative needs
each product once more.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

TILE = 256
"""Rows of a tile on the diagonal of a triangle: small enough to leave out nearly half of the work,
large enough for efficient products."""

Pair = tuple[int, int]


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
    taps = flat.permute(3, 4, 0, 1, 2).flatten(0, 1).contiguous()
    sums, *_ = _Sums.apply(taps, weights, K.shape[-2:])
    return sums.reshape(K.shape[:-3])


class _Sums(torch.autograd.Function):
    """Of the taps (k₁k₂, b, n, m) and weights (b, n); then come the products, for the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor, q: Tensor, size: torch.Size) -> tuple[Tensor, ...]:
        sums = _zeros(q.shape, K, q)
        products = []
        for pairs, a, b in _tiles(K.shape[2], size):
            S = _product(K, pairs, a, b)
            absolute = S.abs()
            sums[:, a] += _times(absolute, q[:, b])
            if not _symmetric(pairs, a, b):
                sums[:, b] += _times(absolute.mT, q[:, a])
            products.append(S)
        return sums, *products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        K, q, ctx.size = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(K, q, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        K, q, *products = ctx.saved_tensors
        dK, dq = _zeros(K.shape, K, q, g), _zeros(q.shape, K, q, g)
        weight = g.unsqueeze(-1) * q.unsqueeze(-2)
        weight = weight + weight.mT
        for (pairs, a, b), kept in zip(_tiles(K.shape[2], ctx.size), products, strict=True):
            # The kept product is a constant, which a second derivative must not take it for.
            S = _product(K, pairs, a, b) if torch.is_grad_enabled() else kept
            once = _symmetric(pairs, a, b)
            if ctx.needs_input_grad[1]:
                absolute = S.abs()
                dq[:, b] += _times(absolute.mT, g[:, a])
                if not once:
                    dq[:, a] += _times(absolute, g[:, b])
            if ctx.needs_input_grad[0]:
                M = weight[:, a, b] * S.sign()
                for s, t in pairs:
                    _accumulate(dK[s][:, a], M, K[t][:, b])
                    if not once:
                        _accumulate(dK[t][:, b], M.mT, K[s][:, a])
        return dK, dq, None


def _tiles(n: int, size: torch.Size) -> list[tuple[list[Pair], slice, slice]]:
    """What covers one half of the autocorrelation: pairs of taps that are one shift apart, and the
    rows and columns of the product, all of them but for the shift zero, which has a triangle."""
    height, width = size
    central = [(t, t) for t in range(height * width)]
    tiles = [(central, a, b) for a, b in _triangle(0, n)]
    everything = slice(0, n)
    for down, across in product(range(height), range(1 - width, width)):
        if (down, across) > (0, 0):
            pairs = [
                ((y + down) * width + x + across, y * width + x)
                for y in range(height - down)
                for x in range(max(0, -across), width - max(0, across))
            ]
            tiles.append((pairs, everything, everything))
    return tiles


def _triangle(start: int, stop: int) -> list[tuple[slice, slice]]:
    """Tiles of rows and columns that cover the upper triangle, halving it again and again."""
    if stop - start <= TILE:
        return [(slice(start, stop), slice(start, stop))]
    middle = (start + stop) // 2
    corner = slice(start, middle), slice(middle, stop)
    return [*_triangle(start, middle), corner, *_triangle(middle, stop)]


def _central(pairs: list[Pair]) -> bool:
    return pairs[0][0] == pairs[0][1]


def _symmetric(pairs: list[Pair], a: slice, b: slice) -> bool:
    return _central(pairs) and a == b


def _product(K: Tensor, pairs: list[Pair], a: slice, b: slice) -> Tensor:
    (s, t), *rest = pairs
    S = K[s][:, a] @ K[t][:, b].mT
    for s, t in rest:
        _accumulate(S, K[s][:, a], K[t][:, b].mT)
    return S


def _accumulate(total: Tensor, X: Tensor, Y: Tensor) -> None:
    compiling = torch.compiler.is_compiling()
    # baddbmm_ has no batching rule.
    if compiling or torch._C._functorch.is_functorch_wrapped_tensor(total):
        total += X @ Y
    else:
        total.baddbmm_(X, Y)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _zeros(shape: torch.Size, *like: Tensor) -> Tensor:
    """Zeros that vmap takes for batched where any of `like` is, as adding in place requires."""
    return sum(x.flatten()[:0] for x in like).new_zeros(shape)  # type: ignore[union-attr]
