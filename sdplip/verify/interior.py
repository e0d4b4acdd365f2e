"""A primal-dual interior point method for the condition with diagonal multipliers.

With the data matrices of rank two of `Form`, the Schur complement matrix of the Newton step is a
sum of four elementwise products. What comes out is a proposal: the bound is established anew from
`conditions.lipschitz`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._arrays import Array
from ..errors import CertificationError
from .dense import cholesky, fold, inverse, longest, solver
from .form import Form

STALL = 15
"""Steps within which the complementarity must halve."""


@dataclass(frozen=True)
class _State:
    """One iterate: S = M(ρ, λ), X, both with their factors, and w, the dual of λ ≥ 0 (or zero)."""

    problem: Form
    rho: float
    lam: Array
    S: Array
    factor: Array
    X: Array
    x_factor: Array
    w: Array

    @classmethod
    def first(cls, problem: Form, rho: float, lam: Array) -> _State | None:
        """The start with X a multiple of S⁻¹; None where S is not ≻ 0."""
        S = problem(rho, lam)
        factor = cholesky(S)
        if factor is None or not (lam > 0).all():
            return None
        X = inverse(factor)
        scale = 1 / X.diagonal()[: problem.ones].sum()
        X *= scale
        x_factor = cholesky(X)
        w = np.zeros(len(lam)) if problem.implied else scale / lam
        return None if x_factor is None else cls(problem, rho, lam, S, factor, X, x_factor, w)

    @cached_property
    def RX(self) -> Array:
        return self.problem.left(self.X)

    @cached_property
    def left(self) -> float:
        """The complementarity, X·S + w·λ."""
        return float(np.vdot(self.X, self.S) + self.w @ self.lam)

    @cached_property
    def dual(self) -> float:
        """The dual value of X, less what it violates at the current multipliers; or −inf."""
        gap = self.problem.traces(self.X, self.RX) - self.problem.target
        gap[1:] += self.w
        error = abs(gap) @ abs(np.concatenate([[self.rho], self.lam]))
        # The price is right where the multipliers are: not while X is far from feasible.
        if error > 1e-9 * abs(self.rho):
            return float(-np.inf)
        return float(np.vdot(self.problem.G, self.X) - error)

    def step(self) -> _State | None:
        """The next iterate; None where rounding leaves none."""
        form, lam, X, w, RX = self.problem, self.lam, self.X, self.w, self.RX
        Z = inverse(self.factor)
        RZ = form.left(Z)
        schur = form.schur(X, RX, Z, RZ)
        schur.ravel()[len(schur) + 1 :: len(schur) + 1] += w / lam
        solve = solver(schur)
        if solve is None:
            return None

        # The predictor aims at XS = 0.
        guess = solve(-form.target)
        dSZ = form.times((guess[0], guess[1:], Z, RZ))
        dX = fold(X @ dSZ)
        dX += X
        dX *= -1
        dw = -w - w * guess[1:] / lam
        dS = form.combine(guess[0], guess[1:])
        a_x = min(longest(self.x_factor, dX, 0.02, 1.0), _ratio(w, dw, 1.0))
        a_s = min(longest(self.factor, dS, 0.02, 1.0), _ratio(lam, guess[1:], 1.0))
        after = (
            self.left
            + a_x * float(np.vdot(dX, self.S) + dw @ lam)
            + a_s * float(np.vdot(X, dS) + w @ guess[1:])
            + a_x * a_s * float(np.vdot(dX, dS) + dw @ guess[1:])
        )
        reach = min(a_x, a_s)
        centring = max(after / self.left, 1e-6) ** max(1.0, 3 * reach * reach)
        aim = min(1.0, centring) * self.left / (len(X) + len(lam) * (not form.implied))

        # The corrector aims at XS = aim·I with the predictor's second-order term.
        turned, RdX = dSZ.T.copy(), form.left(dX)
        ones, linear = form.ones, dw * guess[1:]
        rhs = aim * form.traces(Z, RZ) - form.target
        rhs[0] -= np.vdot(dX[:ones], turned[:ones])
        rhs[1:] -= form.paired(dX, RdX, turned, form.left(turned))
        if not form.implied:
            rhs[1:] += (aim - linear) / lam
        move = solve(rhs)
        if not np.isfinite(move).all():
            return None
        del dSZ, turned
        change = form.times((move[0], move[1:], X, RX), (guess[0], guess[1:], dX, RdX))
        dX = fold(change.T @ Z)
        dX += X
        Z *= aim
        np.subtract(Z, dX, out=dX)
        if not form.implied:
            dw = (aim - linear - w * move[1:]) / lam - w
        dS = form.combine(move[0], move[1:])
        share = 0.9 + 0.09 * reach
        far = 1 / share
        a_x = share * min(longest(self.x_factor, dX, 0.02, far), _ratio(w, dw, far))
        a_s = share * min(longest(self.factor, dS, 0.02, far), _ratio(lam, move[1:], far))
        return self._moved(move, dX, dw, a_x, a_s)

    def _moved(self, move: Array, dX: Array, dw: Array, a_x: float, a_s: float) -> _State | None:
        """The point after both steps, each shortened until it stays feasible."""
        while a_s > 1e-8:
            rho, lam = float(self.rho + a_s * move[0]), self.lam + a_s * move[1:]
            S = self.problem(rho, lam)
            factor = cholesky(S)
            if factor is not None:
                break
            a_s *= 0.7
        else:
            return None
        while a_x > 1e-8:
            X = self.X + a_x * dX
            x_factor = cholesky(X)
            if x_factor is not None:
                w = self.w + a_x * dw
                return _State(self.problem, rho, lam, S, factor, X, x_factor, w)
            a_x *= 0.7
        return None


def _ratio(value: Array, step: Array, enough: float) -> float:
    """The largest a ≤ enough with value + a·step ≥ 0."""
    falling = step < 0
    return float((-value[falling] / step[falling]).min(initial=enough))


@dataclass(frozen=True)
class Optimum:
    """A strictly feasible (ρ, λ), a dual value below the optimal ρ, and the steps taken."""

    rho: float
    lam: Array
    dual: float
    steps: int
    stopped: str = "gap"
    """What ended it: "gap" (or `stop_below`), "time", "steps" or "rounding"."""


def minimise(
    problem: Form,
    rho: float,
    lam: Array,
    *,
    tol: float = 1e-9,
    stop_below: float | None = None,
    max_steps: int = 100,
    deadline: float | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> Optimum:
    """Minimise ρ subject to M(ρ, λ) ⪰ 0 and λ ≥ 0 from a strictly feasible start.

    HKM direction with Mehrotra's predictor and corrector, centring the more the shorter its steps
    [Toh, Todd, Tütüncü, Optim. Methods Softw. 11 (1999)]. Every iterate is strictly feasible; the
    one of least ρ is returned.

    Args:
        tol: the relative gap between ρ and the dual value to stop at.
        stop_below: a ρ to stop at.
        deadline: in `time.monotonic`; no step is begun that would likely end after it.
        progress: called with the steps taken, ρ and the dual value (−inf at first).

    Raises:
        CertificationError: the start is not strictly feasible.
    """
    point = _State.first(problem, rho, lam)
    if point is None:
        raise CertificationError(
            "The interior point method was given a start that is not strictly feasible."
        )
    lam, steps, dual, spent = point.lam, 0, -np.inf, 0.0
    history = [point.left]
    while True:
        began = time.monotonic()
        dual = max(dual, point.dual)
        if progress is not None:
            progress(steps, rho, dual)
        below = stop_below is not None and rho <= stop_below
        if below or rho - dual <= tol * abs(rho):
            stopped = "gap"
            break
        if steps >= max_steps or (deadline is not None and began + spent > deadline):
            stopped = "steps" if steps >= max_steps else "time"
            break
        after = point.step()
        if after is None or (steps >= STALL and after.left > 0.5 * history[-STALL]):
            stopped = "rounding"
            break
        point, steps = after, steps + 1
        history.append(point.left)
        if point.rho <= rho:
            rho, lam = point.rho, point.lam
        spent = time.monotonic() - began
    return Optimum(rho, lam, dual, steps, stopped)
