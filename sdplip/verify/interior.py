"""A primal-dual interior point method for the condition with diagonal multipliers.

Every unit's multiplier enters M through one rank-two matrix,

    M(ρ, λ) = ρE + Σ_i λ_i (p_i q_iᵀ + q_i p_iᵀ) − G,   p_i = e_i − α_i c_i,  q_i = e_i − β_i c_i,

with c_i the row of [B A] of unit i, so the Schur complement matrix of the Newton step is a sum of
four elementwise products. What comes out is a proposal: `bound` re-establishes every bound from
`conditions.lipschitz`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from .._arrays import Array
from ..errors import CertificationError


@dataclass(frozen=True)
class Form:
    """The data of M(ρ, λ): E = diag(e) with e (d,), P and Q (n, d), G (d, d) symmetric."""

    e: Array
    P: Array
    Q: Array
    G: Array
    implied: bool
    """Whether M ⪰ 0 alone forces λ ≥ 0, so that the constraint need not be imposed."""

    def __call__(self, rho: float, lam: Array) -> Array:
        return self.combine(rho, lam) - self.G

    def combine(self, rho: float, lam: Array) -> Array:
        """ρE + Σ λ_i (p_i q_iᵀ + q_i p_iᵀ)."""
        half = self.P.T @ (lam[:, None] * self.Q)
        return rho * np.diag(self.e) + half + half.T

    @property
    def target(self) -> Array:
        """tr(EX) = 1 and tr(A_i X) = 0: the constraints of the dual problem."""
        return np.concatenate([[1.0], np.zeros(len(self.P))])

    def traces(self, K: Array) -> Array:
        """tr(EK) and tr((p_i q_iᵀ + q_i p_iᵀ)K); K need not be symmetric."""
        pairs = ((self.P @ K) * self.Q).sum(1) + ((self.Q @ K) * self.P).sum(1)
        return np.concatenate([[self.e @ K.diagonal()], pairs])


def form(A: Array, B: Array, C: Array, D: Array, alpha: Array, beta: Array) -> Form:
    """The Lipschitz condition of a system with arrays as in `System`."""
    n, m = B.shape
    units, rows = np.hstack([np.zeros((n, m)), np.eye(n)]), np.hstack([B, A])
    F = np.hstack([D, C])
    implied = not (alpha * beta).any() and bool((1 - (alpha + beta) * A.diagonal() > 0).all())
    return Form(
        e=np.repeat([1.0, 0.0], [m, n]),
        P=units - alpha[:, None] * rows,
        Q=units - beta[:, None] * rows,
        G=F.T @ F,
        implied=implied,
    )


@dataclass(frozen=True)
class _Point:
    """One iterate: X, Z = S⁻¹, the dual w of λ ≥ 0 (zero where implied), λ, and the solver."""

    X: Array
    Z: Array
    w: Array
    lam: Array
    solve: Callable[[Array], Array]

    def direction(
        self,
        problem: Form,
        mu: float,
        corrector: Array | None = None,
        linear: Array | float = 0.0,
    ) -> tuple[Array, Array, Array, Array]:
        """The HKM step towards XS = μI: (Δρ, Δλ), ΔS, ΔX and Δw."""
        rhs = mu * problem.traces(self.Z) - problem.target
        if corrector is not None:
            rhs -= problem.traces(corrector)
        if not problem.implied:
            rhs[1:] += (mu - linear) / self.lam
        step = self.solve(rhs)
        dS = problem.combine(step[0], step[1:])
        dX = mu * self.Z - self.X - _sym(self.X @ dS @ self.Z)
        if corrector is not None:
            dX -= _sym(corrector)
        dw = np.zeros_like(self.w)
        if not problem.implied:
            dw = (mu - linear - self.w * step[1:]) / self.lam - self.w
        return step, dS, dX, dw


@dataclass(frozen=True)
class Optimum:
    """A strictly feasible (ρ, λ), a dual value below the optimal ρ, and the steps taken."""

    rho: float
    lam: Array
    dual: float
    steps: int


def minimise(
    problem: Form,
    rho: float,
    lam: Array,
    *,
    tol: float = 1e-9,
    stop_below: float | None = None,
    max_steps: int = 100,
) -> Optimum:
    """Minimise ρ subject to M(ρ, λ) ⪰ 0 and λ ≥ 0 from a strictly feasible start.

    HKM direction with Mehrotra's predictor and corrector; stops at a relative gap of `tol`, at
    ρ ≤ `stop_below`, or where rounding ends progress. Every iterate is strictly feasible.

    Raises:
        CertificationError: the start is not strictly feasible.
    """
    P, Q, e = problem.P, problem.Q, problem.e
    n, d = P.shape

    S = problem(rho, lam)
    Z, factor = _inverse(S)
    if Z is None or factor is None:
        raise CertificationError(
            "The interior point method was given a start that is not strictly feasible."
        )
    X = Z / (e @ Z.diagonal())
    w = np.full(n, 1 / (e @ Z.diagonal())) / lam if not problem.implied else np.zeros(n)
    count, dual, steps = d + n * (not problem.implied), -np.inf, 0

    while steps < max_steps:
        mu = ((X * S).sum() + w @ lam) / count
        primal_gap = problem.traces(X) - problem.target
        primal_gap[1:] += w
        # What X still violates is priced at the current multipliers.
        error = float(abs(primal_gap) @ abs(np.concatenate([[rho], lam])))
        dual = max(dual, float((problem.G * X).sum()) - error)
        if mu * count + error <= tol * abs(rho) or (stop_below is not None and rho <= stop_below):
            break
        x_factor = _cholesky(X)
        if x_factor is None:
            break
        schur = _schur(P, Q, e, X, Z)
        schur[np.arange(1, n + 1), np.arange(1, n + 1)] += w / lam
        point = _Point(X, Z, w, lam, _solver(schur))

        step, dS, dX, dw = point.direction(problem, 0.0)
        a_x = min(1.0, _longest(x_factor, dX), _ratio(w, dw))
        a_s = min(1.0, _longest(factor, dS), _ratio(lam, step[1:]))
        after = ((X + a_x * dX) * (S + a_s * dS)).sum() + (w + a_x * dw) @ (lam + a_s * step[1:])
        sigma = min(1.0, max((after / (mu * count)) ** 3, 1e-6)) if after > 0 else 0.1
        step, dS, dX, dw = point.direction(problem, sigma * mu, dX @ dS @ Z, dw * step[1:])
        a_x = min(1.0, 0.95 * _longest(x_factor, dX), 0.95 * _ratio(w, dw))
        a_s = min(1.0, 0.95 * _longest(factor, dS), 0.95 * _ratio(lam, step[1:]))

        S = problem(rho + a_s * step[0], lam + a_s * step[1:])
        Z, factor = _inverse(S)
        while Z is None and a_s > 1e-10:
            a_s *= 0.5
            S = problem(rho + a_s * step[0], lam + a_s * step[1:])
            Z, factor = _inverse(S)
        if Z is None or factor is None:
            break
        rho, lam = float(rho + a_s * step[0]), lam + a_s * step[1:]
        X, w, steps = X + a_x * dX, w + a_x * dw, steps + 1
    return Optimum(rho, lam, dual, steps)


def _schur(P: Array, Q: Array, e: Array, X: Array, Z: Array) -> Array:
    """O_ij = tr(A_i X A_j Z) for the data matrices E and p_i q_iᵀ + q_i p_iᵀ."""
    XP, XQ, ZP, ZQ = X @ P.T, X @ Q.T, Z @ P.T, Z @ Q.T
    Xpp, Xpq, Xqq = P @ XP, P @ XQ, Q @ XQ
    Zpp, Zpq, Zqq = P @ ZP, P @ ZQ, Q @ ZQ
    n = P.shape[0]
    schur = np.empty((n + 1, n + 1))
    schur[1:, 1:] = Xpq * Zpq.T + Xpp * Zqq + Xqq * Zpp + Xpq.T * Zpq
    schur[0, 0] = e @ (X * Z) @ e
    schur[0, 1:] = schur[1:, 0] = e @ (XP * ZQ + XQ * ZP)
    return _sym(schur)


def _solver(matrix: Array) -> Callable[[Array], Array]:
    """Solve with a symmetric positive definite matrix, scaled and refined once."""
    scale = 1 / np.sqrt(np.maximum(matrix.diagonal(), 1e-300))
    scaled = matrix * scale[:, None] * scale
    factor = None
    for shift in (0.0, 1e-14, 1e-12, 1e-10, 1e-8):
        try:
            factor = scipy.linalg.cho_factor(scaled + shift * np.eye(len(matrix)), lower=True)
            break
        except scipy.linalg.LinAlgError:
            continue
    if factor is None:
        pseudo = np.linalg.pinv(scaled, hermitian=True)
        return lambda b: scale * (pseudo @ (scale * b))

    def solve(b: Array) -> Array:
        b = scale * b
        x = scipy.linalg.cho_solve(factor, b)
        x += scipy.linalg.cho_solve(factor, b - scaled @ x)
        return scale * x

    return solve


def _cholesky(S: Array) -> Array | None:
    try:
        return np.asarray(np.linalg.cholesky(S), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None


def _inverse(S: Array) -> tuple[Array | None, Array | None]:
    factor = _cholesky(S)
    if factor is None:
        return None, None
    half = scipy.linalg.solve_triangular(factor, np.eye(len(S)), lower=True)
    return half.T @ half, factor


def _longest(factor: Array, dS: Array) -> float:
    """The largest step a with S + a dS ⪰ 0, S = LLᵀ."""
    half = scipy.linalg.solve_triangular(factor, dS, lower=True)
    inner = scipy.linalg.solve_triangular(factor, half.T, lower=True)
    lowest = scipy.linalg.eigvalsh(_sym(inner), subset_by_index=[0, 0])[0]
    return float(np.inf) if lowest >= 0 else float(-1 / lowest)


def _ratio(value: Array, step: Array) -> float:
    falling = step < 0
    return float((-value[falling] / step[falling]).min()) if falling.any() else float(np.inf)


def _sym(K: Array) -> Array:
    return (K + K.T) / 2
