"""An interior point method for chains, on the blocks of their tridiagonal M.

For z_k = σ(W_k z_{k−1}), y = C z_L, M(ρ, λ) is block tridiagonal, so that its factors and every
quantity of the barrier −log det M come from recursions over the layers; nothing dense of the order
of M is formed or factored but the Newton matrix, one row per unit. The method is the dual scaling
of Benson, Ye, Zhang (SIAM J. Optimization 2000): the primal side needs no matrix X of its own, for

    X = μ(Z − ZΔSZ),  Z = S⁻¹,  ΔS = ΔρE + ΣΔλ_i A_i

satisfies tr(EX) = 1 and tr(A_i X) = 0 when (Δρ, Δλ) is the Newton step for μ, and X ⪰ 0 exactly
where the reflected point has M(ρ − Δρ, λ − Δλ) ⪰ 0. What comes out is a proposal: `bound`
re-establishes every bound from `conditions.lipschitz`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack

from .._arrays import Array
from ..errors import CertificationError, InvalidInput
from . import descent
from .central import central
from .interior import Optimum
from .reduce import Problem, start


def fits(problem: Problem) -> bool:
    """Whether the problem is a chain: each level feeds the next alone, the last the output."""
    return descent.layers(problem) is not None


def cost(problem: Problem) -> float:
    """About how many floating-point operations one step of `minimise` takes.

    The factorisation of the Newton matrix, n³/3 for n units in all, its blocks, and about twenty
    factorisations of M that are linear in the depth. Memory: 16n² bytes.
    """
    chain = descent.layers(problem)
    if chain is None:
        return math.inf
    sizes = np.array([W.shape[1] for W in chain.weights], dtype=float)
    units = sizes[1:].sum()
    return float(units**3 / 3 + 6 * (sizes[1:] ** 2).sum() * units + 60 * (sizes**3).sum())


@dataclass(frozen=True)
class _Chain:
    """Blocks of M(ρ, λ) for x = (ρ, λ), scaled so that the start is x = 1."""

    weights: list[Array]
    alpha: list[Array]
    beta: list[Array]
    gram: Array
    implied: bool
    """Whether M ⪰ 0 alone forces λ ≥ 0."""

    @property
    def order(self) -> int:
        """The barrier's parameter: the order of M, and one per constraint λ_i ≥ 0."""
        units = sum(map(len, self.weights))
        return self.weights[0].shape[1] + units * (1 if self.implied else 2)

    def blocks(self, x: Array) -> tuple[list[Array], list[Array]]:
        """Diagonal blocks M_kk, k = 0 … L, and M_{k,k−1}, k = 1 … L."""
        diagonal, below, place = [x[0] * np.eye(self.weights[0].shape[1])], [], 1
        for W, low, high in zip(self.weights, self.alpha, self.beta, strict=True):
            lam = x[place : place + len(W)]
            place += len(W)
            if not self.implied:
                diagonal[-1] += W.T @ ((2 * lam * low * high)[:, None] * W)
            diagonal.append(np.diag(2 * lam))
            below.append((-lam * (low + high))[:, None] * W)
        diagonal[-1] -= self.gram
        return diagonal, below

    def log_det(self, x: Array) -> float:
        """log det M + Σ log λ_i over the constraints that are not implied; −inf if infeasible."""
        value = 0.0
        if not self.implied:
            if not (x > 0).all():
                return -math.inf
            value = float(np.log(x[1:]).sum())
        S, rest = self.eliminated(x)
        if rest == -math.inf:
            return rest
        factor, failed = lapack.dpotrf(S, lower=1, clean=0)
        if failed:
            return -math.inf
        value += rest + 2 * float(np.log(factor.diagonal()).sum())
        return value if math.isfinite(value) else -math.inf

    def eliminated(self, x: Array) -> tuple[Array, float]:
        """The Schur complement of the inputs, and log det of the rest: −inf where it is not ≻ 0."""
        diagonal, below = self.blocks(x)
        S, value = diagonal.pop(), 0.0
        while below:
            factor, failed = lapack.dpotrf(S, lower=1, clean=0)
            if failed:
                return S, -math.inf
            value += 2 * float(np.log(factor.diagonal()).sum())
            half = blas.dtrsm(1.0, factor, below.pop(), lower=1)
            S = diagonal.pop() - half.T @ half
        return S, value

    def newton(self, x: Array) -> tuple[Array, Array]:
        """The barrier's Hessian, lower triangle alone, and its gradient times −1."""
        inverses, gains = self._inverses(x)
        units, first = len(x) - 1, len(inverses[0])
        hessian, traces = np.zeros((units + 1, units + 1)), np.empty(units + 1)
        Z = inverses[0]
        hessian[0, 0], traces[0] = (Z * Z).sum(), Z.trace()
        # Rows k of Z, times the inputs' unit vectors and the p_i and q_i of all earlier units.
        left = np.empty((2, max(map(len, inverses)), first + units))
        left[:, :first, :first] = Z
        done, place = first, 1
        for k, W in enumerate(self.weights):
            n, before = W.shape
            G, own, rows = gains[k], inverses[k + 1], slice(place, place + n)
            P, Q = G - self.alpha[k][:, None] * W, G - self.beta[k][:, None] * W
            by_p, by_q = left[0, :before, :done], left[1, :before, :done]
            pair = (Q @ by_p) * (P @ by_q)
            pair += (P @ by_p) * (Q @ by_q)
            hessian[rows, 0] = pair[:, :first].sum(axis=1)
            hessian[rows, 1:place] = 2 * pair[:, first:]
            ZP, ZQ = Z @ P.T, Z @ Q.T
            pp, pq, qq = own + P @ ZP, own + P @ ZQ, own + Q @ ZQ
            hessian[rows, rows] = 2 * (pq * pq.T + pp * qq)
            traces[rows] = 2 * pq.diagonal()
            GZ = G @ Z
            Z = own + GZ @ G.T
            left[:, :n, :done] = G @ left[:, :before, :done]
            left[0, :n, done : done + n] = Z - GZ @ (self.alpha[k][:, None] * W).T
            left[1, :n, done : done + n] = Z - GZ @ (self.beta[k][:, None] * W).T
            done, place = done + n, place + n
        if not self.implied:
            hessian[np.arange(1, units + 1), np.arange(1, units + 1)] += x[1:] ** -2
            traces[1:] += 1 / x[1:]
        return hessian, traces

    def _inverses(self, x: Array) -> tuple[list[Array], list[Array]]:
        """S_k⁻¹ of the Schur complements from the last layer on, and −S_k⁻¹M_{k,k−1}."""
        diagonal, below = self.blocks(x)
        inverses: list[Array] = []
        gains: list[Array] = []
        S = diagonal.pop()
        while True:
            half = lapack.dtrtri(lapack.dpotrf(S, lower=1, clean=1)[0], lower=1)[0]
            inverses.append(half.T @ half)
            if not below:
                return inverses[::-1], gains[::-1]
            E = below.pop()
            gains.append(-inverses[-1] @ E)
            side = half @ E
            S = diagonal.pop() - side.T @ side


@np.errstate(all="ignore")
def minimise(
    problem: Problem,
    rho: float | None = None,
    lam: Array | None = None,
    *,
    tol: float = 1e-9,
    max_steps: int = 150,
    deadline: float | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> Optimum:
    """Minimise ρ subject to M(ρ, λ) ⪰ 0 and λ ≥ 0 for a chain.

    Every iterate is strictly feasible, and the best is returned.

    Args:
        rho, lam: a strictly feasible start; None takes that of `central`.
        tol: relative gap of ρ at which to stop.
        deadline: in `time.monotonic`; no step is begun that would likely end after it.
        progress: called with the steps taken, ρ and the dual value (−inf at first).

    Raises:
        InvalidInput: the problem is no chain.
        CertificationError: the start is not strictly feasible.
    """
    layers = descent.layers(problem)
    if layers is None:
        raise InvalidInput("chain.minimise: problem is no chain. Use interior.minimise.")
    if rho is None or lam is None:
        first = central(layers, 30 + 3 * len(layers.places) // 2, deadline)
        rho, lam = first or start(problem)
    chain, x = _scaled(layers, rho, lam), np.ones(len(lam) + 1)
    if not math.isfinite(chain.log_det(x)):
        raise CertificationError(
            "The interior point method was given a start that is not strictly feasible."
        )
    best, dual, steps, spent, idle = x, -math.inf, 0, 0.0, 0
    while True:
        began = time.monotonic()
        if progress is not None:
            progress(steps, rho * best[0], rho * dual)
        gap = best[0] - max(dual, 0.0)
        if gap <= tol * best[0]:
            stopped = "gap"
        elif steps >= max_steps:
            stopped = "steps"
        elif deadline is not None and began + spent > deadline:
            stopped = "time"
        elif idle > 30:
            stopped = "rounding"
        else:
            stopped = ""
        view = None if stopped else _look(chain, x)
        if view is None:
            break
        previous = gap
        dual = max(dual, view.dual)
        x = view.step(max(dual, 0.0))
        best = x if x[0] < best[0] else best
        idle = 0 if best[0] - max(dual, 0.0) < (1 - 1e-3) * previous else idle + 1
        steps, spent = steps + 1, time.monotonic() - began
    scaled = np.split(best[1:], np.cumsum([len(W) for W in layers.weights[:-2]]))
    return Optimum(
        rho * best[0], lam * layers.gather(scaled), rho * dual, steps, stopped or "rounding"
    )


@np.errstate(all="ignore")
def least_rho(layers: descent.Layers, lam: Array) -> float:
    """`reduce.least_rho` by elimination over the layers."""
    if not (lam > 0).all():
        return math.inf
    x = np.ones(len(lam) + 1)
    x[0] = 0.0
    S, rest = _scaled(layers, 1.0, lam).eliminated(x)
    if rest == -math.inf or not np.isfinite(S).all():
        return math.inf
    return max(-float(np.linalg.eigvalsh(S)[0]), 0.0)


def _scaled(layers: descent.Layers, rho: float, lam: Array) -> _Chain:
    """M under the congruence that makes ρE the identity and every 2λ_i e_i e_iᵀ twice it."""
    roots = [np.full(layers.weights[0].shape[1], math.sqrt(rho))]
    roots += [np.sqrt(lam[place]) for place in layers.places]
    weights = [
        W / roots[k] * (roots[k + 1][:, None] if k + 1 < len(roots) else 1.0)
        for k, W in enumerate(layers.weights)
    ]
    products = [a * b for a, b in zip(layers.alpha, layers.beta, strict=True)]
    return _Chain(
        weights[:-1],
        layers.alpha,
        layers.beta,
        weights[-1].T @ weights[-1],
        implied=not any(p.any() for p in products),
    )


@dataclass(frozen=True)
class _View:
    """A point with Newton steps for every μ: x + full − pull/μ."""

    chain: _Chain
    x: Array
    full: Array
    pull: Array
    centre: float
    """The μ to which the point is closest."""
    decrement: float
    """How far it is from it, in the barrier's own norm."""
    dual: float

    def step(self, dual: float) -> Array:
        """The next point, on the way to a smaller gap as far as the point is central."""
        order, x, near = self.chain.order, self.x, self.decrement < 0.5
        mu = (x[0] - dual) / ((30 if near else 4) * order)
        mu = max(mu, self.centre * (0.01 if near else 0.1 if self.decrement < 1 else 0.2))
        direction = self.full - self.pull / mu
        inside, outside = 1 / 0.7, math.inf
        while self.chain.log_det(x + inside * direction) == -math.inf and inside > 1e-12:
            inside, outside = inside / 2, inside
        for _ in range((7 if near else 3) if outside < math.inf else 0):
            middle = (inside + outside) / 2
            if self.chain.log_det(x + middle * direction) == -math.inf:
                outside = middle
            else:
                inside = middle
        best, lowest = x, math.inf
        # Far from the central path, what comes too near the boundary takes many steps to leave it.
        shares = (0.97, 0.9) * near + (0.7,) * (self.decrement <= 2) + (0.5, 0.3, 0.15)
        for share in shares:
            point = x + share * inside * direction
            merit = point[0] / mu - self.chain.log_det(point)
            if merit >= lowest:
                break
            best, lowest = point, merit
        return best


def _look(chain: _Chain, x: Array) -> _View | None:
    """Newton steps at x and the best dual value they show; None where rounding hides them."""
    hessian, traces = chain.newton(x)
    # In Fortran's order the lower triangle by rows is the upper one.
    matrix = hessian.T
    for shift in (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11):
        trial = matrix.copy(order="F")
        trial[np.diag_indices_from(trial)] *= 1 + shift
        factor, failed = lapack.dpotrf(trial, lower=0, clean=0, overwrite_a=1)
        if not failed:
            break
    else:
        return None

    def solve(b: Array) -> tuple[Array, Array]:
        """H⁻¹b, refined once, and what it leaves of b."""
        solution = lapack.dpotrs(factor, b, lower=0)[0]
        solution += lapack.dpotrs(factor, b - blas.dsymv(1.0, matrix, solution), lower=0)[0]
        return solution, abs(b - blas.dsymv(1.0, matrix, solution))

    unit = np.zeros(len(x))
    unit[0] = 1.0
    (pull, pull_error), (full, full_error) = solve(unit), solve(traces)
    centre = pull[0] / full[0] if full[0] > 0 else math.inf
    decrement = math.sqrt(max(traces @ full - full[0] ** 2 / pull[0], 0.0))
    if not np.isfinite(full).all() or not np.isfinite(pull).all():
        return None

    def feasible(mu: float) -> bool:
        return chain.log_det(x - full + pull / mu) > -math.inf

    dual = -math.inf
    if centre < math.inf and decrement < 3 and feasible(centre):
        good, bad = centre, centre / 2
        while bad > 1e-3 * centre and feasible(bad):
            good, bad = bad, bad / 2
        for _ in range(2):
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if feasible(middle) else (good, middle)
        # tr(GX); what X violates of its equations is priced at the current multipliers.
        dual = x[0] - traces @ pull - good * (chain.order - traces @ full)
        dual -= float(abs(x) @ (pull_error + good * full_error))
    return _View(chain, x, full, pull, centre, decrement, float(dual))
