"""Networks with the closed forms evaluated once: plain modules, for deployment and export."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._modules import altered, check_module
from ..activations import activation
from ..errors import InvalidInput
from ._base import Layer
from ._part import Part, own_forward
from ._plain import linear, summed
from ._unrolled import FoldedEquilibrium, FoldedEquilibriumConv2d


def fold(model: nn.Module, samples: Tensor | None = None, *, tol: float = 1e-6) -> nn.Module:
    """The model in evaluation with every layer as torch.nn modules; outputs agree to rounding.

    Linear and convolutional layers become nn.Linear, nn.Conv2d or nn.ConvTranspose2d with the
    applied weights, residual ones a `Residual` of those, equilibrium layers a `FoldedEquilibrium`
    with a fixed number of iterations; torch.nn modules stay, with their parametrizations evaluated,
    and so do the parts of this package, which compute nothing from parameters beyond a scale. The
    given model is not changed, and nothing in the result is trainable: its weights no longer follow
    from free ones. `lipschitz_bound` belongs to the model before folding.

    Args:
        samples: a batch that the model takes. Equilibria are then iterated until every sample has
            the residual ‖z - σ(Az + v)‖ / (1 + ‖z‖) ≤ tol, rather than as often as every input
            would need. Only for inputs like these does it say anything. Equilibrium convolutions
            need them, and are folded for images of their size alone.
        tol: without samples, what is left of the distance to the equilibrium, for every input:
            ‖z - z*‖_Λ ≤ tol·‖u₀ - u*‖_Λ, by the contraction of the iteration in the layer's metric.

    Raises:
        InvalidInput: tol not in (0, 1); hooks or a replaced forward; a module that is not known,
            with its place; a layer with NaN or Inf, or without shapes; an equilibrium that needs
            more than MAX_STEPS, or a convolutional one without samples or of two sizes of images;
            one that no finite sample reaches.
        NotConverged: the same for the given samples.
    """
    check_module("fold", model)
    if not 0 < tol < 1:
        raise InvalidInput(f"fold: tol = {tol}, but must lie between 0 and 1. Use e.g. 1e-6.")
    with torch.no_grad():
        folded = _folded(copy.deepcopy(model).eval(), "", {})
        folded.eval().requires_grad_(False)
        kinds = FoldedEquilibrium, FoldedEquilibriumConv2d
        equilibria = [m for m in folded.modules() if isinstance(m, kinds)]
        if samples is None:
            for equilibrium in equilibria:
                equilibrium.prepare(tol, None)
        elif equilibria:
            hooks = [m.register_forward_pre_hook(partial(_prepare, tol)) for m in equilibria]
            folded(samples)
            for hook in hooks:
                hook.remove()
    return folded


def _evaluate_parametrizations(module: nn.Module) -> None:
    """Make the computed tensors ordinary parameters.

    Not by `remove_parametrizations`, which changes the class that a copy shares with its original.
    """
    if not parametrize.is_parametrized(module):
        return
    values = {name: getattr(module, name) for name in module._modules["parametrizations"]}  # type: ignore[union-attr]
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone()))


def _prepare(tol: float, module: Any, inputs: tuple[Tensor, ...]) -> None:
    module.prepare(tol, *inputs)


def _folded(module: nn.Module, path: str, known: dict[int, nn.Module]) -> nn.Module:
    if id(module) in known:
        return known[id(module)]
    place = f'{type(module).__name__} (at "{path}")' if path else type(module).__name__
    if altered(module):
        raise InvalidInput(
            f"fold: {place} has hooks or a replaced forward, which a folded copy would not run. "
            "Remove them."
        )
    original = id(module)
    _evaluate_parametrizations(module)
    if isinstance(module, Layer):
        module._check_parameters()
    own = getattr(module, "_folded", None)
    tells = ("_folded",) if own is not None else ("system", "_system")
    if isinstance(module, Layer) and not own_forward(module, *tells):
        raise InvalidInput(
            f"fold: {place} replaces forward, which a folded copy would not run. Build the model "
            "from the layer itself and modules around it."
        )
    if own is not None:
        result: nn.Module = own()
    elif isinstance(module, Layer):
        result = _from_system(module, place)
    elif isinstance(module, Part) or type(module).forward.__module__.startswith("torch.nn."):
        for name, child in list(module._modules.items()):
            if child is not None:
                inner = _folded(child, f"{path}.{name}".lstrip("."), known)
                module._modules[name] = inner
        result = module
    else:
        raise InvalidInput(
            f"fold: {place} is not known. Build the model from nn.Sequential, torch.nn modules and "
            "those of sdplip.layers."
        )
    known[original] = result
    return result


def _from_system(layer: Layer, place: str) -> nn.Module:
    """Dx + c + Cσ(Bx + b) of a layer without equilibrium, of which nothing but its system is known.

    Raises:
        InvalidInput: another kind of system.
    """
    like = next(layer.parameters())
    try:
        s = layer.system()
    except InvalidInput as error:
        raise InvalidInput(
            f"fold: {place} is not known and gives no system. Give its class a method _folded."
        ) from error
    names = set(s.activation)
    if s.A.any() or len(names) > 1:
        raise InvalidInput(
            f"fold: {place} is no sum of a linear map and one layer of units. Give its class a "
            "method _folded."
        )

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(array.copy(), device=like.device, dtype=like.dtype)

    skip = linear(tensor(s.D), tensor(s.c))
    if not names:
        return skip
    inner, outer = linear(tensor(s.B), tensor(s.b)), linear(tensor(s.C), tensor(s.c))
    sigma = activation(str(names.pop()))
    if not s.D.any():
        return nn.Sequential(inner, sigma.module(), outer)
    return summed(linear(tensor(s.D)), inner, sigma, outer)
