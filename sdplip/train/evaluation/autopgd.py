"""APGD: projected gradient ascent of the losses CE and DLR that chooses its own steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InvalidInput
from .attack import BOX, Attack, Model, Run, Space, column, of_class, others, search

LOSSES = ("ce", "dlr", "targeted")
INERTIA, RISING = 0.25, 0.75
"""How much of its last move a point repeats; the share of moves that must raise the loss."""
TARGETS = 9
"""The most classes at which a targeted attack aims."""


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

    Source: Croce and Hein, ICML 2020: Algorithm 1, and the losses DLR and targeted DLR.

    Raises:
        InvalidInput: an unknown loss; and as `pgd`.
    """
    space = Space("apgd", x, labels, radius, norm, steps, restarts, seed, box)
    if isinstance(losses, str) or not losses or not {*losses} <= {*LOSSES}:
        raise InvalidInput(f"apgd: losses is {losses!r}, but must be some of {', '.join(LOSSES)}.")
    runs = [
        Run(partial(_Adaptive, space, loss), rank, random=k > 0)
        for loss in losses
        for rank in range(TARGETS if loss == "targeted" else 1)
        for k in range(restarts)
    ]
    return search(model, x, labels, space, runs, batch_size)


class _Adaptive:
    """APGD; every tensor of it has one row per image."""

    def __init__(self, space: Space, name: str, target: Tensor) -> None:
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
        self.best = torch.where(column(higher, point), point, self.best)
        self.uphill = torch.where(column(higher, point), gradient, self.uphill)
        if taken in self.checks:
            stalled = self.rises < RISING * (taken - self.checked)
            stalled |= (self.step == self.step_then) & (self.height == self.height_then)
            self.step_then, self.height_then = self.step, self.height
            self.rises, self.checked = torch.zeros_like(loss), taken
            self.step = torch.where(stalled, self.step / 2, self.step)
            self.last = torch.where(stalled, self.height, self.last)
            point = torch.where(column(stalled, point), self.best, point)
            gradient = torch.where(column(stalled, point), self.uphill, gradient)
        ahead = point + column(self.step, point) * self.space.steepest(gradient)
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


def _ratio(logits: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
    """The difference of logits ratio, with a target in its targeted form; both of what is right."""
    best = others(logits, labels).amax(-1) if target is None else of_class(logits, target)
    ahead = best - of_class(logits, labels)
    if logits.shape[-1] < 3:
        return ahead
    top = logits.topk(min(4, logits.shape[-1])).values
    low = top[:, 2] if target is None else top[:, 2:].mean(-1)
    return ahead / (top[:, 0] - low).clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)
