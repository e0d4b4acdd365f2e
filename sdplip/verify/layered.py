"""The condition where its structure makes it cheap to prove: chains, and levels of many units.

A chain's M is block tridiagonal; by these blocks the cost is linear in the depth. A wide level is
eliminated: with F = [D C],

    M ≻ 0  ⇔  T = [I F; Fᵀ M + FᵀF] ≻ 0,

and between the units of a level that feeds none with αβ ≠ 0, T is 2Λ > 0. So it is the rest of T,
less ½YΛ⁻¹Yᵀ for the level's columns Y, that must be ≻ 0: a matrix of the order of all else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from .. import conditions
from .._arrays import Array
from ..system import System
from .descent import layers
from .rigorous import (
    TINY,
    UNIT,
    Ball,
    gamma,
    lengths,
    positive_definite,
    tridiagonal_definite,
    up,
)

WIDE = 2000
"""Units of a level from which on it is eliminated."""
PART = 512
"""Terms that a long sum of products adds up at a time."""
MANY = 2500
"""Above this many units of two slopes a chain is left one, with those of one slope in it."""


def folds(system: System) -> bool:
    """Whether `fold.fold` should substitute the units of one slope.

    It makes their multipliers infinite, which is best, but lets every layer feed all later ones; as
    units of a large chain they have large multipliers, and the chain's blocks serve.
    """
    bent = np.count_nonzero(system.alpha < system.beta)
    return bool(bent <= MANY or layers(system) is None)


def definite(system: System | None, arrays: dict[str, Any], lam: Array) -> Callable[[float], bool]:
    """Whether M(ρ, λ) ≻ 0 is shown, as a function of ρ.

    Args:
        system: whose zeros are those of `arrays`, and show the layers; None for others.
        arrays: A, B, C, D, alpha and beta of the condition, balls or arrays.
        lam: (n,), positive.
    """
    p, m = arrays["D"].shape
    inputs, levels = np.arange(m), _levels(system, arrays["A"])
    wide = _wide(levels, arrays)
    left, blocks = np.count_nonzero(~wide), None
    if system is not None and (not wide.any() or left > 4 * max(map(len, levels))):
        blocks = tridiagonal(system, arrays, lam)
    if blocks is not None:
        (first, *rest), below = blocks
        return lambda rho: tridiagonal_definite([first.plus(inputs, rho), *rest], below)
    if not wide.any():
        M = conditions.lipschitz(**arrays, Lam=Ball(lam), rho=Ball(0.0))
        return lambda rho: positive_definite(M.plus(inputs, rho))
    T = without(wide, arrays, lam)
    return lambda rho: positive_definite(T.plus(inputs + p, rho))


def _levels(system: System | None, A: Array | Ball) -> list[NDArray[np.intp]]:
    """Those of the exact zeros, where there may be a wide one."""
    if system is not None or not isinstance(A, Ball):
        return (system and system.levels) or []
    n = len(A.mid)
    if n < WIDE:
        return []
    met = np.where((A.mid != 0) | (A.rad != 0), 1.0, 0.0)
    return System(met, np.zeros((n, 0)), np.zeros((0, n)), np.zeros((0, 0))).levels or []


def _wide(levels: list[NDArray[np.intp]], arrays: dict[str, Any]) -> NDArray[np.bool_]:
    """Mask (n,) of the widest levels that can be eliminated together."""
    wide = np.zeros(len(arrays["alpha"]), dtype=bool)
    A, bent = arrays["A"], arrays["alpha"] * arrays["beta"] != 0

    def met(rows: Any, columns: Any) -> NDArray[np.bool_]:
        block = A[np.ix_(rows, columns)]
        return (block.mid != 0) | (block.rad != 0) if isinstance(A, Ball) else block != 0

    for level in sorted(levels, key=len, reverse=True):
        if len(level) < WIDE:
            break
        others = np.setdiff1d(np.arange(len(wide)), level)
        fed = met(others, level).any(axis=1)
        coupled = fed | met(level, others).any(axis=0)
        if not ((fed & bent[others]).any() or (coupled & wide[others]).any()):
            wide[level] = True
    return wide


def without(wide: NDArray[np.bool_], arrays: dict[str, Any], lam: Array) -> Ball:
    """T(0, λ) of outputs, inputs and the other units, less ½YΛ⁻¹Yᵀ."""
    ops, rest = Ball.lmi_ops(), ~wide
    A, B, C, D, alpha, beta = (ops.array(k, arrays[k]) for k in (*"ABCD", "alpha", "beta"))
    (p, m), few, cross = D.shape, int(rest.sum()), (alpha + beta) * -lam
    into, onto, within = (A[np.ix_(*pair)] for pair in ((wide, rest), (rest, wide), (rest, rest)))
    if B[rest].zero and within.zero:
        N = Ball(np.diag(np.append(np.zeros(m), 2 * lam[rest])))
    else:
        N = conditions.lipschitz(
            A=within,
            B=B[rest],
            C=np.zeros((1, few)),
            D=np.zeros((1, m)),
            alpha=alpha[rest],
            beta=beta[rest],
            Lam=Ball(lam[rest]),
            rho=0.0,
        )
    bent = (alpha * beta * (2 * lam))[wide][:, None]
    if not bent.zero:
        R = ops.block([[B[wide], into]])
        N = N + R.swapaxes(0, 1) @ (bent * R)
    # A unit feeds the level, or is fed by it.
    pairs = ((into.swapaxes(0, 1), cross[wide]), (onto, cross[rest][:, None]))
    parts = [matrix * factor for matrix, factor in pairs if not matrix.zero]
    inner = sum(parts[1:], parts[0]) if parts else ops.zeros(few, lam.size - few)
    Y = ops.block([[C[:, wide]], [B[wide].swapaxes(0, 1) * cross[wide]], [inner]])
    F = ops.block([[D, C[:, rest]]])
    T = ops.block([[ops.eye(p), F], [F.swapaxes(0, 1), N]])
    return T + gram(Y, 2 * lam[wide]) * -1.0


def gram(matrix: Ball, divisors: Array) -> Ball:
    """X diag(d)⁻¹ Xᵀ of X (n, k), for many columns, and d > 0 (k,).

    Errors are bounded by products of the rows' norms, and those of a long sum as of one of parts.
    """
    scale = 1 / np.sqrt(divisors)
    X, parts = matrix.mid * scale, range(0, len(scale), PART)
    half = np.zeros((len(X), len(X)), order="F")
    for start in parts:
        columns = X[:, start : start + PART].copy()
        # In place, and of the upper triangle alone.
        half = blas.dsyrk(1.0, columns.T, 1.0, half, trans=1, overwrite_c=1)
    mid = half + np.triu(half, 1).T
    # Roots, quotients and products that are off by as many units.
    size, spread = lengths(X), lengths(matrix.rad * scale) * (1 + 8 * UNIT)
    own = gamma(PART + len(parts) + 10)
    rad = np.outer(own * size + spread, size) + np.outer(size + spread, spread)
    return Ball(mid, up(rad, 8) + len(scale) * TINY)


def tridiagonal(
    system: System, arrays: dict[str, Any], lam: Array
) -> tuple[list[Ball], list[Ball]] | None:
    """M(0, λ) as for `rigorous.tridiagonal_definite`, the inputs first; None for what is no chain.

    A unit's term of M involves that unit and what feeds it, here the layer before: M is the sum of
    the conditions of single layers, where only the last has outputs.

    Args:
        system: whose zeros show the layers, at least two: one makes a dense M.
        arrays: A, B, C, alpha and beta of the condition, balls or arrays.
        lam: (n,).
    """
    chain = layers(system)
    if chain is None or len(chain.places) < 2 or not system.inputs:
        return None
    A, B, C, alpha, beta = (arrays[name] for name in ("A", "B", "C", "alpha", "beta"))
    diagonal, below = [Ball(np.zeros((system.inputs, system.inputs)))], []
    for k, own in enumerate(chain.places):
        last = k + 1 == len(chain.places)
        outputs = C[:, own] if last else np.zeros((1, len(own)))
        feeding = A[np.ix_(own, chain.places[k - 1])] if k else B[own]
        before = feeding.shape[1]
        M = conditions.lipschitz(
            A=np.zeros((len(own), len(own))),
            B=feeding,
            C=outputs,
            D=np.zeros((outputs.shape[0], before)),
            alpha=alpha[own],
            beta=beta[own],
            Lam=Ball(lam[own]),
            rho=0.0,
        )
        diagonal[-1] = diagonal[-1] + M[:before, :before]
        below.append(M[before:, :before])
        diagonal.append(M[before:, before:])
    return diagonal, below
