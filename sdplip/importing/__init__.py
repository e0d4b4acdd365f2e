"""Networks of others as systems: ONNX, Torch modules, state dicts, MATLAB.

What a system says is about the weights in float64, exactly as stored. Where a file asks for
arithmetic on weights before the first activation sees them (batch normalisation, an input
normalisation, linear layers in sequence, a factor alpha in Gemm), the result is rounded to float64
and the statement is about the rounded system. Every import is compared with its original on random
inputs, and refused where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, prod
from operator import index
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import _files
from .._modes import own_modes
from ..convolutional import ConvSystem
from ..errors import InvalidInput, ShapeError
from ..system import System
from .batches import one_sample
from .checking import Normalisation, Source, checked
from .convolutions import image
from .values import Network, Slopes, TooLarge

__all__ = ["TooLarge", "from_torch", "load"]

TOLD = {"activation", "slopes"}
KINDS = {
    ".npz": set[str](),
    ".onnx": {"slopes"},
    ".safetensors": TOLD,
    ".pt": TOLD,
    ".pth": TOLD,
    ".mat": {*TOLD, "transposed"},
}
"""By the ending of a file: what it does not say itself and has to be told."""


@own_modes
def load(
    path: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    normalize: Any = None,
    activation: str | None = None,
    slopes: Slopes | Mapping[str, Slopes] | None = None,
    sample: Any = None,
    transposed: bool | None = None,
) -> System | ConvSystem:
    """Read a network from a file, by its ending.

    `.npz` is our own format (`System.load`). `.onnx` is evaluated against the reference
    implementation in float64 and onnxruntime; where it has a fixed batch of independent samples,
    the system is that of one of them. `.safetensors`, `.pt` and `.pth` are state dicts of
    linear layers, `.mat` the cells `weights` and `biases` of LipSDP: these say nothing of what is
    between the layers, nor can they be run, so a warning asks for a sample.

    Args:
        path: the file. Pickles that hold anything but tensors are refused.
        input_shape: of one sample, where an ONNX file leaves it open; or with its fixed batch, for
            the network on all of it.
        normalize: (mean, std), for x ↦ network((x - mean) / std): a number each, one per channel,
            or one per entry.
        activation: between the layers of a state dict or `.mat` file.
        slopes: (alpha, beta) of an activation that has no name here; for ONNX a dictionary of
            them by operator, which declares the operator to be elementwise.
        sample: (x, y), inputs with the outputs of the original.
        transposed: whether the weights of a `.mat` file are (in, out); None lets the shapes say.

    Raises:
        InvalidInput: unreadable, no network, an operator without a sound translation, or a
            system that differs from the original. ShapeError: layers that do not fit.
        TooLarge: unrolled, it does not fit into memory.

    Warns:
        UncheckedWarning: nothing could be compared.
    """
    path, input_shape = Path(path), sample_shape(input_shape)
    normalisation, kind = Normalisation.of(normalize), path.suffix.lower()
    if not path.exists():
        raise InvalidInput(f"{path} does not exist.")
    given = {"activation": activation, "slopes": slopes, "transposed": transposed}
    for name, value in given.items():
        if value is not None and name not in KINDS.get(kind, given):
            raise InvalidInput(f"{path}: {name} = {value!r}, but {kind} files take no {name}.")
    if kind == ".onnx":
        from .onnx_file import read_onnx

        source = read_onnx(path, input_shape, normalisation, _by_operator(slopes))
        found, shape = checked(source, normalisation, sample), source.shape
        if not isinstance(found, System) or len(shape) == 1 or len(input_shape or ()) == len(shape):
            return found
        return one_sample(found, shape[0])
    system: System | ConvSystem
    if kind == ".npz":
        size = (input_shape or ())[-2:]
        system = _files.load(path, (size[0], size[1]) if len(size) == 2 else None)
    elif kind in KINDS:
        system = _weights(path, kind, activation, _range(slopes), transposed)
    else:
        raise InvalidInput(
            f"{path} is no kind of file that can be read: {', '.join(KINDS)}. Programs of "
            "torch.export are pickles; use from_torch, or export to ONNX."
        )
    own = (system.inputs,) if isinstance(system, System) else system.start
    shape = input_shape or own
    if prod(shape) != system.inputs:
        raise ShapeError(f"{path}: input_shape = {shape}, but its network takes {own}.")
    system = _normalised(system, shape, normalisation)
    if kind == ".npz" and sample is None:
        return system
    return checked(Source(str(path), system, shape, []), None, sample)


def sample_shape(given: Sequence[int] | None) -> tuple[int, ...] | None:
    """The shape of one sample; InvalidInput for what is none."""
    if given is None:
        return None
    try:
        shape = tuple(map(index, given))
    except TypeError:
        shape = ()
    if min(shape, default=0) < 1:
        raise InvalidInput(f"input_shape = {given!r}, but must be whole numbers from 1 up.")
    return shape


@own_modes
def from_torch(
    module: nn.Module,
    example: Tensor,
    *,
    normalize: Any = None,
    slopes: Mapping[str, Slopes] | None = None,
) -> System | ConvSystem:
    """The system of a Torch module of any structure, traced by torch.export.

    Functions, skips, concatenations and reshapes are followed; the module runs in evaluation mode
    and float64, and the system is compared with it.

    Args:
        module: left as it is.
        example: one input as the module takes it, batch dimension (of 1) included: its shape
            becomes that of the system's input, flattened.
        normalize: as in `load`.
        slopes: (alpha, beta) by ATen operator, for elementwise functions that have no name here;
            what samples contradict is refused.

    Raises:
        InvalidInput: it cannot be traced, an operator has no sound translation (named with its
            node), or the two disagree.
        TooLarge: unrolled, it does not fit into memory.
    """
    from .torch_graph import read_module

    normalisation = Normalisation.of(normalize)
    source = read_module(module, example, normalisation, _by_operator(slopes))
    return checked(source, normalisation)


def _weights(
    path: Path, kind: str, activation: str | None, slopes: Slopes | None, transposed: bool | None
) -> System:
    from . import weights

    try:
        if kind == ".mat":
            return weights.chain(*weights.read_mat(path, transposed), activation, slopes)
        read = weights.read_safetensors if kind == ".safetensors" else weights.read_pickle
        return weights.chain(*weights.sequential(read(path)), activation, slopes)
    except InvalidInput as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _normalised(
    system: System | ConvSystem, shape: tuple[int, ...], normalisation: Normalisation | None
) -> System | ConvSystem:
    if normalisation is None:
        return system
    if isinstance(system, ConvSystem):
        first = normalisation(image(system.start))
        return replace(system, stages=(*first.stages(), *system.stages))
    entry = normalisation(Network(shape).input)
    scale, shift = entry.data.sum(0).reshape(-1).numpy(), entry.offset.reshape(-1).numpy()
    B, D = system.B * scale, system.D * scale
    return replace(system, B=B, D=D, b=system.b + system.B @ shift, c=system.c + system.D @ shift)


def _range(slopes: Any) -> Slopes | None:
    if slopes is None:
        return None
    try:
        low, high = map(float, slopes)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not (isfinite(low) and isfinite(high) and low <= high):
        raise InvalidInput(f"slopes = {slopes!r}, but must be (alpha, beta) with alpha <= beta.")
    return low, high


def _by_operator(slopes: Any) -> dict[str, Slopes]:
    if slopes is not None and not isinstance(slopes, Mapping):
        raise InvalidInput(
            f"slopes = {slopes!r}, but here must be a dictionary from operators to (alpha, beta)."
        )
    return {name: found for name, pair in (slopes or {}).items() if (found := _range(pair))}
