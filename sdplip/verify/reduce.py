"""Smaller and better scaled problems with the same optimum, and closed-form feasible starts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import scipy.linalg

from .._arrays import Array
from .._coupling import Feed
from ..errors import NotWellPosed, ShapeError
from ..system import System
from .form import Form, form
from .interior import Optimum, minimise


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
        system.coupling[keep][:, keep],
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
    forward = system.B.any(axis=1) & active
    backward = system.C.any(axis=0) & active
    feeds = system.feeds or []
    for units, fed, block in feeds:
        forward[units] |= block[:, forward[fed]].any(axis=1) & active[units]
    for units, fed, block in reversed(feeds):
        backward[fed] |= block[backward[units]].any(axis=0) & active[fed]
    return forward & backward


_NOTHING = -(2**20)
ITERATED = 400
"""From this order on the largest eigenvalue is found by Lanczos iterations."""


@dataclass(frozen=True)
class Problem:
    """A scaled, input-reduced copy of a system; `lam` and `rho` map back to the original."""

    coupling: Array | list[Feed]
    """A; where it is acyclic, what each level reads."""
    B: Array
    C: Array
    D: Array
    alpha: Array
    beta: Array
    unit: Array
    """Times 2**power (n,), what one unit of a scaled activation is in the original."""
    power: np.ndarray
    gain: float

    @property
    def units(self) -> int:
        return len(self.B)

    @property
    def feeds(self) -> list[Feed] | None:
        return self.coupling if isinstance(self.coupling, list) else None

    @property
    def levels(self) -> list[np.ndarray] | None:
        return None if self.feeds is None else [feed.units for feed in self.feeds]

    @cached_property
    def A(self) -> Array:
        if not isinstance(self.coupling, list):
            return self.coupling
        A = np.zeros((self.units, self.units))
        for units, fed, block in self.coupling:
            A[np.ix_(units, fed)] = block
        return A

    def form(self) -> Form:
        """M(ρ, λ) of the scaled copy."""
        return form(self.A, self.B, self.C, self.D, self.alpha, self.beta)

    def lam(self, scaled: Array) -> Array:
        """Multipliers of the original system from those of the scaled one."""
        return np.asarray(scaled * np.square(np.ldexp(self.gain, -self.power) / self.unit))

    def scaled(self, lam: Array) -> Array:
        """Multipliers of the scaled system from those of the original: the inverse of `lam`."""
        return np.asarray(lam * np.square(np.ldexp(self.unit, self.power) / self.gain))


def normalise(system: System) -> Problem:
    """Scale units and output to gain about 1, and rotate the input into the rows of [B; D].

    Exact by homogeneity of M; unscaled weights make solvers answer 'infeasible', or wrong.
    """
    B, C, D = system.B, system.C, system.D
    rows = np.vstack([B, D])
    used = rows[rows.any(axis=1)]
    if len(used) < system.inputs:
        used = np.ldexp(used, -_exponents(used).max(axis=1, keepdims=True))
        basis = np.linalg.qr(used.T)[0]
        B, D = B @ basis, D @ basis
    B = B.copy()
    unit, power = np.ones(system.units), np.zeros(system.units, dtype=np.int64)
    feeds: list[Feed] = []
    if system.feeds is None:
        unit = scipy.linalg.matrix_balance(system.A, permute=False, separate=True)[1][0]
        unit = unit * (spectral_norm(B / unit[:, None]) or 1.0)
        A, B = system.A * unit / unit[:, None], B / unit[:, None]
    for level, fed, block in system.feeds or []:
        # By powers of two first: products of large weights overflow.
        exponents = np.hstack([_exponents(B[level]), _exponents(block) + power[fed]])
        top = _top(exponents)
        rows = np.ldexp(B[level], -top)
        block = np.ldexp(block * unit[fed], power[fed] - top)
        size = spectral_norm(np.hstack([rows, block])) or 1.0
        B[level] = rows / size
        feeds.append(Feed(level, fed, block / size))
        # Of a deep chain their product leaves the range of float64.
        unit[level], more = math.frexp(size)
        power[level] = top + more
    exponents = np.hstack([_exponents(D), _exponents(C) + power])
    top = _top(exponents)
    C, D = np.ldexp(C * unit, power - top), np.ldexp(D, -top)
    size = spectral_norm(np.hstack([D, C])) or 1.0
    gain = float(np.ldexp(size, top))
    return Problem(
        A if system.feeds is None else feeds,
        B,
        C / size,
        D / size,
        system.alpha,
        system.beta,
        unit,
        power,
        gain,
    )


def start(problem: Problem, proposed: Array | None = None) -> tuple[float, Array]:
    """A strictly feasible (ρ, λ) of the scaled problem.

    Args:
        proposed: as in `nearer`.

    Raises:
        NotWellPosed: no diagonal Λ > 0 satisfies `conditions.wellposed`.
        ShapeError: `proposed` has another length.
    """
    lam = _peel(problem) if problem.levels is not None else _wellposed(problem)
    least = partial(least_rho, problem.form())
    return nearer(problem, proposed, 1.5 * least(lam), lam, least)


def nearer(
    problem: Problem,
    proposed: Array | None,
    rho: float,
    lam: Array,
    least: Callable[[Array], float],
) -> tuple[float, Array]:
    """A strictly feasible point at least as good as (ρ, λ), towards proposed multipliers.

    Args:
        proposed: multipliers (n,) of the unscaled system, say of a network near this one; moved
            into the interior, and used where that gives a lower ρ than none.
        least: the least ρ of multipliers.

    Raises:
        ShapeError: `proposed` has another length.
    """
    if proposed is None:
        return rho + 1e-60, lam
    if np.shape(proposed) != lam.shape:
        raise ShapeError(
            f"start: proposed has shape {np.shape(proposed)}, but it must be {lam.shape}."
        )
    warm = problem.scaled(proposed)
    if np.isfinite(warm).all() and (warm >= 0).all():
        for share in (0.01, 0.1, 0.3):
            blend = (1 - share) * warm + share * lam
            near = 1.02 * least(blend)
            if near < rho:
                rho, lam = near, blend
                break
    return rho + 1e-60, lam


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
    cross = scale[:, None] * M[np.ix_(~inputs, inputs)]
    half = scipy.linalg.solve_triangular(L, cross, lower=True)
    rest = half.T @ half - M[np.ix_(inputs, inputs)]
    if not rest.size:
        return 0.0
    return max(_highest(rest), 0.0) if np.isfinite(rest).all() else float("inf")


def _peel(problem: Problem) -> Array:
    """Multipliers level by level, last level first, so that each Schur complement stays small.

    The layerwise recursion of ECLipsE-Fast (Xu, Sivaranjani, NeurIPS 2024), backwards and for any
    acyclic A; each level's factor is the one of least trace, at least 1.6 times what is feasible.
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
        a, b = problem.alpha[level][:, None], problem.beta[level][:, None]
        c, coupling = rows[level][:, rest], Q[np.ix_(columns, rest)]
        least = max(1e-9 * Q.diagonal().max(), 1e-100)
        weight = np.sqrt(np.maximum(Q.diagonal()[columns], 1e-3 * least))[:, None]
        root = np.sqrt(weight)
        values, V = np.linalg.eigh(Q[np.ix_(columns, columns)] / root / root.T)
        # With the factor t, the new Schur complement is (tH + K)ᵀ(2t − values)⁻¹(tH + K) − tN.
        H, K = V.T @ (root * (a + b) * c), V.T @ (coupling / root)
        N = 2 * (weight * a * b * c * c).sum()
        squares, pairs, rests = ((x * y).sum(1) for x, y in ((H, H), (H, K), (K, K)))
        t = max(values[-1], least) * np.geomspace(0.8, 80, 40)
        traces = t[:, None] ** 2 * squares + 2 * t[:, None] * pairs + rests
        best = t[int(np.argmin((traces / (2 * t[:, None] - values)).sum(1) - t * N))]
        lam[level] = best * weight[:, 0]
        half = (best * H + K) / np.sqrt(2 * best - values)[:, None]
        Q[np.ix_(rest, rest)] += half.T @ half - 2 * best * c.T @ (weight * a * b * c)
    return lam


def _wellposed(problem: Problem) -> Array:
    """Λ > 0 with M₂₂ ≻ 0: first well-posedness by the interior point method, then large enough."""
    n = problem.units
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
    return lam * 2 * max(spectral_norm(problem.C) ** 2, 1e-6) / margin


def spectral_norm(matrix: Array) -> float:
    """The spectral norm, whatever the scale of the entries."""
    # Of wide and of deep networks most rows or columns are zero.
    matrix = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
    if not matrix.size:
        return 0.0
    top = _top(_exponents(matrix))
    K = np.ldexp(matrix, -top)
    return float(np.ldexp(math.sqrt(_highest(K @ K.T if len(K) <= K.shape[1] else K.T @ K)), top))


def _highest(K: Array) -> float:
    """The largest eigenvalue of a symmetric K."""
    last = len(K) - 1
    if last > ITERATED:
        from scipy.sparse.linalg import ArpackError, eigsh

        # Any start that is orthogonal to nothing in particular.
        begin = np.sin(np.arange(1.0, last + 2) ** 2)
        with contextlib.suppress(ArpackError):
            return float(eigsh(K, k=1, which="LA", v0=begin, return_eigenvectors=False)[0])
    try:
        return float(scipy.linalg.eigvalsh(K, subset_by_index=[last, last])[0])
    except np.linalg.LinAlgError:
        # Where eigenvalues coincide, as for orthogonal weights, only the slower way is sure.
        return float(np.linalg.eigvalsh(K)[-1])


def _exponents(matrix: Array) -> np.ndarray:
    """e with entries below 2**e, far below any other where they are zero."""
    return np.where(matrix == 0, _NOTHING, np.frexp(matrix)[1])


def _top(exponents: np.ndarray) -> int:
    top = int(exponents.max(initial=_NOTHING))
    return top if top > _NOTHING // 2 else 0
