"""SDP-based Lipschitz layers: the residual layer with T from scaled Gershgorin discs [ARAUJO]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..activations import Activation
from ._base import wide
from ._residual import ResidualLayer, residual
from .closed_forms import gershgorin


def witness(W: Tensor, log_q: Tensor | None = None) -> dict[str, Tensor]:
    """Every symbol of the residual condition from arbitrary W (*batch, m, n), log q (*batch, n)."""
    return residual(W, gershgorin(W, log_q))


class SLLLinear(ResidualLayer):
    """x ↦ x - 2WT⁻¹σ(Wᵀx + b) with T_i = Σ_j |WᵀW|_ij q_j / q_i is 1-Lipschitz; slopes in [0, 1].

    q > 0 is learned through its logarithm `log_q` (hidden,), zero at first. With ReLU it adds
    nothing that W cannot do, since ReLU(qv) = q ReLU(v); other activations are not homogeneous.

    Args:
        features: width of input and output.
        hidden: units; default `features`.
        activation: a name, or an `Activation`, with slopes in [0, 1].

    Raises:
        InvalidInput: slopes outside [0, 1].

    Source: Araujo, Havens, Delattre, Allauzen, Hu, A unified algebraic perspective on Lipschitz
    neural networks (ICLR 2023).
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        bias: bool = True,
        *,
        activation: str | Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, hidden, bias, activation=activation, device=device, dtype=dtype)
        self.log_q = nn.Parameter(torch.zeros(self.hidden, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "log_q"):
            nn.init.zeros_(self.log_q)

    def _multiplier(self, W: Tensor) -> Tensor:
        return gershgorin(W, wide(self.log_q))
