"""The primal-dual method of `interior` for many Hermitian blocks that share their variables.

minimise v₀ subject to Σ_i v_i A_i ⪰ G in every block and v_i ≥ 0 for some i, where in a block
A_i = diag(e_i) + P_iᴴQ_i + Q_iᴴP_i. Blocks enter only once they would stop the iteration; at every
step all of them hold, so that each iterate is a valid bound and the dual value of the blocks that
entered is a lower bound of the optimum for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CertificationError

ENTERING = 8
"""The most blocks that enter at a step."""
SHORTEST = 1e-9
"""Steps below this make no progress."""


@dataclass(frozen=True)
class Blocks:
    """A batch of F blocks of order d.

    Attributes:
        e: (v, d) real, the diagonal parts.
        P, Q: (F, r, d) complex, of the r variables `rows`.
        G: (F, d, d) Hermitian.
        plain: this many rows of P begin with the identity in the last columns and make PᴴQ lower
            triangular; products need not be formed for them.
    """

    e: Tensor
    P: Tensor
    Q: Tensor
    G: Tensor
    rows: slice
    plain: int = 0

    def __getitem__(self, index: Tensor) -> Blocks:
        return replace(self, P=self.P[index], Q=self.Q[index], G=self.G[index])

    def __len__(self) -> int:
        return len(self.G)

    def combine(self, v: Tensor) -> Tensor:
        """Σ v_i A_i, (F, d, d)."""
        scaled = v[self.rows, None] * self.Q
        n, d = self.plain, self.e.shape[1]
        half = torch.zeros_like(self.G)
        half[:, d - n :] = scaled[:, :n]
        if n < scaled.shape[1]:
            half += self.P[:, n:].mH @ scaled[:, n:]
        half.diagonal(dim1=-2, dim2=-1).add_((v @ self.e) / 2)
        return half + half.mH

    def __call__(self, v: Tensor) -> Tensor:
        return self.combine(v) - self.G

    def holds(self, v: Tensor) -> Tensor:
        """Mask (F,) of the blocks that are ≻ 0 at v."""
        if self.plain < self.P.shape[1] or not self.plain:
            S = self(v)
        else:
            # Cholesky reads the lower triangle.
            S = -self.G
            S[:, -self.plain :].addcmul_(self.Q, v[self.rows, None].to(S))
            diagonal = v @ self.e
            diagonal[-self.plain :] += v[self.rows]
            S.diagonal(dim1=-2, dim2=-1).add_(diagonal)
        return torch.linalg.cholesky_ex(S)[1] == 0

    def left(self, K: Tensor) -> Tensor:
        """PK."""
        n, d = self.plain, self.e.shape[1]
        if n == self.P.shape[1]:
            return K[:, d - n :]
        return torch.cat([K[:, d - n :], self.P[:, n:] @ K], 1) if n else self.P @ K

    def traces(self, K: Tensor) -> Tensor:
        """Σ over the blocks of Re tr(A_i K), (v,); K need not be Hermitian."""
        out = self.e @ K.diagonal(dim1=-2, dim2=-1).real.sum(0)
        pairs = (self.Q @ K * self.P.conj()).real + (self.left(K) * self.Q.conj()).real
        out[self.rows] += pairs.sum((0, 2))
        return out

    def schur(self, X: Tensor, Z: Tensor) -> Tensor:
        """Σ over the blocks of Re tr(A_i X A_j Z), (v, v)."""
        QX, QZ = self.Q @ X, self.Q @ Z
        PX, PZ = self.left(X), self.left(Z)
        Xqp, Zqp = self.left(QX.mH).mH, self.left(QZ.mH).mH
        Xpp, Zpp = self.left(PX.mH), self.left(PZ.mH)
        Xqq, Zqq = QX @ self.Q.mH, QZ @ self.Q.mH
        out = self.e @ (X * Z.mT).real.sum(0) @ self.e.mT
        crossed = (Xqp * Zqp.mT).real.sum(0)
        inner = (Xqq * Zpp.mT).real.sum(0) + (Xpp * Zqq.mT).real.sum(0) + crossed + crossed.mT
        border = ((PX.mH * QZ.mT).real + (QX.mH * PZ.mT).real).sum(0)
        out[self.rows, self.rows] += inner
        out[:, self.rows] += self.e @ border
        out[self.rows, :] += (self.e @ border).mT
        return (out + out.mT) / 2


@dataclass(frozen=True)
class _State:
    """The blocks of a family that have entered: X, S, the inverse of S's factor, and Z = S⁻¹."""

    blocks: Blocks
    X: Tensor
    S: Tensor
    inverse: Tensor
    Z: Tensor

    @classmethod
    def at(cls, blocks: Blocks, v: Tensor, X: Tensor | None, mu: float = 1.0) -> _State | None:
        """The state at v, None where a block is not ≻ 0; X of None is μZ."""
        S = blocks(v)
        inverse = _inverse_factor(S)
        if inverse is None:
            return None
        Z = inverse.mH @ inverse
        return cls(blocks, mu * Z if X is None else X, S, inverse, Z)

    def joined(self, other: _State) -> _State:
        both: dict[str, Any] = {
            k: torch.cat([getattr(self.blocks, k), getattr(other.blocks, k)]) for k in "PQG"
        }
        names = ("X", "S", "inverse", "Z")
        parts = [torch.cat([getattr(self, k), getattr(other, k)]) for k in names]
        return _State(replace(self.blocks, **both), *parts)


@dataclass(frozen=True)
class _Direction:
    v: Tensor
    w: Tensor
    S: list[Tensor]
    X: list[Tensor]


@dataclass(frozen=True)
class _Point:
    """An iterate: v, the dual w of v ≥ 0 (where `signed`), and the blocks that have entered."""

    v: Tensor
    w: Tensor
    signed: Tensor
    states: list[_State]

    @property
    def count(self) -> int:
        return sum(s.X.shape[0] * s.X.shape[1] for s in self.states) + int(self.signed.sum())

    @property
    def mu(self) -> float:
        inner = sum((s.X * s.S.conj()).real.sum() for s in self.states) + self.w @ self.v
        return float(inner) / self.count

    @property
    def target(self) -> Tensor:
        """tr(A_0 X) = 1 and tr(A_i X) + w_i = 0: the constraints of the dual problem."""
        return torch.eye(len(self.v), dtype=self.v.dtype, device=self.v.device)[0]

    def dual(self) -> tuple[float, float]:
        """The dual value, and what X still violates priced at v."""
        gap: Any = sum(s.blocks.traces(s.X) for s in self.states)
        value = sum((s.blocks.G * s.X.conj()).real.sum() for s in self.states)
        return float(value), float((gap + self.w - self.target).abs() @ self.v.abs())

    def newton(self) -> Callable[[Tensor], Tensor] | None:
        schur: Any = sum(s.blocks.schur(s.X, s.Z) for s in self.states)
        return _solver(schur + torch.diag(self.w / self.v * self.signed))

    def direction(
        self, solve: Callable[[Tensor], Tensor], aim: float, first: _Direction | None = None
    ) -> _Direction:
        """The HKM step towards XS = aim·I, with the second-order terms of a first one."""
        fixed = [aim * s.Z for s in self.states]
        linear: Any = 0.0
        if first is not None:
            second = zip(fixed, first.X, first.S, self.states, strict=True)
            fixed = [K - X @ S @ s.Z for K, X, S, s in second]
            linear = first.w * first.v
        traces: Any = sum(s.blocks.traces(K) for s, K in zip(self.states, fixed, strict=True))
        rhs = traces - self.target
        step = solve(torch.where(self.signed, rhs + (aim - linear) / self.v, rhs))
        dS = [s.blocks.combine(step) for s in self.states]
        terms = zip(fixed, self.states, dS, strict=True)
        dX = [_hermitian(K - s.X @ S @ s.Z) - s.X for K, s, S in terms]
        dw = torch.where(self.signed, (aim - linear - self.w * step) / self.v - self.w, 0.0)
        return _Direction(step, dw, dS, dX)

    def lengths(
        self, factors: list[Tensor], step: _Direction, share: float, effort: int
    ) -> tuple[float, float]:
        """Steps for X and S, at most 1 and this share of what is possible."""
        X = [_reach(f, d, effort) for f, d in zip(factors, step.X, strict=True)]
        S = [_reach(s.inverse, d, effort) for s, d in zip(self.states, step.S, strict=True)]
        X.append(_ratio(self.w[self.signed], step.w[self.signed]))
        S.append(_ratio(self.v[self.signed], step.v[self.signed]))
        return min(1.0, share * min(X)), min(1.0, share * min(S))

    def after(self, step: _Direction, a_x: float, a_s: float) -> float:
        """⟨X, S⟩ + ⟨w, v⟩ after a step."""
        terms = zip(self.states, step.X, step.S, strict=True)
        inner: Any = sum(((s.X + a_x * X) * (s.S + a_s * S).conj()).real.sum() for s, X, S in terms)
        return float(inner + (self.w + a_x * step.w) @ (self.v + a_s * step.v))

    def moved(self, step: _Direction, a_x: float, a_s: float) -> _Point | None:
        """The point after a step, None where rounding leaves no S ≻ 0."""
        for _ in range(30):
            v = self.v + a_s * step.v
            terms = zip(self.states, step.X, strict=True)
            states = [_State.at(s.blocks, v, s.X + a_x * X) for s, X in terms]
            if all(states):
                w = self.w + a_x * step.w
                return replace(self, v=v, w=w, states=[s for s in states if s is not None])
            a_s *= 0.5
        return None


@dataclass(frozen=True)
class Found:
    """A point at which every block is ≻ 0, a dual value below the optimum, and the work done."""

    v: Tensor
    dual: float
    steps: int
    entered: int


def minimise(
    families: list[Blocks],
    v: Tensor,
    entered: list[Tensor],
    signed: Tensor,
    *,
    tol: float = 1e-9,
    max_steps: int = 150,
    deadline: float | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> Found:
    """Minimise v₀ from a strictly feasible v.

    HKM direction with Mehrotra's predictor and corrector; stops at a relative gap of `tol`, or
    where rounding ends progress.

    Args:
        families: blocks of one size each.
        entered: per family the indices of the blocks to begin with.
        signed: mask of the variables with v_i ≥ 0 imposed; for others the blocks imply it.
        deadline: in `time.monotonic`; then the best point so far is returned.
        progress: called with the steps, v₀ and the dual value.

    Raises:
        CertificationError: the start is not strictly feasible.
    """
    starts = [_State.at(b[first], v, None) for b, first in zip(families, entered, strict=True)]
    if not all(starts) or not all(bool(b.holds(v).all()) for b in families):
        raise CertificationError(
            "The interior point method was given a start that is not strictly feasible."
        )
    states = [s for s in starts if s is not None]
    size: Any = sum(s.blocks.traces(s.Z)[0] for s in states)
    states = [replace(s, X=s.X / size) for s in states]
    point = _Point(v, torch.where(signed, 1 / (size * v), 0.0), signed, states)
    outside = [torch.ones(len(b), dtype=torch.bool, device=v.device) for b in families]
    for rest, first in zip(outside, entered, strict=True):
        rest[first] = False
    dual, steps = -math.inf, 0

    while True:
        mu, (value, error) = point.mu, point.dual()
        # The price is right where v is: not while X is far from feasible.
        if error <= tol * abs(float(point.v[0])):
            dual = max(dual, value - error)
        if progress is not None:
            progress(steps, float(point.v[0]), dual)
        late = deadline is not None and time.monotonic() > deadline
        if mu * point.count + error <= tol * abs(float(point.v[0])) or steps >= max_steps or late:
            break
        factors = [f for s in point.states if (f := _inverse_factor(s.X)) is not None]
        solve = point.newton()
        if solve is None or len(factors) < len(families):
            break
        step = point.direction(solve, 0.0)
        a_x, a_s = point.lengths(factors, step, 1.0, 6)
        ahead = point.after(step, a_x, a_s) / (mu * point.count)
        sigma = min(1.0, max(ahead**3, 1e-6)) if ahead > 0 else 0.1
        step = point.direction(solve, sigma * mu, step)
        a_x, a_s = point.lengths(factors, step, 0.95, 12)
        joining, a_s = _first_stopped(families, outside, point.v, step.v, a_s)
        moved = point.moved(step, a_x, a_s)
        if moved is None or max(a_x, a_s) < SHORTEST:
            break
        mu, steps = moved.mu, steps + 1
        for k, index in enumerate(joining):
            extra = _State.at(families[k][index], moved.v, None, mu) if len(index) else None
            if extra is not None:
                moved.states[k] = moved.states[k].joined(extra)
                outside[k][index] = False
        point = moved
    return Found(point.v, dual, steps, sum(len(s.X) for s in point.states))


def _first_stopped(
    families: list[Blocks], outside: list[Tensor], v: Tensor, step: Tensor, length: float
) -> tuple[list[Tensor], float]:
    """Of the blocks that have not entered: those that stop the step first, and a length without.

    By convexity a block that holds at both ends holds between them.
    """
    joining: list[Tensor] = []
    for blocks, rest in zip(families, outside, strict=True):
        stopped = (rest & ~blocks.holds(v + length * step)).nonzero()[:, 0]
        last = stopped
        # Close to singular, rounding may say that one does not hold where it stands.
        while len(stopped) and length > SHORTEST:
            last, length = stopped, 0.8 * length
            stopped = stopped[~blocks[stopped].holds(v + length * step)]
        joining.append(last[:: max(1, len(last) // ENTERING)])
    return joining, length


def _inverse_factor(S: Tensor) -> Tensor | None:
    """L⁻¹ with S = LLᴴ, None where one is not ≻ 0."""
    factor, info = torch.linalg.cholesky_ex(S)
    if info.any():
        return None
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def _reach(inverse: Tensor, D: Tensor, steps: int) -> float:
    """An a, close to the largest, with S + aD ⪰ 0 in every block, S⁻¹ = inverseᴴ·inverse.

    By the smallest Ritz value of a Lanczos run, less its residual.
    """
    H = inverse @ D @ inverse.mH
    d = H.shape[-1]
    steps = min(steps, d)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(d, 1, generator=generator, dtype=torch.float64).to(H) + 0 * H[:, :, :1]
    basis = q / torch.linalg.vector_norm(q, dim=1, keepdim=True)
    T = torch.zeros(len(H), steps, steps, dtype=torch.float64, device=H.device)
    rest = torch.zeros(len(H), dtype=torch.float64, device=H.device)
    for j in range(steps):
        q = H @ basis[:, :, -1:]
        T[:, j, j] = (basis[:, :, -1:].mH @ q)[:, 0, 0].real
        q = q - basis @ (basis.mH @ q)
        q = q - basis @ (basis.mH @ q)
        rest = torch.linalg.vector_norm(q, dim=(1, 2))
        if j + 1 < steps:
            T[:, j, j + 1] = T[:, j + 1, j] = rest
            basis = torch.cat([basis, q / rest.clamp_min(1e-300)[:, None, None]], 2)
    values, vectors = torch.linalg.eigh(T)
    lowest = float((values[:, 0] - rest * vectors[:, -1, 0].abs()).min())
    return float("inf") if lowest >= 0 else -1 / lowest


def _ratio(value: Tensor, step: Tensor) -> float:
    falling = step < 0
    return float((-value[falling] / step[falling]).min()) if falling.any() else float("inf")


def _solver(matrix: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Solve with a symmetric positive definite matrix, scaled and refined once."""
    scale = matrix.diagonal().clamp_min(1e-300).rsqrt()
    scaled = matrix * scale[:, None] * scale
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for shift in (0.0, 1e-14, 1e-12, 1e-10, 1e-8):
        factor, info = torch.linalg.cholesky_ex(scaled + shift * eye)
        if info:
            continue

        def solve(b: Tensor, factor: Tensor = factor) -> Tensor:
            b = (scale * b)[:, None]
            x = torch.cholesky_solve(b, factor)
            x = x + torch.cholesky_solve(b - scaled @ x, factor)
            return scale * x[:, 0]

        return solve
    return None


def _hermitian(K: Tensor) -> Tensor:
    return (K + K.mH) / 2
