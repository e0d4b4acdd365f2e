"""What a bound is about: the system of a model."""

from __future__ import annotations

from typing import Any

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


def subject(model: Any, unrolled: bool) -> System | ConvSystem:
    """What a certificate is about that was found for the model; raises as `as_system`.

    Raises:
        CertificationError: it was `unrolled`, which this model cannot be.
    """
    if not isinstance(model, ConvSystem):
        return as_system(model)
    try:
        return model.unroll() if unrolled else model
    except InvalidInput as error:
        raise CertificationError(f"The certificate is for another model: {error}") from error
