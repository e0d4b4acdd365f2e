"""Exact values that satisfy a lemma's hypothesis: rational, at or just above the closed form."""

from __future__ import annotations

import numpy as np
import sympy as sp

from ..errors import InvalidInput


def upwards(value: sp.Rational, power: int = 1) -> sp.Rational:
    """A rational square t with t^power ≥ value, close to the least; 1 for value = 0."""
    if value == 0:
        return sp.Integer(1)
    scale = 10**6
    guess = sp.Rational(int(np.ceil(float(value) ** (1 / (2 * power)) * scale)), scale)
    while guess ** (2 * power) < value:
        guess *= 1 + sp.Rational(1, 10**12)
    return guess**2


def _row_sums(S: sp.Matrix, q: sp.Matrix | None) -> list[sp.Rational]:
    q = sp.ones(S.rows, 1) if q is None else q
    return [sum(abs(S[i, j]) * q[j] / q[i] for j in range(S.rows)) for i in range(S.rows)]


def dominance(S: sp.Matrix, q: sp.Matrix | None = None) -> sp.Matrix:
    return sp.diag(*(upwards(t) for t in _row_sums(S, q)))


def power(S: sp.Matrix, q: sp.Matrix | None = None, *, power: int) -> sp.Matrix:
    return sp.diag(*(upwards(t, power) for t in _row_sums(S**power, q)))


def spectral(W: sp.Matrix) -> sp.Matrix:
    gram = np.array((W.T * W).tolist(), dtype=float)
    top = sp.Rational(float(np.linalg.norm(gram, 2)) * (1 + 1e-9)).limit_denominator(10**12)
    return upwards(top) * sp.eye(W.cols)


def blocks(S: sp.Matrix, *, size: int) -> sp.Matrix:
    count = S.rows // size
    if count * size != S.rows:
        raise InvalidInput(f"block_dominance: {S.rows} rows are no multiple of {size}.")
    norms = sp.zeros(count, count)
    for i in range(count):
        for j in range(count):
            part = S[i * size : (i + 1) * size, j * size : (j + 1) * size]
            value = float(np.linalg.norm(np.array(part.tolist(), dtype=float), 2)) * (1 + 1e-9)
            norms[i, j] = sp.Rational(value).limit_denominator(10**12)
    sums = _row_sums(norms, None)
    return sp.diag(*(upwards(sums[i // size]) for i in range(S.rows)))


def cayley(X: sp.Matrix) -> sp.Matrix:
    if X.rows < X.cols:
        return cayley(X.T).T
    U, V = X[: X.cols, :], X[X.cols :, :]
    R = (sp.eye(X.cols) + U - U.T + V.T * V).inv()
    return sp.Matrix.vstack(2 * R - sp.eye(X.cols), -2 * V * R)


def top(X: sp.Matrix, Y: sp.Matrix) -> sp.Matrix:
    return cayley(sp.Matrix.vstack(X, Y))[: X.rows, :]


def bottom(X: sp.Matrix, Y: sp.Matrix) -> sp.Matrix:
    return cayley(sp.Matrix.vstack(X, Y))[X.rows :, :]


def metzler(A: sp.Matrix) -> sp.Matrix:
    return sp.Matrix(*A.shape, lambda i, j: A[i, j] if i == j else abs(A[i, j]))


# --- the closed forms' own values, where they are rational ---


def own_dominance(S: sp.Matrix, q: sp.Matrix | None = None) -> sp.Matrix:
    return sp.diag(*(t if t else sp.Integer(1) for t in _row_sums(S, q)))


def own_spectral(W: sp.Matrix) -> sp.Matrix:
    if min(W.shape) > 1:
        raise ValueError("The norm is rational only by chance.")
    square = (W.T * W).trace()
    return (square if square else sp.Integer(1)) * sp.eye(W.cols)


def own_power(S: sp.Matrix, q: sp.Matrix | None = None) -> sp.Matrix:
    if S.rows > 1:
        raise ValueError("The root is rational only by chance.")
    return sp.Matrix([[S[0, 0] if S[0, 0] else sp.Integer(1)]])


CLOSED = {
    "diagonal dominance": own_dominance,
    "block diagonal dominance": own_power,
    "spectral norm": own_spectral,
    "Gram power": own_power,
}
