"""Products with the Cayley map of a matrix, without forming it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._base import LIMIT

Factors = tuple[Tensor, Tensor, Tensor]

THIN = 128
"""Sides from which on forming Q costs more than solving for small batches."""


def halves(X: Tensor) -> tuple[Tensor, Tensor]:
    """U - Uᵀ and V for a standing X = [U; V]."""
    U, V = X.split([X.shape[-1], X.shape[-2] - X.shape[-1]], dim=-2)
    return U - U.mT, V


def worthwhile(layer: nn.Module, weight: Tensor, x: Tensor) -> bool:
    """Whether Q of a layer's weight is not worth forming: it would neither be kept nor rounded, and
    x is a small batch. Transformations of functions are left to products with Q, which vmap does
    not repeat for every sample."""
    side = min(weight.shape)
    if side < THIN or x.numel() > side * x.shape[-1] or type(weight) is not nn.Parameter:
        return False
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    if not (layer.training or (torch.is_grad_enabled() and weight.requires_grad)):
        return False
    compiling = torch.compiler.is_compiling()
    return compiling or not torch._C._functorch.is_functorch_wrapped_tensor(x)


def rotated(X: Tensor, x: Tensor, solved: Factors | None = None) -> Tensor:
    """Q(X)x by the Cayley map without forming Q: one LU factorisation and two triangular solves.

    For a standing X = [U; V] and M = I + U - Uᵀ + VᵀV it is y = [2z - x; -2Vz] with Mz = x; for a
    lying one its adjoint. As ‖y‖² = ‖x‖² - 4zᵀ(x - Mz) and ‖z‖ ≤ ‖x‖, the excess is the residual
    of z, which is of the size of rounding for every X. The derivative by X is an outer product of
    as many columns as there are x.

    Args:
        X: (p, m), saturated as `bounded` does. x: (..., m).
        solved: `factorised` of X or of its transpose.

    Returns:
        (..., p) in x's dtype, computed in float64.
    """
    solved = factorised(X) if solved is None else solved
    y = _Rotation.apply(X, x.reshape(-1, X.shape[1]), *solved)[0]
    return y.reshape(*x.shape[:-1], len(X))


@torch.no_grad()
def factorised(X: Tensor) -> Factors:
    """LU factors and pivots of M as `rotated` defines it for X (p, m), and how X is scaled."""
    X = X.detach()
    scale = _scale(X)
    Y = _scaled(X, scale)
    S, V = halves(Y.mT if _lying(X) else Y)
    # LAPACK's order of entries is that of the transpose.
    N = S.neg().double()
    N.diagonal().add_(1)
    if len(V):
        V = V.double()
        N.addmm_(V.mT, V)
    factors, pivots, _ = torch.linalg.lu_factor_ex(N.mT)
    return factors, pivots, scale


class _Rotation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        X: Tensor, x: Tensor, factors: Tensor, pivots: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        columns, V = x.double().mT, _below(_scaled(X, scale)).double()
        if _lying(X):
            top, bottom = columns.tensor_split([len(X)])
            z = torch.linalg.lu_solve(factors, pivots, top - V.mT @ bottom, adjoint=True)
            y = 2 * z - top
        else:
            z = torch.linalg.lu_solve(factors, pivots, columns)
            y = torch.cat([2 * z - columns, -2 * V @ z])
        return y.mT.to(x.dtype), z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        X, x, factors, pivots, scale, z = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = [i for i in (0, 1) if ctx.needs_input_grad[i]]
            found = torch.autograd.grad(
                _composed(X, x), [(X, x)[i] for i in needed], g, create_graph=True
            )
            first, second = (found[needed.index(i)] if i in needed else None for i in (0, 1))
            return first, second, None, None, None
        Y = _scaled(X, scale)
        V = _below(Y)
        columns, top = x.double().mT, g.double().mT
        # M's derivative is -left rightᵀ, that of V besides direct sideᵀ.
        if _lying(X):
            w = torch.linalg.lu_solve(factors, pivots, 2 * top)
            dx = torch.cat([w - top, -V.double() @ w])
            left, right, direct, side = z, w, -columns[len(X) :], w
        else:
            top, bottom = top.tensor_split([X.shape[1]])
            w = torch.linalg.lu_solve(
                factors, pivots, 2 * (top - V.double().mT @ bottom), adjoint=True
            )
            dx = w - top
            left, right, direct, side = w, z, -2 * bottom, z
        dX = None
        if ctx.needs_input_grad[0]:
            left, right, direct, side = (t.to(X.dtype) for t in (left, right, direct, side))
            # Of U it is rightᵀleft less its transpose; all of it as one product each.
            above = torch.cat([right, -left], dim=1) @ torch.cat([left, right], dim=1).mT
            outer = torch.cat([direct, -V @ left, -V @ right], dim=1)
            below = outer @ torch.cat([side, right, left], dim=1).mT
            dY = torch.cat([above, below])
            dY = dY.mT if _lying(X) else dY
            if Y is not X:
                # The scale falls with the norm where it is not 1.
                along = torch.where(scale < 1, (Y * dY).sum() / _limit(X) ** 2, 0)
                dY = scale * (dY - along * Y)
            dX = dY
        return dX, dx.mT.to(x.dtype), None, None, None


def _composed(X: Tensor, x: Tensor) -> Tensor:
    """The same by operations that PyTorch differentiates."""
    Y = (X * _scale(X)).double()
    S, V = halves(Y.mT if _lying(X) else Y)
    M = torch.eye(len(S), dtype=Y.dtype, device=Y.device) + S + V.mT @ V
    columns = x.double().mT
    if _lying(X):
        top, bottom = columns.tensor_split([len(M)])
        y = 2 * torch.linalg.solve(M.mT, top - V.mT @ bottom) - top
    else:
        z = torch.linalg.solve(M, columns)
        y = torch.cat([2 * z - columns, -2 * V @ z])
    return y.mT.to(x.dtype)


def _below(Y: Tensor) -> Tensor:
    """V of the standing matrix."""
    return (Y.mT if _lying(Y) else Y)[min(Y.shape) :]


def _lying(X: Tensor) -> bool:
    return X.shape[0] < X.shape[1]


def _limit(X: Tensor) -> float:
    return LIMIT * min(X.shape) ** 0.5


def _scale(X: Tensor) -> Tensor:
    # Relative to the largest entry, whose square may overflow.
    peak = torch.linalg.vector_norm(X.detach(), ord=torch.inf)
    peak = torch.where(peak > 0, peak, 1)
    norm = torch.linalg.vector_norm(X / peak).double() * peak.double()
    return (_limit(X) / norm.clamp(min=_limit(X))).to(X.dtype)


def _scaled(X: Tensor, scale: Tensor) -> Tensor:
    """X·scale, which is X itself for most; compilers cannot tell."""
    return X * scale if torch.compiler.is_compiling() or bool(scale < 1) else X
