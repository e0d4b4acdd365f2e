"""What commands read: networks in files of any kind, and the runs of ours."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInput, UncheckedWarning
from ._console import regular

if TYPE_CHECKING:
    from ..convolutional import ConvSystem
    from ..system import System

InputShape = Annotated[
    str | None, typer.Option(help="Shape of one sample, as 1,28,28, where the file leaves it open.")
]
ActivationName = Annotated[
    str | None, typer.Option(help="Activation between the layers of a state dict or .mat file.")
]
Normalise = Annotated[
    str | None,
    typer.Option(help="MEAN,STD: the network takes (x - MEAN) / STD; the bound is for x."),
]


def how_to_read(
    input_shape: str | None, activation: str | None, normalise: str | None
) -> dict[str, Any]:
    """The options as `read_network` takes them."""
    scaling = _numbers("--normalise", normalise, float, "two numbers, as in 0.1307,0.3081")
    if scaling is not None and (len(scaling) != 2 or not 0 < scaling[1] < math.inf):
        raise InvalidInput(f"--normalise is {normalise!r}, but must be MEAN,STD with STD > 0.")
    return {
        "input_shape": _numbers("--input-shape", input_shape, int, "numbers, as in 1,28,28"),
        "activation": activation,
        "normalize": scaling,
    }


def read_network(path: Path, **reading: Any) -> System | ConvSystem:
    """The system of a file or of a run of ours; options as for `importing.load`."""
    from ..importing import load

    if not (regular(path).is_dir() or (path.suffix == ".safetensors" and _is_ours(path))):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UncheckedWarning)
            try:
                network = load(path, **reading)
            except InvalidInput as error:
                raise type(error)(_in_options(str(error))) from error
        for warning in said:
            if warning.category is UncheckedWarning:
                typer.echo(f"warning: {_in_options(str(warning.message))}", err=True)
        return network
    if any(value is not None for value in reading.values()):
        raise InvalidInput(f"{path} is a run, which says all about its network. Leave options out.")
    import torch

    from ..importing import from_torch
    from ..layers import fold
    from ..system import System
    from ..train.checkpoint import load_model
    from ..train.evaluation.measure import exact_copy

    model, config = load_model(path)
    if config.architecture == "dense":
        return System.from_module(exact_copy(model), features=math.prod(config.input_shape))
    example = torch.zeros(1, *config.input_shape, dtype=torch.float64)
    try:
        return from_torch(fold(exact_copy(model)), example)
    except InvalidInput as error:
        raise InvalidInput(
            f"{path} is a convolutional network that cannot be verified: {error} The bound by "
            "construction is in the metrics.json of its run."
        ) from error


def _in_options(message: str) -> str:
    """A message of `importing`, with what its arguments are on the command line."""
    if not re.search(r"\b(activation|slopes|sample|transposed)=", message):
        return message
    return (
        f"{message} On the command line: --activation, or give the file that "
        "sdplip.load(FILE, ...).save('net.npz') writes."
    )


def _is_ours(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return "sdplip" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _numbers(name: str, text: str | None, kind: type, rule: str) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"{name} is {text!r}, but must be {rule}.") from error
