"""Activations between two pre-activations: their slopes, their values and lines around them.

Everything is rounded outward. The functions of the C library that the smooth ones use are taken to
be right to `ERROR`, hundreds of times what their documentation states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._arrays import Array
from .._elementwise import Elementwise
from ..activations import elementwise
from .rigorous import UNIT

ERROR = 1e-13
GRID = 2.0**24
CELLS = 64

STRAIGHT = ("relu", "leaky_relu", "identity", "abs")
"""Two half-lines that meet in 0."""

RISING = ("softplus", "celu")
"""The slope is continuous and rises."""

PEAKED = ("tanh", "sigmoid", "atan", "asinh", "erf", "softsign")
"""The slope falls with |v|: convex below 0, concave above."""

CURVATURE = {
    "cos": (1.0, np.inf),
    "gelu": (0.799, np.inf),
    "gelu_tanh": (0.82, np.inf),
    "hardsigmoid": (1e-12, 6.0),
    "hardswish": (0.34, 6.0),
    "logsigmoid": (0.25, np.inf),
    "mish": (0.7, np.inf),
    "selu": (1.7581, np.inf),
    "silu": (0.501, np.inf),
    "sin": (1.0, np.inf),
    "tanhshrink": (0.771, np.inf),
}
"""The most that the slope changes by per unit of v, but for jumps, and how far apart these are."""


class Lines(NamedTuple):
    """low_slope·v + low_offset ≤ σ(v) ≤ high_slope·v + high_offset between l and u; (n,) each."""

    low_slope: Array
    low_offset: Array
    high_slope: Array
    high_offset: Array


def slope_range(names: NDArray[np.str_], low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of all difference quotients of σ between low and high, (n,) each.

    Both pre-activations of a pair of inputs lie in [low, high], so by the mean value theorem their
    quotient is a mean of slopes there; whatever lies between the inputs does not matter. An
    activation without a rule of its own has its whole slope range.
    """
    a, b = _by_name(names, _slope_range, low, high)
    return a, b


def value_range(names: NDArray[np.str_], low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of σ between low and high, (n,) each."""
    a, b = _by_name(names, _value_range, low, high)
    return a, b


def lines(names: NDArray[np.str_], low: Array, high: Array) -> Lines:
    """Lines below and above σ between low and high (n,); constants where an end is infinite."""
    return Lines(*_by_name(names, _lines, low, high))


def _by_name(
    names: NDArray[np.str_],
    rule: Callable[[Elementwise, Array, Array], tuple[Array, ...]],
    low: Array,
    high: Array,
) -> tuple[Array, ...]:
    distinct = np.unique(names)
    # What overflows becomes infinite, or NaN, which counts as unknown.
    with np.errstate(all="ignore"):
        if len(distinct) < 2:
            return rule(elementwise(str(distinct[0]) if distinct.size else "relu"), low, high)
        parts = {name: rule(elementwise(str(name)), low, high) for name in distinct}
    choice = [names == name for name in distinct]
    columns = zip(*(parts[name] for name in distinct), strict=True)
    return tuple(np.select(choice, list(column)) for column in columns)


def _slope_range(sigma: Elementwise, low: Array, high: Array) -> tuple[Array, Array]:
    kind = _kind(sigma)
    if kind in STRAIGHT:
        left, right = _slope(sigma, np.array([-1.0, 1.0]))
        first, last = np.where(low >= 0, right, left), np.where(high <= 0, left, right)
        return np.minimum(first, last), np.maximum(first, last)
    if kind in RISING:
        a, b = _slope(sigma, low), _slope(sigma, high)
    elif kind in PEAKED:
        a = _slope(sigma, np.maximum(abs(low), abs(high)))
        b = _slope(sigma, np.clip(0.0, low, high))
    else:
        change, apart = _curvature(sigma)
        at = np.clip(low + (high - low) / CELLS * np.arange(CELLS + 1)[:, None], low, high)
        at[-1] = high
        # Where floating-point numbers are sparse, some cells are wider than others.
        cell = np.diff(at, axis=0).max(axis=0) * (1 + 4 * UNIT)
        slopes = _slope(sigma, at)
        a, b = slopes.min(axis=0) - change * cell, slopes.max(axis=0) + change * cell
        # Two jumps in one cell would hide the slope between them.
        a, b = (np.where(cell < apart, end, np.nan) for end in (a, b))
        if change == 0:
            return np.fmax(a, sigma.alpha), np.fmin(b, sigma.beta)
    # On a grid, so that machines that round differently give the same slopes.
    a, b = np.floor((a - ERROR) * GRID) / GRID, np.ceil((b + ERROR) * GRID) / GRID
    return np.fmax(a, sigma.alpha), np.fmin(b, sigma.beta)


def _curvature(sigma: Elementwise) -> tuple[float, float]:
    kind, _, rest = sigma.name.rstrip(")").partition("(")
    values = [float(text) for text in rest.split(",")] if rest else []
    if kind == "elu":
        return abs(values[0]), np.inf
    if kind == "hardtanh":
        return 0.0, values[1] - values[0]
    if kind == "softshrink":
        return 0.0, 2 * values[0]
    return CURVATURE.get(kind, (np.inf, np.inf))


def _value_range(sigma: Elementwise, low: Array, high: Array) -> tuple[Array, Array]:
    first, last = _values(sigma, low), _values(sigma, high)
    if sigma.alpha >= 0:
        return first[0], last[1]
    # Where the steepest descent from the one end meets the steepest ascent to the other.
    a, b = _slope_range(sigma, low, high)
    span = high - low
    down, up = np.minimum(a, 0.0), np.maximum(b, 0.0)
    width = np.where(up > down, up - down, 1.0)
    to_low = np.clip((up * span - last[0] + first[0]) / width, 0.0, span)
    to_high = np.clip((last[1] - first[1] - down * span) / width, 0.0, span)
    slack = 32 * UNIT * (abs(first[0]) + abs(last[0]) + (up - down) * span)
    lowest, highest = first[0] + down * to_low - slack, first[1] + up * to_high + slack
    return np.nan_to_num(lowest, nan=-np.inf), np.nan_to_num(highest, nan=np.inf)


def _lines(sigma: Elementwise, low: Array, high: Array) -> tuple[Array, ...]:
    kind = _kind(sigma)
    a, b = _slope_range(sigma, low, high)
    first, last = _values(sigma, low), _values(sigma, high)
    span = high - low
    middle = np.clip(low + span / 2, low, high)
    at = _values(sigma, middle)

    # Without more knowledge: from one end at an extreme slope, whichever is closer in the middle.
    rise, fall = b * span / 2, a * span / 2
    s = np.where(last[0] - rise > first[0] + fall, b, a)
    t = np.where(last[1] - fall < first[1] + rise, a, b)
    below = np.where(s == b, last[0] - b * high, first[0] - a * low)
    above = np.where(t == a, last[1] - a * high, first[1] - b * low)
    if kind in PEAKED:
        twice = 2 * _evaluate(sigma, np.zeros(1))
        t, above = _over_the_peak(sigma, low, high)
        # σ(v) = 2σ(0) − σ(−v).
        s, below = _over_the_peak(sigma, -high, -low)
        below = twice - below
    # The tangent in the middle on the one side, the chord on the other.
    bent = kind in STRAIGHT and sigma.beta == _slope(sigma, np.ones(1))[0]
    convex = bent | (kind in RISING) | ((kind in PEAKED) & (high <= 0))
    concave = (kind in PEAKED) & (low >= 0)
    chord = np.clip((last[0] - first[0]) / np.where(span > 0, span, 1.0), a, b)
    ends = [first[k] - chord * low for k in (0, 1)], [last[k] - chord * high for k in (0, 1)]
    # At a kink, either slope belongs to a line below.
    tangent = _slope(sigma, middle)
    touch = [at[k] - tangent * middle + sign * ERROR * span for k, sign in ((0, -1), (1, 1))]
    s = np.where(convex, tangent, np.where(concave, chord, s))
    t = np.where(convex, chord, np.where(concave, tangent, t))
    chords = np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])
    below = np.where(convex, touch[0], np.where(concave, chords[0], below))
    above = np.where(convex, chords[1], np.where(concave, touch[1], above))

    size = np.maximum(abs(low), abs(high)) * max(1.0, abs(sigma.alpha), abs(sigma.beta))
    slack = 32 * UNIT * (size + abs(at[0]) + abs(first[0]) + abs(last[0]))
    below, above = below - slack, above + slack
    known = np.isfinite(span) & np.isfinite(below) & np.isfinite(above)
    lowest, highest = _value_range(sigma, low, high)
    return (
        np.where(known, s, 0.0),
        np.where(known, below, lowest),
        np.where(known, t, 0.0),
        np.where(known, above, highest),
    )


def _over_the_peak(sigma: Elementwise, low: Array, high: Array) -> tuple[Array, Array]:
    """A line above σ where low ≤ 0 ≤ high, σ convex below 0 and concave above.

    It touches at d ≥ 0, the first from where the tangent passes over the low end, or is a chord:
    above σ right of 0 for it is so in d, left of 0 for it is so at both ends.
    """
    start = _values(sigma, low)[1]
    near, far = np.zeros_like(low), np.maximum(high, 0.0)

    def passes(d: Array) -> NDArray[np.bool_]:
        return _evaluate(sigma, d) + _slope(sigma, d) * (low - d) >= start

    reached = passes(far)
    for _ in range(20):
        middle = (near + far) / 2
        over = passes(middle)
        near, far = np.where(over | ~reached, near, middle), np.where(over, middle, far)
    slope, end = _slope(sigma, far), _values(sigma, far)[1]
    chord = (end - start) / np.where(far > low, far - low, 1.0)
    slope = np.where(reached, slope, np.maximum(np.minimum(chord, slope - ERROR), 0.0))
    offset = np.maximum(end - slope * far + ERROR * (high - low), start - slope * low)
    return slope, offset


def _values(sigma: Elementwise, v: Array) -> tuple[Array, Array]:
    """An enclosure of σ(v)."""
    value = _evaluate(sigma, v)
    error = 4 * UNIT * abs(value) if _kind(sigma) in STRAIGHT else ERROR * (1 + abs(value))
    return value - error, value + error


def _slope(sigma: Elementwise, v: Array) -> Array:
    return sigma.derivative(torch.as_tensor(np.ascontiguousarray(v))).numpy()


def _evaluate(function: Callable[[torch.Tensor], torch.Tensor], v: Array) -> Array:
    with torch.no_grad():
        return function(torch.as_tensor(np.ascontiguousarray(v))).numpy()


def _kind(sigma: Elementwise) -> str:
    """The family; elu(1) is a kind of celu, of which other elu have not the smooth slope."""
    return "celu" if sigma.name == "elu" else sigma.name.partition("(")[0]
