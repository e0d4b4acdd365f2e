"""The condition where its structure makes it cheap to prove: chains, and levels of many units.

A chain's M is block tridiagonal; by these blocks the cost is linear in the depth. A wide level is
eliminated: with F = [D C],

    M ≻ 0  ⇔  T = [I F; Fᵀ M + FᵀF] ≻ 0,

and between the units of a level that feeds none with αβ ≠ 0, T is 2Λ > 0. So it is the rest of T,
less ½YΛ⁻¹Yᵀ for the level's columns Y, that must be ≻ 0: a matrix of the order of all else. And so
are many inputs, between which T is ρI where no unit that sees them has αβ ≠ 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas
from sympy import ZeroMatrix

from .. import conditions
from .._arrays import Array
from ..lmi import LMI
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
MORE = 2
"""Inputs that are more than so many times the units are eliminated; their long sums are rounded."""
PART = 512
"""Terms that a long sum of products adds up at a time."""
MANY = 2500
"""Above this many units of two slopes a chain is left one, with those of one slope in it."""


@dataclass(frozen=True)
class Blocks:
    """A of a system, of which the blocks that are asked for are formed, times 2^(s_j − s_i)."""

    system: System
    steps: NDArray[np.int64] | None = None

    def __getitem__(self, index: tuple[NDArray[Any], NDArray[Any]]) -> Array | Ball:
        rows, columns = map(np.ravel, index)
        block = self.system.block(rows, columns)
        if self.steps is None:
            return block
        return times_power(block, self.steps[columns] - self.steps[rows, None])


def times_power(matrix: Array | Ball, steps: Any) -> Ball:
    """matrix · 2^steps; what underflows is enclosed."""
    old = matrix if isinstance(matrix, Ball) else Ball(matrix)
    mid, rad = np.ldexp(old.mid, steps), np.ldexp(old.rad, steps)
    lost = (np.ldexp(mid, -steps) != old.mid) | (np.ldexp(rad, -steps) != old.rad)
    return Ball(mid, rad + TINY * lost)


def whole(arrays: dict[str, Any]) -> dict[str, Any]:
    """The same with all of A."""
    units = np.arange(len(arrays["alpha"]))
    return arrays | {"A": arrays["A"][np.ix_(units, units)]}


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
        arrays: A, B, C, D, alpha and beta of the condition, balls, arrays or (A) `Blocks`.
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
        if first.zero and m > MORE * below[0].shape[0]:
            second, *rest = rest
            less = gram(below[0], np.ones(m))
            return lambda rho: tridiagonal_definite([second + less * _over(rho), *rest], below[1:])
        return lambda rho: tridiagonal_definite([first.plus(inputs, rho), *rest], below)
    if not wide.any():
        reduced = without_inputs(whole(arrays), lam) if m > MORE * (lam.size + p) else None
        if reduced is not None:
            T, less = reduced
            return lambda rho: positive_definite(T + less * _over(rho))
        M = conditions.lipschitz(**whole(arrays), Lam=Ball(lam), rho=Ball(0.0))
        return lambda rho: positive_definite(M.plus(inputs, rho))
    T = without(wide, arrays, lam)
    return lambda rho: positive_definite(T.plus(inputs + p, rho))


def _levels(system: System | None, A: Array | Ball | Blocks) -> list[NDArray[np.intp]]:
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
        return (block.mid != 0) | (block.rad != 0) if isinstance(block, Ball) else block != 0

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
    B, C, D, alpha, beta = (ops.array(k, arrays[k]) for k in (*"BCD", "alpha", "beta"))
    (p, m), few, cross = D.shape, int(rest.sum()), (alpha + beta) * -lam
    pairs = ((wide, rest), (rest, wide), (rest, rest))
    into, onto, within = (ops.array("A", arrays["A"][np.ix_(*pair)]) for pair in pairs)
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
    read = ((into.swapaxes(0, 1), cross[wide]), (onto, cross[rest][:, None]))
    parts = [matrix * factor for matrix, factor in read if not matrix.zero]
    inner = sum(parts[1:], parts[0]) if parts else ops.zeros(few, lam.size - few)
    Y = ops.block([[C[:, wide]], [B[wide].swapaxes(0, 1) * cross[wide]], [inner]])
    F = ops.block([[D, C[:, rest]]])
    T = ops.block([[ops.eye(p), F], [F.swapaxes(0, 1), N]])
    return T + gram(Y, 2 * lam[wide]) * -1.0


def without_inputs(arrays: dict[str, Any], lam: Array) -> tuple[Ball, Ball] | None:
    """T and G of which T − G/ρ is what is left of T(ρ, λ) of outputs and units; None where a unit
    with αβ ≠ 0 sees inputs, which then are coupled.
    """
    ops, (p, m), n = Ball.lmi_ops(), arrays["D"].shape, lam.size
    A, B, C, D, alpha, beta = (ops.array(k, arrays[k]) for k in (*"ABCD", "alpha", "beta"))
    if not B[(arrays["alpha"] != 0) & (arrays["beta"] != 0)].zero:
        return None
    none = {"B": np.zeros((n, 0)), "C": np.zeros((1, n)), "D": np.zeros((1, 0))}
    N = conditions.lipschitz(A=A, alpha=alpha, beta=beta, Lam=Ball(lam), rho=0.0, **none)
    Y = ops.block([[D], [((alpha + beta) * -lam)[:, None] * B]])
    return ops.block([[ops.eye(p), C], [C.swapaxes(0, 1), N]]), gram(Y, np.ones(m))


def _over(rho: float) -> Ball:
    """−1/ρ; not finite, so that nothing follows, where ρ is not positive."""
    return Ball(-1 / rho, 2 * UNIT / rho + TINY) if rho > 0 else Ball(np.nan)


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


@cache
def _layer() -> LMI:
    """The condition of one layer, which is quicker to evaluate without its zeros."""
    n, m, p = conditions.n, conditions.m, conditions.p
    return conditions.lipschitz.substitute(A=ZeroMatrix(n, n), D=ZeroMatrix(p, m))


def tridiagonal(
    system: System, arrays: dict[str, Any], lam: Array
) -> tuple[list[Ball], list[Ball]] | None:
    """M(0, λ) as for `rigorous.tridiagonal_definite`, the inputs first; None for what is no chain.

    A unit's term of M involves that unit and what feeds it, here the layer before: M is the sum of
    the conditions of single layers, where only the last has outputs.

    Args:
        system: whose zeros show the layers, at least two: one makes a dense M.
        arrays: A, B, C, alpha and beta of the condition, balls, arrays or (A) `Blocks`.
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
        M = _layer()(
            B=feeding,
            C=outputs,
            alpha=alpha[own],
            beta=beta[own],
            Lam=Ball(lam[own]),
            rho=0.0,
        )
        diagonal[-1] = diagonal[-1] + M[:before, :before]
        below.append(M[before:, :before])
        diagonal.append(M[before:, before:])
    return diagonal, below
