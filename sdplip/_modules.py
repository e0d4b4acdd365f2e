"""A Torch module as a `System`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
from torch import nn

from .activations import of_module
from .errors import InvalidInput
from .system import System

PASSES = (nn.Identity, nn.Flatten, nn.Dropout)
"""Modules that are the identity on a flat input in evaluation."""


def extract(module: nn.Module, place: str, features: int | None) -> System:
    """See `System.from_module`; `place` is where the module stands, for messages."""
    where = f" (at {place!r})" if place else ""
    own: Callable[..., System] | None = getattr(module, "system", None)
    if own is not None:
        takes_width = "features" in inspect.signature(own).parameters
        return own(features=features) if takes_width else own()
    if isinstance(module, nn.Linear):
        return System.linear(module.weight, module.bias)
    if isinstance(module, nn.Sequential):
        system = None
        # Not named_children(), which leaves out a module that is used twice.
        for name, child in module._modules.items():
            if child is None or isinstance(child, PASSES):
                continue
            inner = extract(child, f"{place}.{name}".lstrip("."), features)
            system = inner if system is None else inner @ system
            features = system.outputs
        if system is not None:
            return system
        module = PASSES[0]()
    passes = isinstance(module, PASSES)
    sigma = None if passes else _activation_name(module)
    if sigma is None and not passes:
        raise InvalidInput(
            f"{type(module).__name__}{where} is not known as part of a system; give it a method "
            "system() -> System, or build the System by hand."
        )
    if features is None:
        raise InvalidInput(
            f"{type(module).__name__}{where} comes before any layer that fixes the input width; "
            "give features=."
        )
    if sigma is None:
        return System.linear(np.eye(features))
    return System.elementwise(sigma, features)


def _activation_name(module: nn.Module) -> str | None:
    try:
        return of_module(module).name
    except InvalidInput:
        return None
