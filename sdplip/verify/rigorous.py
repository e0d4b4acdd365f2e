"""Floating-point proofs: matrices with error radii, and positive definiteness by Cholesky.

A `Ball` is evaluated by the same `LMI` as any other matrix, so what is proved is the condition
itself, for the exact weights given, with every rounding error accounted for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import sympy as sp

from .._backends import NumpyOps

UNIT = 2.0**-53
TINY = 1e-300


class Ball:
    """All matrices X with |X − mid| ≤ rad entrywise; sums and products enclose the exact ones.

    Bounds follow Higham, *Accuracy and Stability of Numerical Algorithms*, (3.5) and (3.13); radii
    are themselves computed in floating point and enlarged for it.
    """

    __array_priority__ = 1000
    __slots__ = ("mid", "rad")

    def __init__(self, mid: Any, rad: Any = 0.0) -> None:
        self.mid = np.asarray(mid, dtype=np.float64)
        self.rad = np.broadcast_to(np.asarray(rad, dtype=np.float64), self.mid.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mid.shape

    @property
    def lower(self) -> Any:
        """A lower bound of every entry."""
        return _down(self.mid - self.rad)

    @property
    def upper(self) -> Any:
        """An upper bound of every entry."""
        return -_down(-self.mid - self.rad)

    def __add__(self, other: Any) -> Ball:
        other = _ball(other)
        mid = self.mid + other.mid
        return Ball(mid, _up(self.rad + other.rad + UNIT * abs(mid), 2))

    def __mul__(self, other: Any) -> Ball:
        other = _ball(other)
        mid = self.mid * other.mid
        spread = abs(self.mid) * other.rad + self.rad * (abs(other.mid) + other.rad)
        return Ball(mid, _up(spread + UNIT * abs(mid), 4) + TINY)

    def __matmul__(self, other: Any) -> Ball:
        other = _ball(other)
        terms = self.mid.shape[-1]
        size, other_size = abs(self.mid), abs(other.mid)
        spread = _gamma(terms) * (size @ other_size)
        if other.rad.any():
            spread = spread + size @ other.rad
        if self.rad.any():
            spread = spread + self.rad @ (other_size + other.rad)
        return Ball(self.mid @ other.mid, _up(spread, terms) + terms * TINY)

    def __rmatmul__(self, other: Any) -> Ball:
        return _ball(other) @ self

    __radd__ = __add__
    __rmul__ = __mul__

    def __abs__(self) -> Ball:
        return Ball(abs(self.mid), self.rad)

    def __getitem__(self, index: Any) -> Ball:
        return Ball(self.mid[index], self.rad[index])

    def swapaxes(self, first: int, second: int) -> Ball:
        return Ball(self.mid.swapaxes(first, second), self.rad.swapaxes(first, second))

    @staticmethod
    def lmi_ops() -> _BallOps:
        return _BallOps()


class _BallOps(NumpyOps):
    def array(self, name: str, value: Any) -> Any:
        return _ball(value)

    def by_entries(self, owner: str, name: str, value: Any) -> tuple[int, ...]:
        return value.shape

    def ones(self, n: int) -> Any:
        return Ball(super().ones(n))

    def eye(self, n: int) -> Any:
        return Ball(super().eye(n))

    def zeros(self, n: int, m: int) -> Any:
        return Ball(super().zeros(n, m))

    def number(self, value: Any) -> Any:
        if sp.Rational(float(value)) != value:
            raise ValueError(f"{value} is no floating-point number; its rounding is not enclosed.")
        return Ball(float(value))

    def diagonal(self, value: Any) -> Any:
        return Ball(np.diag(value.mid), np.diag(value.rad))

    def metzler(self, value: Any) -> Any:
        off = ~np.eye(value.shape[-1], dtype=bool)
        return Ball(np.where(off, abs(value.mid), value.mid), value.rad)

    def block(self, rows: list[list[Any]]) -> Any:
        return Ball(
            np.block([[b.mid for b in r] for r in rows]),
            np.block([[b.rad for b in r] for r in rows]),
        )


def positive_definite(matrix: Ball) -> bool:
    """Whether every symmetric matrix in the ball is positive definite; False means 'not shown'.

    Rump, *Verification of positive definiteness* (BIT 2006), Theorem 2.3: if the floating-point
    Cholesky decomposition of A − cI runs to completion, then A is positive definite, where c
    covers the rounding errors of the decomposition and the distance from the matrix to A.
    """
    n = matrix.shape[-1]
    if n == 0:
        return True
    if not (np.isfinite(matrix.mid).all() and np.isfinite(matrix.rad).all()):
        return False
    mid = (matrix.mid + matrix.mid.T) / 2
    rad = _up(
        (matrix.rad + matrix.rad.T) / 2 + abs(matrix.mid - matrix.mid.T) / 2 + 2 * UNIT * abs(mid),
        4,
    )
    diagonal = mid.diagonal()
    if not (diagonal > 0).all():
        return False
    # Powers of two: the scaling rounds nothing unless it underflows, which TINY covers.
    scale = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    mid = mid * scale[:, None] * scale
    rad = rad * scale[:, None] * scale
    distance = _up(rad.sum(axis=1), n).max() + n * TINY
    trace = _up(mid.diagonal().sum(), n)
    gamma = _gamma(n + 1)
    shift = _up(gamma / (1 - gamma) * trace + distance + 2 * UNIT * mid.diagonal().max(), 8)
    shift += 4 * n * n * TINY
    try:
        scipy.linalg.cholesky(mid - shift * np.eye(n), lower=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return False
    return True


def _ball(value: Any) -> Ball:
    return value if isinstance(value, Ball) else Ball(value)


def _gamma(terms: int) -> float:
    return (terms + 2) * UNIT / (1 - (terms + 2) * UNIT)


def _up(value: Any, operations: int) -> Any:
    """At least the exact value of what `operations` non-negative roundings gave."""
    return value * (1 + 2 * (operations + 4) * UNIT)


def _down(value: Any) -> Any:
    return np.nextafter(value - 2 * UNIT * abs(value), -np.inf)
