"""Linear units substituted out, with the rounding of it enclosed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import Array
from ..system import UNKNOWN, System
from .rigorous import Ball


@dataclass(frozen=True)
class Folded:
    """An acyclic system in the units of more than one slope; z = E [x; z_kept] for all others.

    Attributes:
        arrays: A, B, C, D as `Ball`s around the exact products, alpha and beta as they are.
        kept: mask (n,) of the units that remain.
    """

    arrays: dict[str, Any]
    kept: NDArray[np.bool_]

    @property
    def system(self) -> System:
        """In floating point, for a solver: what it proposes is proved for `arrays`."""
        A, B, C, D = (self.arrays[name].mid for name in "ABCD")
        slopes = {name: self.arrays[name] for name in ("alpha", "beta")}
        return System(A, B, C, D, **slopes, activation=np.full(len(A), UNKNOWN))


def fold(system: System, C: Ball | None = None, D: Ball | None = None) -> Folded | None:
    """Without the units with alpha = beta: a ReLU that is always on, an identity.

    Such a unit makes its term of the condition an equation, whose best multiplier is infinite.

    Args:
        system: acyclic.
        C, D: in place of the system's own.

    Returns:
        None where there is nothing to substitute, or the system has a cycle.
    """
    kept = system.alpha < system.beta
    if kept.all() or system.levels is None:
        return None
    m = system.inputs
    width = m + int(kept.sum())
    mid, rad = np.zeros((system.units, width)), np.zeros((system.units, width))
    mid[kept, m:] = np.eye(width - m)
    for level in system.levels:
        linear = level[~kept[level]]
        if linear.size:
            slope = Ball(system.alpha[linear][:, None])
            rows = slope * _through(system.A[linear], Ball(mid, rad), system.B[linear])
            mid[linear], rad[linear] = rows.mid, rows.rad
    E = Ball(mid, rad)
    units = _through(system.A[kept], E, system.B[kept])
    outputs = _through(system.C if C is None else C, E, system.D if D is None else D)
    arrays = {
        "A": units[:, m:],
        "B": units[:, :m],
        "C": outputs[:, m:],
        "D": outputs[:, :m],
        "alpha": system.alpha[kept],
        "beta": system.beta[kept],
    }
    return Folded(arrays, kept)


def _through(on_z: Array | Ball, E: Ball, on_x: Array | Ball) -> Ball:
    """Coefficients of [x; z_kept] of on_z @ z + on_x @ x."""
    rest = np.zeros((on_x.shape[0], E.shape[1] - on_x.shape[1]))
    direct = on_x if isinstance(on_x, Ball) else Ball(on_x)
    return on_z @ E + Ball(np.hstack([direct.mid, rest]), np.hstack([direct.rad, rest]))
