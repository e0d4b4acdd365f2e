"""A step of training of a small LBEN or MON in few operations, where numba is installed.

It computes what `lben.solution`, `implicit` and the products around them would, and leaves to them
whatever is out of the ordinary.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._tensors import only_recorded
from ..activations import ACTIVATIONS, activation
from ..equilibrium.compiled import MAX_PRODUCT, call, cayley, serves, solved
from ..equilibrium.implicit import Report
from ..equilibrium.operators import Dense
from ..equilibrium.problem import Solved
from . import lben
from ._state import coarse

if TYPE_CHECKING:
    from .lben import LBENLinear

FREE = ("psi", "V", "S", "B", "C", "bias", "out_bias")

TRIALS = (2**0.25, 2**-0.25)
"""Factors by which a new step is changed as long as fewer sweeps solve the batch at hand."""


class Attempt(NamedTuple):
    """A step, its Cayley matrix, and what they lead to."""

    step: float
    R: np.ndarray
    found: Solved


class Pass(NamedTuple):
    """What a forward pass leaves to the backward pass."""

    layer: LBENLinear
    report: Report
    tol: float
    half: float
    inner: Tensor
    A: np.ndarray
    Lam: np.ndarray
    attempt: Attempt


def output(layer: LBENLinear, x: Tensor) -> Tensor | None:
    """What `forward` returns in training, or None where it has to find that itself."""
    tol = layer._solver(None)["tol"]
    usual = layer._settled() and layer.method == "peaceman_rachford" and layer.max_steps is None
    usual = usual and not layer.polish and layer.gradient == "implicit" and 0 < tol < math.inf
    if not (usual and activation(layer.activation) is ACTIVATIONS["relu"]):
        return None
    if not (x.ndim == 2 and len(x) and only_recorded(x)):
        return None
    free = [layer._parameters.get(name) for name in FREE]
    given = [x, *(p for p in free if p is not None)]
    if any(p is None for p in free[1:5]) or not serves(layer.hidden, given):
        return None
    if torch.is_autocast_enabled("cpu") or coarse():
        return None
    values = [p if p is None else p.detach() for p in (x, *free)]
    found = _forward(layer, tol, *values)  # type: ignore[arg-type]
    return None if found is None else cast(Tensor, _Step.apply(*found, x, *free))


def _forward(
    layer: LBENLinear,
    tol: float,
    x: Tensor,
    psi: Tensor | None,
    V: Tensor,
    S: Tensor,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    out_bias: Tensor | None,
) -> tuple[Pass, Tensor] | None:
    """y and what belongs to it, where no free matrix saturates, float32 can tell whether rows are
    solved, and all are."""
    half, eps, tuning = 0.5 / layer.gamma, torch.finfo(V.dtype).eps, layer._tuning
    # Large products are left to PyTorch, which has its own say about threads.
    inner = torch.mm(B, B.mT) if half else V
    scales = (psi is not None, half, layer.eps, eps, lben.SPREAD)
    A, right, Lam, norms = call(_form, V[0] if psi is None else psi, V, S, B, C, inner, *scales)
    limits = (*lben.limits(len(V), layer.gamma), tol / (2 * eps) - 1)
    if not all(norm <= limit for norm, limit in zip(norms, limits, strict=True)):
        return None
    v = F.linear(x, B, bias)

    def attempt(step: float) -> Attempt | None:
        R, turned = call(cayley, A, step)
        found = solved(v, None, right, turned, step, tol, tuning.first(adjoint=False))
        return None if found is None else Attempt(step, R, found)

    best = attempt(cast(float, tuning.step))
    if best is None:
        return None
    if tuning.age == 1:  # just chosen
        tuning.looks.clear()
        for factor in TRIALS:
            while (trial := attempt(best.step * factor)) and trial.found.needed < best.found.needed:
                best = trial
        tuning.step = best.step
    tuning.age += 1
    report = Report(type(layer).__name__, layer.on_failure or "warn", tuning, False)
    report(best.found, False)
    kept = Pass(layer, report, tol, half, inner, A, Lam, best)
    return kept, F.linear(best.found.z, C, out_bias)


class _Step(torch.autograd.Function):
    """y of x and the parameters; what is out of the ordinary in its derivatives is `_general`."""

    @staticmethod
    def forward(ctx: Any, kept: Pass, y: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.kept = kept
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        layer, report, tol, half, inner, A, Lam, (step, R, solution) = ctx.kept
        (x, _, V, _, B, C, _, _), found, z = inputs, None, solution.z
        if not torch.is_grad_enabled():
            first = report.tuning.first(adjoint=True)
            found = solved(torch.mm(g, C), solution.preactivation, A, R, step, tol, first)
        if found is None:
            return None, None, *_general(layer, g, wanted, *inputs)
        report(found, True)
        u = found.z
        by_A, by_B, by_C = torch.mm(u.mT, z), torch.mm(u.mT, x), torch.mm(g.mT, z)
        rest = (V, C, A, inner, Lam, half, lben.SPREAD)
        slope, by_V, by_S, by_inner = map(torch.from_numpy, call(_gradient, by_A, by_C, *rest))
        if half:
            by_B.addmm_(by_inner, B)
        by_x, by_psi = torch.mm(u, B) if wanted[0] else None, slope if wanted[1] else None
        by_bias, by_out = u.sum(0) if wanted[6] else None, g.sum(0) if wanted[7] else None
        return None, None, by_x, by_psi, by_V, by_S, by_B, by_C, by_bias, by_out


def _general(
    layer: LBENLinear, g: Tensor, wanted: tuple[bool, ...], x: Tensor, *free: Any
) -> list[Tensor | None]:
    """The gradients of what is wanted, differentiable if autograd records."""
    psi, V, S, B, C, bias, out_bias = free
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        w = lben.witness(psi, V, S, B, C, None, layer.gamma, layer.eps)
        v, metric = F.linear(x, w["B"], bias), layer._metric(w)
        y = F.linear(layer._find(Dense(w["A"], kept={}), v, metric), w["C"], out_bias)
        asked = [t for t, want in zip((x, *free), wanted, strict=True) if want]
        found = iter(torch.autograd.grad(y, asked, g, create_graph=again))
    return [next(found) if want else None for want in wanted]


def _form(psi, V, S, B, C, inner, learned, half, eps, unit, spread):
    """A, Aᵀ and Λ of `lben.solution`; and the Frobenius norms of [V, S], of [B, C] and of A.

    Args:
        inner: BBᵀ where half = 1 / 2γ is not zero. unit: of rounding.
    """
    n, top, h, s = len(V), np.float32(0), np.float32(half), np.float32(spread)
    rows = max(1, MAX_PRODUCT // n**2)
    A, gram, Lam, squares = np.empty_like(V), np.empty_like(V), np.ones(n, V.dtype), np.zeros(2)
    turned = V.T.copy()
    for start in range(0, n, rows):
        np.dot(turned[start : start + rows], V, gram[start : start + rows])
    if half:
        turned = C.T.copy()
        for start in range(0, n, rows):
            np.dot(turned[start : start + rows], C, A[start : start + rows])
    # The trace of BBᵀ is the square of B's norm.
    for k, X in ((0, V), (0, S), (1, C), (1, B[: 0 if half else len(B)])):
        for i in range(len(X)):
            total = np.float32(0)
            for j in range(X.shape[1]):
                total += X[i, j] * X[i, j]
            squares[k] += total
    for i in range(n):
        squares[1] += inner[i, i] if half else 0
        if learned:
            Lam[i] = np.exp(s * np.tanh(-psi[i] / s))
        top = max(top, Lam[i])
    turned = S.T.copy()
    size = np.float32(0)
    for i in range(n):
        if half:
            for j in range(n):
                gram[i, j] += h * (A[i, j] + Lam[i] * Lam[j] * inner[i, j])
        for j in range(n):
            A[i, j] = turned[i, j] - S[i, j] - gram[i, j]
            size += A[i, j] * A[i, j]
    lost = 8 * unit * (math.sqrt(size) + top)
    size = np.float32(0)
    for i in range(n):
        for j in range(n):
            A[i, j] /= Lam[i]
        A[i, i] += np.float32(1 - (eps + lost) / Lam[i])
        for j in range(n):
            size += A[i, j] * A[i, j]
    return A, A.T.copy(), Lam, (math.sqrt(squares[0]), math.sqrt(squares[1]), math.sqrt(size))


def _gradient(by_A, by_C, V, C, A, inner, Lam, half, spread):
    """Of ψ, V and S; and the matrix whose product with B is a part of B's. C's part is added."""
    n, h, one = len(A), np.float32(half), np.float32(1)
    rows = max(1, MAX_PRODUCT // n**2)
    by_psi, by_S, twice = np.empty(n, A.dtype), np.empty_like(A), np.empty_like(A)
    G, by_V, more = np.empty_like(A), np.empty_like(A), np.empty_like(C)
    for i in range(n):
        moved = np.float32(0)
        for j in range(n):
            G[i, j] = by_A[i, j] / Lam[i]
            moved -= G[i, j] * A[i, j]
        by_psi[i] = moved + G[i, i]
    turned = G.T.copy()
    for i in range(n):
        moved = np.float32(0)
        for j in range(n):
            by_S[i, j] = turned[i, j] - G[i, j]
            twice[i, j] = -turned[i, j] - G[i, j]
            G[i, j] = h * Lam[j] * twice[i, j]
            moved += G[i, j] * inner[i, j]
            G[i, j] *= Lam[i]
        slope = (np.log(Lam[i]) / np.float32(spread)) ** 2 - one
        by_psi[i] = (by_psi[i] + moved) * Lam[i] * slope
    for start in range(0, n, rows):
        np.dot(V[start : start + rows], twice, by_V[start : start + rows])
    if half:
        for start in range(0, len(C), rows):
            np.dot(C[start : start + rows], twice, more[start : start + rows])
        for i in range(len(C)):
            for j in range(n):
                by_C[i, j] += h * more[i, j]
    return by_psi, by_V, by_S, G
