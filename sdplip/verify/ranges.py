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
from ..activations import Activation, activation
from .rigorous import UNIT

ERROR = 1e-13
GRID = 2.0**24

STRAIGHT = ("relu", "leaky_relu", "identity")
"""Piecewise linear with one kink at 0: exact but for the rounding of a product."""

RISING = ("softplus", "elu")
"""Smooth and convex: the slope rises."""

PEAKED = ("tanh", "sigmoid")
"""The slope falls with |v|: convex below 0, concave above."""


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
    return _by_name(names, _slope_range, low, high)


def value_range(names: NDArray[np.str_], low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of σ between low and high, (n,) each."""
    return _by_name(names, _value_range, low, high)


def lines(names: NDArray[np.str_], low: Array, high: Array) -> Lines:
    """Lines below and above σ between low and high (n,); constants where an end is infinite."""
    return Lines(*_by_name(names, _lines, low, high))


def _by_name(
    names: NDArray[np.str_],
    rule: Callable[[Activation, Array, Array], tuple[Array, ...]],
    low: Array,
    high: Array,
) -> tuple[Array, ...]:
    distinct = np.unique(names)
    if len(distinct) == 1:
        return rule(activation(str(distinct[0])), low, high)
    parts = {name: rule(activation(str(name)), low, high) for name in distinct}
    choice = [names == name for name in distinct]
    columns = zip(*(parts[name] for name in distinct), strict=True)
    return tuple(np.select(choice, list(column)) for column in columns)


def _slope_range(sigma: Activation, low: Array, high: Array) -> tuple[Array, Array]:
    kind = _kind(sigma)
    if kind in STRAIGHT:
        low_slope = np.where(low >= 0, sigma.beta, sigma.alpha)
        return low_slope, np.where(high <= 0, sigma.alpha, sigma.beta)
    if kind in RISING:
        least, most = low, high
    elif kind in PEAKED:
        least, most = np.maximum(abs(low), abs(high)), np.clip(0.0, low, high)
    else:
        return np.full_like(low, sigma.alpha), np.full_like(low, sigma.beta)
    # On a grid, so that machines that round differently give the same slopes.
    a = np.floor((_evaluate(sigma.slope, least) - ERROR) * GRID) / GRID
    b = np.ceil((_evaluate(sigma.slope, most) + ERROR) * GRID) / GRID
    return np.maximum(a, sigma.alpha), np.minimum(b, sigma.beta)


def _value_range(sigma: Activation, low: Array, high: Array) -> tuple[Array, Array]:
    first, last = _values(sigma, low), _values(sigma, high)
    if sigma.alpha >= 0:
        return first[0], last[1]
    room = max(-sigma.alpha, sigma.beta) * (high - low) * (1 + 8 * UNIT)
    return np.fmax(first[0], last[0]) - room, np.fmin(first[1], last[1]) + room


def _lines(sigma: Activation, low: Array, high: Array) -> tuple[Array, ...]:
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
    # The tangent in the middle on the one side, the chord on the other.
    convex = (kind in STRAIGHT + RISING) | ((kind in PEAKED) & (high <= 0))
    concave = (kind in PEAKED) & (low >= 0)
    chord = np.clip((last[0] - first[0]) / np.where(span > 0, span, 1.0), a, b)
    ends = [first[k] - chord * low for k in (0, 1)], [last[k] - chord * high for k in (0, 1)]
    tangent = np.where(middle >= 0, sigma.beta, sigma.alpha)
    if kind not in STRAIGHT:
        tangent = _evaluate(sigma.slope, middle)
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


def _values(sigma: Activation, v: Array) -> tuple[Array, Array]:
    """An enclosure of σ(v)."""
    value = _evaluate(sigma.function, v)
    error = 4 * UNIT * abs(value) if _kind(sigma) in STRAIGHT else ERROR * (1 + abs(value))
    return value - error, value + error


def _evaluate(function: Callable[[torch.Tensor], torch.Tensor], v: Array) -> Array:
    with torch.no_grad():
        return function(torch.as_tensor(np.ascontiguousarray(v))).numpy()


def _kind(sigma: Activation) -> str:
    return sigma.name.partition("(")[0]
