"""Peaceman-Rachford splitting of small systems, compiled by numba where that is installed.

Below a hundred units a product takes less time than the operations of PyTorch around it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .implicit import LARGE
from .problem import Solved
from .splitting import needed
from .tuning import CHECK_EVERY

MAX_UNITS = 128
"""Beyond, products take most of the time."""

MAX_PRODUCT = 2**18
"""Multiplications up to which OpenBLAS starts no threads."""

MAX_STEPS = 1000
"""As of `solve`."""


def serves(units: int, tensors: list[Tensor]) -> bool:
    """Whether what is computed of so many units and these tensors may be compiled: all are float32
    on the CPU, and nothing but autograd watches."""
    if not 0 < units <= MAX_UNITS or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    # Checkpoints save and compute again, and expect to find the same operations.
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return False
    for x in tensors:
        if not (x.dtype is torch.float32 and x.is_cpu and type(x) in (torch.nn.Parameter, Tensor)):
            return False
    return _compiler() is not None


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function of arrays, compiled, of tensors that autograd does not follow."""
    arrays = (x.detach().contiguous().numpy() if isinstance(x, Tensor) else x for x in arguments)
    return _compiled(function)(*arrays)


def solved(
    v: Tensor, w: Tensor | None, A: np.ndarray, R: np.ndarray, step: float, tol: float, first: int
) -> Solved | None:
    """What `iterate` finds with `PeacemanRachford` from zero, looking first after `first` sweeps.

    None where that is not all rows solved: a row is not finite, came no nearer from one look to the
    next, or was not solved by MAX_STEPS.

    Args:
        v: (rows, n).
        w: None for σ = ReLU; or (rows, n) for the adjoint, whose σ has the slopes w > 0, and before
            which every row of v is scaled to ‖v‖₁ = LARGE.
        A, R: (n, n), as rows are multiplied with from the right; R is that of `cayley`.
    """
    limits = (step, tol, first, CHECK_EVERY, MAX_STEPS, LARGE)
    z, pre, residual, steps, looks = call(_settle, v, v[:0] if w is None else w, A, R, *limits)
    if not len(looks):
        return None
    enough = max(
        needed(int(a), int(b), before, worst, tol) for a, b, before, worst in looks.tolist()
    )
    z, pre, residual, steps = map(torch.from_numpy, (z, pre, residual, steps))
    return Solved(z, residual, steps, "peaceman_rachford", enough, pre)


@cache
def _compiler() -> Callable[..., Any] | None:
    """numba's, if it is there and may keep what it compiles, for many seconds, on disk."""
    try:
        from numba import config, njit
    except ImportError:
        return None
    # Sums in any order, but NaN and Inf as they are.
    exact = {"error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    compiler = partial(njit, cache=True, nogil=True, **exact)
    try:
        compiler(_settle)
    except RuntimeError:
        return None
    return None if config.DISABLE_JIT else compiler


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiler = _compiler()
    assert compiler is not None
    return cast(Callable[..., Any], compiler(function))


def cayley(A, step):
    """(I - step (I - A)) (I + step (I - A))⁻¹ and its transpose.

    By Gauss and Jordan in blocks of columns, without a search for pivots: none is needed where
    I - A is monotone in some metric; elsewhere what is made of the result may not converge.
    """
    n, size, one = len(A), 16, np.float32(1)
    M, moved = np.float32(-step / 2) * A, np.empty_like(A)
    for i in range(n):
        M[i, i] += np.float32((1 + step) / 2)
    row, column = np.empty(size, np.float32), np.empty(size, np.float32)
    for start in range(0, n, size):
        stop = min(start + size, n)
        D, left = M[start:stop, start:stop].copy(), M[:, start:stop].copy()
        for k in range(stop - start):
            pivot = one / D[k, k]
            for i in range(stop - start):
                row[i], column[i], D[i, k] = D[k, i] * pivot, D[i, k], 0
            row[k], column[k] = pivot, 0
            D[k] = row[: stop - start]
            for i in range(stop - start):
                for j in range(stop - start):
                    D[i, j] -= column[i] * row[j]
        rows = np.dot(D, M[start:stop])
        rows[:, start:stop] = D
        left[start:stop] = 0
        M[:, start:stop] = 0
        np.dot(left, rows, moved)
        # Entry by entry: numba makes loops of arrays that are slower, here and below.
        for i in range(n):
            for j in range(n):
                M[i, j] -= moved[i, j]
        M[start:stop] = rows
    for i in range(n):
        M[i, i] -= one
    moved[:] = M.T
    return M, moved


def _settle(v, w, A, R, step, tol, first, every, limit, large):
    """z, A z + v (of the scaled v), residual and steps of every row; and, if all went well, for
    every block of rows the sweeps before its last two looks and the worst residuals there."""
    rows, n = v.shape
    count = -(-rows // max(1, MAX_PRODUCT // n**2))
    size, relu = -(-rows // count), len(w) == 0
    nil, one, alpha = np.float32(0), np.float32(1), np.float32(step)
    small, tiny = np.float32(1 / large), np.float32(1.2e-38)
    z, pre, residual = np.empty_like(v), np.empty_like(v), np.empty(rows, np.float32)
    steps, looks = np.empty(rows, np.int64), np.empty((count, 4))
    # Of a block of rows: what the cache holds and BLAS multiplies in this thread. A state is p + c.
    p, c, t = np.empty((size, n), v.dtype), np.empty((size, n), v.dtype), np.empty_like(v[:size])
    q, given = np.empty_like(p), np.empty_like(p)
    scale, index = np.ones(size, v.dtype), np.empty(size, np.int64)
    for block in range(len(looks)):
        begin, live = block * size, max(0, min(size, rows - block * size))
        for i in range(live):
            r = index[i] = begin + i
            if not relu:
                norm = nil
                for j in range(n):
                    norm += abs(v[r, j]) * small
                scale[i] = norm if norm > tiny else tiny
            for j in range(n):
                given[i, j] = v[r, j] if relu else v[r, j] / scale[i]
        np.dot(given[:live], R, p[:live])
        for i in range(live):
            for j in range(n):
                c[i, j], p[i, j] = alpha * (p[i, j] + given[i, j]), nil
        last, done, before, worst = 0, 0, math.inf, math.inf
        while live:
            look = min(done + every if done else first, limit)
            for _ in range(look - done):
                for i in range(live):
                    r = index[i]
                    for j in range(n):
                        x = p[i, j] + c[i, j]
                        t[i, j] = abs(x) if relu else (x if w[r, j] > nil else -x)
                np.dot(t[:live], R, p[:live])
            for i in range(live):
                r = index[i]
                for j in range(n):
                    x = p[i, j] + c[i, j]
                    t[i, j] = (nil if x < nil else x) if relu else (x if w[r, j] > nil else nil)
            np.dot(t[:live], A, q[:live])
            last, done, before, worst, kept = done, look, worst, 0.0, 0
            for i in range(live):
                r, defect, square = index[i], nil, nil
                for j in range(n):
                    x = q[i, j] + given[i, j]
                    y = (nil if x < nil else x) if relu else (x if w[r, j] > nil else nil)
                    defect += (t[i, j] - y) ** 2
                    square += t[i, j] ** 2
                    z[r, j], pre[r, j] = scale[i] * t[i, j], x
                error = np.sqrt(defect) / (one + np.sqrt(square))
                if not (error < before and square < math.inf):
                    return z, pre, residual, steps, looks[:0]
                residual[r], steps[r], worst = error, done, max(worst, error)
                if error > tol:
                    index[kept], scale[kept], given[kept] = r, scale[i], given[i]
                    p[kept], c[kept] = p[i], c[i]
                    kept += 1
            if kept and done == limit:
                return z, pre, residual, steps, looks[:0]
            live = kept
        looks[block] = np.array((last, done, before, worst))
    return z, pre, residual, steps, looks
