"""Lower bounds of the Lipschitz constant: norms of Jacobians that the network really has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..activations import activation
from ..errors import ShapeError
from ..system import UNKNOWN, System


def lower_bound(
    system: System,
    norm: float = 2,
    *,
    points: Tensor | None = None,
    samples: int = 48,
    steps: int | None = None,
    seed: int = 0,
) -> float | None:
    """The largest ‖∂y/∂x‖ found by gradient ascent from random pairs; None if σ is unknown.

    Pairs (x, x + h) climb ‖f(x + h) − f(x)‖ / ‖h‖, which averages Jacobians along the segment; then
    the Jacobians at their ends, and at ever closer points around the best, are taken exactly.

    Args:
        system: evaluated in float64, at its exact equilibrium where A has a cycle.
        norm: 2 or inf, on input and output alike.
        points: (k, m) inputs to start from in addition, such as data.
        samples: random pairs.
        steps: of Adam; by default 100, or 30 where every evaluation is an equilibrium solve.
        seed: of the random starts.
    """
    if (system.activation == UNKNOWN).any():
        return None
    if system.units == 0 or not system.B.any():
        return float(np.linalg.norm(system.D, norm)) if system.D.size else 0.0
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    B, D = torch.as_tensor(system.B.copy()), torch.as_tensor(system.D.copy())
    used = torch.cat([B, D])
    used = used[used.any(dim=1)]
    reduced = norm == 2 and len(used) < system.inputs and points is None
    basis = torch.linalg.qr(used.mT)[0] if reduced else torch.eye(system.inputs).double()
    width = basis.shape[1]

    # The scale at which biases and inputs compete, in both directions.
    weight, bias = B.norm(dim=1), torch.as_tensor(system.b.copy()).abs()
    reach = float((bias / weight.clamp_min(1e-300))[weight > 0].median().clamp(1.0, 1e6))
    scale = reach * torch.logspace(-1.5, 1, samples, dtype=torch.float64)[:, None]
    start = normal(samples, width)
    if points is not None:
        if points.ndim != 2 or points.shape[1] != system.inputs:
            raise ShapeError(
                f"points has shape {tuple(points.shape)}, but must be (k, {system.inputs})."
            )
        data = points.detach().double().cpu()
        start, scale = torch.cat([start, data]), torch.cat([scale, torch.ones(len(data), 1)])
    offset = normal(*start.shape)
    x, h = start.requires_grad_(), offset.requires_grad_()
    optimiser = torch.optim.Adam([x, h], lr=0.1)
    if steps is None:
        steps = 100 if system.is_feedforward else 30
    for _ in range(steps):
        both = system(torch.cat([scale * x, scale * (x + h)]) @ basis.mT).chunk(2)
        rise = torch.linalg.vector_norm(both[1] - both[0], norm, dim=1)
        run = torch.linalg.vector_norm(scale * h, norm, dim=1)
        gain = rise.clamp_min(1e-300).log() - run.clamp_min(1e-300).log()
        optimiser.zero_grad()
        (-gain.sum()).backward()
        if not (torch.isfinite(x.grad).all() and torch.isfinite(h.grad).all()):  # type: ignore[arg-type]
            break
        optimiser.step()
    ends = torch.cat([scale * x, scale * (x + h), scale * (x + h / 2)]).detach()
    length = torch.cat([scale * h] * 3).detach().norm(dim=1, keepdim=True)
    best = _jacobian_norms(system, basis, ends, norm)
    for shrink in (0.3, 0.1, 0.03):
        leader = int(best.argmax())
        cloud = ends[leader] + shrink * length[leader] * normal(samples, width) / width**0.5
        around = _jacobian_norms(system, basis, cloud, norm)
        ends, best = torch.cat([ends, cloud]), torch.cat([best, around])
        length = torch.cat([length, shrink * length[leader].expand(samples, 1)])
    return float(best.max())


def _jacobian_norms(system: System, basis: Tensor, x: Tensor, norm: float) -> Tensor:
    """‖C(I − SA)⁻¹SB + D‖, S = σ′, at the points x (k, m′) in the given basis of the input."""
    A, B, C, D, b = (torch.as_tensor(getattr(system, k).copy()) for k in "ABCDb")
    point = x @ basis.mT
    with torch.no_grad():
        v = system.hidden(point) @ A.mT + point @ B.mT + b
        slope = torch.empty_like(v)
        for name in np.unique(system.activation):
            units = torch.as_tensor(system.activation == name)
            slope[:, units] = activation(str(name)).derivative(v[:, units])
        norms = []
        for chunk in slope.split(max(1, 1 << 22 >> (2 * len(A).bit_length()))):
            S = chunk[:, :, None]
            inner = torch.linalg.solve(torch.eye(len(A)).double() - S * A, S * (B @ basis))
            J = D @ basis + C @ inner
            norms.append(torch.linalg.matrix_norm(J, norm))
    return torch.cat(norms)
