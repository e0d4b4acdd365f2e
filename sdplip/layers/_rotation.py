"""Products with the Cayley map of a matrix, without forming it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LIMIT = 10.0
"""Free weights saturate at Frobenius norm LIMIT·√k, k the smaller side. Larger ones add nothing:
Cayley rotations reach 2·atan(LIMIT) in every plane at once, the exponential repeats after π√k."""


def halves(X: Tensor) -> tuple[Tensor, Tensor]:
    """U - Uᵀ and V for a standing X = [U; V]."""
    U, V = X.split([X.shape[-1], X.shape[-2] - X.shape[-1]], dim=-2)
    return U - U.mT, V


def rotated(X: Tensor, x: Tensor) -> Tensor:
    """Q(X)x by the Cayley map without forming Q: one LU factorisation and two triangular solves.

    For a standing X = [U; V] and M = I + U - Uᵀ + VᵀV it is y = [2z - x; -2Vz] with Mz = x; for a
    lying one its adjoint. As ‖y‖² = ‖x‖² - 4zᵀ(x - Mz) and ‖z‖ ≤ ‖x‖, the excess is the residual
    of z, which is of the size of rounding for every X. The derivative by X is an outer product of
    as many columns as there are x.

    Args:
        X: (p, m), saturated at LIMIT. x: (..., m).

    Returns:
        (..., p) in x's dtype, computed in float64.
    """
    y = _Rotation.apply(X, x.reshape(-1, X.shape[1]))[0]
    return y.reshape(*x.shape[:-1], len(X))


class _Rotation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        scale = _scale(X)
        Y = X * scale
        S, V = halves(Y.mT if _lying(X) else Y)
        # LAPACK's order of entries is that of the transpose.
        N = S.neg().double()
        N.diagonal().add_(1)
        V = V.double()
        if len(V):
            N += V.mT @ V
        factors, pivots, _ = torch.linalg.lu_factor_ex(N.mT)
        columns = x.double().mT
        if _lying(X):
            top, bottom = columns.tensor_split([len(N)])
            z = torch.linalg.lu_solve(factors, pivots, top - V.mT @ bottom, adjoint=True)
            y = 2 * z - top
        else:
            z = torch.linalg.lu_solve(factors, pivots, columns)
            y = torch.cat([2 * z - columns, -2 * V @ z])
        return y.mT.to(x.dtype), scale, z, factors, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        X, x, scale, z, factors, pivots = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = [i for i in (0, 1) if ctx.needs_input_grad[i]]
            found = torch.autograd.grad(
                _composed(X, x), [(X, x)[i] for i in needed], g, create_graph=True
            )
            return tuple(found[needed.index(i)] if i in needed else None for i in (0, 1))
        Y = X * scale
        n = min(X.shape)
        V = (Y.mT if _lying(X) else Y)[n:].double()
        columns, top = x.double().mT, g.double().mT
        if _lying(X):
            w = torch.linalg.lu_solve(factors, pivots, 2 * top)
            dx = torch.cat([w - top, -V @ w])
            # M's derivative is -left rightᵀ, that of V besides direct wᵀ, or direct zᵀ.
            left, right, direct = z, w, -columns[n:]
        else:
            top, bottom = top.tensor_split([n])
            w = torch.linalg.lu_solve(factors, pivots, 2 * (top - V.mT @ bottom), adjoint=True)
            dx = w - top
            left, right, direct = w, z, -2 * bottom
        dX = None
        if ctx.needs_input_grad[0]:
            below = direct @ (w if _lying(X) else z).mT
            below = below - (V @ left) @ right.mT - (V @ right) @ left.mT
            # Of U - Uᵀ it is rightᵀleft less its transpose, as one product.
            first = torch.cat([right, -left], dim=1).to(X.dtype)
            second = torch.cat([left, right], dim=1).to(X.dtype)
            dY = torch.cat([first @ second.mT, below.to(X.dtype)])
            dY = dY.mT if _lying(X) else dY
            # The scale falls with the norm where it is not 1.
            along = torch.where(scale < 1, (Y * dY).sum() / _limit(X) ** 2, 0)
            dX = scale * (dY - along * Y)
        return dX, dx.mT.to(x.dtype)


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


def _lying(X: Tensor) -> bool:
    return X.shape[0] < X.shape[1]


def _limit(X: Tensor) -> float:
    return LIMIT * min(X.shape) ** 0.5


def _scale(X: Tensor) -> Tensor:
    # In float64, where squares of float32 do not overflow.
    norm = torch.linalg.vector_norm(X, dtype=torch.double)
    return (_limit(X) / norm.clamp(min=_limit(X))).to(X.dtype)
