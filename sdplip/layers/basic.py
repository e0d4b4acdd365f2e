"""What surrounds the Lipschitz layers in a model: normalisation of the input, a learned scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .._tensors import full_precision
from ..errors import InvalidInput, ShapeError
from ..system import System
from ._base import check_finite, shown, wide
from ._part import Part

Values = float | Sequence[float] | Tensor

SCALES = (1e-9, 1e9)
"""Where neither s nor 1/s leaves float32."""


class Normalize(Part):
    """x ↦ (x - mean) / std is 1/min(std)-Lipschitz in every ℓ_p norm.

    Kept inside the model, so that radii are in units of the raw pixels.

    Args:
        mean, std: scalars, one per feature (broadcast against the last dimensions of x), or with
            dim=-3 one per channel of images, e.g. Normalize((0.49, 0.48, 0.45), 0.25, dim=-3).
        dim: the dimension of x that vectors mean and std belong to.

    Raises:
        InvalidInput: a value that is not finite, or a std that is not positive.
        ShapeError: mean and std of different shapes, neither scalar; on input of another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Values,
        std: Values,
        *,
        dim: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim >= 0:
            raise InvalidInput(
                f"Normalize: dim = {dim}, but must be counted from the end, as -1 for features or "
                "-3 for channels, so that it is the same with and without a batch."
            )
        dtype = dtype or torch.get_default_dtype()
        for name, value in {"mean": mean, "std": std}.items():
            buffer = torch.as_tensor(value, device=device, dtype=dtype).clone()
            if buffer.ndim == 1:
                buffer = buffer.reshape(-1, *[1] * (-1 - dim))
            self.register_buffer(name, buffer)
        if self.mean.ndim and self.std.ndim and self.mean.shape != self.std.shape:
            raise ShapeError(
                f"Normalize: mean has shape {tuple(self.mean.shape)}, but std has shape "
                f"{tuple(self.std.shape)}. Give both per feature, or one as a scalar."
            )
        self._validate()

    def _validate(self) -> None:
        """Also on use: a checkpoint may have brought other values."""
        check_finite("Normalize", {"mean": self.mean, "std": self.std})
        if not (self.std > 0).all():
            raise InvalidInput(
                f"Normalize: std has the entry {float(self.std.min()):g}, but must be positive. "
                "Leave constant features out, or set their std to 1."
            )

    def lipschitz_in(self, norm: float) -> float:
        """1 / min(std)."""
        self._validate()
        return 1 / float(self.std.min())

    def forward(self, x: Tensor) -> Tensor:
        shape = self.mean.shape if self.mean.ndim else self.std.shape
        # Broadcasting x would repeat its entries, and multiply the constant.
        fits = len(shape) <= x.ndim and all(
            k in (1, n) for k, n in zip(shape[::-1], x.shape[::-1], strict=False)
        )
        if not fits:
            raise ShapeError(
                f"Normalize: the input has shape {tuple(x.shape)}, but mean and std have "
                f"{tuple(shape)}. Give dim=-3 for the channels of images."
            )
        return (x - self.mean) / self.std

    def system(self, features: int | None = None) -> System:
        """The map in float64.

        Args:
            features: input width, needed when mean and std are scalars.

        Raises:
            InvalidInput: the width is unknown, or contradicts mean and std.
        """
        self._validate()
        mean, std = (x.detach().double().cpu().numpy() for x in (self.mean, self.std))
        shape = np.broadcast_shapes(mean.shape, std.shape)
        if len(shape) > 1 or (shape and features not in (None, *shape)):
            raise InvalidInput(
                f"Normalize: mean and std have shape {shape}, but a system acts on vectors of "
                f"{features or 'some'} features. Give one mean and std per feature."
            )
        if not shape and features is None:
            raise InvalidInput(
                "Normalize: scalar mean and std do not tell the input width. Pass features=..."
            )
        scale = np.broadcast_to(1 / std, shape or (features,))
        return System.linear(np.diag(scale), -mean * scale)

    def extra_repr(self) -> str:
        if self.mean.ndim or self.std.ndim:
            return f"features={max(self.mean.numel(), self.std.numel())}"
        return f"mean={shown(self.mean)}, std={shown(self.std)}"


class Scale(Part):
    """x ↦ s·x with a learned s > 0, the Lipschitz constant in every norm.

    s is learned through its logarithm and stays within [1e-9, 1e9].

    Args:
        scale: s at first.
        learned: whether s is trained; a fixed one is a parameter without gradient.

    Raises:
        InvalidInput: a scale out of range.
    """

    def __init__(
        self,
        scale: float = 1.0,
        *,
        learned: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        low, high = SCALES
        if not low <= scale <= high:
            raise InvalidInput(
                f"Scale: scale = {scale}, but must be in [{low:g}, {high:g}]. Use e.g. 1.0."
            )
        log_scale = torch.full((), math.log(scale), device=device, dtype=dtype)
        self.log_scale = nn.Parameter(log_scale, requires_grad=learned)

    def lipschitz_in(self, norm: float) -> float:
        """s.

        Raises:
            InvalidInput: it is NaN, or on the meta device.
        """
        check_finite("Scale", {"log_scale": self.log_scale})
        return float(self._scale().detach())

    def forward(self, x: Tensor) -> Tensor:
        return (x * self._scale()).to(x.dtype)

    def _scale(self) -> Tensor:
        low, high = SCALES
        with full_precision(self.log_scale):
            return wide(self.log_scale).clamp(math.log(low), math.log(high)).exp()

    def extra_repr(self) -> str:
        return f"scale={shown(self._scale())}, learned={self.log_scale.requires_grad}"
