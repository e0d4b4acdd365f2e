"""PyTorch's modes, which belong to the caller: what searches and compares needs its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def own_modes(f: Callable[P, R]) -> Callable[P, R]:
    """f with gradients, without autocast and on the CPU, whatever modes its caller is in."""

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            modes.enter_context(torch.autocast("cpu", enabled=False))
            # It takes time in every operation.
            if torch.get_default_device().type != "cpu":
                modes.enter_context(torch.device("cpu"))
            return f(*args, **kwargs)

    return call
