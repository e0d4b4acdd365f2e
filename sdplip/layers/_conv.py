"""Convolutional layers: what they share, and those of the form x ↦ Dx + b with ‖D‖₂ ≤ 1."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._tensors import HALVES
from ..errors import InvalidInput, ShapeError
from ..system import System
from ._base import Layer, check_floating, fill_uniform, numpy, undefined, wide
from ._geometry import Geometry, Pair
from ._plain import adjoint, convolution


class ConvLayer(Layer):
    """A map of images (N, in_channels, height, width), or of one without N, of every size.

    Attributes:
        in_channels, out_channels: also as in_features and out_features.
        geometry: kernel_size, stride, padding, dilation, groups and padding_mode, checked.
    """

    geometry: Geometry

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry) -> None:
        super().__init__(in_channels, out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.geometry = geometry

    def system(self, image: Pair | None = None) -> System:
        """The map of flattened images of one size in float64, channels first.

        Args:
            image: (height, width); the matrices have one row and column per pixel and channel.

        Raises:
            InvalidInput: no image size, or a parameter that is NaN or Inf or on the meta device.
        """
        if image is None:
            raise InvalidInput(
                f"{type(self).__name__}: a convolution is a system only for one size of images. "
                "Pass image=(height, width); its bound for all sizes is the attribute lipschitz."
            )
        self._check_parameters()
        return self._unrolled(image)

    def _unrolled(self, image: Pair) -> System:
        """`system`, the parameters being finite."""
        raise undefined(self, "_unrolled", "the System of images (height, width)")

    def _check(self, x: Tensor) -> None:
        owner = type(self).__name__
        check_floating(owner, x)
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ShapeError(
                f"{owner}: the input has shape {tuple(x.shape)}, but in_channels = "
                f"{self.in_channels}. Give it as (N, {self.in_channels}, height, width), or "
                "without N."
            )

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"geometry": repr(self.geometry)}

    def extra_repr(self) -> str:
        g = self.geometry
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={g.kernel_size}"
        text += f", stride={g.stride}" if g.stride != (1, 1) else ""
        same = tuple(d * (k - 1) for d, k in zip(g.dilation, g.kernel_size, strict=True))
        total = tuple(b + a for b, a in zip(g.before, g.after, strict=True))
        text += ", padding=same" if total == same else f", padding={g.before}"
        text += f", dilation={g.dilation}" if g.dilation != (1, 1) else ""
        text += f", groups={g.groups}" if g.groups > 1 else ""
        return f"{text}, padding_mode={g.mode}"


class LinearConv(ConvLayer):
    """nn.Conv2d whose free `weight` becomes the kernel D by a closed form; arguments as there.

    `padding` is "same" by default: the size of the image over the stride, rounded up.

    Attributes:
        transposed: the layer is the adjoint, as nn.ConvTranspose2d: its constant is the same.
    """

    condition = "linear"
    transposed: ClassVar[bool] = False
    weight: nn.Parameter

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = {"in_channels": in_channels, "out_channels": out_channels}
        geometry = Geometry.of(
            type(self).__name__,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            channels,
        )
        super().__init__(in_channels, out_channels, geometry)
        rows, columns = in_channels, out_channels
        if not self.transposed:
            rows, columns = columns, rows
        self._create(rows, columns // groups, device, dtype)
        self.bias = (
            nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the free parameters as the family does, the bias as nn.Conv2d."""
        self._fill()
        taps = self.geometry.kernel_size[0] * self.geometry.kernel_size[1]
        fill_uniform(self.bias, fan_in=self.in_channels // self.geometry.groups * taps)

    def forward(self, x: Tensor, output_size: Pair | None = None) -> Tensor:
        """The map; `output_size` (height, width) is for transposed layers only, which give the
        stride times the size of the image without it."""
        self._check(x)
        D = self._current()["D"].to(self.weight.dtype)
        y = self._map(D, x if x.ndim == 4 else x.unsqueeze(0), self.bias, output_size)
        return y if x.ndim == 4 else y.squeeze(0)

    def _map(self, D: Tensor, x: Tensor, bias: Tensor | None, size: Pair | None = None) -> Tensor:
        g, image = self.geometry, (x.shape[-2], x.shape[-1])
        owner = type(self).__name__
        if not self.transposed:
            if size is not None:
                raise InvalidInput(f"{owner}: output_size is for transposed layers only.")
            g.check(owner, image)
            return g.convolve(D, x, bias)
        target = size or (image[0] * g.stride[0], image[1] * g.stride[1])
        g.check(owner, target)
        if g.output_size(target) != image:
            raise ShapeError(
                f"{owner}: images of {target[0]} x {target[1]} do not become the input's "
                f"{image[0]} x {image[1]} under this kernel. Give another output_size."
            )
        return g.transpose(D, x, target, bias)

    def _folded(self) -> nn.Module:
        D = self._current()["D"].to(self.weight.dtype)
        return (adjoint if self.transposed else convolution)(self.geometry, D, self.bias)

    def _unrolled(self, image: Pair) -> System:
        with torch.no_grad():
            D = self._current()["D"].to(self.weight.dtype).double()
            columns = self._map(D, unit_images(D, self.in_channels, *image), None)
        bias = None
        if self.bias is not None:
            bias = np.repeat(numpy(self.bias), columns[0, 0].numel())
        return System.linear(numpy(columns.flatten(1).mT), bias)

    def _promise(self) -> float:
        if self.weight.dtype not in HALVES:
            return 1.0
        with torch.no_grad():
            exact = self._tensors()["D"].double()
            return 1.0 + norm_estimate(exact.to(self.weight.dtype).double() - exact)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}"

    def _create(
        self,
        rows: int,
        columns: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Register the free parameters of a kernel (rows, columns, k₁, k₂)."""
        shape = (rows, columns, *self.geometry.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def _fill(self) -> None:
        """Draw a kernel that keeps distances where it can: one tap is semi-orthogonal, the others
        are zero."""
        with torch.no_grad():
            self.weight.zero_()
            y, x = (b // d for b, d in zip(self._centre(), self.geometry.dilation, strict=True))
            for part in self.weight.chunk(self.geometry.groups):
                tap = torch.empty(part.shape[:2], dtype=wide(part).dtype, device=part.device)
                if not tap.is_meta:
                    nn.init.orthogonal_(tap)
                part[:, :, y, x] = tap.to(part.dtype)

    def _centre(self) -> Pair:
        """The offset of the tap that meets the pixel itself, as far as the kernel has one."""
        g = self.geometry
        reach = [d * (k - 1) for d, k in zip(g.dilation, g.kernel_size, strict=True)]
        y, x = (min(b, r) for b, r in zip(g.before, reach, strict=True))
        return y, x


def unit_images(like: Tensor, *shape: int) -> Tensor:
    """The standard basis of images of this shape (n, *shape), in float64."""
    n = math.prod(shape)
    return torch.eye(n, dtype=torch.float64, device=like.device).view(n, *shape)


def norm_estimate(K: Tensor) -> float:
    """A bound on the norm of the convolution by K, (‖K‖₁ ‖K‖_∞)^½ of its absolute row sums."""
    size = K.abs().sum(dim=(-2, -1))
    return float((size.sum(dim=0).max() * size.sum(dim=1).max()).sqrt()) * (1 + 1e-12)


def per_group(K: Tensor, groups: int) -> Tensor:
    """(out, in / groups, k₁, k₂) as (groups, out / groups, in / groups, k₁, k₂)."""
    return K.unflatten(0, (groups, -1))


def to_phases(K: Tensor, geometry: Geometry) -> Tensor:
    """A strided kernel (*, p, m, k₁, k₂) as one (*, p, m·s₁·s₂, ·, ·) of stride 1 whose channels
    are the phases of the image: a stride is a permutation of pixels in front of it.
    """
    (s1, s2), (d1, d2) = geometry.stride, geometry.dilation
    if (s1, s2) == (1, 1):
        return K
    k1, k2 = (d * (k - 1) + 1 for d, k in zip((d1, d2), K.shape[-2:], strict=True))
    dilated = K.new_zeros(*K.shape[:-2], k1 + -k1 % s1, k2 + -k2 % s2)
    dilated[..., :k1:d1, :k2:d2] = K
    split = dilated.unflatten(-1, (-1, s2)).unflatten(-3, (-1, s1))
    batch = range(split.ndim - 5)
    return split.permute(*batch, -5, -3, -1, -4, -2).flatten(-5, -3)


def from_phases(K: Tensor, geometry: Geometry) -> Tensor:
    """The inverse of `to_phases`."""
    (s1, s2), (d1, d2) = geometry.stride, geometry.dilation
    if (s1, s2) == (1, 1):
        return K
    split = K.unflatten(-3, (-1, s1, s2))
    batch = range(split.ndim - 5)
    dilated = split.permute(*batch, -5, -2, -4, -1, -3).flatten(-2).flatten(-3, -2)
    k1, k2 = (d * (k - 1) + 1 for d, k in zip((d1, d2), geometry.kernel_size, strict=True))
    return dilated[..., :k1:d1, :k2:d2]
