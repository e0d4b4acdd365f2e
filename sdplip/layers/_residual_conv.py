"""Residual convolutions y = Hx - 2VT⁻¹σ(VᵀHx + b) with a diagonal T ⪰ VᵀV and HᵀH ⪯ I."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._tensors import HALVES
from ..activations import Activation, activation
from ..errors import ShapeError
from ..system import System
from ._base import check_size, fill_uniform, numpy, slopes_in_unit_interval, undefined, wide
from ._conv import ConvLayer, norm_estimate, per_group, unit_images
from ._geometry import Geometry, Pair, pair
from ._plain import adjoint, convolution, summed
from .orthogonal import semi_orthogonal


class ResidualConv(ConvLayer):
    """A residual convolution with free `weight` = Vᵀ (hidden, out_channels / groups, k₁, k₂), whose
    subclass gives T.

    With as many channels out as in and stride 1, H is the identity. Otherwise H maps patches of
    stride₁ × stride₂ pixels, which do not overlap, by a semi-orthogonal matrix of the free `skip`
    (out_channels, in_channels, stride₁, stride₂), and V acts on the smaller images that it gives;
    rows and columns of pixels that fill no patch are dropped. With W = HᵀV, G = -2VT⁻¹ and
    Λ = 2T⁻¹ the residual condition holds: its off-diagonal block -HᵀG - WΛ vanishes.

    Args:
        in_channels, ..., padding_mode: as in nn.Conv2d; padding, dilation and groups are V's.
        hidden: channels of the units; default out_channels.
        activation: a name, or an `Activation`, with slopes in [0, 1].

    Attributes:
        scaled: whether T depends on weights q > 0 of the units, through `log_q` (hidden,).

    Raises:
        InvalidInput: slopes outside [0, 1], padding that repeats pixels, groups that do not divide.

    Source: [ARAUJO] Theorem 3; derivations/strided.py for H other than I.
    """

    condition = "residual"
    scaled: ClassVar[bool] = False

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        owner = type(self).__name__
        hidden = out_channels if hidden is None else hidden
        check_size(owner, "hidden", hidden)
        super().__init__(
            in_channels,
            out_channels,
            Geometry.of(
                owner,
                kernel_size,
                1,
                padding,
                dilation,
                groups,
                padding_mode,
                {"hidden": hidden, "out_channels": out_channels},
            ),
        )
        self.hidden, self.stride = hidden, pair(owner, "stride", stride)
        self.activation = slopes_in_unit_interval(owner, activation)

        def free(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = free(hidden, out_channels // groups, *self.geometry.kernel_size)
        self.bias = free(hidden) if bias else None
        plain = self.stride == (1, 1) and in_channels == out_channels
        self.skip = None if plain else free(out_channels, in_channels, *self.stride)
        if self.scaled:
            self.log_q = free(hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal entries, the bias as nn.Conv2d does: T exceeds VᵀV, so the layer starts near
        H, from which deep networks train well."""
        for kernel in (self.weight, self.skip):
            if kernel is not None:
                rows, columns = kernel.shape[0], kernel[0].numel()
                nn.init.normal_(kernel, std=max(rows, columns) ** -0.5)
        fill_uniform(self.bias, fan_in=self.weight[0].numel())
        if self.scaled:
            nn.init.zeros_(self.log_q)

    def witness(self) -> dict[str, Tensor]:
        """V as its kernel, T and Lam = 2/T per unit channel, rho, and H where it is not I."""
        w = self._tensors()
        return w | {"Lam": 2 / w["T"], "rho": w["T"].new_ones(())}

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        y = self._map(self._applied(), x if x.ndim == 4 else x.unsqueeze(0))
        return y if x.ndim == 4 else y.squeeze(0)

    def _map(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        x = self._skipped(w, x)
        size = (x.shape[-2], x.shape[-1])
        h = activation(self.activation)(self.geometry.convolve(w["V"], x, self.bias))
        return x - self.geometry.transpose(w["G"], h, size)

    def _skipped(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        owner = type(self).__name__
        if any(n < s for n, s in zip(x.shape[-2:], self.stride, strict=True)):
            raise ShapeError(
                f"{owner}: the image is {x.shape[-2]} x {x.shape[-1]}, smaller than the stride "
                f"{self.stride}. Give larger images."
            )
        if "H" in w:
            x = F.conv2d(x, w["H"], stride=self.stride)
        self.geometry.check(owner, (x.shape[-2], x.shape[-1]))
        return x

    def _applied(self) -> dict[str, Tensor]:
        """H, V and G = 2VT⁻¹ as kernels in the parameters' dtype."""
        w, dtype = self._current(), self.weight.dtype
        scaled = wide(self.weight) * (2 / w["T"])[:, None, None, None]
        # A view, because autocast keeps its copy of a parameter from one training step to the next.
        kernels = {"V": self.weight.view_as(self.weight), "G": scaled.to(dtype)}
        return kernels | {"H": w["H"].to(dtype)} if "H" in w else kernels

    def _closed_form(self) -> dict[str, Tensor]:
        V = wide(self.weight)
        columns = per_group(V, self.geometry.groups).transpose(-3, -4)
        w = {"V": V, "T": self._multiplier(columns).flatten()}
        if self.skip is not None:
            H = semi_orthogonal(wide(self.skip).flatten(1))
            w["H"] = H.view(self.skip.shape)
        return w

    def _multiplier(self, V: Tensor) -> Tensor:
        """The diagonal (groups, n) of a T ⪰ VᵀV, for the kernel V (groups, p, n, k₁, k₂)."""
        raise undefined(self, "_multiplier", "T as its diagonal")

    def _promise(self) -> float:
        if self.weight.dtype not in HALVES:
            return 1.0
        with torch.no_grad():
            w, exact = self._applied(), self._tensors()
            scaled = exact["V"].double() * (2 / exact["T"].double())[:, None, None, None]
            off = norm_estimate(w["G"].double() - scaled) * norm_estimate(exact["V"].double())
            if "H" not in w:
                return 1 + off
            return (1 + off) * (1 + norm_estimate(w["H"].double() - exact["H"].double()))

    def _folded(self) -> nn.Module:
        w, g = self._applied(), self.geometry
        inner, outer = convolution(g, w["V"], self.bias), adjoint(g, -w["G"])
        body = summed(None, inner, activation(self.activation), outer)
        if "H" not in w:
            return body
        patches = Geometry.of(type(self).__name__, self.stride, self.stride, 0, 1, 1, "zeros", {})
        return nn.Sequential(convolution(patches, w["H"]), body)

    def _unrolled(self, image: Pair) -> System:
        with torch.no_grad():
            w = {name: kernel.double() for name, kernel in self._applied().items()}
            H = self._skipped(w, unit_images(self.weight, self.in_channels, *image))
            size = (H.shape[-2], H.shape[-1])
            W = self.geometry.convolve(w["V"], H)
            G = -self.geometry.transpose(w["G"], unit_images(W, *W.shape[1:]), size)
        bias = None
        if self.bias is not None:
            bias = numpy(self.bias.repeat_interleave(W[0, 0].numel()))
        sigma = activation(self.activation).name
        return System.residual(
            numpy(H.flatten(1).mT),
            numpy(G.flatten(1).mT),
            numpy(W.flatten(1)),
            bias,
            activation=sigma,
        )

    def _options(self) -> dict[str, str | float]:
        own = {"stride": str(self.stride), "activation": activation(self.activation).name}
        return super()._options() | own

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, stride={self.stride}, hidden={self.hidden}, "
            f"bias={self.bias is not None}, activation={activation(self.activation).name}"
        )
