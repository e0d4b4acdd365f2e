"""What a layer keeps in a state_dict besides its parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInput


class Constant:
    """A float that forward uses, checked whenever it is set: by a caller or from a checkpoint.

    It is no buffer, because casting the module to half precision must not round it across a bound.

    Args:
        holds: what must be true of it.
        rule: the same in words, as the end of a sentence, with what to do.
    """

    def __init__(self, holds: Callable[[float], bool], rule: str) -> None:
        self.holds, self.rule = holds, rule

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: nn.Module, owner: type | None = None) -> float:
        return layer.__dict__[self.name]

    def __set__(self, layer: nn.Module, value: Any) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not self.holds(number):
            raise InvalidInput(f"{type(layer).__name__}: {self.name} = {value}, but {self.rule}")
        layer.__dict__[self.name] = number


def between(low: float, high: float) -> Constant:
    """A constant strictly between these two."""
    return Constant(lambda value: low < value < high, f"must lie between {low:g} and {high:g}.")


def pack(options: Mapping[str, str | float]) -> Tensor:
    """Options as JSON in a uint8 tensor, since files such as safetensors hold tensors only."""
    return torch.tensor(list(json.dumps(options).encode()), dtype=torch.uint8)


def unpack(owner: str, state: Any) -> dict[str, Any]:
    """The inverse of `pack`; InvalidInput for anything else."""
    try:
        options = json.loads(bytes(state.tolist()))
    except (AttributeError, TypeError, ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise InvalidInput(
            f"{owner}: _extra_state in the checkpoint is not what a layer writes there. "
            "The file was changed or is damaged."
        )
    return options


def agree(owner: str, own: Mapping[str, object], found: Mapping[str, object]) -> None:
    """Raise InvalidInput where `found` in a checkpoint has another value than one's own."""
    for name, value in own.items():
        if found.get(name) != value:
            raise InvalidInput(
                f"{owner}: the checkpoint is of a layer with {name} = {found.get(name)!r}, but "
                f"this one has {name} = {value!r}: it would compute another map. "
                "Build the layer that was saved."
            )


COARSE = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}
"""What products of float32 may cost besides where PyTorch is allowed to round their factors, to
TensorFloat-32 or bfloat16, for numbers that have no more in common than these keep."""


def coarse() -> float:
    """`COARSE` as PyTorch is set."""
    try:
        return COARSE[torch.get_float32_matmul_precision()]
    # Set for one of its backends alone.
    except RuntimeError:
        return max(COARSE.values())


# What torch.compiler.assume_constant_result does, which imports the compiler and SymPy.
coarse._dynamo_marked_constant = True  # type: ignore[attr-defined]


def wide(x: Tensor) -> Tensor:
    """x in float32 or better: closed forms are not evaluated in half precision, and in float64
    where the factors of float32 products may be rounded, in which bounds would be lost."""
    if coarse():
        return x.double()
    if x.dtype is torch.float32:
        return x  # to say so takes a tenth of asking
    return x.to(torch.promote_types(x.dtype, torch.float32))
