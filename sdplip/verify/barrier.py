"""The barrier −log det M of a chain and its derivatives, by recursions over the layers.

For z_k = σ(W_k z_{k−1}), y = C z_L, M(ρ, λ) is block tridiagonal. With Z = M⁻¹ and the variables
x = (ρ, λ), of data matrices A_i, the barrier's gradient is −tr(A_i Z) and its Hessian
tr(A_i Z A_j Z). Values, gradients and products with the Hessian are linear in the depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from .._arrays import Array
from .descent import Layers

STACK = 2**12
"""Entries up to which the matrices of layers are stacked; larger ones need no common call."""


@dataclass(frozen=True)
class Barrier:
    """Blocks of M(ρ, λ) for x = (ρ, λ), scaled so that the start is x = 1.

    Where M ⪰ 0 does not force λ ≥ 0, −Σ log λ_i belongs to the barrier, too.
    """

    weights: list[Array]
    alpha: list[Array]
    beta: list[Array]
    gram: Array
    implied: bool
    """Whether M ⪰ 0 alone forces λ ≥ 0."""

    @classmethod
    def of(cls, layers: Layers, rho: float, lam: Array) -> Barrier:
        """M under the congruence that makes ρE the identity and every 2λ_i e_i e_iᵀ twice it."""
        roots = [np.full(layers.weights[0].shape[1], math.sqrt(rho))]
        roots += [np.sqrt(lam[place]) for place in layers.places]
        weights = [
            W / roots[k] * (roots[k + 1][:, None] if k + 1 < len(roots) else 1.0)
            for k, W in enumerate(layers.weights)
        ]
        products = [a * b for a, b in zip(layers.alpha, layers.beta, strict=True)]
        gram = weights[-1].T @ weights[-1]
        implied = not any(p.any() for p in products)
        return cls(weights[:-1], layers.alpha, layers.beta, gram, implied)

    @property
    def inputs(self) -> int:
        return self.weights[0].shape[1]

    @property
    def units(self) -> int:
        return sum(map(len, self.weights))

    @property
    def order(self) -> int:
        """The barrier's parameter: the order of M, and one per constraint λ_i ≥ 0."""
        return self.inputs + self.units * (1 if self.implied else 2)

    @cached_property
    def places(self) -> list[slice]:
        ends = np.cumsum([1, *map(len, self.weights)])
        return [slice(*ends[k : k + 2]) for k in range(len(self.weights))]

    def layered(self, x: Array) -> list[Array]:
        """The parts of (..., 1 + units) that belong to each layer, as views."""
        return [x[..., place] for place in self.places]

    def log_det(self, x: Array) -> float:
        """log det M + Σ log λ_i over the constraints that are not implied; −inf if infeasible."""
        if not self.implied and not (x > 0).all():
            return -math.inf
        eliminated = self.eliminate(x)
        if eliminated is None:
            return -math.inf
        value = 2 * float(np.log(np.concatenate([f.diagonal() for f in eliminated[0]])).sum())
        if not self.implied:
            value += float(np.log(x[1:]).sum())
        return value if math.isfinite(value) else -math.inf

    def eliminate(self, x: Array) -> tuple[list[Array], list[Array]] | None:
        """Lower factors L_k of the Schur complements from the last layer on; L_k⁻¹M_{k,k−1}.

        None where M is not ≻ 0. The factors are not clean above their diagonals.
        """
        factors: list[Array] = []
        sides: list[Array] = []
        S, parts = -self.gram, self.layered(x)
        for k in range(len(parts) - 1, -1, -1):
            W, low, high, lam = self.weights[k], self.alpha[k], self.beta[k], parts[k]
            S.ravel()[:: len(S) + 1] += 2 * lam
            factor, failed = lapack.dpotrf(S, lower=1, clean=0)
            if failed:
                return None
            factors.append(factor)
            sides.append(blas.dtrsm(1.0, factor, (-lam * (low + high))[:, None] * W, lower=1))
            S = -(sides[-1].T @ sides[-1])
            if not self.implied:
                S += W.T @ ((2 * lam * low * high)[:, None] * W)
        S.ravel()[:: len(S) + 1] += x[0]
        factor, failed = lapack.dpotrf(S, lower=1, clean=0)
        return None if failed else ([*factors, factor], sides)


class Hessian:
    """The barrier's Hessian at x, and its gradient times −1, `traces`, from `eliminate`.

    What the rounding of M may change in tr(MZ) is about `rounding`.

    In coordinates of layer k in which Z_kk is the identity, without which the large Z and the small
    A(d)Z of a point near the optimum lose each other's digits: how they pass on to the next
    layer's, what a unit's p_i and q_i read of them, and what they leave in its own layer's.
    """

    def __init__(
        self, barrier: Barrier, x: Array, factors: list[Array], sides: list[Array]
    ) -> None:
        self.barrier, self.traces = barrier, np.empty_like(x)
        halves = [lapack.dtrtri(np.tril(factor), lower=1)[0] for factor in reversed(factors)]
        inverses = [half.T @ half for half in halves]
        gains = [-half.T @ side for half, side in zip(halves[1:], reversed(sides), strict=True)]
        Z, root = inverses[0], _root(inverses[0])
        self.first, self.traces[0], self.corner = root.T, Z.trace(), float(np.vdot(Z, Z))
        """The inputs' unit vectors; H_00."""
        condition = x[0] * self.traces[0]
        self.passes: list[Array] = []
        self.reads: list[tuple[Array, Array]] = []
        self.leaves: list[tuple[Array, Array]] = []
        self.blocks: list[Array] = []
        """Each layer's own block of H."""
        layers = zip(barrier.weights, barrier.alpha, barrier.beta, gains, inverses[1:], strict=True)
        parts = barrier.layered(self.traces), barrier.layered(x)
        for (W, low, high, G, own), traces, lam in zip(layers, *parts, strict=True):
            P, Q = G - low[:, None] * W, G - high[:, None] * W
            ZP, ZQ = Z @ P.T, Z @ Q.T
            pp, pq, qq = own + P @ ZP, own + P @ ZQ, own + Q @ ZQ
            self.blocks.append(2 * (pq * pq.T + pp * qq))
            traces[:] = 2 * pq.diagonal()
            cross, before = G @ Z, root
            Z = own + cross @ G.T
            condition += 2 * float(lam @ Z.diagonal())
            root = _root(Z)
            self.passes.append(blas.dtrsm(1.0, root, G @ before, lower=1))
            self.reads.append((P @ before, Q @ before))
            left = blas.dtrsm(1.0, root, cross @ W.T, lower=1)
            self.leaves.append((root.T - left * low, root.T - left * high))
        # As |δM_ij| ≤ wε√(M_ii M_jj) for w entries in a row of M, by Cauchy and Schwarz.
        self.rounding = np.finfo(float).eps * 3 * max(map(len, halves)) * condition
        if not barrier.implied:
            self.traces[1:] += 1 / x[1:]
            for block, lam in zip(self.blocks, barrier.layered(x), strict=True):
                block.ravel()[:: len(block) + 1] += lam**-2

    @cached_property
    def runs(self) -> list[_Run]:
        found: list[list[int]] = []
        for k, K in enumerate(self.passes):
            last = found[-1] if found else [k]
            fits = K.shape == self.passes[last[0]].shape and (len(last) + 1) * K.size <= STACK
            if found and fits:
                last.append(k)
            else:
                found.append([k])
        ends = np.cumsum([0] + [len(block) for block in self.blocks])
        return [_Run.of(self, run[0], run[-1] + 1, ends) for run in found]

    def product(self, d: Array) -> Array:
        """H d, row by row of d (c, 1 + units)."""
        out, first = np.empty_like(d), self.first @ self.first.T
        state = d[:, 0, None, None] * first
        for run in self.runs:
            state = run.forth(state, d, out)
        state = np.zeros_like(state)
        for run in reversed(self.runs):
            state = run.back(state, d, out)
        out[:, 0] = self.corner * d[:, 0] + (state * first).sum(axis=(1, 2))
        return out

    def dense(self) -> Array:
        """The lower triangle, (1 + units, 1 + units)."""
        size = 1 + self.barrier.units
        out, rows, place = np.zeros((size, size)), Rows(self, np.ones(size - 1)), 1
        out[0, 0] = self.corner
        for block in self.blocks:
            own = slice(place, place + len(block))
            out[own, own], out[own, 0], out[own, 1:place] = block, *rows.layer()
            place += len(block)
        return out


@dataclass(frozen=True)
class _Run:
    """Consecutive layers of one shape, stacked, for what does not pass from one to the next."""

    units: slice
    blocks: Array
    passes: Array
    by_p: Array
    by_q: Array
    p: Array
    q: Array
    """Row by row of the units, as `by_p` and `by_q`."""

    @classmethod
    def of(cls, hessian: Hessian, start: int, stop: int, ends: np.ndarray) -> _Run:
        own = slice(start, stop)
        reads = zip(*hessian.reads[own], strict=True)
        leaves = ([K.T for K in part] for part in zip(*hessian.leaves[own], strict=True))
        stacks = (hessian.blocks[own], hessian.passes[own], *reads, *leaves)
        return cls(slice(1 + ends[start], 1 + ends[stop]), *map(np.stack, stacks))

    def part(self, d: Array) -> Array:
        """(c, layers, units), a view."""
        return d[:, self.units].reshape(len(d), *self.blocks.shape[:2])

    def forth(self, state: Array, d: Array, out: Array) -> Array:
        """What these layers' units read of the layers before, and the state that they pass on."""
        part = self.part(d)
        enter = _pairs(self.p, part, self.q)
        states = np.empty((len(d), len(self.passes), *state.shape[1:]))
        for k, K in enumerate(self.passes):
            states[:, k] = state
            state = K @ state @ K.T + enter[:, k]
        read = 2 * np.vecdot(self.by_p @ states, self.by_q)
        self.part(out)[:] = (part[:, :, None] @ self.blocks)[:, :, 0] + read
        return state

    def back(self, state: Array, d: Array, out: Array) -> Array:
        """The same for the layers after them, added."""
        part = self.part(d)
        enter = _pairs(self.by_p, part, self.by_q)
        states = np.empty((len(d), len(self.passes), *state.shape[1:]))
        for k in range(len(self.passes) - 1, -1, -1):
            K = self.passes[k]
            states[:, k] = state
            state = K.T @ state @ K + enter[:, k]
        self.part(out)[:] += 2 * np.vecdot(self.p @ states, self.q)
        return state


class Rows:
    """The Hessian's rows, a layer at a time, for columns that can be left out on the way.

    Scaled by roots_i² roots_j², which keeps them in the range of a shorter `kind`.
    """

    def __init__(self, hessian: Hessian, roots: Array, kind: Any = np.float64) -> None:
        self.inputs, self.done = hessian.barrier.inputs, 0
        parts = np.split(roots, np.cumsum([len(block) for block in hessian.blocks])[:-1])
        self.passes: list[Array] = [K.astype(kind) for K in hessian.passes]
        self.reads: list[Array] = [
            (np.tile(root, 2)[:, None] * np.concatenate(pair)).astype(kind)
            for root, pair in zip(parts, hessian.reads, strict=True)
        ]
        self.leaves: list[Array] = [
            (np.stack(pair) * root).astype(kind)
            for root, pair in zip(parts, hessian.leaves, strict=True)
        ]
        # What the inputs' unit vectors, and the p_j and the q_j of the units kept, have left.
        self.left: Array = np.stack([hessian.first] * 2).astype(kind)

    @property
    def kept(self) -> int:
        return self.left.shape[2] - self.inputs

    def layer(self) -> tuple[Array, Array]:
        """Of the next layer: the column of ρ, and those of the units kept."""
        both = self.reads[self.done] @ self.left
        (pp, qp), (pq, qq) = both.reshape(2, 2, -1, both.shape[2])
        pair = qp * pq
        pair += pp * qq
        passed = self.passes[self.done] @ self.left
        self.left = np.concatenate([passed, self.leaves[self.done]], axis=2)
        self.done += 1
        return pair[:, : self.inputs].sum(axis=1), 2 * pair[:, self.inputs :]

    def keep(self, units: np.ndarray) -> None:
        """Go on with these of the units kept so far."""
        self.left = self.left[:, :, np.concatenate([np.arange(self.inputs), self.inputs + units])]


def _root(K: Array) -> Array:
    """The lower Cholesky factor."""
    return np.asarray(lapack.dpotrf(K, lower=1, clean=1)[0])


def _pairs(p: Array, d: Array, q: Array) -> Array:
    """Σ d_i (p_i q_iᵀ + q_i p_iᵀ) over the rows of p and q, for a batch of d."""
    # Products with transposed stacks take twice as long.
    half = (np.ascontiguousarray(p.swapaxes(-1, -2)) * d[:, :, None]) @ q
    return half + half.swapaxes(-1, -2)
