"""Where a local bound holds: a box of inputs, or a ball."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, finite
from ..errors import InvalidInput, ShapeError

SHOWN = 3
"""Numbers of a vector that are printed."""


@dataclass(frozen=True)
class Region:
    """A box lower ≤ x ≤ upper, or the ℓ₂ ball ‖x − centre‖ ≤ radius; `box` and `ball` make one.

    A local bound is one for every two inputs of the region, with the slopes that its units have
    between the pre-activations that the region allows.
    """

    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    centre: tuple[float, ...] | None = None
    radius: float | None = None

    def __post_init__(self) -> None:
        given = {name for name in ("lower", "upper", "centre", "radius") if self._has(name)}
        if given not in ({"lower", "upper"}, {"centre", "radius"}):
            raise InvalidInput(
                f"Region: {', '.join(sorted(given)) or 'nothing'} is given, but it must be lower "
                "and upper, or centre and radius."
            )
        for name in given - {"radius"}:
            vector = finite(f"Region: {name}", getattr(self, name))
            if vector.ndim != 1:
                raise ShapeError(f"Region: {name} has shape {vector.shape}, but must be (m,).")
            object.__setattr__(self, name, tuple(vector.tolist()))
        if self.radius is not None:
            object.__setattr__(self, "radius", float(finite("Region: radius", self.radius)))
            if not float(self.radius) >= 0:
                raise InvalidInput(f"Region: radius = {self.radius!r}, but must be at least 0.")
            return
        lower, upper = np.array(self.lower), np.array(self.upper)
        if lower.shape != upper.shape:
            raise ShapeError(f"Region: lower has {lower.size} entries, but upper {upper.size}.")
        for i in np.flatnonzero(lower > upper)[:1]:
            raise InvalidInput(
                f"Region: input {i} is between {lower[i]!r} and {upper[i]!r}, which is empty; "
                "give lower <= upper."
            )

    @classmethod
    def box(cls, lower: ArrayLike, upper: ArrayLike) -> Region:
        """All x with lower ≤ x ≤ upper, (m,) each."""
        return cls(lower=lower, upper=upper)  # type: ignore[arg-type]

    @classmethod
    def ball(cls, centre: ArrayLike, radius: float) -> Region:
        """All x with ‖x − centre‖₂ ≤ radius; centre (m,)."""
        return cls(centre=centre, radius=radius)  # type: ignore[arg-type]

    @property
    def inputs(self) -> int:
        return len(self.lower if self.centre is None else self.centre)  # type: ignore[arg-type]

    @property
    def limits(self) -> tuple[Array, Array]:
        """The smallest box of floating-point numbers, up to rounding, that contains the region."""
        if self.centre is None:
            return np.array(self.lower), np.array(self.upper)
        centre, radius = np.array(self.centre), float(self.radius or 0.0)
        return np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)

    def __str__(self) -> str:
        """With the first of its numbers, rounded for display."""
        if self.radius is not None:
            return f"ball of radius {self.radius:.6g} around {_some(self.centre)}"
        low, high = self.limits
        half = high / 2 - low / 2
        even = half.size and np.ptp(half) <= 1e-6 * half.max()
        size = f"half-width {half.max():.6g}" if even else f"half-widths {_some(half)}"
        return f"box of {size} around {_some(low / 2 + high / 2)}"

    def __repr__(self) -> str:
        return f"Region({self}, inputs={self.inputs})"

    def to_json(self) -> dict[str, Any]:
        """The two fields that are given, as lists and numbers."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, content: Any) -> Region:
        """Back from `to_json`; InvalidInput for anything else."""
        if not isinstance(content, Mapping) or not content.keys() <= {*cls.__dataclass_fields__}:
            raise InvalidInput("Region: the document is none; it has lower, upper, centre, radius.")
        for name, value in content.items():
            numbers = [value] if name == "radius" else value
            if not isinstance(numbers, list) or not all(isinstance(v, float) for v in numbers):
                raise InvalidInput(f"Region: {name} must hold numbers with a decimal point.")
        return cls(**content)

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


def _some(values: Any) -> str:
    text = [f"{value:.4g}" for value in values[:SHOWN]]
    return f"({', '.join([*text, *['…'] * (len(values) > SHOWN)])})"


def check_region(region: Any, inputs: int) -> None:
    """Raise InvalidInput for what is no region, ShapeError for one of other than `inputs`."""
    if not isinstance(region, Region):
        raise InvalidInput(
            f"region = {region!r}, but must be Region.box(lower, upper) or Region.ball(centre, "
            "radius)."
        )
    if region.inputs != inputs:
        raise ShapeError(
            f"The region has dimension {region.inputs}, but the system takes {inputs} inputs."
        )
