"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from .config import TrainConfig


def optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or stochastic gradient descent; weight decay is added to the gradient in both."""
    if config.optimizer == "adam":
        first, second = config.betas
        return torch.optim.Adam(
            parameters,
            lr=config.lr,
            betas=(first, second),
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule for this many steps, to be advanced after each."""
    if config.schedule == "onecycle":
        # Torch's defaults, which also move the momentum between 0.95 and 0.85.
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=max(steps, 2))
    milestones = sorted(config.milestones)
    factor: Callable[[float], float] = {
        "constant": lambda t: 1.0,
        # [ARAUJO]: up to the rate at 40 % of the steps, down to a twentieth at 80 %, then to zero.
        "piecewise": lambda t: float(np.interp(t, [0, 0.4, 0.8, 1], [0, 1, 0.05, 0])),
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        # [LBEN]: a tenth after each third of the epochs.
        "step": lambda t: 0.1 ** math.floor(3 * t),
        "multistep": lambda t: 0.1 ** bisect_right(milestones, t),
    }[config.schedule]
    # The first step of a warm-up must not be lost at rate zero.
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: factor((k + 0.5) / steps))
