"""The base of convolutional layers that derivations emit: one kernel, one number per channel.

An ansatz made of one free matrix W, diagonals and T ⪰ WᵀW by diagonal dominance has a meaning for a
convolution W: diagonals become one number per channel, and Σ_j |WᵀW|_ij sums the absolute values of
the kernel's autocorrelation over channels and shifts. That holds on a torus; with zero padding W is
the torus' operator between an embedding and a crop, so WᵀW only gets smaller.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activations import Activation, activation
from ..errors import InvalidInput, ShapeError
from ._base import check_floating, check_size, fill_uniform
from ._geometry import Padding
from .closed_forms import dominated
from .custom import ClosedForm


def convolve(W: Tensor, x: Tensor, padding: Padding) -> Tensor:
    """Wx for a kernel W (rows, columns, k, k) with odd k and x (N, columns, height, width)."""
    around = W.shape[-1] // 2
    if padding == "circular":
        x = F.pad(x, [around] * 4, mode="circular")
        return F.conv2d(x, W)
    return F.conv2d(x, W, padding=around)


def adjoint(W: Tensor) -> Tensor:
    """The kernel of Wᵀ."""
    return W.transpose(0, 1).flip(-1, -2)


def scale(d: Tensor, x: Tensor) -> Tensor:
    """One number per channel times x."""
    return d[:, None, None] * x


def dominant_channels(W: Tensor, q: Tensor | None = None) -> Tensor:
    """T_c = Σ_{c', shifts} |W⋆W|_{c,c'} q_c' / q_c, rounded upwards: T ⪰ WᵀW for all images."""
    return dominated(W, q, taps=2)


class ClosedFormConv2d(ClosedForm):
    """A map of images (N, in_channels, height, width) with stride 1, which keeps their size.

    Args:
        in_channels, out_channels: of the images.
        kernel_size: odd.
        hidden: channels of the units, for residual layers.
        padding_mode: "zeros" or "circular"; the bound holds for both and every image size.
    """

    square: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        hidden: int | None = None,
        bias: bool = True,
        *,
        padding_mode: Padding = "zeros",
        activation: str | Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels)
        owner = type(self).__name__
        if self.square and in_channels != out_channels:
            raise InvalidInput(
                f"{owner}: out_channels = {out_channels}, but a residual layer has as many as "
                f"in_channels = {in_channels}."
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InvalidInput(f"{owner}: kernel_size = {kernel_size}, but must be odd.")
        if padding_mode not in get_args(Padding):
            raise InvalidInput(
                f"{owner}: padding_mode = {padding_mode!r}, but the bound holds for zeros and "
                "circular only."
            )
        self.hidden = out_channels if hidden is None else hidden
        check_size(owner, "hidden", self.hidden)
        self.kernel_size, self.padding_mode = kernel_size, padding_mode
        self.activation = self._accepted(activation)
        sizes = {
            "in_features": in_channels,
            "out_features": out_channels,
            "hidden": self.hidden,
            "kernel": kernel_size,
        }
        self._register(sizes, device, dtype)
        self.bias = (
            nn.Parameter(torch.empty(self.hidden, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernels with variance 1/(larger side · k²); vectors start at zero."""
        for name in self.free:
            parameter = getattr(self, name)
            if parameter.ndim == 4:
                fan = max(parameter.shape[:2]) * self.kernel_size**2
                nn.init.normal_(parameter, std=fan**-0.5)
            else:
                nn.init.zeros_(parameter)
        fill_uniform(self.bias, fan_in=self.in_features * self.kernel_size**2)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_features}, out_channels={self.out_features}, "
            f"kernel_size={self.kernel_size}, hidden={self.hidden}, "
            f"bias={self.bias is not None}, padding_mode={self.padding_mode}, "
            f"activation={activation(self.activation).name}"
        )

    def _options(self) -> dict[str, str | float]:
        own = {"activation": activation(self.activation).name, "padding_mode": self.padding_mode}
        return super()._options() | own

    def _promise(self) -> float:
        if self._half:
            raise InvalidInput(
                f"{type(self).__name__}: no bound is kept in half precision, whose rounding of "
                "kernels nothing counts. Convert the layer with float()."
            )
        return math.sqrt(self._tensors()["rho"].detach().double())

    def _system(self) -> Any:
        raise InvalidInput(
            f"{type(self).__name__}: a convolution is a system only for one size of images; its "
            "bound is the attribute lipschitz."
        )

    def _check(self, x: Tensor) -> None:
        check_floating(type(self).__name__, x)
        if x.ndim != 4 or x.shape[1] != self.in_features:
            raise ShapeError(
                f"{type(self).__name__}: the input has shape {tuple(x.shape)}, but must be "
                f"(N, {self.in_features}, height, width)."
            )
