"""A primal-dual interior point method for the condition with diagonal multipliers.

Every unit's multiplier enters M through one rank-two matrix,

    M(ρ, λ) = ρE + Σ_i λ_i A_i − G,   A_i = p_i q_iᵀ + q_i p_iᵀ,   p_i = e_i − α_i c_i,
    q_i = e_i − β_i c_i,

with c_i the row of [B A] of unit i, so the Schur complement matrix of the Newton step is a sum of
four elementwise products, and every product with an A_i is one with [B A], taken where that is not
zero. What comes out is a proposal: `bound` re-establishes every bound from `conditions.lipschitz`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._arrays import Array
from ..errors import CertificationError
from .dense import TILE, cholesky, fold, inverse, longest, solver

STALL = 15
"""Steps within which the complementarity must halve."""

Term = tuple[float, Array, Array, Array]
"""ρ, λ, and the matrices K and RK."""


@dataclass(frozen=True)
class Form:
    """The data of M(ρ, λ), of order d."""

    e: Array
    """The diagonal (d,) of E: ones, then zeros."""
    R: Array
    """[B A] (n, d): the last n columns belong to the units."""
    alpha: Array
    beta: Array
    G: Array
    """(d, d), symmetric."""
    implied: bool
    """Whether M ⪰ 0 alone forces λ ≥ 0, so that the constraint need not be imposed."""

    def __call__(self, rho: float, lam: Array) -> Array:
        M = self.combine(rho, lam)
        M -= self.G
        return M

    def combine(self, rho: float, lam: Array) -> Array:
        """ρE + Σ λ_i A_i."""
        first = self.first
        if self.product.any():
            M = self.spread((2 * lam * self.product)[:, None] * self.R)
        else:
            M = np.zeros((len(self.e), len(self.e)))
        cross = (lam * self.total)[:, None] * self.R
        M[first:] -= cross
        M[:, first:] -= cross.T
        M.ravel()[:: len(M) + 1] += rho * self.e + np.pad(2 * lam, (first, 0))
        return M

    @property
    def first(self) -> int:
        """The column of the first unit."""
        return self.R.shape[1] - len(self.R)

    @cached_property
    def ones(self) -> int:
        return int(self.e.sum())

    @cached_property
    def total(self) -> Array:
        return self.alpha + self.beta

    @cached_property
    def product(self) -> Array:
        return self.alpha * self.beta

    @cached_property
    def blocks(self) -> list[tuple[slice, slice]]:
        """Rows and columns that together hold all of R's entries other than zero."""
        support = self.R != 0
        halves = ((support[:, : self.first], 0), (support[:, self.first :], self.first))
        return [block for half, offset in halves for block in _cover(half, offset)]

    def left(self, K: Array) -> Array:
        """R K."""
        out = np.zeros((len(self.R), K.shape[1]))
        for rows, columns in self.blocks:
            out[rows] += self.R[rows, columns] @ K[columns]
        return out

    def spread(self, K: Array) -> Array:
        """Rᵀ K."""
        out = np.zeros((self.R.shape[1], K.shape[1]))
        for rows, columns in self.blocks:
            out[columns] += self.R[rows, columns].T @ K[rows]
        return out

    def times(self, *terms: Term) -> Array:
        """Σ (ρE + Σ λ_i A_i) K over the terms."""
        first, ones = self.first, self.ones
        inner = np.zeros((len(self.R), terms[0][2].shape[1]))
        outer = np.zeros_like(inner)
        for _, lam, K, RK in terms:
            cross = (lam * self.total)[:, None]
            inner -= cross * K[first:]
            outer += (2 * lam)[:, None] * K[first:] - cross * RK
            if self.product.any():
                inner += (2 * lam * self.product)[:, None] * RK
        out = self.spread(inner)
        out[first:] += outer
        for rho, _, K, _ in terms:
            out[:ones] += rho * K[:ones]
        return out

    @property
    def target(self) -> Array:
        """tr(EX) = 1 and tr(A_i X) = 0: the constraints of the dual problem."""
        return np.concatenate([[1.0], np.zeros(len(self.R))])

    def traces(self, K: Array, RK: Array) -> Array:
        """tr(EK) and tr(A_i K) for K symmetric."""
        diagonal, cross = K.diagonal(), RK[:, self.first :].diagonal()
        both = np.einsum("ij,ij->i", RK, self.R) if self.product.any() else 0.0
        pairs = 2 * (diagonal[self.first :] - self.total * cross + self.product * both)
        return np.concatenate([[diagonal[: self.ones].sum()], pairs])

    def paired(self, K: Array, RK: Array, L: Array, RL: Array) -> Array:
        """tr(A_i KLᵀ), from columns of the four."""
        first = self.first

        def dot(x: Array, y: Array) -> Array:
            return np.asarray(np.einsum("ij,ij->i", x, y))

        pairs = 2 * dot(K[first:], L[first:])
        pairs -= self.total * (dot(K[first:], RL) + dot(RK, L[first:]))
        if self.product.any():
            pairs += 2 * self.product * dot(RK, RL)
        return pairs

    def schur(self, X: Array, RX: Array, Z: Array, RZ: Array) -> Array:
        """tr(A_i X A_j Z) for the data matrices E and A_i: its lower triangle."""
        n, first, ones = len(self.R), self.first, self.ones
        out = np.empty((n + 1, n + 1))
        out[0, 0] = np.vdot(X[:ones, :ones], Z[:ones, :ones])
        out[1:, 0] = self.paired(X[:, :ones], RX[:, :ones], Z[:, :ones], RZ[:, :ones])
        quarters = []
        for K, RK in ((X, RX), (Z, RZ)):
            cross = RK[:, first:]
            quarters.append((K[first:, first:], cross, cross.T.copy(), self.left(RK.T)))
        for start in range(0, n, TILE):
            rows, columns = slice(start, start + TILE), slice(0, start + TILE)
            a, b = self.alpha[rows, None], self.beta[rows, None]
            factors = []
            for K, cross, turned, both in quarters:
                k, w, t, v = (part[rows, columns] for part in (K, cross, turned, both))
                pk, qk, pr, qr = k - a * w, k - b * w, t - a * v, t - b * v
                alpha, beta = self.alpha[columns], self.beta[columns]
                factors.append((pk - alpha * pr, pk - beta * pr, qk - alpha * qr, qk - beta * qr))
            (xpp, xpq, xqp, xqq), (zpp, zpq, zqp, zqq) = factors
            into = out[start + 1 : start + TILE + 1, 1 : start + TILE + 1]
            np.multiply(xqp, zpq, out=into)
            for x, z in ((xqq, zpp), (xpp, zqq), (xpq, zqp)):
                x *= z
                into += x
        return out


def _cover(support: np.ndarray, offset: int) -> list[tuple[slice, slice]]:
    """Few blocks, of consecutive rows and columns, that contain the support."""
    found: list[list[int]] = []
    if not support.size:
        return []
    first, last = support.argmax(1), support.shape[1] - support[:, ::-1].argmax(1)
    for i in np.flatnonzero(support.any(1)).tolist():
        low, high = int(first[i]), int(last[i])
        if found:
            top, bottom, left, right = found[-1]
            wide = (i + 1 - top) * (max(high, right) - min(low, left))
            # One product is worth some multiplications by zero.
            if wide <= (bottom - top) * (right - left) + (high - low) + 256:
                found[-1] = [top, i + 1, min(low, left), max(high, right)]
                continue
        found.append([i, i + 1, low, high])
    return [(slice(t, b), slice(offset + lo, offset + hi)) for t, b, lo, hi in found]


def form(A: Array, B: Array, C: Array, D: Array, alpha: Array, beta: Array) -> Form:
    """The Lipschitz condition of a system with arrays as in `System`."""
    n, m = B.shape
    F = np.hstack([D, C])
    implied = not (alpha * beta).any() and bool((1 - (alpha + beta) * A.diagonal() > 0).all())
    return Form(
        e=np.repeat([1.0, 0.0], [m, n]),
        R=np.hstack([B, A]),
        alpha=alpha,
        beta=beta,
        G=F.T @ F,
        implied=implied,
    )


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
