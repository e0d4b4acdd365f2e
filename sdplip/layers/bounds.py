"""The Lipschitz constant that a chain of layers promises."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from .._arrays import parse_norm
from .._modules import altered, plain
from ..activations import of_module
from ..errors import InvalidInput
from ._base import check_finite
from .basic import Normalize


def lipschitz_bound(model: nn.Module, norm: Any = 2) -> float:
    """The product of the layers' constants through nn.Sequential, a bound for ℓ_norm to ℓ_norm.

    nn.Linear counts with its operator norm in float64 (parametrised: with that of its weight in
    evaluation), an activation with its largest slope, Flatten and Identity with 1, Dropout in
    evaluation with 1; a layer of this package, or any module with attributes `lipschitz` and
    `norm`, with what it declares. Nothing is changed. `sdplip.lipschitz` gives a tighter bound
    where it can.

    Args:
        norm: 2 or inf, as a number or by name.

    Raises:
        InvalidInput: a module without a known constant in this norm, named with its place, which
            includes subclasses with a forward of their own and modules with hooks; NaN or Inf.
    """
    return _bound(model, parse_norm(norm), "")


def _bound(module: nn.Module, norm: float, path: str) -> float:
    place = f'{type(module).__name__} (at "{path}")' if path else type(module).__name__
    if altered(module):
        raise InvalidInput(
            f"lipschitz_bound: {place} has hooks or a replaced forward, which may change its map. "
            "Remove them, or use parametrizations where they compute a weight."
        )
    if plain(module, nn.Sequential):
        factors = [_bound(child, norm, f"{path}.{i}".lstrip(".")) for i, child in enumerate(module)]
        # A constant map stays constant behind one without a bound.
        return 0.0 if 0 in factors else math.prod(factors)
    if plain(module, nn.Linear):
        # Reading the weight in training would advance the power iteration of spectral_norm.
        layer = copy.deepcopy(module).eval()
        check_finite(f"lipschitz_bound: {place}", {"weight": layer.weight, "bias": layer.bias})
        return float(torch.linalg.matrix_norm(layer.weight.detach().double(), ord=norm))
    if plain(module, nn.Flatten, nn.Identity):
        return 1.0
    if plain(module, nn.Dropout) and not module.training:
        return 1.0
    if plain(module, Normalize):
        return module.lipschitz
    if hasattr(module, "lipschitz") and hasattr(module, "norm"):
        if module.norm != norm:
            raise InvalidInput(
                f"lipschitz_bound: {place} promises a constant for norm = {module.norm}, none for "
                f"norm = {norm:g}. Use sdplip.lipschitz(model, norm={norm:g})."
            )
        declared = float(module.lipschitz)  # type: ignore[arg-type]
        if not declared >= 0:
            raise InvalidInput(
                f"lipschitz_bound: {place} declares lipschitz = {declared}, but a constant is "
                "never negative or NaN."
            )
        return declared
    try:
        sigma = of_module(module)
    except InvalidInput as error:
        raise InvalidInput(
            f"lipschitz_bound: {place} has no known constant. Fold it into its neighbours, or give "
            "it the attributes lipschitz and norm."
        ) from error
    return max(abs(sigma.alpha), abs(sigma.beta))
