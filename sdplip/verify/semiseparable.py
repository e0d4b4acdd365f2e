"""Newton's equations of a deep chain in time and memory linear in the depth.

What layers say about later ones passes through few numbers: the blocks of the barrier's Hessian
off the diagonal have a low numerical rank, whatever the depth. In the form

    H_kl ≈ U_k T_{k−1} … T_{l+1} V_l,  k > l,

for groups of layers k and l it is sequentially semiseparable, and so is its Cholesky factor, found
in one pass [Chandrasekaran et al., SIAM J. Matrix Anal. Appl. 27 (2005)]. It preconditions the
conjugate gradients, whose products are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack

from .._arrays import Array
from .barrier import Hessian, Rows

GROUP = 4
"""Layers of the greatest width that make a group; a cut's rank is at most that of one group."""


@dataclass(frozen=True)
class _Group:
    """Of the factor: the diagonal block's, and how the state enters, passes and leaves it."""

    factor: Array
    U: Array
    T: Array
    W: Array


class Semiseparable:
    """The Cholesky factor of H, approximated to `cut` relative to a unit diagonal.

    Attributes:
        definite: whether the approximation is ≻ 0; nothing can be solved otherwise.
    """

    def __init__(self, hessian: Hessian, cut: float) -> None:
        self.scale = np.empty(hessian.barrier.units)
        self.border = np.empty_like(self.scale)
        self.groups: list[_Group] = []
        self.definite = self._factor(hessian, cut)
        if self.definite:
            self.border *= self.scale
            self.by_border = self._inner(self.border[:, None])
            self.pivot = hessian.corner - float(self.border @ self.by_border[:, 0])
            self.definite = self.pivot > 0

    def _factor(self, hessian: Hessian, cut: float) -> bool:
        rows, place = Rows(hessian), 0
        factor = U = P = np.empty((0, 0))
        corner: Array | None = None
        kept = np.empty(0)  # The scales of the columns in `rows`: a skeleton and the last group.
        for members in _groups([len(W) for W in hessian.barrier.weights]):
            block, earlier = self._scaled(hessian, rows, members, place, kept)
            own = slice(place, place + len(block))
            if not place:
                U, kept = block[:, :0], self.scale[own]
            else:
                # The state is what this group sees of the earlier ones, in orthonormal coordinates.
                skeleton, X = _skeleton(earlier, cut)
                T, V = X[:, : len(P)], X[:, len(P) :]
                T = T if corner is None else blas.dtrsm(1.0, corner, T, side=1)
                passed = T @ P
                Y = blas.dtrsm(1.0, factor, (V - passed @ U.T).T, lower=1)
                W = blas.dtrsm(1.0, factor, Y, lower=1, trans_a=1).T
                self.groups.append(_Group(factor, U, T, W))
                P, corner = passed @ T.T + Y.T @ Y, np.asfortranarray(X[:, skeleton])
                U = blas.dtrsm(1.0, corner, earlier[:, skeleton], side=1)
                block -= U @ P @ U.T
                rows.keep(np.concatenate([skeleton, len(kept) + np.arange(len(block))]))
                kept = np.concatenate([kept[skeleton], self.scale[own]])
            factor, failed = lapack.dpotrf(block, lower=1, clean=0)
            if failed:
                return False
            place += len(block)
        self.groups.append(_Group(factor, U, U[:0], block[:0]))
        return True

    def _scaled(
        self, hessian: Hessian, rows: Rows, members: list[int], place: int, kept: Array
    ) -> tuple[Array, Array]:
        """A group's own block (its lower triangle by blocks), and its rows for columns before."""
        size = sum(len(hessian.blocks[k]) for k in members)
        block, earlier = np.zeros((size, size)), np.empty((size, len(kept)))
        scale, done = self.scale[place : place + size], 0
        for k in members:
            diagonal = hessian.blocks[k]
            own = slice(done, done + len(diagonal))
            self.border[place:][own], columns = rows.layer()
            scale[own] = 1 / np.sqrt(diagonal.diagonal())
            block[own, own] = diagonal * scale[own]
            block[own, :done] = columns[:, len(kept) :] * scale[:done]
            earlier[own] = columns[:, : len(kept)] * kept
            done += len(diagonal)
        return block * scale[:, None], earlier * scale[:, None]

    def _inner(self, b: Array) -> Array:
        """The units' part, scaled: (units, c)."""
        state = np.zeros((0, b.shape[1]))
        found, place = [], 0
        for group in self.groups:
            y = b[place : place + len(group.factor)] - group.U @ state
            state = group.T @ state + group.W @ y
            found.append(y)
            place += len(y)
        for k in range(len(found) - 1, -1, -1):
            group = self.groups[k]
            x = lapack.dpotrs(group.factor, found[k], lower=1)[0] - group.W.T @ state
            state = group.T.T @ state + group.U.T @ x
            found[k] = x
        return np.concatenate(found)

    def __call__(self, b: Array) -> Array:
        """The solutions for the rows of b (c, 1 + units)."""
        inner = self._inner((b[:, 1:] * self.scale).T)
        first = (b[:, 0] - self.border @ inner) / self.pivot
        rest = (inner - self.by_border * first).T * self.scale
        return np.concatenate([first[:, None], rest], axis=1)


def _groups(widths: list[int]) -> list[list[int]]:
    """Consecutive layers that together have GROUP times the greatest width, or the rest."""
    found: list[list[int]] = [[]]
    size = 0
    for k, width in enumerate(widths):
        if size >= GROUP * max(widths):
            found.append([])
            size = 0
        found[-1].append(k)
        size += width
    return found


def _skeleton(K: Array, cut: float) -> tuple[np.ndarray, Array]:
    """Columns of K, and X with orthonormal Q: K ≈ Q X, X's columns of them being triangular."""
    factor, order = lapack.dgeqp3(K)[:2]
    rank = max(int((abs(factor.diagonal()) > cut).sum()), 1)
    X = np.empty((rank, K.shape[1]))
    X[:, order - 1] = np.triu(factor[:rank])
    return order[:rank] - 1, X
