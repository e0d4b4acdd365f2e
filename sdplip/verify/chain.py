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
from .equations import Equations
from .interior import Optimum
from .reduce import Problem, start


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
        view = None if stopped else _look(barrier, x, gap, equations)
        if view is None:
            break
        previous = gap
        dual = max(dual, view.dual)
        x = view.step(max(dual, 0.0))
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
    full: Array
    pull: Array
    centre: float
    """The μ to which the point is closest."""
    decrement: float
    """How far it is from it, in the barrier's own norm."""
    dual: float

    def step(self, dual: float) -> Array:
        """The next point, on the way to a smaller gap as far as the point is central."""
        order, x, near = self.barrier.order, self.x, self.decrement < 0.5
        mu = (x[0] - dual) / ((30 if near else 4) * order)
        mu = max(mu, self.centre * (0.01 if near else 0.1 if self.decrement < 1 else 0.2))
        direction = self.full - self.pull / mu
        inside, outside = 1 / 0.7, math.inf
        while self.barrier.log_det(x + inside * direction) == -math.inf and inside > 1e-12:
            inside, outside = inside / 2, inside
        for _ in range((7 if near else 3) if outside < math.inf else 0):
            middle = (inside + outside) / 2
            if self.barrier.log_det(x + middle * direction) == -math.inf:
                outside = middle
            else:
                inside = middle
        best, lowest = x, math.inf
        # Far from the central path, what comes too near the boundary takes many steps to leave it.
        shares = (0.97, 0.9) * near + (0.7,) * (self.decrement <= 2) + (0.5, 0.3, 0.15)
        for share in shares:
            point = x + share * inside * direction
            merit = point[0] / mu - self.barrier.log_det(point)
            if merit >= lowest:
                break
            best, lowest = point, merit
        return best


def _look(barrier: Barrier, x: Array, gap: float, equations: Equations) -> _View | None:
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

    solved = equations.solve(hessian, np.stack([np.eye(1, len(x))[0], traces]), error, 1e-4 * gap)
    if solved is None or not np.isfinite(solved[0]).all():
        return None
    pull, full = solved[0]
    pull_error, full_error = abs(solved[1])
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
        dual -= 2 * float(abs(x) @ (pull_error + good * full_error))
    return _View(barrier, x, full, pull, centre, decrement, float(dual))
