"""Gradient attacks, upper bounds on robust accuracy: the search that they share, and PGD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ...errors import InvalidInput, ShapeError

ATTACKS = ("pgd", "apgd")
BOX = (0.0, 1.0)
SOFTNESS = (0.3, 0.1)
"""The soft maximum's temperature, taken in turn by PGD's restarts."""
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """What was found: `broken` (N,) bool, and for broken images a misclassified `x` (N, *shape)."""

    broken: Tensor
    x: Tensor


def pgd(
    model: Model,
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
    misclassified (a tie and NaN are), and then leaves the batch. `x` (N, *shape) in float32 or
    float64, in the box (None: pixels are not limited), `labels` (N,). The result depends on `seed`,
    not on the global generator.

    Source: Madry et al., ICLR 2018. The loss is not theirs: a cross-entropy does not aim at the
    nearest class when logits are small, and overstates the robust accuracy of 1-Lipschitz networks
    by 10 to 20 points; a hard maximum is the weaker one for others.

    Raises:
        InvalidInput: another norm or precision, a radius, steps, restarts or batches that are none,
            images outside the box.
        ShapeError: not one label for every image.
    """
    space = Space("pgd", x, labels, radius, norm, steps, restarts, seed, box)
    step = radius if step_size is None else step_size
    if not 0 <= step < math.inf:
        raise InvalidInput(f"pgd: step_size is {step}, but must be finite and not negative.")
    runs = [
        Run(partial(_Descent, space, step, SOFTNESS[k % len(SOFTNESS)]), random=k > 0)
        for k in range(restarts)
    ]
    return search(model, x, labels, space, runs, batch_size)


class Space:
    """Where, and for how long, an attack searches."""

    def __init__(
        self,
        owner: str,
        x: Tensor,
        labels: Tensor,
        radius: float,
        norm: float,
        steps: int,
        restarts: int,
        seed: int,
        box: tuple[float, float] | None,
    ) -> None:
        if labels.shape != x.shape[:1]:
            raise ShapeError(
                f"{owner}: labels has shape {tuple(labels.shape)}, x {tuple(x.shape)}, but every "
                "image must have one label."
            )
        if norm not in (2, math.inf):
            raise InvalidInput(f"{owner}: norm is {norm}, but must be 2 or inf.")
        if not 0 <= radius < math.inf:
            raise InvalidInput(f"{owner}: radius is {radius}, but must be finite and not negative.")
        if steps < 1 or restarts < 1:
            raise InvalidInput(
                f"{owner}: steps is {steps}, restarts {restarts}, but both must be ≥ 1."
            )
        if x.dtype not in (torch.float32, torch.float64):
            raise InvalidInput(
                f"{owner}: x is {x.dtype}, too coarse for the points of a ball. Give float32, and "
                "a model that converts: lambda x: model(x.bfloat16()).float()."
            )
        if box is not None and not bool(((x >= box[0]) & (x <= box[1])).all()):
            raise InvalidInput(
                f"{owner}: an image has values outside the box {list(box)}. Scale it, or give the "
                "limits of its pixels as box, or box=None for pixels without limits."
            )
        self.radius, self.norm, self.box = radius, norm, box
        # At radius 0 there is only the image.
        self.steps = steps if radius else 0
        self.generator = torch.Generator().manual_seed(seed)

    def project(self, point: Tensor, centre: Tensor) -> Tensor:
        return project(point, centre, self.radius, self.norm, self.box)

    def random(self, centre: Tensor) -> Tensor:
        """A uniformly random point of every ball, moved into the box."""
        noise = _random(centre.shape, self.norm, self.generator).to(centre)
        return self.project(centre + self.radius * noise, centre)

    def steepest(self, gradient: Tensor) -> Tensor:
        # A vanishing gradient (all units off) would leave the image where it is: move at random.
        size = _flat_norm(gradient)
        stuck = ~(size > 0) | ~size.isfinite()
        if stuck.any():
            noise = torch.randn(gradient.shape, generator=self.generator, dtype=torch.float64)
            gradient = torch.where(stuck, noise.to(gradient), gradient)
            size = _flat_norm(gradient)
        return gradient / size if self.norm == 2 else gradient.sign()


class Walk(Protocol):
    """The moves of some images, all towards a larger loss."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor: ...

    def keep(self, which: Tensor) -> None:
        """Go on with these images only."""

    def move(
        self, taken: int, point: Tensor, centre: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        """The next point, after `taken` moves."""


@dataclass(frozen=True)
class Run:
    """One walk from the image or from a random point; `walk` is given its class of this rank."""

    walk: Callable[[Tensor], Walk]
    rank: int = 0
    random: bool = False


def search(
    model: Model, x: Tensor, labels: Tensor, space: Space, runs: list[Run], batch_size: int
) -> Attack:
    if batch_size < 1:
        raise InvalidInput(f"attack: batch_size is {batch_size}, but must be ≥ 1.")
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    found = x.clone()
    # No images are one empty part, which a model may refuse.
    parts = torch.arange(len(x), device=x.device).split(batch_size) if len(x) else ()
    for part in parts:
        logits = _logits(model, x[part])
        broken[part] = ~correctly(logits, labels[part])
        # The other classes, the next best one first.
        order = others(logits, labels[part]).argsort(-1, descending=True)[:, :-1]
        for run in runs if space.steps else []:
            up = torch.nonzero(~broken[part]).squeeze(1)
            if len(up) and run.rank < order.shape[1]:
                walk = run.walk(order[up, run.rank])
                _walk(model, x, labels, space, walk, run.random, part[up], broken, found)
    return Attack(broken, found)


@torch.enable_grad()
def _walk(
    model: Model,
    x: Tensor,
    labels: Tensor,
    space: Space,
    walk: Walk,
    random: bool,
    left: Tensor,
    broken: Tensor,
    found: Tensor,
) -> None:
    """Walk with the images `left`, and note in `broken` and `found` which are misclassified."""
    centre, y = x[left], labels[left]
    point = space.random(centre) if random else centre
    for taken in range(space.steps + 1):
        point = point.detach().requires_grad_()
        logits = _logits(model, point, gradient=taken < space.steps)
        wrong = ~correctly(logits.detach(), y)
        broken[left[wrong]] = True
        found[left[wrong]] = point.detach()[wrong]
        # The last iterate is looked at like every other, only not left any more.
        if taken == space.steps or wrong.all():
            return
        loss = walk.loss(logits, y)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        right = ~wrong
        walk.keep(right)
        left, centre, y = left[right], centre[right], y[right]
        point = walk.move(
            taken, point.detach()[right], centre, loss.detach()[right], gradient[right]
        )


class _Descent:
    """PGD: the gradient of the soft margin, in ever shorter steps."""

    def __init__(self, space: Space, step: float, softness: float, target: Tensor) -> None:
        self.space, self.step, self.softness = space, step, softness

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -_soft_margin(logits, labels, self.softness)

    def keep(self, which: Tensor) -> None: ...

    def move(
        self, taken: int, point: Tensor, centre: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        step = self.step * (1 - taken / self.space.steps)
        return self.space.project(point + step * self.space.steepest(gradient), centre)


def _logits(model: Model, x: Tensor, gradient: bool = False) -> Tensor:
    with torch.set_grad_enabled(gradient):
        logits = model(x)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def correctly(logits: Tensor, labels: Tensor) -> Tensor:
    """Which logits are largest at the label, ties and NaN excluded; (N,) bool."""
    return of_class(logits, labels) > others(logits, labels).amax(-1)


def of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of one class per image, (N,)."""
    return logits.gather(-1, classes[:, None]).squeeze(-1)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (N, K), -∞ at the label."""
    return logits.scatter(-1, labels[:, None], -torch.inf)


def _soft_margin(logits: Tensor, labels: Tensor, softness: float) -> Tensor:
    # In units of the spread of the logits, so that scaling a network changes nothing.
    spread = logits.detach().std(-1, keepdim=True)
    t = softness * spread.clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)
    soft = t.squeeze(-1) * torch.logsumexp(others(logits, labels) / t, -1)
    return of_class(logits, labels) - soft


def column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _flat_norm(v: Tensor) -> Tensor:
    return column(torch.linalg.vector_norm(v.flatten(1), dim=1), v)


def _random(shape: torch.Size, norm: float, generator: torch.Generator) -> Tensor:
    if norm != 2:
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    dim = max(direction[0].numel(), 1)
    length = torch.rand(len(direction), generator=generator, dtype=torch.float64) ** (1 / dim)
    return direction / _flat_norm(direction) * column(length, direction)


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
