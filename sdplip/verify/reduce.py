"""Smaller and better scaled problems with the same optimum, and closed-form feasible starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from .._arrays import Array
from ..errors import NotWellPosed
from ..system import System
from .interior import Form, Optimum, form, minimise


def prune(system: System) -> System:
    """The same map without units that no input reaches or that reach no output.

    Exact for acyclic systems: such a unit is constant, or unseen. A system with a cycle is
    returned as it is, for its well-posedness depends on every unit.
    """
    if not system.is_feedforward:
        return system
    keep = live_units(system)
    if keep.all():
        return system
    return System(
        system.A[np.ix_(keep, keep)],
        system.B[keep],
        system.C[:, keep],
        system.D,
        system.b[keep],
        system.c,
        system.alpha[keep],
        system.beta[keep],
        system.activation[keep],
    )


def live_units(system: System) -> np.ndarray:
    """Mask (n,) of the units that lie on a path from an input to an output; all if cyclic."""
    if not system.is_feedforward:
        return np.ones(system.units, dtype=bool)
    active = system.beta - system.alpha + abs(system.beta) > 0
    depends = system.A != 0
    forward = system.B.any(axis=1) & active
    backward = system.C.any(axis=0) & active
    for _ in system.levels or ():
        forward |= depends @ forward & active
        backward |= depends.T @ backward & active
    return forward & backward


@dataclass(frozen=True)
class Problem:
    """A scaled, input-reduced copy of a system; `lam` and `rho` map back to the original."""

    A: Array
    B: Array
    C: Array
    D: Array
    alpha: Array
    beta: Array
    levels: list[np.ndarray] | None
    unit: Array
    gain: float

    def form(self) -> Form:
        """M(ρ, λ) of the scaled copy."""
        return form(self.A, self.B, self.C, self.D, self.alpha, self.beta)

    def lam(self, scaled: Array) -> Array:
        """Multipliers of the original system from those of the scaled one."""
        return np.asarray(scaled * np.square(self.gain / self.unit))


def normalise(system: System) -> Problem:
    """Scale units and output to gain about 1, and rotate the input into the rows of [B; D].

    Exact by homogeneity of M; unscaled weights make solvers answer 'infeasible', or wrong.
    """
    A, B, C, D = system.A, system.B, system.C, system.D
    rows = np.vstack([B, D])
    used = rows[rows.any(axis=1)]
    if len(used) < system.inputs:
        basis = np.linalg.qr(used.T)[0]
        B, D = B @ basis, D @ basis
    unit = np.ones(system.units)
    if system.levels is None:
        unit = scipy.linalg.matrix_balance(A, permute=False, separate=True)[1][0]
        unit = unit * (_norm(B / unit[:, None]) or 1.0)
    else:
        for level in system.levels:
            unit[level] = _norm(np.hstack([B[level], A[level] * unit])) or 1.0
    A, B, C = A * unit / unit[:, None], B / unit[:, None], C * unit
    gain = _norm(np.hstack([D, C])) or 1.0
    return Problem(A, B, C / gain, D / gain, system.alpha, system.beta, system.levels, unit, gain)


def start(problem: Problem) -> tuple[float, Array]:
    """A strictly feasible (ρ, λ) of the scaled problem.

    Raises:
        NotWellPosed: no diagonal Λ > 0 satisfies `conditions.wellposed`.
    """
    lam = _peel(problem) if problem.levels is not None else _wellposed(problem)
    return 1.5 * least_rho(problem.form(), lam) + 1e-12, lam


def least_rho(data: Form, lam: Array) -> float:
    """The least ρ with M(ρ, λ) ⪰ 0 in floating point; infinite where M₂₂(λ) is not ≻ 0."""
    inputs = data.e > 0
    M = data(0.0, lam)
    corner = M[np.ix_(~inputs, ~inputs)]
    scale = 1 / np.sqrt(np.maximum(corner.diagonal(), 1e-300))
    try:
        L = np.linalg.cholesky(corner * scale[:, None] * scale)
    except np.linalg.LinAlgError:
        return float("inf")
    half = np.linalg.solve(L, scale[:, None] * M[np.ix_(~inputs, inputs)])
    rest = half.T @ half - M[np.ix_(inputs, inputs)]
    if not rest.size:
        return 0.0
    return max(float(np.linalg.eigvalsh((rest + rest.T) / 2)[-1]), 0.0)


def _peel(problem: Problem) -> Array:
    """One multiplier per level, last level first: each keeps the Schur complement bounded.

    The layerwise recursion of ECLipsE-Fast (Xu, Sivaranjani, NeurIPS 2024), backwards and for any
    acyclic A, with 1.5 times its multiplier so that the result is strictly feasible.
    """
    n, m = problem.B.shape
    F = np.hstack([problem.D, problem.C])
    Q = F.T @ F
    rows = np.hstack([problem.B, problem.A])
    lam = np.zeros(n)
    rest = np.ones(n + m, dtype=bool)
    for level in reversed(problem.levels or []):
        columns = m + level
        rest[columns] = False
        Qgg, c = Q[np.ix_(columns, columns)], rows[level][:, rest]
        weight = np.sqrt(np.maximum(Qgg.diagonal(), 1e-3 * Qgg.diagonal().max() + 1e-200))
        size = 0.9 * _norm(Qgg / np.sqrt(np.outer(weight, weight))) * weight[:, None]
        lam[level] = size[:, 0]
        a, b = problem.alpha[level][:, None], problem.beta[level][:, None]
        cross = size * (a + b) * c + Q[np.ix_(columns, rest)]
        schur = cross.T @ np.linalg.solve(np.diag(2 * lam[level]) - Qgg, cross)
        Q[np.ix_(rest, rest)] += schur - 2 * c.T @ (size * a * b * c)
    return lam


def _wellposed(problem: Problem) -> Array:
    """Λ > 0 with M₂₂ ≻ 0: first well-posedness by the interior point method, then large enough."""
    n = len(problem.A)
    zero = np.zeros((n, 0))
    part = form(problem.A, zero, np.zeros((0, n)), np.zeros((0, 0)), problem.alpha, problem.beta)
    search = replace(part, e=np.ones(n), G=np.eye(n), implied=False)
    lam = np.full(n, 1e6)
    first = search(0.0, lam)
    lowest = np.linalg.eigvalsh(first)[0]
    if lowest <= 0:
        found: Optimum = minimise(
            search, 1.0 - 2 * lowest, lam, tol=-np.inf, stop_below=0.0, max_steps=200
        )
        lam = found.lam
        if found.rho > 0:
            raise NotWellPosed(
                "No diagonal Λ > 0 with 2Λ − ΛA − AᵀΛ ≻ 0 (in the form for the units' slopes) was "
                "found: the network may have no equilibrium, or several, and has no bound."
            )
    margin = np.linalg.eigvalsh(part(0.0, lam))[0]
    return lam * 2 * max(_norm(problem.C) ** 2, 1e-6) / margin


def _norm(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0
