"""The closed forms that layers are made of; emitted layers import them from here.

Each is differentiable, takes leading batch dimensions, and rounds so that what it promises holds
for its value in floating point.
"""

import math

import torch
from torch import Tensor

from ..errors import ShapeError
from ._base import bounded, soft_bound
from ._correlation import correlation_sums, rounded_sums
from ._spectrum import FREQUENCIES, norm_square
from ._state import between, coarse
from .nemon import reach
from .orthogonal import semi_orthogonal

__all__ = [
    "between",
    "block_dominant",
    "bounded",
    "cayley",
    "cayley_bottom",
    "cayley_lying",
    "cayley_tall",
    "cayley_top",
    "dominant",
    "eye",
    "gershgorin",
    "gram_power",
    "metzler_solve",
    "normalised",
    "ones",
    "ratios",
    "spectral",
    "spectral_square",
    "weights",
    "zeros",
]

FLOOR = 1e-12
"""A T below it is raised to it: a larger T is as sound, a smaller one overflows as 1/T."""

SPREAD = 5.0
"""|log q| stays below: only ratios of q matter, and e^10 between two of them is plenty."""

LOG_RANGE = 4.0
"""|log Λ| stays below for weights whose size matters: entries differ by at most e^8."""


def eye(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def ones(n: int, like: Tensor) -> Tensor:
    return torch.ones(n, dtype=like.dtype, device=like.device)


def zeros(rows: int, columns: int, like: Tensor) -> Tensor:
    return torch.zeros(rows, columns, dtype=like.dtype, device=like.device)


def normalised(W: Tensor, taps: int = 0) -> Tensor:
    """W / max|W|: where only W's direction matters, its squares neither over- nor underflow.

    Args:
        W: (*batch, rows, columns, *taps). taps: how many dimensions of taps there are.
    """
    scale = W.detach().abs().amax(dim=tuple(range(-2 - taps, 0)), keepdim=True)
    return W / torch.where(scale > 0, scale, 1)


def ratios(log_q: Tensor) -> Tensor:
    """q > 0 of which only ratios matter, from its logarithm (*batch, n)."""
    return soft_bound(log_q - log_q.mean(dim=-1, keepdim=True), SPREAD).exp()


def weights(log_q: Tensor) -> Tensor:
    """q > 0 from its logarithm (*batch, n), within e^±LOG_RANGE."""
    return soft_bound(log_q, LOG_RANGE).exp()


def cayley(X: Tensor) -> Tensor:
    """The semi-orthogonal matrix (*batch, p, m) that the Cayley map makes of X."""
    return semi_orthogonal(X, "cayley")


def cayley_tall(X: Tensor) -> Tensor:
    """`cayley` where QᵀQ = I is needed; InvalidInput for more columns than rows."""
    return cayley(_shaped(X, X.shape[-2] >= X.shape[-1], "at least as many rows as columns"))


def cayley_lying(X: Tensor) -> Tensor:
    """`cayley` where QQᵀ = I is needed; InvalidInput for more rows than columns."""
    return cayley(_shaped(X, X.shape[-2] <= X.shape[-1], "at least as many columns as rows"))


def _shaped(X: Tensor, fits: bool, rule: str) -> Tensor:
    if not fits:
        raise ShapeError(f"The matrix is {tuple(X.shape)}, but this layer needs {rule}.")
    return X


def cayley_top(X: Tensor, Y: Tensor) -> Tensor:
    """The rows of X in cayley([X; Y])."""
    return cayley(torch.cat([X, Y], dim=-2))[..., : X.shape[-2], :]


def cayley_bottom(X: Tensor, Y: Tensor) -> Tensor:
    """The rows of Y in cayley([X; Y])."""
    return cayley(torch.cat([X, Y], dim=-2))[..., X.shape[-2] :, :]


def metzler_solve(A: Tensor, v: Tensor) -> Tensor:
    """(I - ⌈A⌉)⁻¹v for v (*batch, n), rounded upwards: positive for an M-matrix and v > 0."""
    solved = reach(A, v.unsqueeze(-1)).squeeze(-1)
    return _upwards(solved, A)


def spectral(W: Tensor, taps: int = 0, frequencies: int = FREQUENCIES) -> Tensor:
    """T = ‖W‖₂² ⪰ WᵀW as the diagonal (*batch, columns).

    See `spectral_square` for the arguments and how it is computed; at least FLOOR, and 1 for W = 0.
    """
    T = _floored(spectral_square(W, taps, frequencies))
    return T.unsqueeze(-1).expand(*T.shape, W.shape[-1 - taps])


def spectral_square(W: Tensor, taps: int = 0, frequencies: int = FREQUENCIES) -> Tensor:
    """‖W‖₂², rounded upwards; see `norm_square` for how it is computed and its derivatives.

    Args:
        W: (*batch, rows, columns), or with taps = 2 the kernel (*batch, rows, columns, k₁, k₂) of a
            convolution, whose norm is that on the plane.
        frequencies: per axis and k - 1, at least 2: for 12 the norm is bounded within 1.8 %, for 6
            within 7.2 %, for matrices within 0.05 %.

    Returns:
        (*batch,), zero for W = 0, NaN where WᵀW is not finite.
    """
    K = W[(..., *[None] * (2 - taps))]
    return _upwards(norm_square(K, frequencies), W).to(W.dtype)


def dominant(S: Tensor, q: Tensor | None = None) -> Tensor:
    """T_i = Σ_j |S_ij| q_j / q_i, rounded upwards: T - S is diagonally dominant for q > 0.

    Args:
        S: (*batch, n, n), symmetric. q: (*batch, n); None is all ones.

    Returns:
        (*batch, n), at least FLOOR, and 1 where a row is zero (any T is valid there).

    Source: [ARAUJO], the SDP-based Lipschitz layer; q = 1 is [AOL] Theorem 1.
    """
    S = S.abs()
    T = S.sum(dim=-1) if q is None else (S @ q.unsqueeze(-1)).squeeze(-1) / q
    return _floored(_upwards(T, S))


def gram_power(S: Tensor, q: Tensor | None = None, power: int = 2) -> Tensor:
    """T_i = (Σ_j |Sᵖ|_ij q_j / q_i)^{1/p}, rounded upwards, for a Gram matrix S and p = 2, 4, 8, …

    By Löwner-Heinz T ⪰ S, tighter than p = 1 for most S.

    Args:
        S: (*batch, n, n), positive semidefinite. q: (*batch, n); None is all ones.
        power: a power of two.
    """
    # Squaring repeatedly would overflow, and a zero S would give 0^(1/p) with infinite gradient.
    size = S.detach().abs().amax(dim=(-2, -1), keepdim=True)
    size = torch.where(size > 0, size, 1)
    P = S / size
    scale = torch.ones_like(size)
    steps = power.bit_length() - 1
    for _ in range(steps):
        P = P @ P
        peak = P.detach().abs().amax(dim=(-2, -1), keepdim=True)
        peak = torch.where(peak > 0, peak, 1)
        P, scale = P / peak, scale * scale * peak
    row = P.abs()
    T = row.sum(dim=-1) if q is None else (row @ q.unsqueeze(-1)).squeeze(-1) / q
    # Entries of Sᵖ far below the largest are lost to rounding.
    lost = 4 * power * torch.finfo(S.dtype).eps * T.detach().amax(dim=-1, keepdim=True)
    T = torch.where(T > 0, T + lost, 0)
    root = (torch.where(T > 0, T, 1) * scale.squeeze(-1)) ** (1 / power) * size.squeeze(-1)
    return _floored(_upwards(torch.where(T > 0, root, 0), S))


def block_dominant(S: Tensor, size: int) -> Tensor:
    """T_i = Σ_j ‖S_ij‖₂ on blocks of `size` rows, rounded upwards: T - S ⪰ 0.

    Args:
        S: (*batch, n, n), symmetric, n a multiple of `size`.

    Raises:
        ShapeError: n is no multiple of `size`.
    """
    count, rest = divmod(S.shape[-1], size)
    if rest:
        raise ShapeError(f"{S.shape[-1]} units do not divide into blocks of {size}.")
    blocks = S.unflatten(-1, (count, size)).unflatten(-3, (count, size)).transpose(-3, -2)
    # In float64, since the squares of a large S overflow before their roots are taken.
    norms = spectral_square(blocks.double()).clamp(min=0)
    # √ has an infinite slope at 0, where a zero block has nothing to say.
    norms = (torch.where(norms > 0, norms, 1).sqrt() * (norms > 0)).to(S.dtype)
    T = dominant(norms)
    return T.repeat_interleave(size, dim=-1)


def gershgorin(
    W: Tensor, log_q: Tensor | None = None, taps: int = 0, products: str = "exact"
) -> Tensor:
    """`dominated` with q of `ratios`."""
    return dominated(W, None if log_q is None else ratios(log_q), taps, products)


def dominated(W: Tensor, q: Tensor | None = None, taps: int = 0, products: str = "exact") -> Tensor:
    """`dominant` of WᵀW, at half the cost; with other `products` a T that is larger.

    Args:
        W: (*batch, rows, columns), or with taps = 2 the kernel (*batch, rows, columns, k₁, k₂) of
            a convolution, whose |WᵀW| sums over all shifts: T bounds it for all images.
        q: (*batch, columns), positive; None is all ones.
        products: "exact", in the dtype of W, or "bfloat16", see `rounded_sums`: T exceeds that of
            exact products by 0.5 % for normal entries, by 0.9 % for 2048 orthogonal columns.

    Returns:
        T ⪰ WᵀW as its diagonal (*batch, columns).
    """
    if coarse() and W.dtype == torch.float32:
        exact = dominated(W.double(), None if q is None else q.double(), taps, products)
        return _upwards(exact.to(W.dtype), W)
    columns = W.transpose(-1 - taps, -2 - taps)[(..., *[None] * (2 - taps))]
    summands = math.prod(columns.shape[-3:])
    q = W.new_ones(columns.shape[:-3]) if q is None else q
    sums = (correlation_sums if products == "exact" else rounded_sums)(columns, q)
    return _floored(_upwards(sums / q, W, summands))


def _floored(T: Tensor) -> Tensor:
    return torch.where(T == 0, 1, T.clamp(min=FLOOR))


def _upwards(T: Tensor, like: Tensor, summands: int = 0) -> Tensor:
    """T enlarged by more than rounding T and applying W can cost the bound.

    Args:
        summands: of the inner products in T, whose rounding errors grow with their root.
    """
    rounding = (16 + math.sqrt(summands)) * torch.finfo(like.dtype).eps
    if like.dtype == torch.float32:
        rounding += coarse()
    return T * (1 + rounding)
