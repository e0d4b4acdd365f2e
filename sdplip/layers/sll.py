"""SDP-based Lipschitz layers: the residual layer with T from scaled Gershgorin discs [ARAUJO]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import Activation
from ._base import wide
from ._geometry import Pair
from ._products import Dominated, check_products
from ._residual import ResidualLayer, residual
from ._residual_conv import ResidualConv
from .closed_forms import gershgorin


def witness(W: Tensor, log_q: Tensor | None = None) -> dict[str, Tensor]:
    """Every symbol of the residual condition from arbitrary W (*batch, m, n), log q (*batch, n)."""
    return residual(W, gershgorin(W, log_q))


class SLLLinear(Dominated, ResidualLayer):
    """x ↦ x - 2WT⁻¹σ(Wᵀx + b) with T_i = Σ_j |WᵀW|_ij q_j / q_i is 1-Lipschitz; slopes in [0, 1].

    q > 0 is learned through its logarithm `log_q` (hidden,), zero at first. With ReLU it adds
    nothing that W cannot do, since ReLU(qv) = q ReLU(v); other activations are not homogeneous.

    Args:
        features: width of input and output.
        hidden: units; default `features`.
        activation: a name, or an `Activation`, with slopes in [0, 1].
        products: "exact" or "bfloat16", how WᵀW is computed: the bound holds for both, T and its
            cost differ as `closed_forms.dominated` says.

    Raises:
        InvalidInput: slopes outside [0, 1], unknown products.

    Source: Araujo, Havens, Delattre, Allauzen, Hu, A unified algebraic perspective on Lipschitz
    neural networks (ICLR 2023).
    """

    scaled = True

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        bias: bool = True,
        *,
        activation: str | Activation = "relu",
        products: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.products = check_products(type(self).__name__, products)
        super().__init__(features, hidden, bias, activation=activation, device=device, dtype=dtype)

    def _multiplier(self, W: Tensor) -> Tensor:
        return gershgorin(W, wide(self.log_q), products=self.products)


class SLLConv2d(Dominated, ResidualConv):
    """x ↦ Hx - 2VT⁻¹σ(VᵀHx + b), T_i = Σ_j |V⋆V|_ij q_j / q_i, is 1-Lipschitz for images of every
    size.

    V is a convolution, and the sum is over channels and shifts; H is the identity or, for other
    channels or a stride, see `ResidualConv`. q > 0 is learned as in `SLLLinear`, one number for
    every channel of units, and neither cancels nor broadcasts over taps. Arguments as in
    `ResidualConv`, and products as in `SLLLinear`, cheaper in bfloat16 for hundreds of channels.
    """

    scaled = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = "same",
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        hidden: int | None = None,
        activation: str | Activation = "relu",
        products: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.products = check_products(type(self).__name__, products)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            hidden=hidden,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    def _multiplier(self, V: Tensor) -> Tensor:
        log_q = wide(self.log_q).view(V.shape[0], V.shape[2])
        return gershgorin(V, log_q, taps=2, products=self.products)
