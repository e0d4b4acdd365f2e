"""Linear units substituted out, with the rounding of it enclosed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import Array
from ..system import UNKNOWN, System
from .rigorous import TINY, UNIT, Ball

COARSE = 1e-13
"""Relative radii from which on a sharper enclosure is tried."""


@dataclass(frozen=True)
class Folded:
    """A system in the units of more than one slope; z = E [x; z_kept] for all others.

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
    Around cycles they are solved for: that they have one solution is shown by the way.

    Args:
        C, D: in place of the system's own.

    Returns:
        None where there is nothing to substitute, or no solution was shown.
    """
    kept = system.alpha < system.beta
    if kept.all():
        return None
    E = _by_levels(system, kept) if system.levels is not None else _by_inverse(system, kept)
    if E is None:
        return None
    if not (E.rad <= COARSE * (1 + abs(E.mid).max(initial=0))).all():
        # Radii grow from level to level as products of |A| do, those of an inverse as it does.
        other = _by_inverse(system, kept) or E
        closer = other.rad < E.rad
        E = Ball(np.where(closer, other.mid, E.mid), np.where(closer, other.rad, E.rad))
    m = system.inputs
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


def _by_levels(system: System, kept: NDArray[np.bool_]) -> Ball:
    """All units in terms of [x; z_kept], (n, m + kept)."""
    m, width = system.inputs, system.inputs + int(kept.sum())
    mid, rad = np.zeros((system.units, width)), np.zeros((system.units, width))
    mid[kept, m:] = np.eye(width - m)
    for level in system.levels or []:
        linear = level[~kept[level]]
        if linear.size:
            slope = Ball(system.alpha[linear][:, None])
            rows = slope * _through(system.A[linear], Ball(mid, rad), system.B[linear])
            mid[linear], rad[linear] = rows.mid, rows.rad
    return Ball(mid, rad)


def _by_inverse(system: System, kept: NDArray[np.bool_]) -> Ball | None:
    """The same, also around cycles: (I − αA)z = α(Bx + Az_kept) for the others, by an inverse R.

    With ‖I − R(I − αA)‖∞ = q < 1 (here 1/2) the matrix is regular, and a solution with residual r
    is off by at most ‖Rr‖∞ / (1 − q), column by column.
    """
    linear = np.flatnonzero(~kept & (system.alpha != 0))
    m, width, eye = system.inputs, system.inputs + int(kept.sum()), np.eye(len(linear))
    mid, rad = np.zeros((system.units, width)), np.zeros((system.units, width))
    mid[kept, m:] = np.eye(width - m)
    slope = Ball(system.alpha[linear][:, None])
    matrix = Ball(eye) + slope * Ball(-system.A[np.ix_(linear, linear)])
    known = slope * Ball(np.hstack([system.B[linear], system.A[np.ix_(linear, kept)]]))
    try:
        R = np.linalg.inv(matrix.mid)
    except np.linalg.LinAlgError:
        return None
    rest = Ball(eye) + R @ matrix * -1.0
    q = _norms(rest.swapaxes(0, 1)).max(initial=0.0)
    mid[linear] = R @ known.mid
    residual = known + matrix @ Ball(-mid[linear])
    off = (R @ residual).swapaxes(0, 1)
    if not (q < 0.5 and np.isfinite(off.mid).all() and np.isfinite(off.rad).all()):
        return None
    largest = np.maximum(abs(off.lower), abs(off.upper)).max(axis=1, initial=0.0)
    rad[linear] = largest / (1 - q) * (1 + 8 * UNIT) + TINY
    return Ball(mid, rad)


def _norms(matrix: Ball) -> Array:
    """At least the sums of magnitudes of each column."""
    terms = matrix.shape[0]
    sizes = np.maximum(abs(matrix.lower), abs(matrix.upper)).sum(axis=0)
    return np.asarray(sizes * (1 + 4 * (terms + 4) * UNIT))


def _through(on_z: Array | Ball, E: Ball, on_x: Array | Ball) -> Ball:
    """Coefficients of [x; z_kept] of on_z @ z + on_x @ x."""
    rest = np.zeros((on_x.shape[0], E.shape[1] - on_x.shape[1]))
    direct = on_x if isinstance(on_x, Ball) else Ball(on_x)
    return on_z @ E + Ball(np.hstack([direct.mid, rest]), np.hstack([direct.rad, rest]))
