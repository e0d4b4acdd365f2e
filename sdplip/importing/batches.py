"""Files with a fixed batch, which are as many equal networks side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .._arrays import Array
from ..system import System

PARTS = ("A", "B", "C", "D", "b", "c", "alpha", "beta", "activation")


def one_sample(system: System, batch: int) -> System:
    """The network of one sample, where all samples have that same network; else the system.

    This is read off the arrays, exactly: blocks on the diagonal that are equal to the last bit, and
    nothing beside them. Inputs and outputs are divided evenly, units by the inputs they depend on.
    """
    if batch == 1 or system.levels is None or system.inputs % batch or system.outputs % batch:
        return system
    inputs, outputs = (np.repeat(np.arange(batch), size // batch)
                       for size in (system.inputs, system.outputs))  # fmt: skip
    own = inputs == np.arange(batch)[:, None]
    # A unit that depends on no input is part of every sample.
    seen = (system.B != 0).astype(float) @ own.T
    for level in system.levels[1:]:
        seen[level] += (system.A[level] != 0).astype(float) @ (seen > 0)
    reached = seen > 0
    if (reached.sum(axis=1) > 1).any():
        return system
    samples = []
    for k in range(batch):
        units, other = reached[:, k] | ~reached.any(axis=1), inputs != k
        rows = outputs == k
        if system.C[np.ix_(rows, ~units)].any() or system.D[np.ix_(rows, other)].any():
            return system
        samples.append(_part(system, units, ~other, rows))
    first = samples[0]
    same = all(_equal(getattr(first, p), getattr(s, p)) for s in samples for p in PARTS)
    return first if same else system


def _part(system: System, units: Array, inputs: Array, outputs: Array) -> System:
    on = {"n": units, "m": inputs, "p": outputs}
    places = ("nn", "nm", "pn", "pm", "n", "p", "n", "n", "n")
    parts = {
        name: getattr(system, name)[np.ix_(*(on[axis] for axis in axes))]
        for name, axes in zip(PARTS, places, strict=True)
    }
    return replace(system, **parts)


def _equal(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b))
