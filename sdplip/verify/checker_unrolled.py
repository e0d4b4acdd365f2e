"""For checker.py: networks of convolutions with a multiplier for every unit of every pixel.

Images are flattened by channel, row and column. Where linear stages follow each other, units of
slope 1 stand between them, so that weights are placed and never multiplied. It imports the standard
library and NumPy.
"""

# mypy: ignore-errors
from math import prod

import numpy as np

LARGEST = 6000


def need(holds, message):
    if not holds:
        raise ValueError(message)


def meets(stage):
    """Whether the weights of a stage meet what comes first."""
    if stage.kind == "add":
        return any(meets(side[0]) for side in (stage.body, stage.skip) if side)
    return stage.kind != "units"


def count(stages):
    """How many units there are, those between linear stages included."""
    total, linear = 0, False
    for stage in stages:
        total += prod(stage.shape) * (stage.kind == "units" or (linear and meets(stage)))
        total += count(stage.body) + count(stage.skip) if stage.kind == "add" else 0
        linear = stage.kind != "units"
    return total


def matrix(stage):
    """The rows of a convolution, an average or a head, and its constants."""
    if stage.kind == "head":
        return stage.W + 0.0, stage.b + 0.0
    rows = np.zeros((len(stage.K), *stage.after, *stage.shape))
    for tap in np.ndindex(stage.K.shape[2:]):
        for y in np.ndindex(*stage.after):
            at = [y[a] * stage.step[a] + tap[a] - stage.pads[a] for a in (0, 1)]
            if stage.mode == "circular":
                at = [at[a] % stage.shape[1 + a] for a in (0, 1)]
            if all(0 <= at[a] < stage.shape[1 + a] for a in (0, 1)):
                rows[:, *y, :, *at] += stage.K[:, :, *tap]
    return rows.reshape(-1, prod(stage.shape)), np.repeat(stage.b, prod(stage.after)) + 0.0


class Rows:
    """The pre-activations of all units, as rows on (x, z); filled in the order of the network."""

    def __init__(self, inputs, units):
        self.inputs, self.rows, self.constants = inputs, [np.zeros((0, inputs + units))], []
        self.low, self.high, self.names, self.filled = [], [], [], 0

    def variables(self, first, size):
        """Some of (x, z), as a signal: rows on all of them, constants, and where the rows start."""
        return np.eye(size, self.rows[0].shape[1], first), np.zeros(size), first

    def units(self, signal, low, high, name):
        self.rows.append(signal[0])
        self.constants += signal[1].tolist()
        size = len(signal[0])
        for known, new in ((self.low, low), (self.high, high), (self.names, [name])):
            known += np.repeat(new, size // len(new)).tolist()
        first, self.filled = self.inputs + self.filled, self.filled + size
        return self.variables(first, size)

    def follow(self, stages, signal):
        for stage in stages:
            if signal[2] is None and meets(stage):
                signal = self.units(signal, [1.0], [1.0], "identity")
            if stage.kind == "units":
                signal = self.units(signal, *stage.slopes, stage.name)
            elif stage.kind == "add":
                body, skip = (self.follow(side, signal) for side in (stage.body, stage.skip))
                signal = (body[0] + skip[0], body[1] + skip[1], None)
            else:
                K, constants = matrix(stage)
                rows = np.zeros((len(K), self.rows[0].shape[1]))
                rows[:, signal[2] : signal[2] + K.shape[1]] = K
                signal = (rows, constants, None)
        return signal


def arrays(net):
    """The arrays A B C D b c alpha beta activation of a network that `images` has read."""
    (m, _, p), units = net["sizes"], count(net["every"])
    need(m + units + p <= LARGEST, "it is too large to have a multiplier for every pixel")
    found = Rows(m, units)
    F, c, _ = found.follow(net["every"], found.variables(0, m))
    R = np.concatenate(found.rows)
    blocks = {"A": R[:, m:], "B": R[:, :m], "C": F[:, m:], "D": F[:, :m]}
    slopes = {"alpha": np.array(found.low), "beta": np.array(found.high)}
    return {**blocks, **slopes, "b": np.array(found.constants), "c": c, "activation": found.names}
