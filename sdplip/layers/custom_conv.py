"""Bases of convolutional layers that derivations emit: one kernel, one number per channel.

An ansatz made of one free matrix W, diagonals and T ⪰ WᵀW by diagonal dominance has a meaning for a
convolution W: diagonals become one number per channel, and Σ_j |WᵀW|_ij sums the absolute values of
the kernel's autocorrelation over channels and shifts. That holds on a torus; with zero padding W is
the torus' operator between an embedding and a crop, so WᵀW only gets smaller.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..activations import Activation, activation
from ..errors import InvalidInput
from ..system import System
from ._base import check_size, fill_uniform, numpy, undefined
from ._conv import ConvLayer, unit_images
from ._geometry import Geometry, Pair
from .closed_forms import dominated
from .custom import ClosedForm, residual_system


def scale(d: Tensor, x: Tensor) -> Tensor:
    """One number per channel times x."""
    return d[:, None, None] * x


def dominant_channels(W: Tensor, q: Tensor | None = None) -> Tensor:
    """T_c = Σ_{c', shifts} |W⋆W|_{c,c'} q_c' / q_c, rounded upwards: T ⪰ WᵀW for all images."""
    return dominated(W, q, taps=2)


class ClosedFormConv2d(ClosedForm, ConvLayer):
    """What the bases below share: a map of images with stride 1, which keeps their size.

    Sizes of `free` are also the kernel's, kernel_height and kernel_width.
    """

    _returned = ("rho",)

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Pair, padding_mode: str
    ) -> None:
        owner = type(self).__name__
        geometry = Geometry.of(owner, kernel_size, 1, "same", 1, 1, padding_mode, {})
        super().__init__(in_channels, out_channels, geometry)

    def _create(
        self,
        units: dict[str, int],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Register the parameters of `free`, and a bias per unit or else per output."""
        sizes = {"in_features": self.in_channels, "out_features": self.out_channels, **units}
        height, width = self.geometry.kernel_size
        self._register(sizes | {"kernel_height": height, "kernel_width": width}, device, dtype)
        biases = torch.empty([*sizes.values()][-1], device=device, dtype=dtype)
        self.bias = nn.Parameter(biases) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernels with variance 1/(larger side · taps); vectors start at zero."""
        super().reset_parameters()
        taps = self.geometry.kernel_size[0] * self.geometry.kernel_size[1]
        fill_uniform(self.bias, fan_in=self.in_channels * taps)

    def _fill(self, parameter: nn.Parameter) -> None:
        taps = parameter[0, 0].numel()
        nn.init.normal_(parameter, std=(max(parameter.shape[:2]) * taps) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        self.geometry.check(type(self).__name__, (x.shape[-2], x.shape[-1]))
        y = self._map(self._applied(x.dtype), x if x.ndim == 4 else x.unsqueeze(0))
        return y if x.ndim == 4 else y.squeeze(0)

    def convolve(self, W: Tensor, x: Tensor) -> Tensor:
        """Wx for a kernel W (rows, columns, k₁, k₂) and x (N, columns, height, width)."""
        return self.geometry.convolve(W, x)

    def adjoint(self, W: Tensor, x: Tensor) -> Tensor:
        """Wᵀx for a kernel W (rows, columns, k₁, k₂) and x (N, rows, height, width)."""
        return self.geometry.transpose(W, x, (x.shape[-2], x.shape[-1]))

    def _applied(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: value.to(dtype) for name, value in self._current().items()}

    def _map(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        """The map of images (N, in_channels, height, width)."""
        raise undefined(self, "_map", "the output for images x, of the symbols w")

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias[:, None, None]

    def _biases(self, image: Pair) -> Any:
        return None if self.bias is None else np.repeat(numpy(self.bias), image[0] * image[1])

    def _rounding(self) -> float:
        if self._half:
            raise InvalidInput(
                f"{type(self).__name__}: no bound is kept in half precision, whose rounding of "
                "kernels nothing counts. Convert the layer with float()."
            )
        return 0.0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}"


class ClosedFormLinearConv2d(ClosedFormConv2d):
    """x ↦ Dx + b, with a method `linear` for D.

    Args:
        in_channels, out_channels, kernel_size, bias: as in nn.Conv2d, with padding "same".
        padding_mode: "zeros" or "circular"; the bound holds for both and every image size.
    """

    condition = "linear"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding_mode)
        self._create({}, bias, device, dtype)

    def linear(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        """Dx for images x (N, in_channels, height, width), of the symbols w."""
        raise undefined(self, "linear", "Dx for images x, of the symbols w")

    def _map(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        return self._biased(self.linear(w, x))

    def _unrolled(self, image: Pair) -> System:
        with torch.no_grad():
            w = self._applied(torch.float64)
            D = self.linear(w, unit_images(w["rho"], self.in_channels, *image))
        return System.linear(numpy(D.flatten(1).mT), self._biases(image))


class ClosedFormResidualConv2d(ClosedFormConv2d):
    """x ↦ Hx + Gσ(Wᵀx + b), with methods `drive` for Wᵀ and `read` for H and G.

    Args:
        in_channels, ..., padding_mode: as in `ClosedFormLinearConv2d`.
        hidden: channels of the units; default out_channels.
        activation: a name, or an `Activation`.

    Attributes:
        square: whether out_channels must be in_channels.
    """

    condition = "residual"
    square: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        hidden: int | None = None,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        activation: str | Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding_mode)
        owner = type(self).__name__
        if self.square and in_channels != out_channels:
            raise InvalidInput(
                f"{owner}: out_channels = {out_channels}, but a residual layer has as many as "
                f"in_channels = {in_channels}."
            )
        self.hidden = out_channels if hidden is None else hidden
        check_size(owner, "hidden", self.hidden)
        self.activation = self._accepted(activation)
        self._create({"hidden": self.hidden}, bias, device, dtype)

    def drive(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        """Wᵀx for images x (N, in_channels, height, width), of the symbols w."""
        raise undefined(self, "drive", "Wᵀx for images x, of the symbols w")

    def read(self, w: dict[str, Tensor], x: Tensor, z: Tensor) -> Tensor:
        """Hx + Gz for images x and units z (N, hidden, height, width), of the symbols w."""
        raise undefined(self, "read", "Hx + Gz for images x and units z, of the symbols w")

    def _map(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        z = activation(self.activation)(self._biased(self.drive(w, x)))
        return self.read(w, x, z)

    def _unrolled(self, image: Pair) -> System:
        with torch.no_grad():
            w = self._applied(torch.float64)
            x = unit_images(w["rho"], self.in_channels, *image)
            z = unit_images(w["rho"], self.hidden, *image)
            W = self.drive(w, x)
            H, G = self.read(w, x, 0 * W), self.read(w, x.new_zeros(len(z), *x.shape[1:]), z)
        H, G, W = (numpy(M.flatten(1)) for M in (H, G, W))
        return residual_system(H.T, G.T, W, self._biases(image), self.activation)

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"activation": activation(self.activation).name}

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, hidden={self.hidden}, "
            f"activation={activation(self.activation).name}"
        )
