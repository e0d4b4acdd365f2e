"""Orthogonal layers: QᵀQ = I or QQᵀ = I, by the Cayley map or the matrix exponential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidInput
from ._base import fill_normal, fill_uniform, saturate, wide
from ._linear import LinearLayer

Map = Literal["cayley", "matrix_exp"]

LIMIT = 10.0
"""Free weights saturate at Frobenius norm LIMIT·√k, k the smaller side. Larger ones add nothing:
Cayley rotations reach 2·atan(LIMIT) in every plane at once, the exponential repeats after π√k."""


def witness(X: Tensor, map: Map = "cayley") -> dict[str, Tensor]:
    """D = Q(X) with orthonormal columns (or rows, where these are fewer), hence DᵀD ⪯ I.

    Args:
        X: (*batch, p, m), arbitrary.
        map: "cayley", Q = [(I + A)⁻¹(I - A); -2V(I + A)⁻¹] with X = [U; V], A = U - Uᵀ + VᵀV, or
            "matrix_exp", the first columns of exp [U - Uᵀ, -Vᵀ; V, 0].

    Returns:
        D (*batch, p, m), orthonormal to rounding in X's dtype, and rho.

    Source: Trockman, Kolter (ICLR 2021) and Wang, Manchester (ICML 2023) for the Cayley map of
    rectangular matrices; Lezcano-Casado, Martínez-Rubio (ICML 2019) for the exponential.
    """
    return {"D": semi_orthogonal(X, map), "rho": X.new_ones(())}


def semi_orthogonal(X: Tensor, map: Map = "cayley") -> Tensor:
    """Q(X) of `witness`."""
    lying = X.shape[-2] < X.shape[-1]
    Y = (X.mT if lying else X).double()
    Q = _refined(_MAPS[map](saturate(Y, LIMIT * Y.shape[-1] ** 0.5)))
    return (Q.mT if lying else Q).to(X.dtype)


class OrthogonalLinear(LinearLayer):
    """x ↦ Qx + b with Q orthogonal keeps distances (in_features ≤ out_features) or is a projection.

    Q has determinant 1 where it is square. It is computed in float64 for every dtype.

    Args:
        map: "cayley" (one solve of the smaller side) or "matrix_exp" (of the larger side).

    Raises:
        InvalidInput: another map.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        map: Map = "cayley",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if map not in _MAPS:
            raise InvalidInput(
                f"OrthogonalLinear: map = {map!r}, but must be one of {', '.join(get_args(Map))}."
            )
        super().__init__(in_features, out_features, bias, device, dtype)
        self.map = map

    def reset_parameters(self) -> None:
        """Draw variance 1/k, k the larger side: a rectangular Q then spreads over all its entries,
        where 1/k for the smaller side would leave it close to [-I; 0]."""
        fill_normal(self.weight)
        fill_uniform(self.bias, fan_in=self.in_features)

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"map": self.map}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, map={self.map}"

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight), self.map)


def _halves(X: Tensor) -> tuple[Tensor, Tensor]:
    U, V = X.split([X.shape[-1], X.shape[-2] - X.shape[-1]], dim=-2)
    return U - U.mT, V


def _cayley(X: Tensor) -> Tensor:
    S, V = _halves(X)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    R = torch.linalg.inv(identity + S + V.mT @ V)
    return torch.cat([2 * R - identity, -2 * V @ R], dim=-2)


def _matrix_exp(X: Tensor) -> Tensor:
    S, V = _halves(X)
    corner = X.new_zeros(*X.shape[:-2], V.shape[-2], V.shape[-2])
    skew = torch.cat([torch.cat([S, V], dim=-2), torch.cat([-V.mT, corner], dim=-2)], dim=-1)
    return torch.matrix_exp(skew)[..., : X.shape[-1]]


def _refined(Q: Tensor) -> Tensor:
    """Q after one Newton–Schulz step, which squares its distance from orthogonality.

    The step is a correction of rounding errors: the derivative stays that of the exact map.
    """
    P = Q.detach()
    identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return Q + P @ (identity - P.mT @ P) / 2


_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"cayley": _cayley, "matrix_exp": _matrix_exp}
