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
LARGE = 3000
"""From this order on the cheap criterion alone is tried."""


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
        return Ball(mid, up(self.rad + other.rad + UNIT * abs(mid), 2))

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
        return Ball(mid, up(spread, 4) + TINY)

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
        spread = gamma(int(rounded)) * (size @ other_size)
        if dy.any():
            spread = spread + size @ dy
        if dx.any():
            spread = spread + dx @ (other_size + dy)
        return Ball(x @ y, up(spread, terms) + terms * TINY)

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


def lengths(rows: Array) -> Any:
    """At least ‖·‖₂ along the last axis, of numbers whose squares underflow, too."""
    terms = rows.shape[-1]
    return np.linalg.norm(rows, axis=-1) * (1 + 4 * (terms + 8) * UNIT) + terms * 1e-160


def positive_definite(matrix: Ball) -> bool:
    """Whether every symmetric matrix in the ball is positive definite; False means 'not shown'.

    First the cheap criterion, [RUMP]: if the floating-point Cholesky decomposition of S − cI runs
    to completion, then S is positive definite, where c is the worst that rounding can do. Where
    the margin is thinner than that, and the order below `LARGE`, what rounding did do: S − LLᵀ for
    the computed L, with an error far below it, must be diagonally dominant.

    Source: [RUMP] Verification of positive definiteness, BIT 2006, Theorem 2.3.
    """
    n = matrix.shape[-1]
    if n == 0:
        return True
    scaled = _scaled([matrix], [])
    if scaled is None:
        return False
    (mid,), _, (distance,) = scaled
    bands = _bands(mid)
    if bands is None:
        cheap = _by_rump(mid, float(distance.max()))
        return cheap or (n < LARGE and _by_residual([mid], [], [distance]))
    order, width = bands
    return _by_residual(
        *_blocks(mid, order, width), np.split(distance[order], range(width, n, width))
    )


def tridiagonal_definite(diagonal: list[Ball], below: list[Ball]) -> bool:
    """`positive_definite` of a block tridiagonal matrix, in time linear in the number of blocks.

    Args:
        diagonal: K ≥ 1 blocks (n_k, n_k).
        below: K − 1 blocks (n_{k+1}, n_k) below them, whose transposes are those above.
    """
    scaled = _scaled(diagonal, below)
    return scaled is not None and _by_residual(*scaled)


def _scaled(
    diagonal: list[Ball], below: list[Ball]
) -> tuple[list[Array], list[Array], list[Array]] | None:
    """The blocks of S with diagonal entries about 1, and how far row sums may be off.

    None where a diagonal entry is not positive, or something not finite.
    """
    if not all(np.isfinite(b.mid).all() and np.isfinite(b.rad).all() for b in diagonal + below):
        return None
    if not all((b.mid.diagonal() > 0).all() for b in diagonal):
        return None
    # Powers of two: the scaling rounds nothing but what underflows, by less than 1e-160.
    scales = [np.ldexp(1.0, -(np.frexp(b.mid.diagonal())[1] // 2)) for b in diagonal]
    mids, sums = [], []
    for ball, scale in zip(diagonal, scales, strict=True):
        mid = (ball.mid + ball.mid.T) / 2
        rad = (ball.rad + ball.rad.T) / 2 + abs(ball.mid - ball.mid.T) / 2 + 2 * UNIT * abs(mid)
        mids.append(mid * scale[:, None] * scale)
        sums.append((rad * scale[:, None] * scale).sum(axis=1))
    lower = []
    for k, ball in enumerate(below):
        lower.append(ball.mid * scales[k + 1][:, None] * scales[k])
        rad = ball.rad * scales[k + 1][:, None] * scales[k]
        sums[k + 1] += rad.sum(axis=1)
        sums[k] += rad.sum(axis=0)
    terms = 3 * max(map(len, mids))
    return mids, lower, [up(s, terms + 10) + terms * 1e-150 for s in sums]


def _by_rump(S: Array, distance: float) -> bool:
    n = len(S)
    trace = up(S.diagonal().sum(), n)
    unit = gamma(n + 1)
    shift = up(unit / (1 - unit) * trace + distance + 2 * UNIT * S.diagonal().max(), 8)
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


def _blocks(S: Array, order: Any, width: int) -> tuple[list[Array], list[Array]]:
    """The blocks on the diagonal and those below it, of this width but for the last."""
    rows = np.split(order, range(width, len(S), width))
    return (
        [S[np.ix_(own, own)] for own in rows],
        [S[np.ix_(*pair)] for pair in zip(rows[1:], rows, strict=False)],
    )


def _by_residual(diagonal: list[Array], below: list[Array], distance: list[Array]) -> bool:
    """Whether S ≻ 0, and whatever is symmetric with row sums within `distance` of it.

    S − LLᵀ is diagonally dominant for some L, hence S ≻ 0. L is that of S − cI, with c above what
    the decomposition turns out to have left.
    """
    # What a decomposition leaves is mostly below half as many units as there are columns.
    shift = [1.1 * d + (0.75 * len(d) + 4) * UNIT for d in distance]
    for _ in range(4):
        L: list[Array] = []
        M: list[Array] = []
        try:
            for k, S in enumerate(diagonal):
                rest = S - np.diag(shift[k])
                if k:
                    M.append(_solved(L[-1], below[k - 1].T).T)
                    rest -= M[-1] @ M[-1].T
                L.append(scipy.linalg.cholesky(rest, lower=True, check_finite=False))
        except scipy.linalg.LinAlgError:
            return False
        left, others = _remainder(diagonal, below, L, M)
        others = [up(o + d, 4 * len(d)) for o, d in zip(others, distance, strict=True)]
        if all((a > b).all() for a, b in zip(left, others, strict=True)):
            return True
        if not all(np.isfinite(o).all() for o in others):
            return False
        shift = [1.5 * o + 4 * UNIT for o in others]
    return False


def _solved(L: Array, K: Array) -> Array:
    return np.asarray(scipy.linalg.solve_triangular(L, K, lower=True, check_finite=False))


def _remainder(
    diagonal: list[Array], below: list[Array], L: list[Array], M: list[Array]
) -> tuple[list[Array], list[Array]]:
    """The diagonal of S − LLᵀ, and the sums of the other entries of each row with all errors."""
    left, others = [], []
    for k, S in enumerate(diagonal):
        rows = np.hstack([M[k - 1], L[k]]) if k else L[k]
        rest, error = _minus_product(S, rows, rows)
        left.append(rest.diagonal())
        others.append(abs(rest).sum(axis=1) - abs(left[-1]) + error)
        if k:
            off, error = _minus_product(below[k - 1], M[k - 1], L[k - 1])
            others[k] += abs(off).sum(axis=1) + error
            others[k - 1] += abs(off).sum(axis=0) + error
    return left, others


def _minus_product(S: Array, X: Array, Y: Array) -> tuple[Array, float]:
    """S − XYᵀ in floating point, and a bound on the sum of the errors of a row, and of a column.

    X and Y are split so that the product of their leading parts is exact: multiples of 2⁻⁵⁰ of
    which no sum exceeds 2³, whatever the order. What is left is small, and so are its errors.
    """
    terms = X.shape[1]
    X1, Y1 = (np.rint(Z * GRID) / GRID for Z in (X, Y))
    X2, Y2 = X - X1, Y - Y1
    size = max(float(np.linalg.norm(Z, axis=1).max()) for Z in (X, Y, X1, Y1))
    if not size < 2:
        return S * np.nan, np.inf
    first = S - X1 @ Y1.T
    second = X1 @ Y2.T + X2 @ Y.T
    small = max(float(np.linalg.norm(Z, axis=1).max()) for Z in (X2, Y2))
    entry = 2 * gamma(terms + 2) * size * small + terms * TINY
    sums = abs(first) + 2 * abs(second)
    rounding = 2 * UNIT * max(float(sums.sum(axis=axis).max()) for axis in (0, 1))
    return first - second, float(up(2 * (max(S.shape) * entry + rounding), terms))


def _ball(value: Any) -> Ball:
    return value if isinstance(value, Ball) else Ball(value)


def gamma(terms: int) -> float:
    """How far a sum of so many products may be off, relative to that of the magnitudes."""
    return (terms + 2) * UNIT / (1 - (terms + 2) * UNIT)


def up(value: Any, operations: int) -> Any:
    """At least the exact value of what `operations` non-negative roundings gave."""
    return value * (1 + 2 * (operations + 4) * UNIT)


def _down(value: Any) -> Any:
    return np.nextafter(value - 2 * UNIT * abs(value), -np.inf)
