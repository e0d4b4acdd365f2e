"""Convex potential layers: the residual layer with T = ‖W‖₂² I [CPL]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import Activation
from ._geometry import Pair
from ._residual import ResidualLayer, residual
from ._residual_conv import ResidualConv
from ._spectrum import check_frequencies, enough
from .closed_forms import spectral


def witness(W: Tensor) -> dict[str, Tensor]:
    """Every symbol of the residual condition from an arbitrary W (*batch, m, n)."""
    return residual(W, spectral(W))


class CPLLinear(ResidualLayer):
    """x ↦ x - (2 / ‖W‖₂²) W σ(Wᵀx + b) is 1-Lipschitz for σ with slopes in [0, 1].

    One gradient step on a convex potential. The norm is that of
    `SpectralLinear`, stateless: the same in training and evaluation.

    Args:
        features: width of input and output.
        hidden: units; default `features`.
        activation: a name, or an `Activation`, with slopes in [0, 1].

    Raises:
        InvalidInput: slopes outside [0, 1].

    Source: Meunier, Delattre, Araujo, Allauzen, A dynamical system perspective for Lipschitz neural
    networks (ICML 2022).
    """

    def _multiplier(self, W: Tensor) -> Tensor:
        return spectral(W)


class CPLConv2d(ResidualConv):
    """x ↦ Hx - 2VT⁻¹σ(VᵀHx + b), T = ‖V‖₂² per group, is 1-Lipschitz for images of every size.

    V is a convolution, H the identity or, for other channels or a stride, see `ResidualConv`.
    The norm is that of `SpectralConv2d`, of the operator on the plane, which no image size exceeds.

    Args:
        frequencies: as for `SpectralConv2d`; T exceeds ‖V‖₂² by at most 3.6 % for 12, 15 % for 6.

    Raises:
        InvalidInput: as `ResidualConv`; fewer than 2 frequencies.
    """

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
        frequencies: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.frequencies = check_frequencies(type(self).__name__, frequencies)
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
        return spectral(V, 2, self.frequencies or enough(V))

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"frequencies": str(self.frequencies)}
