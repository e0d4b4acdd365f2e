"""Networks of other kinds as LBEN layers: perceptrons, residual networks, any system [LBEN]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._arrays import finite
from ..errors import InvalidInput, NotWellPosed, ShapeError
from ..system import System
from .lben import GAMMA, SPREAD, LBENLinear, solution

OWNER = "as_lben"

HOMOGENEOUS = ("relu", "leaky_relu", "identity")
"""Activations under which units may be scaled by positive numbers."""


def as_lben(
    system: System, gamma: float | None = None, *, metric: Any = None, **options: Any
) -> LBENLinear:
    """The γ-Lipschitz LBEN layer, in float64, that computes what the system computes.

    Where Λ shows in `conditions.equilibrium` that the system is less than γ-Lipschitz, the closed
    form reaches it: Λ(I - A) is VᵀV + εI + S - Sᵀ beside the terms of B, C and D. For an acyclic A,
    that of a perceptron or a residual network, Λ has one number for every level of units:
    1 / ‖F P⁻¹ Fᵀ‖₂ for the rows F of [B A] of the level, P being the condition of the levels before
    it, without the output. Where Λ leaves the range of a layer, units whose activation is
    homogeneous are scaled.

    Args:
        system: all units with one activation, its slopes in [0, 1].
        gamma: above the least constant that Λ shows; None is 1 % above it.
        metric: Λ / γ² (n,), for a system with a cycle or a smaller γ; multipliers / bound² of a
            `Certificate` for slopes [0, 1] is one.
        options: method, tol and max_steps of `LBENLinear`.

    Raises:
        NotWellPosed: Λ does not show that there is one equilibrium; a cycle and no metric.
        InvalidInput: several activations, or slopes outside [0, 1]; gamma too small; Λ or weights
            beyond what a layer keeps, see `lben.limits`. ShapeError: metric.

    Source: [LBEN] for such networks as equilibria; the levels: ECLipsE-Fast (Xu, Sivaranjani,
    NeurIPS 2024), forwards.
    """
    names = sorted(set(system.activation.tolist()))
    if len(names) != 1:
        raise InvalidInput(
            f"{OWNER}: the units have the activations {', '.join(names) or '(none)'}, but a layer "
            "has one for all of its units. Represent the parts that have one."
        )
    A, B, C, D, b, c = (torch.as_tensor(getattr(system, name).copy()) for name in "ABCDbc")
    # In the coordinates of the rows of B and D, of which there may be fewer than inputs.
    drive, direct = torch.linalg.qr(torch.cat([B, D]).mT).R.mT.split([len(B), len(D)])
    t = _by_level(system, A, drive) if metric is None else _given(metric, len(A))
    gamma = _constant(gamma, _condition(A, drive, t), torch.cat([direct, C], dim=1))
    lam = gamma * t
    if names[0].split("(")[0] in HOMOGENEOUS:
        kept = lam.clamp(math.exp(-0.75 * SPREAD), math.exp(0.75 * SPREAD))
        r = (lam / kept).sqrt()
        A, B, C, b, lam = r[:, None] * A / r, r[:, None] * B, C / r, r * b, kept
    psi, zero = -soft_unbound(OWNER, "log Λ", lam.log()), torch.zeros_like(A)
    X = _free(D / gamma) if D.any() else None
    bare = solution(psi, zero, zero, B, C, X, A.new_tensor(gamma), 0.0)
    rest = lam[:, None] * (bare["A"] - A)
    even = (rest + rest.mT) / 2
    eps = max(float(torch.linalg.eigvalsh(even)[0]) / 2, 1e-300)
    V = torch.linalg.cholesky_ex(even - eps * torch.eye(len(A), dtype=A.dtype), upper=True).L
    layer = LBENLinear(
        system.inputs,
        system.units,
        system.outputs,
        gamma=gamma,
        eps=eps,
        feedthrough=X is not None,
        activation=names[0],
        dtype=A.dtype,
        **options,
    )
    values = {"psi": psi, "V": V, "S": (rest - rest.mT) / 4, "B": B, "C": C, "D": X}
    with torch.no_grad():
        for name, value in {**values, "bias": b, "out_bias": c}.items():
            if value is not None:
                layer.get_parameter(name).copy_(value)
        found = layer.witness()
    for name, value in {"B": B, "C": C, "D": D, "A": A}.items():
        if not (found[name] - value).abs().max() <= 1e-9 * (1 + value.abs().max()):
            raise InvalidInput(
                f"{OWNER}: {name} has entries up to {float(value.abs().max()):.3g}, and with Λ "
                f"from {float(lam.min()):.3g} to {float(lam.max()):.3g} the layer would not keep "
                "them. Raise gamma, or scale inputs and outputs."
            )
    return layer


def soft_unbound(owner: str, name: str, x: Tensor) -> Tensor:
    """The inverse of `soft_bound` at SPREAD; InvalidInput where x is out of its range."""
    if not bool((x.abs() < SPREAD).all()):
        raise InvalidInput(
            f"{owner}: {name} has an entry of size {float(x.abs().max()):.3g}, but a layer keeps "
            f"it below {SPREAD:g}. Scale the units of the network."
        )
    return SPREAD * torch.atanh(x / SPREAD)


def _condition(A: Tensor, B: Tensor, t: Tensor) -> Tensor:
    """The condition at ρ = 1 without the output: [I, -Bᵀt; -tB, t(I - A) + (I - A)ᵀt]."""
    n, m = B.shape
    half = t[:, None] * (torch.eye(n, dtype=A.dtype) - A)
    cross = -t[:, None] * B
    top = torch.cat([torch.eye(m, dtype=A.dtype), cross.mT], dim=1)
    return torch.cat([top, torch.cat([cross, half + half.mT], dim=1)])


def _by_level(system: System, A: Tensor, B: Tensor) -> Tensor:
    if system.levels is None:
        raise NotWellPosed(
            f"{OWNER}: A has a cycle, so that no levels give Λ. Pass metric= from a certificate of "
            "sdplip.lipschitz(system)."
        )
    n, m = B.shape
    rows, t = torch.cat([B, A], dim=1), A.new_zeros(n)
    floor = 1e-12 * float(torch.linalg.matrix_norm(rows, 2)) ** 2 + 1e-200
    known = torch.arange(m)
    for level in map(torch.as_tensor, system.levels):
        P, F = _condition(A, B, t)[known][:, known], rows[level][:, known]
        reach = torch.linalg.matrix_norm(F @ torch.linalg.solve(P, F.mT), 2)
        t[level] = 1 / reach.clamp(min=floor)
        known = torch.cat([known, m + level])
    return t


def _given(metric: Any, units: int) -> Tensor:
    t = torch.as_tensor(finite("metric", metric))
    if t.shape != (units,):
        raise ShapeError(f"{OWNER}: metric has shape {tuple(t.shape)}, but must be ({units},).")
    if not bool((t > 0).all()):
        raise InvalidInput(f"{OWNER}: metric = {float(t.min())}, but must be positive.")
    return t


def _constant(gamma: float | None, P: Tensor, read: Tensor) -> float:
    """γ, or 1 % above the least one: ρP ⪰ [D C]ᵀ[D C] is the condition."""
    L, failed = torch.linalg.cholesky_ex(P)
    if failed:
        raise NotWellPosed(
            f"{OWNER}: this Λ does not show that there is one equilibrium for every input and all "
            "slopes in [0, 1]. Pass the metric of a certificate for such slopes."
        )
    shown = torch.linalg.matrix_norm(torch.linalg.solve_triangular(L, read.mT, upper=False), 2)
    least = float(shown)
    gamma = 1.01 * least if gamma is None else gamma
    if not least < gamma <= GAMMA[1]:
        raise InvalidInput(
            f"{OWNER}: gamma = {gamma}, but must be above {least:.6g}, the least constant that "
            f"this Λ shows, and at most {GAMMA[1]:g}. Give another, or metric= from a certificate."
        )
    return gamma


def _free(K: Tensor) -> Tensor:
    """The X of `lben.solution` for a strict contraction K: L⁻¹L⁻ᵀ = I - KKᵀ there."""
    inverse = torch.linalg.cholesky(torch.eye(len(K), dtype=K.dtype) - K @ K.mT)
    return torch.linalg.solve_triangular(inverse, K, upper=False)
