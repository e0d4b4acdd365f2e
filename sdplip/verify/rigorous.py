"""Floating-point proofs: matrices with error radii, and positive definiteness by Cholesky.

A `Ball` is evaluated by the same `LMI` as any other matrix, so what is proved is the condition
itself, for the exact weights given, with every rounding error accounted for. `checker` proves the
same with code of its own; a test keeps the two agreeing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.csgraph
import sympy as sp

from .._arrays import Array
from .._backends import NumpyOps

UNIT = 2.0**-53
TINY = 1e-300
GRID = 2.0**25
"""Products of two multiples of 1/GRID, and sums of them below 8, are exact in float64."""


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
    def zero(self) -> bool:
        """Whether it is zero, exactly."""
        return not (self.mid.any() or self.rad.any())

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
        if self.zero or other.zero:
            return Ball(np.broadcast_to(0.0, mid.shape))
        spread = UNIT * abs(mid)
        if other.rad.any():
            spread += abs(self.mid) * other.rad
        if self.rad.any():
            spread += self.rad * (abs(other.mid) + other.rad)
        return Ball(mid, _up(spread, 4) + TINY)

    def __matmul__(self, other: Any) -> Ball:
        if isinstance(other, _Diagonal):
            return self * other.entries
        other = _ball(other)
        x, dx, y, dy = self.mid, self.rad, other.mid, other.rad
        if self.zero or other.zero:
            return Ball(np.broadcast_to(0.0, (len(x), y.shape[1])))
        # Zeros add nothing, and no error: most of A, B and C of a deep network.
        inner = (x.any(axis=0) | dx.any(axis=0)) & (y.any(axis=1) | dy.any(axis=1))
        if not inner.all():
            x, dx, y, dy = x[:, inner], dx[:, inner], y[inner], dy[inner]
        size, other_size, terms = abs(x), abs(y), int(inner.sum())
        rounded = min((x != 0).sum(axis=1).max(initial=0), (y != 0).sum(axis=0).max(initial=0))
        spread = _gamma(int(rounded)) * (size @ other_size)
        if dy.any():
            spread = spread + size @ dy
        if dx.any():
            spread = spread + dx @ (other_size + dy)
        return Ball(x @ y, _up(spread, terms) + terms * TINY)

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

    def plus(self, indices: Any, value: float) -> Ball:
        """The matrix with `value` added to these entries of the diagonal."""
        mid, rad = self.mid.copy(), self.rad.copy()
        entries = Ball(mid[indices, indices], rad[indices, indices]) + value
        mid[indices, indices], rad[indices, indices] = entries.mid, entries.rad
        return Ball(mid, rad)

    @staticmethod
    def lmi_ops() -> _BallOps:
        return _BallOps()


class _Diagonal(Ball):
    """A diagonal matrix by its entries (n,): products scale rows or columns, one rounding each."""

    __slots__ = ("entries",)

    def __init__(self, entries: Ball) -> None:
        self.entries = entries

    zero = property(lambda self: self.entries.zero)
    mid = property(lambda self: np.diag(self.entries.mid))
    rad = property(lambda self: np.diag(self.entries.rad))

    def __add__(self, other: Any) -> Ball:
        if isinstance(other, _Diagonal):
            return _Diagonal(self.entries + other.entries)
        return self if _ball(other).zero else super().__add__(other)

    def __mul__(self, other: Any) -> Ball:
        if np.shape(getattr(other, "mid", other)) == ():
            return _Diagonal(self.entries * other)
        return super().__mul__(other)

    def __matmul__(self, other: Any) -> Ball:
        if isinstance(other, _Diagonal):
            return _Diagonal(self.entries * other.entries)
        return self.entries[:, None] * other

    __radd__ = __add__
    __rmul__ = __mul__

    def swapaxes(self, first: int, second: int) -> Ball:
        return self


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
        return _Diagonal(value)

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

    First the cheap criterion, [RUMP]: if the floating-point Cholesky decomposition of S − cI runs
    to completion, then S is positive definite, where c is the worst that rounding can do. Where
    the margin is thinner than that, what rounding did do: S − LLᵀ for the computed L, with an
    error far below it, must be diagonally dominant.

    Source: [RUMP] Verification of positive definiteness, BIT 2006, Theorem 2.3.
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
    # Powers of two: the scaling rounds nothing but what underflows, by less than 1e-160.
    scale = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    mid = mid * scale[:, None] * scale
    distance = _up((rad * scale[:, None] * scale).sum(axis=1), n + 4) + n * 1e-150
    del rad
    bands = _bands(mid)
    if bands is None:
        return _by_rump(mid, float(distance.max())) or _by_residual(
            mid[None], mid[None][:0], distance
        )
    order, width = bands
    return _by_residual(*_blocks(mid, order, width), distance[order])


def _by_rump(S: Array, distance: float) -> bool:
    n = len(S)
    trace = _up(S.diagonal().sum(), n)
    gamma = _gamma(n + 1)
    shift = _up(gamma / (1 - gamma) * trace + distance + 2 * UNIT * S.diagonal().max(), 8)
    shift += 4 * n * n * TINY
    try:
        scipy.linalg.cholesky(S - shift * np.eye(n), lower=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return False
    return True


def _bands(S: Array) -> tuple[Any, int] | None:
    """An order of the rows in which S is block tridiagonal, and the blocks' size; None: dense."""
    n = len(S)
    if n < 64 or np.count_nonzero(S) > n * n // 4:
        return None
    pattern = scipy.sparse.csr_array(S != 0)
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(pattern, symmetric_mode=True)
    place = np.argsort(order)
    rows, columns = pattern.nonzero()
    width = max(int(abs(place[rows] - place[columns]).max()), 8)
    return (order, width) if 4 * width < n else None


def _blocks(S: Array, order: Any, width: int) -> tuple[Array, Array]:
    """The blocks (k, w, w) on the diagonal and (k − 1, w, w) below it, filled up by ones."""
    count = -(-len(S) // width)
    full = np.append(order, np.full(count * width - len(S), -1)).reshape(count, width)
    fill = (full < 0).astype(np.float64)

    def cut(rows: Any, columns: Any) -> Array:
        return S[rows[..., None], columns[..., None, :]]

    padding = fill[:, :, None] + fill[:, None, :] > 0
    diagonal = np.where(padding, np.eye(width) * fill[:, :, None], cut(full, full))
    below = cut(full[1:], full[:-1]) * (1 - fill[1:, :, None])
    return diagonal, below


def _by_residual(diagonal: Array, below: Array, distance: Array) -> bool:
    """Whether S ≻ 0, and whatever is symmetric with row sums within `distance` of it.

    S − LLᵀ is diagonally dominant for some L, hence S ≻ 0. L is that of S − cI, with c above what
    the decomposition turns out to have left.
    """
    count, width = diagonal.shape[:2]
    distance = np.append(distance, np.zeros(count * width - len(distance))).reshape(count, width)
    # What a decomposition leaves is mostly below width/2 units.
    shift = 1.1 * distance + 0.75 * width * UNIT
    for _ in range(4):
        L, M = np.empty_like(diagonal), np.empty_like(below)
        shifted = diagonal - shift[:, :, None] * np.eye(width)
        try:
            for k in range(count):
                rest = shifted[k] - M[k - 1] @ M[k - 1].T if k else shifted[k]
                L[k] = scipy.linalg.cholesky(rest, lower=True, check_finite=False)
                if k < count - 1:
                    M[k] = scipy.linalg.solve_triangular(
                        L[k], below[k].T, lower=True, check_finite=False
                    ).T
        except scipy.linalg.LinAlgError:
            return False
        left, others = _remainder(diagonal, below, L, M)
        others = _up(others + distance, 4 * width)
        if (left > others).all():
            return True
        if not np.isfinite(others).all():
            return False
        shift = 1.5 * others
    return False


def _remainder(diagonal: Array, below: Array, L: Array, M: Array) -> tuple[Array, Array]:
    """The diagonal (k, w) of S − LLᵀ, and the sums of the other entries with all errors."""
    rows = L
    if len(M):
        rows = np.concatenate([np.concatenate([np.zeros_like(L[:1]), M]), L], axis=2)
    rest, error = _minus_product(diagonal, rows, rows)
    middle = rest.diagonal(axis1=1, axis2=2)
    others = abs(rest).sum(axis=2) - abs(middle) + error
    if len(M):
        off, error = _minus_product(below, M, L[:-1])
        others[1:] += abs(off).sum(axis=2) + error
        others[:-1] += abs(off).sum(axis=1) + error
    return middle, others


def _minus_product(S: Array, X: Array, Y: Array) -> tuple[Array, float]:
    """S − XYᵀ in floating point, and a bound on the sum of the errors of a row, and of a column.

    X and Y are split so that the product of their leading parts is exact: multiples of 2⁻⁵⁰ of
    which no sum exceeds 2³, whatever the order. What is left is small, and so are its errors.
    """
    width, terms = X.shape[-2], X.shape[-1]
    X1, Y1 = (np.rint(Z * GRID) / GRID for Z in (X, Y))
    X2, Y2 = X - X1, Y - Y1
    size = max(float(np.linalg.norm(Z, axis=-1).max()) for Z in (X, Y, X1, Y1))
    if not size < 2:
        return S * np.nan, np.inf
    first = S - X1 @ Y1.swapaxes(-1, -2)
    second = X1 @ Y2.swapaxes(-1, -2) + X2 @ Y.swapaxes(-1, -2)
    small = max(float(np.linalg.norm(Z, axis=-1).max()) for Z in (X2, Y2))
    entry = 2 * _gamma(terms + 2) * size * small + terms * TINY
    sums = abs(first) + 2 * abs(second)
    rounding = 2 * UNIT * max(float(sums.sum(axis=axis).max()) for axis in (-1, -2))
    return first - second, float(_up(2 * (width * entry + rounding), terms))


def _ball(value: Any) -> Ball:
    return value if isinstance(value, Ball) else Ball(value)


def _gamma(terms: int) -> float:
    return (terms + 2) * UNIT / (1 - (terms + 2) * UNIT)


def _up(value: Any, operations: int) -> Any:
    """At least the exact value of what `operations` non-negative roundings gave."""
    return value * (1 + 2 * (operations + 4) * UNIT)


def _down(value: Any) -> Any:
    return np.nextafter(value - 2 * UNIT * abs(value), -np.inf)
