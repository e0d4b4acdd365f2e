"""An interior point method for chains, on the blocks of their tridiagonal M.

The barrier comes from recursions over the layers (`barrier`), Newton's equations are dense or, for
deep chains, linear in the depth (`equations`). The method is the dual scaling of Benson, Ye, Zhang
(SIAM J. Optimization 2000): the primal side needs no matrix X of its own, for

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

from .._arrays import Array
from ..errors import CertificationError, InvalidInput
from . import descent
from .barrier import Barrier, Hessian
from .central import central
from .equations import Equations, Solve
from .interior import Optimum
from .reduce import Problem, start

FAR = 0.7
"""Decrements from which on the Hessian of a point serves for a second step."""
SLOW = 0.8
"""Decrements that fall less than to so much of the last one show that steps were too long."""
REACH = 3.0
"""How far from a point the boundary is first looked for, in the barrier's own norm."""
FULL = 1 / 0.7
"""Of a Newton step, the most that is tried."""


def fits(problem: Problem) -> bool:
    """Whether the problem is a chain: each level feeds the next alone, the last the output."""
    return descent.layers(problem) is not None


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
        first = central(layers, min(30 + 3 * len(layers.places) // 2, 100), deadline)
        rho, lam = first or start(problem)
    barrier, x = Barrier.of(layers, rho, lam), np.ones(len(lam) + 1)
    if not math.isfinite(barrier.log_det(x)):
        raise CertificationError(
            "The interior point method was given a start that is not strictly feasible."
        )
    equations = Equations(barrier.units, max(map(len, barrier.weights)))
    best, dual, steps, spent, idle, far = x, -math.inf, 0, 0.0, 0, math.inf
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
        # Before there is a dual value, the direction alone matters.
        enough = (1e-3 if dual > -math.inf else 1e-2) * gap
        view = None if stopped else _look(barrier, x, enough, equations)
        if view is None:
            break
        previous = gap
        dual = max(dual, view.dual)
        # Points near the boundary take many steps to leave it.
        bold = view.decrement < max(SLOW * far, 2.5)
        far, x = view.decrement, view.step(max(dual, 0.0), bold)
        best = x if x[0] < best[0] else best
        idle = 0 if best[0] - max(dual, 0.0) < (1 - 1e-3) * previous else idle + 1
        steps, spent = steps + 1, time.monotonic() - began
    return Optimum(
        rho * best[0],
        lam * layers.gather(barrier.layered(best)),
        rho * dual,
        steps,
        stopped or "rounding",
    )


@dataclass(frozen=True)
class _View:
    """A point with Newton steps for every μ: x + full − pull/μ."""

    barrier: Barrier
    x: Array
    traces: Array
    full: Array
    pull: Array
    centre: float
    """The μ to which the point is closest."""
    decrement: float
    """How far it is from it, in the barrier's own norm."""
    dual: float
    solve: Solve
    """With about the Hessian."""

    def step(self, dual: float, bold: bool) -> Array:
        """The next point, on the way to a smaller gap as far as the point is central."""
        order, x, near = self.barrier.order, self.x, self.decrement < 0.5
        mu = (x[0] - dual) / ((30 if near else 4) * order)
        least = 0.01 if near else 0.1 if self.decrement < 1 else 0.5 if self.decrement < 3 else 0.2
        least = least if bold else 0.2
        mu = max(mu, least * self.centre)
        direction = self.full - self.pull / mu
        inside = self._inside(direction, mu, 0.01 if near else 0.15)
        best, lowest, length = x, math.inf, 0.0
        for share in (0.97, 0.9) * near + (0.85, 0.65) * bold + (0.45, 0.3, 0.15):
            point = x + share * inside * direction
            merit = point[0] / mu - self.barrier.log_det(point)
            if merit >= lowest:
                break
            best, lowest, length = point, merit, share * inside
        return self._again(best, lowest, mu, length) if bold and self.decrement > FAR else best

    def _inside(self, direction: Array, mu: float, accuracy: float) -> float:
        """Almost the greatest feasible multiple of the step for μ that is of use."""
        # Below 1 in the barrier's own norm all are feasible, but the boundary is seldom near.
        size = math.sqrt(max(self.traces @ direction - direction[0] / mu, 0.0))
        inside, outside, length = 0.0, math.inf, min(REACH / max(size, REACH), FULL)
        while inside < min((1 - accuracy) * outside, FULL) and outside > 1e-12:
            if self.barrier.log_det(self.x + length * direction) > -math.inf:
                inside, length = length, min(2 * length, FULL)
            else:
                outside, length = length, length / 2
            length = (inside + outside) / 2 if inside > 0 and outside < math.inf else length
        return inside

    def _again(self, x: Array, merit: float, mu: float, length: float) -> Array:
        """A second step with the same Hessian, which costs far less than a new one."""
        eliminated = self.barrier.eliminate(x)
        if eliminated is None:
            return x
        slope = Hessian(self.barrier, x, *eliminated).traces
        slope[0] -= 1 / mu
        direction, best = self.solve(slope[None])[0], x
        for length in (length * 4.0**-k for k in range(-1, 4)):
            point = x + length * direction
            after = point[0] / mu - self.barrier.log_det(point)
            if after < merit:
                best, merit = point, after
            elif best is not x:
                break
        return best


def _look(barrier: Barrier, x: Array, enough: float, equations: Equations) -> _View | None:
    """Newton steps at x and the best dual value they show; None where rounding hides them."""
    eliminated = barrier.eliminate(x)
    if eliminated is None:
        return None
    hessian = Hessian(barrier, x, *eliminated)
    traces = hessian.traces
    if not np.isfinite(traces).all():
        return None

    def error(found: Array, left: Array) -> float:
        """Of the dual value, for what X violates is priced at the current multipliers."""
        centre = found[0, 0] / found[1, 0] if found[1, 0] > 0 else 0.0
        prices = abs(left) @ abs(x)
        return float(prices[0] + centre * prices[1])

    solved = equations.solve(hessian, np.stack([np.eye(1, len(x))[0], traces]), error, enough)
    if solved is None or not np.isfinite(solved.x).all():
        return None
    pull, full = solved.x
    pull_error, full_error = abs(solved.left)
    centre = pull[0] / full[0] if full[0] > 0 else math.inf
    decrement = math.sqrt(max(traces @ full - full[0] ** 2 / pull[0], 0.0))

    def feasible(mu: float) -> bool:
        return barrier.log_det(x - full + pull / mu) > -math.inf

    dual = -math.inf
    if centre < math.inf and decrement < 3 and feasible(centre):
        good, bad = centre, centre / 2
        while bad > 1e-3 * centre and feasible(bad):
            good, bad = bad, bad / 2
        for _ in range(2):
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if feasible(middle) else (good, middle)
        # tr(GX), less the price of what X violates: in tr(GX) itself, and at the optimum.
        dual = x[0] - traces @ pull - good * (barrier.order - traces @ full)
        dual -= 2 * float(abs(x) @ (pull_error + good * full_error)) + centre * hessian.rounding
    return _View(barrier, x, traces, full, pull, centre, decrement, float(dual), solved.near)
