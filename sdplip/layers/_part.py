"""What the parts around the Lipschitz layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from ..errors import ShapeError
from ._base import undefined

PROMISES = ("lipschitz", "lipschitz_in", "_promise", "closed_form", "_closed_form")
"""By what a class states a constant."""


def own_forward(module: nn.Module, *promises: str) -> bool:
    """Whether no subclass from elsewhere replaced forward below the class that states one of these
    promises, which is about the forward that this one had."""
    order = type(module).__mro__
    states = [i for i, kind in enumerate(order) if vars(kind).keys() & set(promises)]
    computes = next(i for i, kind in enumerate(order) if "forward" in vars(kind))
    ours = order[computes].__module__.startswith(__package__ or "")
    return not states or states[0] <= computes or ours


class Part(nn.Module):
    """A module whose Lipschitz constant is known for several norms.

    Attributes:
        norm: 2, the norm of `lipschitz`.
    """

    norm: ClassVar[float] = 2

    @property
    def lipschitz(self) -> float:
        """The constant from ℓ₂ to ℓ₂."""
        return self.lipschitz_in(2.0)

    def lipschitz_in(self, norm: float) -> float:
        """The constant from ℓ_norm to ℓ_norm, norm = 2 or inf."""
        raise undefined(self, "lipschitz_in", "the constant in a norm")


class Nonexpansive(Part):
    """A part that moves numbers around, adds constants to them or drops some."""

    def lipschitz_in(self, norm: float) -> float:
        return 1.0


class Container(Part):
    """A part made of other modules."""

    def lipschitz_in(self, norm: float) -> float:
        """What the modules within promise together; see `lipschitz_bound`."""
        from .bounds import lipschitz_bound

        return lipschitz_bound(self, norm)

    def combined(self, norm: float, constant: Callable[[str], float]) -> float:
        """The constant, from `constant(name)` of every child."""
        raise undefined(self, "combined", "the constant, from those of the modules within")


def check_images(owner: str, x: Tensor) -> None:
    if x.ndim not in (3, 4):
        raise ShapeError(
            f"{owner}: the input has shape {tuple(x.shape)}, but must be (N, channels, height, "
            "width) or (channels, height, width)."
        )


def size_along(owner: str, x: Tensor, dim: int) -> int:
    if not -x.ndim <= dim < x.ndim:
        raise ShapeError(
            f"{owner}: the input has shape {tuple(x.shape)}, which has no dimension {dim}. "
            "Use dim=-3 for the channels of images and dim=-1 for vectors."
        )
    return x.shape[dim]
