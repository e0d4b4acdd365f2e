"""What a network computes, and how far that is from what its exact equilibria would give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import parse_norm
from .._modules import altered, check_module, plain
from ..errors import InvalidInput, ShapeError
from ._equilibrium import Equilibrium
from ._part import own_forward
from ._unrolled import FoldedEquilibriumConv2d, Unrolled
from .bounds import lipschitz_bound

_UNFOLLOWED = (Equilibrium, Unrolled, FoldedEquilibriumConv2d)


def solve_output(model: nn.Module, x: Tensor, norm: Any = 2) -> tuple[Tensor, Tensor]:
    """The output of a network and, for every sample, what its equilibrium layers left open of it.

    A certificate is about exact equilibria. With the error e of y = f(x), the class of the exact
    network is that of y if the margin exceeds what e may take from it; and outputs y, y' computed
    in any batches differ by at most γ‖x - x'‖ + e + e'. Each equilibrium layer in an nn.Sequential
    adds its own error, rounding included, to what it makes of the errors before it. Rounding in
    other modules, and in float64, does not count.

    Args:
        x: (batch, ...). norm: of the output, 2 or inf.

    Returns:
        y as the model gives it without gradients; e (batch,) float64.

    Raises:
        InvalidInput: an equilibrium layer inside a container other than nn.Sequential, folded, or
            with hooks or another forward; what `lipschitz_bound` refuses, behind one.
        ShapeError: an equilibrium layer whose samples are not those of the batch.
    """
    check_module("solve_output", model)
    norm = parse_norm(norm)
    error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with torch.no_grad():
        for module in _in_order(model):
            if bool((error != 0).any()):
                error = (lipschitz_bound(module, norm) * error).nan_to_num(*[torch.inf] * 2)
            if isinstance(module, Equilibrium):
                x, own = module.solve_output(x)
                if own.shape != error.shape:
                    raise ShapeError(
                        f"solve_output: an equilibrium layer's samples are {tuple(own.shape)}, but "
                        f"the batch is {tuple(error.shape)}. Give every sample a row of its own."
                    )
                error = error + own
            else:
                x = module(x)
    return x, error


def _in_order(module: nn.Module) -> list[nn.Module]:
    """The modules of nested nn.Sequential."""
    if plain(module, nn.Sequential):
        return [leaf for child in module for leaf in _in_order(child)]
    name = type(module).__name__
    if isinstance(module, Equilibrium):
        if altered(module) or not own_forward(module, "solve_output"):
            raise InvalidInput(
                f"solve_output: {name} has hooks or another forward, after which its error says "
                "nothing. Use the layer itself."
            )
    elif any(isinstance(part, _UNFOLLOWED) for part in module.modules()):
        raise InvalidInput(
            f"solve_output: an equilibrium is inside {name}, through which its error is not "
            "followed. Put the layer itself, unfolded, into an nn.Sequential."
        )
    return [module]
