"""Bounds of class margins: of every difference of two outputs, not of all outputs together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from .._arrays import Array, finite, parse_norm
from .._modes import own_modes
from .._radii import COARSE, SLACK, least_quotient
from ..convolutional import ConvSystem
from ..errors import InvalidInput, ShapeError
from ..system import System
from .certificate import Certificate
from .region import Region
from .rigorous import UNIT, lengths
from .subject import as_system, described


def difference(system: System, i: int, j: int) -> System:
    """x ↦ y_i − y_j, one output; rows of C and D and entries of c are subtracted in float64.

    `certificate.holds` proves its bounds for the exact difference.

    Raises:
        InvalidInput: i = j, or not both are outputs.
    """
    if i == j or not (0 <= i < system.outputs and 0 <= j < system.outputs):
        raise InvalidInput(
            f"difference: outputs {i} and {j} of {system.outputs}, but they must be two different "
            "ones, counted from 0."
        )
    rows = {k: getattr(system, k)[[i]] - getattr(system, k)[[j]] for k in "CDc"}
    return system.replaced(**rows)


@dataclass(frozen=True)
class MarginBounds:
    """For pairs of outputs, |(y_i − y_j)(x) − (y_i − y_j)(x′)| ≤ bounds[i, j]·‖x − x′‖.

    Attributes:
        bounds: (p, p), symmetric with a zero diagonal; infinite for pairs that were left out.
        certificates: by (i, j) with i < j.
        norm: of x; 2.0 or inf.
        region: where they hold; None is everywhere.
    """

    bounds: Array
    certificates: dict[tuple[int, int], Certificate] = field(repr=False)
    norm: float
    region: Region | None = None

    def radius(
        self, logits: ArrayLike, error: float | None = None, inputs: ArrayLike | None = None
    ) -> Array:
        """How far, in `norm`, an input with these logits (…, p) may move without a new top class.

        The least of margin / bound over the other classes, rounded down; 0 where no class leads.

        Args:
            logits: as computed.
            error: how far any logit may be from the exact one; twice of it is taken off margins.
                None takes a part of the largest logit off, by their dtype: 1e-9 in float64, 1e-5
                in float32, 1e-2 in half precision.
            inputs: (…, m), needed with a region: the radius is at most how far they are inside.

        Raises:
            ShapeError: the last dimension is not p, or m.
            InvalidInput: NaN or infinity; bounds of a region without `inputs`.
        """
        y = finite("logits", logits)
        if y.ndim == 0 or y.shape[-1] != len(self.bounds):
            raise ShapeError(f"logits has shape {y.shape}, but must be (…, {len(self.bounds)}).")
        if error is not None and not error >= 0:
            raise InvalidInput(f"error = {error!r}, but must be at least 0.")
        top = y.argmax(axis=-1)
        margin = np.take_along_axis(y, top[..., None], -1) - y
        off = _slack(logits) * abs(y).max(axis=-1, keepdims=True) if error is None else 2 * error
        margin = np.maximum(margin - off - 4 * UNIT * (margin + off), 0.0)
        np.put_along_axis(margin, top[..., None], np.inf, -1)
        least = least_quotient(torch.as_tensor(margin), torch.as_tensor(self.bounds[top])).numpy()
        return least if self.region is None else np.minimum(least, self._room(inputs))

    def _room(self, inputs: ArrayLike | None) -> Array:
        """How far inside the region the inputs are, rounded down."""
        region = self.region
        assert region is not None
        if inputs is None:
            raise InvalidInput("These bounds hold in a region; give the inputs, to stay inside it.")
        x = finite("inputs", inputs)
        if x.shape[-1:] != (region.inputs,):
            raise ShapeError(f"inputs has shape {x.shape}, but must be (…, {region.inputs}).")
        if region.radius is None:
            low, high = region.limits
            room = np.minimum(x - low, high - x)
            rounding = 4 * UNIT * abs(room)
            return np.maximum((room - rounding).min(axis=-1), 0.0)
        away = lengths(x - np.array(region.centre)) * (1 + 4 * UNIT)
        room = np.maximum(region.radius * (1 - 4 * UNIT) - away, 0.0)
        return np.asarray(room if self.norm == 2 else room / region.inputs**0.5 * (1 - 4 * UNIT))


def _slack(logits: Any) -> float:
    dtype = logits.dtype if isinstance(logits, torch.Tensor) else np.asarray(logits).dtype
    by_size = {known.itemsize: part for known, part in SLACK.items()}
    return by_size.get(min(dtype.itemsize, 8), COARSE)


@own_modes
def margin_bounds(
    model: System | ConvSystem | nn.Module,
    norm: float | str = 2,
    *,
    pairs: str | int | None = None,
    region: Region | None = None,
    input_shape: Sequence[int] | None = None,
    time_limit: float | None = None,
    progress: Callable[[int, int, Certificate], None] | None = None,
    **options: Any,
) -> MarginBounds:
    """The bound of every y_i − y_j, each with multipliers and a certificate of its own.

    A bound of the map as a whole allows a margin √2 times as much (ℓ₂; twice for ℓ∞), and the
    worst pair's multipliers serve no other pair best.

    Args:
        model, input_shape: as for `lipschitz`, with at least two outputs.
        norm: 2 or inf, of the input.
        pairs: "all" (None is the same), or a label: only its pairs with the others.
        region: a local bound, for inputs of this region.
        time_limit: seconds for all pairs, shared out evenly; as in `lipschitz`, what was found by
            then is proven.
        progress: called after every pair with how many are done, of how many, and its certificate.
        options: for `lipschitz`, such as method and seed; `lower` is False unless it is given.

    Raises:
        InvalidInput: fewer than two outputs, or a label that is none; and as `lipschitz`.
    """
    from .bound import lipschitz

    system = as_system(described(model, input_shape))
    p = system.outputs
    chosen = list(_pairs(p, pairs))
    bounds = np.full((p, p), math.inf)
    np.fill_diagonal(bounds, 0.0)
    certificates: dict[tuple[int, int], Certificate] = {}
    options = {"lower": False, **options}
    found, began = None, time.monotonic()
    for done, (i, j) in enumerate(chosen):
        if time_limit is not None:
            left = began + time_limit - time.monotonic()
            options["time_limit"] = max(left / (len(chosen) - done), 1e-3)
        # Neighbouring pairs have similar multipliers.
        found = lipschitz(system, norm, classes=(i, j), region=region, start=found, **options)
        certificates[i, j] = found
        bounds[i, j] = bounds[j, i] = found.bound
        if progress is not None:
            progress(done + 1, len(chosen), found)
    return MarginBounds(bounds, certificates, parse_norm(norm), region)


def _pairs(p: int, pairs: str | int | None) -> Iterator[tuple[int, int]]:
    if p < 2:
        raise InvalidInput(f"margin_bounds: {p} outputs have no pairs. Use lipschitz.")
    if pairs is not None and pairs != "all" and not (type(pairs) is int and 0 <= pairs < p):
        raise InvalidInput(
            f"margin_bounds: pairs = {pairs!r}, but must be 'all' or a label from 0 to {p - 1}."
        )
    for i in range(p):
        for j in range(i + 1, p):
            if pairs in (None, "all", i, j):
                yield i, j
