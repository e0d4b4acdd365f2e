"""The primal-dual method of `interior` for many Hermitian blocks that share their variables.

minimise v₀ subject to Σ_i v_i A_i ⪰ G in every block and v_i ≥ 0 for some i, where in a block
A_i = diag(e_i) + P_iᴴQ_i + Q_iᴴP_i. Blocks enter only once they would stop the iteration; at every
step all of them hold, so that each iterate is a valid bound and the dual value of the blocks that
entered is a lower bound of the optimum for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import CertificationError

ENTERING = 8
"""The most blocks that enter at a step."""


@dataclass(frozen=True)
class Blocks:
    """A batch of F blocks of order d.

    Attributes:
        e: (v, d) real, the diagonal parts.
        P, Q: (F, r, d) complex, of the r variables `rows`.
        G: (F, d, d) Hermitian.
        plain: P begins with the n × n identity in its last n columns, so that products skip it.
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
    """The blocks that have entered: X, S with the inverse of its factor, and Z = S⁻¹."""

    blocks: Blocks
    X: Tensor
    S: Tensor
    inverse: Tensor
    Z: Tensor

    @classmethod
    def at(cls, blocks: Blocks, v: Tensor, X: Tensor | None, mu: float = 0.0) -> _State | None:
        """The state at v, None where a block is not ≻ 0; X of None is μZ."""
        S = blocks(v)
        inverse = _inverse_factor(S)
        if inverse is None:
            return None
        Z = inverse.mH @ inverse
        return cls(blocks, mu * Z if X is None else X, S, inverse, Z)

    def joined(self, other: _State) -> _State:
        blocks, new = self.blocks, other.blocks
        both = replace(
            blocks, **{k: torch.cat([getattr(blocks, k), getattr(new, k)]) for k in "PQG"}
        )
        names = ("X", "S", "inverse", "Z")
        return _State(both, *(torch.cat([getattr(self, k), getattr(other, k)]) for k in names))


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

    Args:
        families: blocks of one size each.
        entered: per family the indices of the blocks to begin with.
        signed: mask of the variables with v_i ≥ 0 imposed; for others the blocks imply it.
        deadline: in `time.monotonic`; then the best point so far is returned.
        progress: called with the steps, v₀ and the dual value.

    Raises:
        CertificationError: the start is not strictly feasible.
    """
    states: list[_State] = []
    outside = []
    for blocks, first in zip(families, entered, strict=True):
        state = _State.at(blocks[first], v, None, 1.0)
        rest = torch.ones(len(blocks), dtype=torch.bool, device=v.device)
        rest[first] = False
        outside.append(rest)
        if state is None or not _holds(blocks(v)).all():
            raise CertificationError(
                "The interior point method was given a start that is not strictly feasible."
            )
        states.append(state)
    scale = 1 / sum(float((s.blocks.e[0] @ s.Z.diagonal(dim1=-2, dim2=-1).real.sum(0))) for s in states)
    states = [replace(s, X=s.X * scale) for s in states]
    w = torch.where(signed, scale / v, torch.zeros_like(v))
    target = torch.zeros_like(v)
    target[0] = 1.0
    dual, steps = -float("inf"), 0

    while True:
        count = sum(s.X.shape[0] * s.X.shape[1] for s in states) + int(signed.sum())
        mu = float(sum((s.X * s.S.conj()).real.sum() for s in states) + w @ v) / count
        gap = sum(s.blocks.traces(s.X) for s in states) + w - target
        # What X still violates is priced at the current point.
        error = float(gap.abs() @ v.abs())
        value = float(sum((s.blocks.G * s.X.conj()).real.sum() for s in states))
        dual = max(dual, value - error)
        if progress is not None:
            progress(steps, float(v[0]), dual)
        late = deadline is not None and time.monotonic() > deadline
        if mu * count + error <= tol * float(v[0].abs()) or steps >= max_steps or late:
            break
        factors = [_inverse_factor(s.X) for s in states]
        schur = sum(s.blocks.schur(s.X, s.Z) for s in states) + torch.diag(w / v * signed)
        solve = _solver(schur)
        if solve is None or any(f is None for f in factors):
            break

        def direction(
            aim: float, correct: list[Tensor] | None = None, linear: Tensor | float = 0.0
        ) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
            """The HKM step towards XS = aim·I: Δv, ΔS, ΔX and Δw."""
            fixed = [aim * s.Z for s in states]
            if correct is not None:
                fixed = [K - c for K, c in zip(fixed, correct, strict=True)]
            rhs = sum(s.blocks.traces(K) for s, K in zip(states, fixed, strict=True)) - target
            rhs = torch.where(signed, rhs + (aim - linear) / v, rhs)
            step = solve(rhs)
            dS = [s.blocks.combine(step) for s in states]
            dX = [
                _hermitian(K - s.X @ d @ s.Z) - s.X
                for K, s, d in zip(fixed, states, dS, strict=True)
            ]
            dw = torch.where(signed, (aim - linear - w * step) / v - w, 0.0)
            return step, dS, dX, dw

        def lengths(step: Tensor, dS: list[Tensor], dX: list[Tensor], dw: Tensor) -> list[float]:
            primal = [_reach(s.inverse, d) for s, d in zip(states, dS, strict=True)]
            both = [_reach(f, d) for f, d in zip(factors, dX, strict=True) if f is not None]
            return [
                min(*both, _ratio(w[signed], dw[signed])),
                min(*primal, _ratio(v[signed], step[signed])),
            ]

        step, dS, dX, dw = direction(0.0)
        a_x, a_s = (min(1.0, a) for a in lengths(step, dS, dX, dw))
        after = float(
            sum(
                ((s.X + a_x * x) * (s.S + a_s * d).conj()).real.sum()
                for s, x, d in zip(states, dX, dS, strict=True)
            )
            + (w + a_x * dw) @ (v + a_s * step)
        )
        sigma = min(1.0, max((after / (mu * count)) ** 3, 1e-6)) if after > 0 else 0.1
        correct = [x @ d @ s.Z for x, d, s in zip(dX, dS, states, strict=True)]
        step, dS, dX, dw = direction(sigma * mu, correct, dw * step)
        a_x, a_s = (min(1.0, 0.95 * a) for a in lengths(step, dS, dX, dw))
        joining, a_s = _first_stopped(families, outside, v, a_s * step, a_s)
        moved = None
        for _ in range(30):
            new = v + a_s * step
            X = [s.X + a_x * x for s, x in zip(states, dX, strict=True)]
            moved = [_State.at(s.blocks, new, x) for s, x in zip(states, X, strict=True)]
            if all(m is not None for m in moved):
                break
            a_s *= 0.5
        if moved is None or any(m is None for m in moved):
            break
        v, w, steps = new, w + a_x * dw, steps + 1
        states = [m for m in moved if m is not None]
        mu = float(sum((s.X * s.S.conj()).real.sum() for s in states) + w @ v) / count
        for k, index in enumerate(joining):
            if len(index):
                extra = _State.at(families[k][index], v, None, mu)
                if extra is None:
                    raise CertificationError("A block that held no longer holds: rounding.")
                states[k] = states[k].joined(extra)
                outside[k][index] = False
    return Found(v, dual, steps, sum(s.X.shape[0] for s in states))


def _first_stopped(
    families: list[Blocks], outside: list[Tensor], v: Tensor, step: Tensor, length: float
) -> tuple[list[Tensor], float]:
    """Of the blocks that have not entered: those that a·step stops first, and an a that none does.

    By convexity a block that holds at both ends holds between them.
    """
    joining: list[Tensor] = [torch.zeros(0, dtype=torch.long, device=v.device)] * len(families)
    for k, blocks in enumerate(families):
        index = outside[k].nonzero()[:, 0]
        stopped = index[~_holds(blocks[index](v + length * step))]
        while len(stopped):
            joining[k] = stopped
            length *= 0.8
            stopped = stopped[~_holds(blocks[stopped](v + length * step))]
    return [index[:: max(1, len(index) // ENTERING)] for index in joining], length


def _holds(S: Tensor) -> Tensor:
    """Mask (F,) of the matrices that are ≻ 0."""
    return torch.linalg.cholesky_ex(S)[1] == 0


def _inverse_factor(S: Tensor) -> Tensor | None:
    """L⁻¹ with S = LLᴴ, None where one is not ≻ 0."""
    factor, info = torch.linalg.cholesky_ex(S)
    if info.any():
        return None
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def _reach(inverse: Tensor, D: Tensor, steps: int = 12) -> float:
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
