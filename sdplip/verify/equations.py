"""Newton's equations of a chain, by conjugate gradients with a factor of H or of about H."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from .._arrays import Array
from .barrier import Hessian
from .semiseparable import Semiseparable

DENSE_UNITS = 5000
"""Above this many units there is no dense factor."""
FINEST = 1e-13
"""Below this cut-off rounding decides what the approximate factor leaves out."""
PATIENCE = 5
"""Iterations; more of them cost more than a finer cut-off."""
ROUNDS = 3
"""How often they begin anew, for what rounding has hidden."""

Solve = Callable[[Array], Array]


def cost(units: int, width: int) -> float:
    """About how many floating-point operations a step takes, for the greatest width of a layer."""
    return min(_dense(units), _linear(units, width))


def _dense(units: int) -> float:
    return units**3 / 3 if units <= DENSE_UNITS else math.inf


def _linear(units: int, width: int) -> float:
    # Its many small operations are slower: found where both take the same time.
    return 530.0 * units * width**2


@dataclass(frozen=True)
class Solution:
    """X, what it leaves of B, and the approximate inverse of H that led to it."""

    x: Array
    left: Array
    near: Solve


class Equations:
    """H X = B in every step of one search.

    For deep chains a factor that is linear in the depth serves, as fine as it has to be; the dense
    one otherwise, or where no cut-off is fine enough.
    """

    def __init__(self, units: int, width: int) -> None:
        self.dense, self.cut = cost(units, width) == _dense(units), 1e-4

    def solve(
        self, hessian: Hessian, b: Array, error: Callable[[Array, Array], float], enough: float
    ) -> Solution | None:
        """Row by row of B (c, 1 + units); None if rounding prevents it.

        Args:
            error, enough: the error of X and its residual, and where to stop.
        """
        while not self.dense:
            near = Semiseparable(hessian, self.cut)
            if near.definite:
                x, left, iterations = _iterate(hessian, near, b, error, enough)
                if iterations > PATIENCE:
                    self.cut *= 0.1
                if iterations <= 2 * PATIENCE:
                    return Solution(x, left, near)
            else:
                self.cut *= 0.1
            self.dense = self.cut < FINEST
        factor = _factor(hessian) if hessian.barrier.units <= DENSE_UNITS else None
        if factor is None:
            return None

        def exact(r: Array) -> Array:
            return np.asarray(lapack.dpotrs(factor, r.T, lower=0)[0].T)

        return Solution(*_iterate(hessian, exact, b, error, enough)[:2], exact)


def _factor(hessian: Hessian) -> Array | None:
    for shift in (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11):
        # In Fortran's order the lower triangle by rows is the upper one.
        matrix = hessian.dense().T
        matrix[np.diag_indices_from(matrix)] *= 1 + shift
        factor, failed = lapack.dpotrf(matrix, lower=0, clean=0, overwrite_a=1)
        if not failed:
            return np.asarray(factor)
    return None


def _iterate(
    hessian: Hessian, near: Solve, b: Array, error: Callable[[Array, Array], float], enough: float
) -> tuple[Array, Array, int]:
    """Conjugate gradients on each row of b, with the iterations of the first round."""
    x, left, taken, before = np.zeros_like(b), b, 0, np.inf
    for turn in range(ROUNDS):
        y, r = x, left
        step = z = near(r)
        size = first = (r * z).sum(axis=1)
        for _ in range(2 * PATIENCE + 1):
            product = hessian.product(step)
            length = size / np.maximum((step * product).sum(axis=1), 1e-300)
            y = y + length[:, None] * step
            r = r - length[:, None] * product
            taken += turn == 0
            if error(y, r) <= enough:
                break
            z = near(r)
            size, last = (r * z).sum(axis=1), size
            if (size <= 1e-20 * first).all():
                break
            step = z + (size / np.maximum(last, 1e-300))[:, None] * step
        now = error(y, r)
        if not now < before / 2:
            break
        x, left, before = y, r, now
        if now <= enough:
            break
    return x, left, taken
