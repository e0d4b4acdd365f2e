"""The data matrices of the condition with diagonal multipliers, and products with them.

Every unit's multiplier enters M through one rank-two matrix,

    M(ρ, λ) = ρE + Σ_i λ_i A_i − G,   A_i = p_i q_iᵀ + q_i p_iᵀ,   p_i = e_i − α_i c_i,
    q_i = e_i − β_i c_i,

with c_i the row of [B A] of unit i, so every product with an A_i is one with [B A], taken where
that is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._arrays import Array
from .dense import TILE

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
