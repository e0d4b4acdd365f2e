"""A Torch module as a `System`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeGuard, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .activations import of_module
from .errors import InvalidInput
from .system import System

Kind = TypeVar("Kind", bound=nn.Module)
PASSES: tuple[type[nn.Module], ...] = (nn.Identity, nn.Flatten, nn.Dropout)
"""Modules that are the identity on a flat input in evaluation."""


def extract(module: nn.Module, place: str, features: int | None) -> System:
    """See `System.from_module`; `place` is where the module stands, for messages."""
    where = f" (at {place!r})" if place else ""
    own: Callable[..., System] | None = getattr(module, "system", None)
    if altered(module):
        raise InvalidInput(
            f"{type(module).__name__}{where} has forward hooks or a replaced forward, which may "
            "change what it computes; remove them."
        )
    if own is not None:
        takes_width = "features" in inspect.signature(own).parameters
        return own(features=features) if takes_width else own()
    if plain(module, nn.Linear):
        return System.linear(module.weight, module.bias)
    if plain(module, nn.Sequential):
        system = None
        # Not named_children(), which leaves out a module that is used twice.
        for name, child in module._modules.items():
            if child is None or plain(child, *PASSES):
                continue
            inner = extract(child, f"{place}.{name}".lstrip("."), features)
            system = inner if system is None else inner @ system
            features = system.outputs
        if system is not None:
            return system
        module = PASSES[0]()
    passes = plain(module, *PASSES)
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


def differs(module: nn.Module, system: System) -> str | None:
    """How a float64 module and its system differ on random inputs; None where they agree."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, system.inputs, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = module(x), system(x)
        if expected.shape != actual.shape:
            return f"have the shapes {tuple(expected.shape)} and {tuple(actual.shape)}"
        terms = system.hidden(x).abs() @ torch.as_tensor(abs(system.C)).mT
        terms += x.abs() @ torch.as_tensor(abs(system.D)).mT + torch.as_tensor(abs(system.c))
    # A module may solve its equilibrium to a tolerance; anything else is float64 arithmetic.
    relative = 1e-9 if system.is_feedforward else 1e-3
    allowed = relative * expected.abs().max() + 1e-12 * terms.max()
    gap = (actual - expected).abs().max()
    return None if gap <= allowed else f"are {gap:.3g} apart (allowed {allowed:.3g})"


def check_module(owner: str, model: object) -> None:
    """Raise InvalidInput for what is no module, or a lazy one, whose parameters have no shape."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{owner}: the model is {model!r}, but must be a torch.nn.Module.")
    for path, module in model.named_modules():
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            place = f' (at "{path}")' if path else ""
            raise InvalidInput(
                f"{owner}: {type(module).__name__}{place} has parameters without a shape. "
                "Call the model on a batch first."
            )


def altered(module: nn.Module) -> bool:
    """Whether this one instance computes, or may compute, something else than its class."""
    methods = (callable(getattr(type(module), name, None)) for name in vars(module))
    return bool(module._forward_hooks or module._forward_pre_hooks or any(methods))


def plain(module: nn.Module, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module computes what one of these torch.nn kinds computes, nothing around it.

    A subclass may have a forward of its own, and hooks may change what goes in and comes out.
    """
    return not altered(module) and any(
        isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds
    )


def _activation_name(module: nn.Module) -> str | None:
    try:
        return of_module(module).name
    except InvalidInput:
        return None
