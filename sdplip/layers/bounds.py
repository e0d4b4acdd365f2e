"""The Lipschitz constant that a chain of layers promises."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..activations import of_module
from ..errors import InvalidInput
from .basic import Normalize


def lipschitz_bound(model: nn.Module, norm: float = 2) -> float:
    """The product of the layers' constants through nn.Sequential, a bound for ℓ_norm to ℓ_norm.

    nn.Linear counts with its operator norm in float64, an activation with its largest slope,
    Flatten and Identity with 1, Dropout in evaluation with 1; a layer of this package, or any
    module with attributes `lipschitz` and `norm`, with what it declares. `sdplip.lipschitz` gives
    a tighter bound where it can.

    Args:
        norm: 2 or inf.

    Raises:
        InvalidInput: a module without a known constant in this norm, named with its place.
    """
    if norm not in (2, math.inf):
        raise InvalidInput(f"lipschitz_bound: norm = {norm}, but must be 2 or inf.")
    return _bound(model, norm, "")


def _bound(module: nn.Module, norm: float, path: str) -> float:
    if isinstance(module, nn.Sequential):
        return math.prod(
            _bound(child, norm, f"{path}.{i}".lstrip(".")) for i, child in enumerate(module)
        )
    if isinstance(module, nn.Linear):
        weight = module.weight.detach().double()
        if not weight.isfinite().all():
            raise InvalidInput(f"lipschitz_bound: {_place(module, path)} has weights NaN or Inf.")
        return float(torch.linalg.matrix_norm(weight, ord=norm))
    if isinstance(module, nn.Flatten | nn.Identity):
        return 1.0
    if isinstance(module, nn.Dropout) and not module.training:
        return 1.0
    if isinstance(module, Normalize):
        return module.lipschitz
    if hasattr(module, "lipschitz") and hasattr(module, "norm"):
        if module.norm != norm:
            raise InvalidInput(
                f"lipschitz_bound: {_place(module, path)} promises a constant for norm = "
                f"{module.norm}, none for norm = {norm}. Use sdplip.lipschitz(model, norm={norm})."
            )
        return float(module.lipschitz)  # type: ignore[arg-type]
    try:
        sigma = of_module(module)
    except InvalidInput as error:
        raise InvalidInput(
            f"lipschitz_bound: {_place(module, path)} has no known constant. Fold it into its "
            "neighbours, or give it the attributes lipschitz and norm."
        ) from error
    return max(abs(sigma.alpha), abs(sigma.beta))


def _place(module: nn.Module, path: str) -> str:
    return f'{type(module).__name__} (at "{path}")' if path else type(module).__name__
