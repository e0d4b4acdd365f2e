"""Dense symmetric linear algebra of the interior point method, through LAPACK in place.

Symmetric arrays are C-ordered and full; a factor U is F-ordered and upper, S = UᵀU, with whatever
was there below its diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import blas, eigh_tridiagonal, lapack

from .._arrays import Array

TILE = 128


def cholesky(S: Array) -> Array | None:
    """U with S = UᵀU from the lower triangle of S; None where S is not ≻ 0."""
    factor, info = lapack.dpotrf(S.T, lower=0, clean=0)
    return None if info else factor


def inverse(factor: Array) -> Array:
    """S⁻¹ (full) from the factor of S."""
    K = lapack.dpotri(factor, lower=0)[0].T
    for rows, later in _tiles(len(K)):
        K[rows, later] = K[later, rows].T
        corner = K[rows, rows]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return np.asarray(K)


def fold(K: Array) -> Array:
    """K ← (K + Kᵀ)/2, in place."""
    for rows, later in _tiles(len(K)):
        K[rows, later] += K[later, rows].T
        K[rows, later] *= 0.5
        K[later, rows] = K[rows, later].T
        K[rows, rows] = (K[rows, rows] + K[rows, rows].T) / 2
    return K


def _tiles(order: int) -> list[tuple[slice, slice]]:
    """Rows of the tiles on the diagonal, and the columns after each."""
    starts = range(0, order, TILE)
    return [(slice(i, i + TILE), slice(min(i + TILE, order), order)) for i in starts]


def longest(factor: Array, step: Array, accuracy: float, enough: float) -> float:
    """A step a with S + a·step ⪰ 0, nearly the largest; `enough` where that is larger.

    Lanczos on U⁻ᵀ step U⁻¹ with the residual as the margin [Toh, SIAM J. Optim. 14 (2003)]; what
    is factored afterwards shows whether the step was too long. 0 where that overflows.
    """
    order = len(factor)
    v = np.random.default_rng(0).standard_normal(order)
    v /= np.linalg.norm(v)
    before, beta = np.zeros(order), 0.0
    diagonal: list[float] = []
    off: list[float] = []
    lowest = 0.0
    for k in range(1, min(order, 80) + 1):
        u = blas.dtrsv(factor, v)
        u = blas.dtrsv(factor, step @ u, trans=1, overwrite_x=1)
        diagonal.append(float(u @ v))
        u -= diagonal[-1] * v + beta * before
        beta = float(np.linalg.norm(u))
        if not math.isfinite(beta):
            return 0.0
        if k % 4 == 0 or k == order or beta == 0:
            values, vectors = eigh_tridiagonal(
                np.array(diagonal), np.array(off), select="i", select_range=(0, 0)
            )
            margin = beta * abs(vectors[-1, 0])
            lowest = float(values[0] - margin)
            # Settled, or far enough from what would shorten the step; a cluster hides what is
            # lowest for some iterations.
            settled = margin <= accuracy * abs(values[0]) or lowest * enough > -0.9
            if k >= 12 and settled:
                break
        if beta == 0:
            break
        before, v = v, u / beta
        off.append(beta)
    return enough if lowest * enough >= -1 else -1 / lowest


def solver(matrix: Array) -> Callable[[Array], Array] | None:
    """Solve with a matrix ≻ 0 given by its lower triangle, scaled and refined once.

    Overwrites the matrix. None where it is too far from ≻ 0.
    """
    order = len(matrix)
    scale = 1 / np.sqrt(np.maximum(matrix.diagonal(), 1e-300))
    matrix *= scale[:, None]
    matrix *= scale
    shift, factor = 0.0, cholesky(matrix)
    while factor is None and shift < 1e-6:
        shift = max(10 * shift, 1e-15)
        shifted = matrix.copy()
        shifted[np.arange(order), np.arange(order)] += shift
        factor = cholesky(shifted)
    if factor is None:
        return None

    def solve(b: Array) -> Array:
        b = scale * b
        x = lapack.dpotrs(factor, b, lower=0)[0]
        x += lapack.dpotrs(factor, b - blas.dsymv(1.0, matrix.T, x, lower=0), lower=0)[0]
        return np.asarray(scale * x)

    return solve
