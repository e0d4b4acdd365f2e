"""Projected gradient descent, as an upper bound on robust accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidInput

BOX = (0.0, 1.0)
SOFTNESS = (0.3, 0.1)
"""The soft maximum's temperature, taken in turn by the restarts."""


@dataclass(frozen=True)
class Attack:
    """What was found: `broken` (N,) bool, and for broken images a misclassified `x` (N, *shape)."""

    broken: Tensor
    x: Tensor


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    radius: float,
    *,
    norm: float = 2,
    steps: int = 20,
    restarts: int = 2,
    step_size: float | None = None,
    seed: int = 0,
    box: tuple[float, float] | None = BOX,
    batch_size: int = 1024,
) -> Attack:
    """Search the ball of `radius` (norm 2 or inf) around each image, in the box, for an error.

    Descends the margin z_y − max_{j≠y} z_j with a soft maximum, in steps that shrink linearly from
    `step_size` (default: the radius) to zero; the first start is the image itself, the others are
    random points of the ball. An image counts as broken as soon as *any* iterate of any restart is
    misclassified (a tie is), and is then left alone. `x` (N, *shape) with values in the box,
    `labels` (N,). The result depends on `seed`, not on the global generator.

    Source: Madry et al., ICLR 2018. The loss is not theirs: a cross-entropy does not aim at the
    nearest class when logits are small, and overstates the robust accuracy of 1-Lipschitz networks
    by 10 to 20 points; a hard maximum is the weaker one for others.
    """
    if norm not in (2, float("inf")):
        raise InvalidInput(f"pgd: norm is {norm}, but must be 2 or inf.")
    if not 0 <= radius < float("inf"):
        raise InvalidInput(f"pgd: radius is {radius}, but must be finite and not negative.")
    if steps < 1 or restarts < 1:
        raise InvalidInput(f"pgd: steps is {steps}, restarts {restarts}, but both must be ≥ 1.")
    generator = torch.Generator().manual_seed(seed)
    step = radius if step_size is None else step_size
    batches = [
        _batch(model, part, y, radius, norm, steps, restarts, step, generator, box)
        for part, y in zip(x.split(batch_size), labels.split(batch_size), strict=True)
    ]
    if not batches:
        return Attack(torch.zeros(0, dtype=torch.bool, device=x.device), x.clone())
    return Attack(torch.cat([b.broken for b in batches]), torch.cat([b.x for b in batches]))


def _batch(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    radius: float,
    norm: float,
    steps: int,
    restarts: int,
    step: float,
    generator: torch.Generator,
    box: tuple[float, float] | None,
) -> Attack:
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    found = x.clone()
    for restart in range(restarts):
        if broken.all():
            break
        left = torch.nonzero(~broken).squeeze(1)
        start, y = x[left], labels[left]
        point = start
        if restart:
            noise = _random(start.shape, norm, generator).to(start)
            point = project(start + radius * noise, start, radius, norm, box)
        for taken in range(steps + 1):
            point = point.detach().requires_grad_()
            logits = model(point)
            margin = _margin(logits.detach(), y)
            wrong = ~(margin > 0)  # NaN is an error too
            if wrong.any():
                broken[left[wrong]] = True
                found[left[wrong]] = point.detach()[wrong]
            # The last iterate is looked at like every other, only not left any more.
            if taken == steps or wrong.all():
                break
            softness = SOFTNESS[restart % len(SOFTNESS)]
            (gradient,) = torch.autograd.grad(_soft_margin(logits, y, softness).sum(), point)
            keep = ~wrong
            left, start, y = left[keep], start[keep], y[keep]
            point, gradient = point.detach()[keep], gradient[keep]
            direction = _steepest(gradient, norm, generator)
            point = project(
                point - step * (1 - taken / steps) * direction, start, radius, norm, box
            )
    return Attack(broken, found)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    others = logits.scatter(-1, labels[:, None], -torch.inf)
    return true - others.amax(-1)


def _soft_margin(logits: Tensor, labels: Tensor, softness: float) -> Tensor:
    # In units of the spread of the logits, so that scaling a network changes nothing.
    spread = logits.detach().std(-1, keepdim=True)
    t = softness * spread.clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    others = logits.scatter(-1, labels[:, None], -torch.inf)
    return true - t.squeeze(-1) * torch.logsumexp(others / t, -1)


def _flat_norm(v: Tensor) -> Tensor:
    flat = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return flat.view(-1, *[1] * (v.dim() - 1))


def _random(shape: torch.Size, norm: float, generator: torch.Generator) -> Tensor:
    if norm != 2:
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    dim = max(direction[0].numel(), 1)
    length = torch.rand(len(direction), generator=generator, dtype=torch.float64) ** (1 / dim)
    return direction / _flat_norm(direction) * length.view(-1, *[1] * (len(shape) - 1))


def _steepest(gradient: Tensor, norm: float, generator: torch.Generator) -> Tensor:
    # A vanishing gradient (all units off) would leave the image where it is: move at random.
    size = _flat_norm(gradient)
    stuck = ~(size > 0) | ~size.isfinite()
    if stuck.any():
        noise = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        gradient = torch.where(stuck, noise.to(gradient), gradient)
        size = _flat_norm(gradient)
    return gradient / size if norm == 2 else gradient.sign()


def project(
    point: Tensor,
    center: Tensor,
    radius: float,
    norm: float,
    box: tuple[float, float] | None = BOX,
) -> Tensor:
    """Move every point into the ball of `radius` around its center, then into the box."""
    delta = point - center
    if norm == 2:
        # Clipping to the box afterwards stays in the ball: it is a projection onto a convex set
        # that contains the center.
        size = _flat_norm(delta).clamp_min(torch.finfo(delta.dtype).tiny)
        delta = delta * (radius / size).clamp_max(1)
    else:
        delta = delta.clamp(-radius, radius)
    point = center + delta
    return point if box is None else point.clamp(*box)
