"""SDP-based Lipschitz layers: the residual layer with T from scaled Gershgorin discs [ARAUJO]."""

from torch import Tensor

from ._base import wide
from ._residual import ResidualLayer, residual
from ._residual_conv import ResidualConv
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

    scaled = True

    def _multiplier(self, W: Tensor) -> Tensor:
        return gershgorin(W, wide(self.log_q))


class SLLConv2d(ResidualConv):
    """`ResidualConv` with T_i = Σ_j |V⋆V|_ij q_j / q_i, summed over channels and shifts.

    1-Lipschitz for images of every size. q > 0 is learned as in `SLLLinear`, one number for every
    channel of units, and neither cancels nor broadcasts over taps.
    """

    scaled = True

    def _multiplier(self, V: Tensor) -> Tensor:
        return gershgorin(V, wide(self.log_q).view(V.shape[0], V.shape[2]), taps=2)
