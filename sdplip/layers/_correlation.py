"""Row sums of |WᵀW| for matrices and convolutions, at the least cost in products.

WᵀW is symmetric, so that its upper triangle is enough; its derivative needs each product once more.
WᵀW of a convolution is the autocorrelation of its kernel. A kernel of k taps per axis has 2k - 1
shifts, so that on a torus of that side they do not meet, and the autocorrelation is a Hermitian
product at every frequency, of which half are enough, since kernels are real.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._tensors import full_precision

TILE = 256
"""Rows of a tile on the diagonal of a triangle: small enough to leave out nearly half of the work,
large enough for efficient products."""

HALF_ULP = 2.0**-8
"""The relative error of rounding to bfloat16."""

Tile = tuple[slice, slice]


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
    if math.prod(K.shape[-2:]) == 1:
        sums, *_ = _MatrixSums.apply(flat.flatten(2), weights)
    else:
        sums, _ = _KernelSums.apply(flat.flatten(3), weights, K.shape[-2:])
    return sums.reshape(K.shape[:-3])


def rounded_sums(K: Tensor, q: Tensor) -> Tensor:
    """r with diag(r / q) ⪰ K Kᵀ, for q > 0, from products in bfloat16.

    Let K = H + E with H in bfloat16. For every s > 0 K Kᵀ ⪯ (1 + s) H Hᵀ + (1 + 1/s) E Eᵀ, since
    the difference is (√s H - E/√s)(√s H - E/√s)ᵀ, and both terms are dominated by row sums: those
    of |H Hᵀ|, whose entries are rounded once, and those of |E| |E|ᵀ, for which vectors are enough.
    The derivative is that of H Hᵀ as if K were not rounded, in bfloat16.

    Args:
        K: (*batch, n, m), float32 or float64. q: (*batch, n).

    Returns:
        (*batch, n): for normal entries 2 % above `correlation_sums`, for orthogonal rows up to a
        fifth.
    """
    H = K.to(torch.bfloat16).contiguous()
    sums = correlation_sums(H[..., None, None], q) * (1 + HALF_ULP)
    E = H.detach().to(K.dtype).sub_(K.detach()).abs_()  # mixed types would take many times as long
    lost = _times(E, _times(E.mT, q))
    with torch.no_grad():
        # The best s where both have the same ratio everywhere; that of the largest is never NaN.
        size, rest = (x.amax(dim=-1, keepdim=True) for x in (sums, lost))
        s = (rest / size.clamp(min=torch.finfo(q.dtype).tiny)).sqrt().clamp(min=HALF_ULP**2)
    return (1 + s) * sums + (1 + 1 / s) * lost


def _unrounded(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward` in full precision where a user calls it within autocast."""

    @functools.wraps(backward)
    def inner(ctx: Any, g: Tensor, *others: Tensor) -> Any:
        with full_precision(g):
            return backward(ctx, g, *others)

    return inner


class _MatrixSums(torch.autograd.Function):
    """Of matrices (b, n, m), bfloat16 too, and weights (b, n); then come the products, for the
    backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        sums = _zeros(q.shape, q, K)
        products = []
        for a, b in _triangle(0, q.shape[1]):
            S = _product(K[:, a], K[:, b].mT)
            absolute = S.abs().to(q.dtype)
            sums[:, a] += _times(absolute, q[:, b])
            if a != b:
                sums[:, b] += _times(absolute.mT, q[:, a])
            products.append(S)
        return sums, *products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    @_unrounded
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        K, q, *products = ctx.saved_tensors
        dK, dq = _zeros(K.shape, K, q, g), _zeros(q.shape, q, K, g)
        left, right = (factor.to(K.dtype) for factor in _outer(g, q))
        for (a, b), kept in zip(_triangle(0, q.shape[1]), products, strict=True):
            # The kept product is a constant, which a second derivative must not take it for.
            S = _product(K[:, a], K[:, b].mT) if torch.is_grad_enabled() else kept
            if ctx.needs_input_grad[1]:
                absolute = S.abs().to(q.dtype)
                dq[:, b] += _times(absolute.mT, g[:, a])
                if a != b:
                    dq[:, a] += _times(absolute, g[:, b])
            if ctx.needs_input_grad[0]:
                M = _product(left[:, a], right[..., b]) * S.sign()
                _accumulate(dK[:, a], M, K[:, b])
                if a != b:
                    _accumulate(dK[:, b], M.mT, K[:, a])
        return dK, dq


class _KernelSums(torch.autograd.Function):
    """Of kernels (b, n, m, k₁k₂) and weights (b, n); with half of the autocorrelation, for the
    backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor, q: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        S = _correlation(K, _Torus.of(size, K))
        absolute = S.abs()
        others = absolute[1:].sum(dim=0)
        return _times(absolute[0] + others, q) + _times(others.mT, q), S

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        K, q, ctx.size = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(K, q, output[1])

    @staticmethod
    @_unrounded
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        K, q, S = ctx.saved_tensors
        torus = _Torus.of(ctx.size, K)
        if torch.is_grad_enabled():
            # The kept one is a constant, which a second derivative must not take it for.
            S = _correlation(K, torus)
        dK = dq = None
        if ctx.needs_input_grad[1]:
            absolute = S.abs()
            others = absolute[1:].sum(dim=0)
            dq = _times(absolute[0] + others, g) + _times(others.mT, g)
        if ctx.needs_input_grad[0]:
            left, right = _outer(g, q)
            dK = _convolved((left @ right) * S.sign(), K, torus)
        return dK, dq, None


class _Torus(NamedTuple):
    """Real Fourier transforms on the least torus on which no two shifts meet.

    Of frequencies and of shifts there are zero, and h that are one of every two opposite ones.

    Attributes:
        taps: cosines and negative sines (1 + 2h, k₁k₂): zero, then all of one, then of the other.
        shifts: cosines and negative sines (1 + 2h, 1 + h).
        cells: of the torus.
    """

    taps: Tensor
    shifts: Tensor
    cells: int

    @classmethod
    def of(cls, size: torch.Size, like: Tensor) -> _Torus:
        sides = torch.tensor([2 * k - 1 for k in size])
        points = torch.cartesian_prod(*(torch.arange(1 - k, k) for k in size)).double()
        half = points[len(points) // 2 :]
        taps = torch.cartesian_prod(*(torch.arange(k) for k in size)).double()
        angles = 2 * math.pi * half / sides

        def waves(at: Tensor) -> Tensor:
            phase = angles @ at.mT
            return torch.cat([phase.cos(), -phase[1:].sin()]).to(like)

        return cls(waves(taps), waves(half), len(points))

    def transform(self, K: Tensor) -> tuple[Tensor, ...]:
        """K (b, n, m, taps) at zero (1, b, n, m) and its real and imaginary parts (h, b, n, m)."""
        return (self.taps @ K.flatten(0, 2).mT).unflatten(1, K.shape[:3]).split(self.parts)

    def inverse(self, zero: Tensor, real: Tensor, imaginary: Tensor, waves: Tensor) -> Tensor:
        """(·, ...) at what `waves` is of, from what `transform` gives."""
        constant, cosines, sines = ((2 / self.cells) * waves.mT).split(self.parts, dim=1)
        total = (constant / 2) @ zero.flatten(1)
        for factor, part in ((cosines, real), (sines, imaginary)):
            _accumulate(total, factor, part.flatten(1))
        return total.unflatten(1, zero.shape[1:])

    @property
    def parts(self) -> list[int]:
        return [1, self.cells // 2, self.cells // 2]


def _correlation(K: Tensor, torus: _Torus) -> Tensor:
    """S_ij(δ) = Σ_{c,t} K_{i,c,t+δ} K_{j,c,t} as (1 + h, b, n, n), the shift zero first."""
    zero, real, imaginary = torus.transform(K)
    even = _plus(real @ real.mT, imaginary, imaginary.mT)
    odd = imaginary @ real.mT
    odd -= _transposed(odd)
    return torus.inverse(zero @ zero.mT, even, odd, torus.shifts)


def _convolved(M: Tensor, K: Tensor, torus: _Torus) -> Tensor:
    """Σ_δ M(δ) K(t - δ) (b, n, m, k₁k₂) for M (1 + h, b, n, n), M(-δ) = M(δ)ᵀ."""
    zero, real, imaginary = torus.transform(K)
    _, cosines, sines = torus.shifts[:, 1:].split(torus.parts)
    half = M[1:].flatten(1)
    even, odd = ((waves @ half).unflatten(1, M.shape[1:]) for waves in (cosines, sines))
    even += _transposed(even)
    even += M[:1]
    odd -= _transposed(odd)
    others = M[1:].sum(dim=0, keepdim=True)
    total = M[:1] + others + others.mT
    # (even + i odd)(real + i imaginary) in three products.
    first = even @ (real + imaginary)
    second = _plus(first.clone(), odd - even, real)
    first = _plus(first, (even + odd).neg_(), imaginary)
    return torus.inverse(total @ zero, first, second, torus.taps).movedim(0, -1)


def _triangle(start: int, stop: int) -> list[Tile]:
    """Tiles of rows and columns that cover the upper triangle, halving it again and again."""
    if stop - start <= TILE:
        return [(slice(start, stop), slice(start, stop))]
    middle = (start + stop) // 2
    corner = slice(start, middle), slice(middle, stop)
    return [*_triangle(start, middle), corner, *_triangle(middle, stop)]


def _outer(g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (b, n, 2) and (b, 2, n) of g_i q_j + q_i g_j."""
    return torch.stack([g, q], dim=-1), torch.stack([q, g], dim=-2)


def _transposed(X: Tensor) -> Tensor:
    # A view in its place would make the sum that it is for ten times as slow.
    return X.mT.contiguous()


def _plus(total: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """total + X Y, each (h, b, ·, ·), in place of total."""
    _accumulate(total.flatten(0, 1), X.flatten(0, 1), Y.flatten(0, 1))
    return total


def _accumulate(total: Tensor, X: Tensor, Y: Tensor) -> None:
    compiling = torch.compiler.is_compiling()
    # Products that add in place have no batching rule.
    if compiling or torch._C._functorch.is_functorch_wrapped_tensor(total):
        total += X @ Y
    elif total.ndim == 2:
        total.addmm_(X, Y)
    elif len(total) == 1:
        total[0].addmm_(X[0], Y[0])
    else:
        total.baddbmm_(X, Y)


def _product(X: Tensor, Y: Tensor) -> Tensor:
    """X Y (b, ·, ·); in bfloat16 summed in float32 and rounded once."""
    if X.dtype == torch.bfloat16 and X.is_cuda:
        # @ may add partial sums in bfloat16.
        return torch.bmm(X, Y, out_dtype=torch.float32).to(X.dtype)
    # A batch of one matrix in bfloat16 takes three times as long.
    return (X[0] @ Y[0]).unsqueeze(0) if len(X) == 1 else X @ Y


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _zeros(shape: torch.Size | tuple[int, ...], *like: Tensor) -> Tensor:
    """Zeros of the first one's dtype that vmap takes for batched where any of `like` is, as adding
    in place requires."""
    empty: Any = sum(x.flatten()[:0] for x in like)
    return empty.new_zeros(shape, dtype=like[0].dtype)
