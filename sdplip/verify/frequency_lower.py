"""Lower bounds for networks of convolutions: norms of Jacobians, which are never formed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .._stages import Activate, Add, Stage
from ..activations import elementwise
from ..convolutional import ConvSystem
from ..errors import ShapeError
from ..system import UNKNOWN

SHAVED = 1e-9
"""What is taken off for rounding, relative."""
DOUBT = 8
"""Times what another rounding makes of Jv, which is taken off, too: where terms cancel, all."""
POWERS = 25
"""Power iterations at the end."""


def lower_bound_conv(
    conv: ConvSystem,
    *,
    points: Tensor | None = None,
    samples: int = 4,
    steps: int = 100,
    seed: int = 0,
    deadline: float | None = None,
) -> float | None:
    """The largest ‖Jv‖₂ / ‖v‖₂ found, J a Jacobian of the network; None if σ is unknown.

    Pairs (x, v) climb ‖Jv‖ / ‖v‖ with slopes averaged over ever shorter intervals, which gives them
    a gradient in x; then come power iterations with the Jacobian at x itself.

    Args:
        points: (k, c, h, w) inputs to start from in addition, such as data.
        samples: random inputs to start from.
        steps: of Adam.
        seed: of the random starts.
        deadline: in `time.monotonic`; then the climb ends where it is.
    """
    if _unknown(conv.stages):
        return None
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *conv.start, generator=generator)
    if points is not None:
        if points.shape[1:] != conv.start:
            raise ShapeError(
                f"points has shape {tuple(points.shape)}, but must be (k, {conv.start})."
            )
        x = torch.cat([x, points.detach().float().cpu()])
    start, v = x, torch.randn(x.shape, generator=generator).requires_grad_()
    x = x.clone().requires_grad_()
    optimiser = torch.optim.Adam([x, v], lr=0.2)
    for step in range(steps):
        if deadline is not None and time.monotonic() > deadline:
            break
        optimiser.zero_grad()
        end = _tangent(conv.stages, x, v, 10 ** (0.4 - 1.4 * step / steps))[1]
        loss = (_length(v).log() - _length(end).clamp_min(1e-30).log()).sum()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        # Weights beyond float32 leave no gradient, nor numbers, but this start.
        x, v = torch.where(x.isfinite(), x, start).double(), _unit(v.double().nan_to_num())
    best, steepest = torch.zeros(len(x), dtype=torch.float64), v
    for _ in range(POWERS):
        slope = _tangent(conv.stages, x, v.requires_grad_(), 0.0)[1]
        gain = (_length(slope.detach()) / _length(v.detach())).nan_to_num(0.0, 0.0)
        steepest = torch.where((gain > best)[:, None, None, None], v.detach(), steepest)
        best = torch.maximum(best, gain)
        v = _unit(torch.autograd.grad(slope.square().sum() / 2, v)[0].nan_to_num())
    with torch.no_grad():
        once, again = (_tangent(conv.stages, x, steepest / s, 0.0)[1] for s in (1, 3))
        found = (_length(once) - DOUBT * _length(once - 3 * again)) / _length(steepest)
    return max(float(found.nan_to_num(0.0, 0.0).max()) * (1 - SHAVED), 0.0)


def _tangent(stages: Sequence[Stage], x: Tensor, v: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """(f(x), J(x)v), slopes averaged over intervals of this width relative to the mean |x|."""
    for stage in stages:
        match stage:
            case Activate():
                sigma = elementwise(stage.name)
                half = (width * x.abs().mean((1, 2, 3), keepdim=True)).clamp_min(1e-6)
                mean = (sigma(x + half) - sigma(x - half)) / (2 * half)
                v = v * (mean if width else sigma.derivative(x))
                x = sigma(x)
            case Add():
                body = _tangent(stage.body, x, v, width)
                skip = _tangent(stage.skip, x, v, width)
                x, v = body[0] + skip[0], body[1] + skip[1]
            case _:
                parts = stage.apply(torch.cat([x, v, torch.zeros_like(x[:1])]))
                x, v = parts[: len(x)], parts[len(x) : -1] - parts[-1:]
    return x, v


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _unit(x: Tensor) -> Tensor:
    """x at length 1; a zero turns into a single one."""
    size = _length(x)[:, None, None, None]
    spike = torch.zeros_like(x)
    spike[:, 0, 0, 0] = 1
    return torch.where(size > 0, x / torch.where(size > 0, size, 1.0), spike)


def _unknown(stages: Sequence[Stage]) -> bool:
    return any(
        stage.name == UNKNOWN
        if isinstance(stage, Activate)
        else isinstance(stage, Add) and _unknown((*stage.body, *stage.skip))
        for stage in stages
    )
