"""Lower bounds of the Lipschitz constant: norms of Jacobians that the network really has."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..activations import activation
from ..system import UNKNOWN, System


def lower_bound(
    system: System, norm: float = 2, *, samples: int = 64, rounds: int = 16, seed: int = 0
) -> float | None:
    """The largest ‖∂y/∂x‖ found by random starts and local ascent; None if σ is unknown.

    Args:
        system: evaluated in float64, at its exact equilibrium where A has a cycle.
        norm: 2 or inf, on input and output alike.
        samples: starts kept at a time.
        rounds: ascent rounds; each moves every start along its best input direction.
        seed: of the random starts.
    """
    if (system.activation == UNKNOWN).any():
        return None
    if system.units == 0:
        return float(np.linalg.norm(system.D, norm)) if system.D.size else 0.0
    generator = torch.Generator().manual_seed(seed)
    A, B, C, D = (torch.as_tensor(getattr(system, k).copy()) for k in "ABCD")
    basis = torch.eye(system.inputs, dtype=torch.float64)
    used = torch.cat([B, D])
    used = used[used.any(dim=1)]
    if norm == 2 and 0 < len(used) < system.inputs:
        basis = torch.linalg.qr(used.mT)[0]
    b = torch.as_tensor(system.b.copy())
    size = B.norm(dim=1)
    reach = float((b.abs() / size.clamp_min(1e-300))[size > 0].median()) if size.any() else 1.0
    reach = min(max(reach, 1.0), 1e6)
    spread = reach * torch.logspace(-2, 1.5, samples, dtype=torch.float64)[:, None]
    x = spread * torch.randn(samples, basis.shape[1], generator=generator, dtype=torch.float64)
    best, direction = _gain(system, (A, B, C, D), basis, x, norm)
    for _ in range(rounds):
        length = x.norm(dim=1, keepdim=True).clamp_min(1e-3)
        step = length * 10 ** (2 * torch.rand(samples, 1, generator=generator) - 1.5).double()
        sign = torch.randint(0, 2, (samples, 1), generator=generator).double() * 2 - 1
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        trial = x + step * (sign * direction + 0.5 * noise / math.sqrt(x.shape[1]))
        gain, new_direction = _gain(system, (A, B, C, D), basis, trial, norm)
        better = (gain > best)[:, None]
        x = torch.where(better, trial, x)
        direction = torch.where(better, new_direction, direction)
        best = torch.maximum(best, gain)
        # Half of the starts follow the leader, so that a good region is searched closely.
        order = best.argsort(descending=True)
        half = samples // 2
        x[order[half:]] = x[order[: samples - half]]
        direction[order[half:]] = direction[order[: samples - half]]
        best[order[half:]] = best[order[: samples - half]]
    return float(best.max())


def _gain(
    system: System, arrays: tuple[Tensor, ...], basis: Tensor, x: Tensor, norm: float
) -> tuple[Tensor, Tensor]:
    """‖J‖ (k,) and the input direction (k, m') that attains it, at x (k, m')."""
    A, B, C, D = arrays
    point = x @ basis.mT
    with torch.no_grad():
        z = system.hidden(point)
        v = z @ A.mT + point @ B.mT + torch.as_tensor(system.b.copy())
        slope = torch.empty_like(v)
        for name in np.unique(system.activation):
            units = torch.as_tensor(system.activation == name)
            slope[:, units] = activation(str(name)).derivative(v[:, units])
        inner = torch.eye(len(A), dtype=A.dtype) - slope[:, :, None] * A
        J = D @ basis + C @ torch.linalg.solve(inner, slope[:, :, None] * (B @ basis))
    if norm == 2:
        _, value, right = torch.linalg.svd(J, full_matrices=False)
        return value[:, 0], right[:, 0]
    sums, row = J.abs().sum(dim=2).max(dim=1)
    return sums, J[torch.arange(len(J)), row].sign()
