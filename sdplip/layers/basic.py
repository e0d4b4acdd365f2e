"""What surrounds the Lipschitz layers in a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidInput, ShapeError
from ..system import System
from ._base import check_finite, shown


class Normalize(nn.Module):
    """x ↦ (x - mean) / std is 1/min(std)-Lipschitz in every ℓ_p norm.

    Kept inside the model, so that radii are in units of the raw pixels.

    Args:
        mean, std: scalars, or one per feature (broadcast against the last dimensions of x).

    Raises:
        InvalidInput: a value that is not finite, or a std that is not positive.
        ShapeError: mean and std of different shapes, neither scalar.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: float | Tensor,
        std: float | Tensor,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        buffers = [torch.as_tensor(x, device=device, dtype=dtype).clone() for x in (mean, std)]
        for name, value in zip(("mean", "std"), buffers, strict=True):
            self.register_buffer(name, value)
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

    @property
    def lipschitz(self) -> float:
        """1 / min(std)."""
        self._validate()
        return 1 / float(self.std.min())

    def forward(self, x: Tensor) -> Tensor:
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
