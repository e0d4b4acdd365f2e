"""Gradient attacks, upper bounds on robust accuracy: PGD, and APGD with the losses CE and DLR."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidInput

ATTACKS = ("pgd", "apgd")
LOSSES = ("ce", "dlr", "targeted")
BOX = (0.0, 1.0)
SOFTNESS = (0.3, 0.1)
"""The soft maximum's temperature, taken in turn by PGD's restarts."""
INERTIA, RISING = 0.25, 0.75
"""APGD: how much of its last move a point repeats; the share of moves that must raise the loss."""
TARGETS = 9
"""The most classes at which a targeted attack aims."""

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
    """
    space = _Space("pgd", x, radius, norm, steps, restarts, seed, box)
    step = radius if step_size is None else step_size
    runs = [
        _Run(partial(_Descent, space, step, SOFTNESS[k % len(SOFTNESS)]), random=k > 0)
        for k in range(restarts)
    ]
    return _search(model, x, labels, space, runs, batch_size)


def apgd(
    model: Model,
    x: Tensor,
    labels: Tensor,
    radius: float,
    *,
    norm: float = 2,
    losses: Sequence[str] = LOSSES,
    steps: int = 100,
    restarts: int = 1,
    seed: int = 0,
    box: tuple[float, float] | None = BOX,
    batch_size: int = 1024,
) -> Attack:
    """As `pgd`, by Auto-PGD: where the loss stalls, back to the best point, with half the step.

    Ascends one loss after the other, `restarts` times each: the cross-entropy "ce"; the difference
    of logits ratio "dlr"; "targeted", the same ratio for up to 9 classes in turn, the next best
    ones of the image first. Two classes have no such ratio: their difference of logits takes its
    place.

    Source: Croce and Hein, ICML 2020, Algorithm 1 and equations (6) and (7).

    Raises:
        InvalidInput: an unknown loss; and as `pgd`.
    """
    space = _Space("apgd", x, radius, norm, steps, restarts, seed, box)
    if isinstance(losses, str) or not losses or not {*losses} <= {*LOSSES}:
        raise InvalidInput(f"apgd: losses is {losses!r}, but must be some of {', '.join(LOSSES)}.")
    runs = [
        _Run(partial(_Adaptive, space, loss), rank, random=k > 0)
        for loss in losses
        for rank in range(TARGETS if loss == "targeted" else 1)
        for k in range(restarts)
    ]
    return _search(model, x, labels, space, runs, batch_size)


class _Space:
    """Where, and for how long, an attack searches."""

    def __init__(
        self,
        owner: str,
        x: Tensor,
        radius: float,
        norm: float,
        steps: int,
        restarts: int,
        seed: int,
        box: tuple[float, float] | None,
    ) -> None:
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


class _Walk(Protocol):
    """The moves of some images, all towards a larger loss."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor: ...

    def keep(self, which: Tensor) -> None:
        """Go on with these images only."""

    def move(
        self, taken: int, point: Tensor, centre: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        """The next point, after `taken` moves."""


@dataclass(frozen=True)
class _Run:
    """One walk from the image or from a random point; `walk` is given its class of this rank."""

    walk: Callable[[Tensor], _Walk]
    rank: int = 0
    random: bool = False


def _search(
    model: Model, x: Tensor, labels: Tensor, space: _Space, runs: list[_Run], batch_size: int
) -> Attack:
    if batch_size < 1:
        raise InvalidInput(f"attack: batch_size is {batch_size}, but must be ≥ 1.")
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    found = x.clone()
    for part in torch.arange(len(x), device=x.device).split(batch_size):
        logits = _logits(model, x[part])
        broken[part] = ~(_margin(logits, labels[part]) > 0)
        # The other classes, the next best one first.
        others = logits.scatter(-1, labels[part, None], -torch.inf)
        order = others.argsort(-1, descending=True)[:, :-1]
        for run in runs if space.steps else []:
            up = torch.nonzero(~broken[part]).squeeze(1)
            if len(up) and run.rank < order.shape[1]:
                walk = run.walk(order[up, run.rank])
                _walk(model, x, labels, space, walk, run.random, part[up], broken, found)
    return Attack(broken, found)


def _walk(
    model: Model,
    x: Tensor,
    labels: Tensor,
    space: _Space,
    walk: _Walk,
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
        wrong = ~(_margin(logits.detach(), y) > 0)  # NaN is an error too
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

    def __init__(self, space: _Space, step: float, softness: float, target: Tensor) -> None:
        self.space, self.step, self.softness = space, step, softness

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -_soft_margin(logits, labels, self.softness)

    def keep(self, which: Tensor) -> None: ...

    def move(
        self, taken: int, point: Tensor, centre: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        step = self.step * (1 - taken / self.space.steps)
        return self.space.project(point + step * self.space.steepest(gradient), centre)


class _Adaptive:
    """APGD; every tensor of it has one row per image."""

    def __init__(self, space: _Space, name: str, target: Tensor) -> None:
        self.space, self.name, self.target = space, name, target
        self.checks = _checkpoints(space.steps)
        self.checked = 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.name == "ce":
            return F.cross_entropy(logits, labels, reduction="none")
        return _ratio(logits, labels, self.target if self.name == "targeted" else None)

    def keep(self, which: Tensor) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[which])

    def move(
        self, taken: int, point: Tensor, centre: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        if not taken:
            self.before = point
            self.step = self.step_then = torch.full_like(loss, 2 * self.space.radius)
            self.best, self.uphill, self.height = point, gradient, loss
            self.last, self.height_then, self.rises = loss, loss, torch.zeros_like(loss)
        self.rises = self.rises + (loss > self.last)
        self.last = loss
        higher = loss > self.height
        self.height = torch.where(higher, loss, self.height)
        self.best = torch.where(_column(higher, point), point, self.best)
        self.uphill = torch.where(_column(higher, point), gradient, self.uphill)
        if taken in self.checks:
            stalled = self.rises < RISING * (taken - self.checked)
            stalled |= (self.step == self.step_then) & (self.height == self.height_then)
            self.step_then, self.height_then = self.step, self.height
            self.rises, self.checked = torch.zeros_like(loss), taken
            self.step = torch.where(stalled, self.step / 2, self.step)
            self.last = torch.where(stalled, self.height, self.last)
            point = torch.where(_column(stalled, point), self.best, point)
            gradient = torch.where(_column(stalled, point), self.uphill, gradient)
        ahead = point + _column(self.step, point) * self.space.steepest(gradient)
        new = self.space.project(ahead, centre)
        if taken:
            heavy = (1 - INERTIA) * (new - point) + INERTIA * (point - self.before)
            new = self.space.project(point + heavy, centre)
        self.before = point
        return new


def _checkpoints(steps: int) -> set[int]:
    """After how many moves APGD looks whether the loss stalls."""
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    return {math.ceil(p * steps / 100) for p in percent[1:]}


def _logits(model: Model, x: Tensor, gradient: bool = False) -> Tensor:
    with torch.set_grad_enabled(gradient):
        logits = model(x)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(-1, labels[:, None]).squeeze(-1) - _others(logits, labels).amax(-1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(-1, labels[:, None], -torch.inf)


def _soft_margin(logits: Tensor, labels: Tensor, softness: float) -> Tensor:
    # In units of the spread of the logits, so that scaling a network changes nothing.
    spread = logits.detach().std(-1, keepdim=True)
    t = softness * spread.clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    return true - t.squeeze(-1) * torch.logsumexp(_others(logits, labels) / t, -1)


def _ratio(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """The difference of logits ratio, with a target in its targeted form; both of what is right."""
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    if target is None:
        ahead = _others(logits, labels).amax(-1) - true
    else:
        ahead = logits.gather(-1, target[:, None]).squeeze(-1) - true
    if logits.shape[-1] < 3:
        return ahead
    top = logits.topk(min(4, logits.shape[-1])).values
    low = top[:, 2] if target is None else top[:, 2:].mean(-1)
    return ahead / (top[:, 0] - low).clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _flat_norm(v: Tensor) -> Tensor:
    return _column(torch.linalg.vector_norm(v.flatten(1), dim=1), v)


def _random(shape: torch.Size, norm: float, generator: torch.Generator) -> Tensor:
    if norm != 2:
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    dim = max(direction[0].numel(), 1)
    length = torch.rand(len(direction), generator=generator, dtype=torch.float64) ** (1 / dim)
    return direction / _flat_norm(direction) * _column(length, direction)


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
