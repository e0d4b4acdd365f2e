"""A directional derivative in exact arithmetic: integers over powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._arrays import Array
from ..activations import elementwise
from ..system import System
from .ranges import STRAIGHT


@dataclass(frozen=True)
class Dyadic:
    """The numbers integers · 2^-places."""

    integers: NDArray[Any]
    places: int

    @classmethod
    def of(cls, array: Array) -> Dyadic:
        mantissa, exponent = np.frexp(array)
        exponent = np.where(array != 0, exponent - 53, 0)
        places = max(0, -int(exponent.min(initial=0)))
        shifts = (exponent + places).tolist()
        integers = np.ldexp(mantissa, 53).astype(np.int64).tolist()
        pairs = zip(np.ravel(integers).tolist(), np.ravel(shifts).tolist(), strict=True)
        flat = np.array([i << s for i, s in pairs] + [None], dtype=object)[:-1]
        return cls(flat.reshape(array.shape), places)

    def __add__(self, other: Dyadic) -> Dyadic:
        places = max(self.places, other.places)
        return Dyadic(self.to(places) + other.to(places), places)

    def __mul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(self.integers * other.integers, self.places + other.places)

    def __matmul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(self.integers.dot(other.integers), self.places + other.places)

    def __abs__(self) -> Dyadic:
        return Dyadic(abs(self.integers), self.places)

    def __getitem__(self, index: Any) -> Dyadic:
        return Dyadic(self.integers[index], self.places)

    def to(self, places: int) -> NDArray[Any]:
        return self.integers * (1 << (places - self.places))


def exact_gain(system: System, norm: float, x: Array, w: Array) -> float:
    """‖J(x)w‖ / ‖w‖ rounded down, for an acyclic system of piecewise linear units.

    0 where another unit occurs, or a pre-activation is exactly at its kink. The integers grow by
    53 bits per level: for deep networks, whose rounding errors outgrow their small gains.
    """
    if not all(name.partition("(")[0] in STRAIGHT for name in np.unique(system.activation)):
        return 0.0
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    slopes = np.array([elementwise(str(a)).derivative(ends).numpy() for a in system.activation])
    both = Dyadic.of(np.stack([x, w], axis=1))
    z = Dyadic(np.zeros((system.units, 2), dtype=object), 0)
    for level, fed, block in system.feeds or ():
        v = Dyadic.of(system.B[level]) @ both
        v += Dyadic.of(block) @ z[fed]
        v += Dyadic.of(np.stack([system.b[level], 0 * level], axis=1))
        bent = slopes[level, 0] != slopes[level, 1]
        if (bent & (v.integers[:, 0] == 0) & (v.integers[:, 1] != 0)).any():
            return 0.0
        slope = np.where(v.integers[:, 0] > 0, slopes[level, 1], slopes[level, 0])
        v = v * Dyadic.of(slope[:, None])
        places = max(v.places, z.places)
        whole = z.to(places)
        whole[level] = v.to(places)
        z = Dyadic(whole, places)
    C, D, w_exact = Dyadic.of(system.C), Dyadic.of(system.D), both[:, 1:]
    y = C @ z[:, 1:] + D @ w_exact
    # Less what rows that are differences rounded to float64 may be off.
    off = abs(C) @ abs(z[:, 1:]) + abs(D) @ abs(w_exact)
    places = max(y.places, off.places)
    least = np.maximum(abs(y.to(places)) * (1 << 53) - off.to(places), 0)
    return _ratio(Dyadic(least, places + 53), w_exact, norm)


def _ratio(y: Dyadic, w: Dyadic, norm: float) -> float:
    """‖y‖ / ‖w‖, rounded down."""
    power = 2 if norm == 2 else 1
    total = sum if norm == 2 else max
    top, bottom = (total(abs(i) ** power for i in v.integers.ravel().tolist()) for v in (y, w))
    if not (top and bottom):
        return 0.0
    shift = max(0, 80 + bottom.bit_length() - top.bit_length())
    quotient = (top << power * shift) // bottom
    root = math.isqrt(quotient) if norm == 2 else quotient
    # Of 80 bits or more; the conversion rounds to nearest.
    extra = max(root.bit_length() - 80, 0)
    size = math.nextafter(float(root >> extra), 0.0)
    return math.nextafter(math.ldexp(size, extra - shift + w.places - y.places), 0.0)
