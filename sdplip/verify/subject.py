"""What a bound is about: the system of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..convolutional import ConvSystem
from ..errors import CertificationError, InvalidInput
from ..system import System


def as_system(model: Any) -> System:
    """The system of a model; a module is checked against what is extracted from it.

    Raises:
        InvalidInput: no model, a module without a system, convolutions too large to unroll.
    """
    if isinstance(model, System):
        return model
    if isinstance(model, ConvSystem):
        return model.unroll()
    if isinstance(model, nn.Module):
        return System.from_module(model)
    raise InvalidInput(
        f"{type(model).__name__} is neither a System or ConvSystem nor a torch module; build one "
        "with System.feedforward or System.equilibrium, or read a file with sdplip.load."
    )


def described(model: Any, input_shape: Sequence[int] | None) -> System | ConvSystem:
    """What `lipschitz` bounds; arguments and errors are its own."""
    if input_shape is None or not isinstance(model, nn.Module):
        return model if isinstance(model, ConvSystem) else as_system(model)
    from ..importing import from_torch, sample_shape

    return from_torch(model, torch.zeros(1, *(sample_shape(input_shape) or ())))


def subject(
    model: Any, unrolled: bool, input_shape: Sequence[int] | None = None
) -> System | ConvSystem:
    """What a certificate is about that was found for the model; raises as `described`.

    Raises:
        CertificationError: it was `unrolled`, which this model cannot be.
    """
    model = described(model, input_shape)
    if not isinstance(model, ConvSystem):
        return model
    try:
        return model.unroll() if unrolled else model
    except InvalidInput as error:
        raise CertificationError(f"The certificate is for another model: {error}") from error
