"""The matrix A of a system as it is held: a large one of few entries, as a deep chain's, sparse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._arrays import Array, finite, matrix

Coupling = Any
"""An array, or a `scipy.sparse.csr_array`."""
SPARSE = 1000
"""Above this many units, an A of which at most a quarter is not zero is held sparse."""
PIECE = 1 << 20
"""Entries that `pieces` forms at a time."""


class Feed(NamedTuple):
    """What a level of units reads of others: A[units][:, fed] = block, zero in other columns."""

    units: NDArray[np.intp]
    fed: NDArray[np.intp]
    block: Array


def entries(A: Coupling) -> Coupling:
    """A matrix as its entries, without those that are +0: a digest tells -0 apart."""
    if not isinstance(A, np.ndarray):
        return A
    from scipy import sparse

    kept = A.view(np.int64) != 0
    ends = np.append(0, np.cumsum(kept.sum(axis=1)))
    return sparse.csr_array((A[kept], kept.nonzero()[1], ends), shape=A.shape)


def dense(A: Coupling) -> Array:
    """The inverse of `entries`; rows are contiguous."""
    if isinstance(A, np.ndarray):
        return np.ascontiguousarray(A)
    out = np.zeros(A.shape)
    out[np.repeat(np.arange(len(out)), np.diff(A.indptr)), A.indices] = A.data
    return out


def held(A: Any) -> Coupling:
    """A copy as it is to be held, read-only; raises as `matrix`."""
    kept: Any
    if hasattr(A, "tocsr") and A.ndim == 2:
        from scipy import sparse

        kept = sparse.csr_array(A, copy=True)
        kept.sum_duplicates()
        kept.data = finite("A", kept.data)
        count = kept.nnz
    else:
        kept = matrix("A", A)
        count = np.count_nonzero(kept.view(np.int64))
    few = kept.shape[0] > SPARSE and 4 * count <= math.prod(kept.shape)
    kept = entries(kept) if few else dense(kept)
    for array in (kept.data, kept.indices, kept.indptr) if few else (kept,):
        array.flags.writeable = False
    return kept


def below(weights: Sequence[Array]) -> Coupling:
    """A of layers that each read the one before; the first reads the input alone."""
    sizes = [len(W) for W in weights]
    if sum(sizes) > SPARSE:
        from scipy import sparse

        first, last = np.zeros((sizes[0], 0)), np.zeros((0, sizes[-1]))
        A = sparse.block_diag([first, *weights[1:], last], format="csr")
        A.data += 0.0
        return A
    A = np.zeros((sum(sizes), sum(sizes)))
    for W, end in zip(weights[1:], np.cumsum(sizes), strict=False):
        # A sum with 0 makes zeros positive, as a sparse matrix's are.
        A[end : end + len(W), end - W.shape[1] : end] += W
    return A


def joined(first: Coupling, between: Array | None, second: Coupling) -> Coupling:
    """[[first, 0], [between, second]], where None is zero."""
    split, size = first.shape[0], first.shape[0] + second.shape[0]
    if size > SPARSE:
        from scipy import sparse

        low = None if between is None else entries(between)
        return sparse.block_array([[entries(first), None], [low, entries(second)]], format="csr")
    A = np.zeros((size, size))
    A[:split, :split], A[split:, split:] = first, second
    if between is not None:
        A[split:, :split] = between
    return A


def levels(A: Coupling) -> list[NDArray[np.intp]] | None:
    """Units in groups that depend on earlier groups only; None where A has a cycle."""
    depends = A != 0
    waiting = depends.sum(axis=1)
    # By columns, if it is sparse.
    depends = depends if isinstance(depends, np.ndarray) else depends.tocsc()
    remaining = np.ones(len(waiting), dtype=bool)
    groups = []
    while remaining.any():
        ready = np.flatnonzero(remaining & (waiting == 0))
        if not ready.size:
            return None
        groups.append(ready)
        remaining[ready] = False
        waiting -= depends[:, ready].sum(axis=1)
    return groups


def feeds(A: Coupling, groups: list[NDArray[np.intp]]) -> list[Feed]:
    """What each group of units reads."""
    found = []
    for units in groups:
        rows = A[units]
        if isinstance(rows, np.ndarray):
            fed = np.flatnonzero(rows.any(axis=0))
        else:
            fed = np.flatnonzero(np.bincount(rows.indices[rows.data != 0]))
        found.append(Feed(units, fed, dense(rows[:, fed])))
        found[-1].block.flags.writeable = False
    return found


def pieces(A: Coupling) -> Iterator[Array]:
    """All rows, some at a time."""
    step = max(PIECE // max(A.shape[-1], 1), 1)
    for start in range(0, A.shape[0], step):
        yield dense(A[start : start + step])
