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
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from .._arrays import Array
from .barrier import Hessian, Rows

GROUP = 4
"""Layers of the greatest width that make a group; a cut's rank is at most that of one group."""
SINGLE = 1e-6
"""Cut-offs from this one on leave out more than the rounding of float32."""


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
        self.kind = np.float32 if cut >= SINGLE else np.float64
        self.trsm = get_blas_funcs("trsm", dtype=self.kind)
        self.potrf, self.potrs, self.geqp3 = get_lapack_funcs(
            ("potrf", "potrs", "geqp3"), dtype=self.kind
        )
        self.scale = 1 / np.sqrt(np.concatenate([block.diagonal() for block in hessian.blocks]))
        self.border = np.empty_like(self.scale)
        self.groups: list[_Group] = []
        self.definite = self._factor(hessian, cut)
        if self.definite:
            self.by_border = self._inner(self.border[:, None])
            self.pivot = hessian.corner - float(self.border @ self.by_border[:, 0])
            self.definite = self.pivot > 0

    def _factor(self, hessian: Hessian, cut: float) -> bool:
        rows, place = Rows(hessian, np.sqrt(self.scale), self.kind), 0
        factor = U = P = np.empty((0, 0), self.kind)
        corner: Array | None = None
        for members in _groups([len(W) for W in hessian.barrier.weights]):
            # The columns kept are a skeleton and the last group.
            kept = rows.kept
            earlier, block = np.hsplit(self._rows(hessian, rows, members, place), [kept])
            if not place:
                U = block[:, :0]
            else:
                # The state is what this group sees of the earlier ones, in orthonormal coordinates.
                skeleton, X = self._skeleton(earlier, cut)
                T, V = X[:, : len(P)], X[:, len(P) :]
                T = T if corner is None else self.trsm(1.0, corner, T, side=1)
                passed = T @ P
                Y = self.trsm(1.0, factor, (V - passed @ U.T).T, lower=1)
                W = self.trsm(1.0, factor, Y, lower=1, trans_a=1).T
                self.groups.append(_Group(factor, U, T, W))
                P, corner = passed @ T.T + Y.T @ Y, np.asfortranarray(X[:, skeleton])
                U = self.trsm(1.0, corner, earlier[:, skeleton], side=1)
                block = block - U @ P @ U.T
                rows.keep(np.concatenate([skeleton, kept + np.arange(len(block))]))
            factor, failed = self.potrf(block, lower=1, clean=0)
            if failed:
                return False
            place += len(block)
        self.groups.append(_Group(factor, U, U[:0], block[:0]))
        return True

    def _rows(self, hessian: Hessian, rows: Rows, members: list[int], place: int) -> Array:
        """A group's rows: for the columns kept, and its own block's lower triangle by blocks."""
        size = sum(len(hessian.blocks[k]) for k in members)
        found, done = np.zeros((size, rows.kept + size), self.kind), 0
        for k in members:
            block = hessian.blocks[k]
            own = slice(done, done + len(block))
            self.border[place:][own], columns = rows.layer()
            found[own, : columns.shape[1]] = columns
            scale = self.scale[place:][own]
            found[own, columns.shape[1] :][:, : len(block)] = scale[:, None] * block * scale
            done += len(block)
        return found

    def _skeleton(self, K: Array, cut: float) -> tuple[np.ndarray, Array]:
        """Columns of K, and X with orthonormal Q: K ≈ Q X, X's columns of them being triangular."""
        factor, order = self.geqp3(K)[:2]
        rank = max(int((abs(factor.diagonal()) > cut).sum()), 1)
        X = np.empty((rank, K.shape[1]), self.kind, order="F")
        X[:, order - 1] = np.triu(factor[:rank])
        return order[:rank] - 1, X

    def _inner(self, b: Array) -> Array:
        """The units' part, scaled: (units, c)."""
        b = b.astype(self.kind)
        state = b[:0]
        found, place = [], 0
        for group in self.groups:
            y = b[place : place + len(group.factor)] - group.U @ state
            state = group.T @ state + group.W @ y
            found.append(y)
            place += len(y)
        for k in range(len(found) - 1, -1, -1):
            group = self.groups[k]
            x = self.potrs(group.factor, found[k], lower=1)[0] - group.W.T @ state
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
