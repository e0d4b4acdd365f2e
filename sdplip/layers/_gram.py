"""Diagonal T with T ⪰ WᵀW: from the largest eigenvalue, or from Gershgorin's discs."""

import torch
from torch import Tensor

from ._base import soft_bound

FLOOR = 1e-12
"""A T below it is raised to it: a larger T is as sound, a smaller one overflows as 1/T."""

SPREAD = 5.0
"""|log q| stays below: only ratios of q matter, and e^10 between two of them is plenty."""


def normalised(W: Tensor) -> Tensor:
    """W / max|W|: x ↦ W T^{-1/2} x is the same map, and its squares neither over- nor underflow."""
    scale = W.detach().abs().amax(dim=(-2, -1), keepdim=True)
    return W / torch.where(scale > 0, scale, 1)


def spectral(W: Tensor) -> Tensor:
    """‖W‖₂² = ‖Wv‖², v the top eigenvector of the smaller Gram matrix, rounded upwards.

    An error in v enters squared, so this is as good as the eigenvalue; computed in float64. The
    gradient holds v fixed: exact where the largest singular value is simple, a subgradient and
    finite where it is not. Second derivatives leave out the motion of v.

    Args:
        W: (*batch, rows, columns).

    Returns:
        (*batch,), zero for W = 0, NaN where WᵀW is not finite.
    """
    X = W.double()
    X = X if X.shape[-2] >= X.shape[-1] else X.mT
    with torch.no_grad():
        G = X.mT @ X
        finite = G.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
        # eigh raises on NaN, where forward is to return NaN as nn.Linear does.
        v = torch.linalg.eigh(G.where(finite, 0)).eigenvectors[..., -1:].where(finite, torch.nan)
    return _upwards((X @ v).square().sum(dim=(-2, -1)), W).to(W.dtype)


def gershgorin(W: Tensor, log_q: Tensor | None = None) -> Tensor:
    """T_i = Σ_j |WᵀW|_ij q_j / q_i, rounded upwards: T - WᵀW is diagonally dominant, q > 0.

    Args:
        W: (*batch, rows, columns).
        log_q: (*batch, columns); None is q = 1. Only differences matter, large ones saturate.

    Returns:
        (*batch, columns), at least FLOOR, and 1 where a column is zero (any T is valid there).

    Source: [ARAUJO], the SDP-based Lipschitz layer; q = 1 is [AOL] Theorem 1.
    """
    G = (W.mT @ W).abs()
    if log_q is None:
        T = G.sum(dim=-1)
    else:
        q = soft_bound(log_q - log_q.mean(dim=-1, keepdim=True), SPREAD).exp()
        T = (G @ q.unsqueeze(-1)).squeeze(-1) / q
    return torch.where(T == 0, 1, _upwards(T, W).clamp(min=FLOOR))


def _upwards(T: Tensor, like: Tensor) -> Tensor:
    """T enlarged by more than rounding T and applying W can cost the bound."""
    return T * (1 + 16 * torch.finfo(like.dtype).eps)
