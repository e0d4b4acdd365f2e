"""Weights without a network around them: state dicts of linear layers, LipSDP's `.mat` cells."""

from __future__ import annotations

import itertools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import MAX_FILE_BYTES, Array, finite
from ..activations import elementwise
from ..errors import InvalidInput, ShapeError
from ..system import UNKNOWN, System
from .values import Slopes

COMPRESSED = 15
"""The type of a compressed element in a `.mat` file of version 5."""
NUMBER = re.compile(r"\d+")


def chain(
    weights: Sequence[Array],
    biases: Sequence[Array | None],
    activation: str | None,
    slopes: Slopes | None,
) -> System:
    """The perceptron with these weights (out, in)."""
    if activation is None and slopes is None:
        raise InvalidInput(
            "it holds weights, not what is between them. Give activation=, for example 'relu', or "
            "slopes=(alpha, beta)."
        )
    if activation is not None:
        elementwise(activation)
    system = System.feedforward(weights, biases, activation or UNKNOWN)
    if slopes is None:
        return system
    units = np.ones(system.units)
    return replace(system, alpha=slopes[0] * units, beta=slopes[1] * units)


# --- state dicts ---


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            if "sdplip" in (opened.metadata() or {}):
                raise InvalidInput(
                    f"{path} is a model that sdplip trained; read it with "
                    "sdplip.train.checkpoint.load_model."
                )
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path} is no readable safetensors file: {error}.") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save; nothing but tensors and containers is ever unpickled."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(info.file_size for info in archive.infolist())
            if size > MAX_FILE_BYTES:
                raise InvalidInput(f"{path} unpacks to {size} bytes; {MAX_FILE_BYTES} are allowed.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except InvalidInput:
        raise
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist.") from None
    # PyTorch's reader raises whatever a damaged file leads it to.
    except Exception as error:
        raise InvalidInput(
            f"{path} is no state dict of tensors alone: whole modules are pickles, which can run "
            "code, and are never loaded. Save model.state_dict(), or export the model to ONNX. "
            f"({' '.join(str(error).split())[:120]})"
        ) from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise InvalidInput(f"{path} holds a {type(found).__name__}, but must hold a state dict.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InvalidInput(
                f"{path}: {name} is of the type {type(value).__name__}, but must be a tensor. Save "
                "the state dict alone, as torch.save(model.state_dict(), FILE)."
            )
    return dict(found)


def sequential(tensors: Mapping[str, Tensor]) -> tuple[list[Array], list[Array | None]]:
    """Weights and biases of plain linear layers, in their order.

    The order is that of the numbers in the names, where the names differ in nothing else;
    otherwise the shapes must leave one order only.

    Raises:
        InvalidInput: any other tensor, named; or an order that is not certain.
    """
    weights = {name[: -len("weight")]: t for name, t in tensors.items() if name.endswith("weight")}
    for name, tensor in tensors.items():
        stem, dims = name.removesuffix("weight").removesuffix("bias"), tensor.dim()
        if stem == name or stem not in weights or dims != (2 if name.endswith("weight") else 1):
            raise InvalidInput(
                f"{name}, of shape {tuple(tensor.shape)}, is no weight or bias of a linear layer; "
                "what is done with it is not in the file. Export the model to ONNX."
            )
    stems = list(weights)
    if len({NUMBER.sub("#", stem) for stem in stems}) == 1:
        stems.sort(key=lambda stem: [int(number) for number in NUMBER.findall(stem)])
    else:
        stems = _only_order({stem: tuple(weights[stem].shape) for stem in stems})
    arrays = [finite(f"{stem}weight", weights[stem]) for stem in stems]
    biases = [finite(n, tensors[n]) if (n := f"{stem}bias") in tensors else None for stem in stems]
    for (a, first), (b, second) in itertools.pairwise(zip(stems, arrays, strict=True)):
        if second.shape[1] != first.shape[0]:
            raise ShapeError(
                f"{b}weight has shape {second.shape}, but {a}weight before it gives "
                f"{first.shape[0]} numbers: these layers do not follow each other."
            )
    return arrays, biases


def _only_order(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    orders: list[list[str]] = [[stem] for stem in shapes]
    for _ in range(len(shapes) - 1):
        orders = [
            [*order, stem]
            for order in orders
            for stem in shapes
            if stem not in order and shapes[stem][1] == shapes[order[-1]][0]
        ][:1000]
    if len(orders) != 1:
        raise InvalidInput(
            f"its layers {', '.join(shapes) or '(none)'} follow each other in "
            f"{len(orders) or 'no'} orders as far as their shapes tell. Export the model to ONNX."
        )
    return orders[0]


# --- MATLAB ---


def read_mat(path: Path, transposed: bool | None) -> tuple[list[Array], list[Array | None]]:
    """The cells `weights` and, where there are some, `biases`, as LipSDP uses them.

    Raises:
        InvalidInput: no such cell, or an orientation that the shapes do not tell.
    """
    from scipy.io import loadmat

    try:
        _check_unpacked(path)
        found = loadmat(path, variable_names=["weights", "biases"])
    except InvalidInput:
        raise
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist.") from None
    except NotImplementedError:
        raise InvalidInput(f"{path} is a v7.3 file; save it with save(..., '-v7').") from None
    # SciPy's reader raises whatever a damaged file leads it to.
    except Exception as error:
        raise InvalidInput(f"{path} is no readable .mat file ({error}).") from error
    if "weights" not in found:
        raise InvalidInput(f"{path} holds no cell array `weights`.")
    weights = [finite(f"weights{{{i + 1}}}", W) for i, W in enumerate(_cells(found["weights"]))]
    biases: list[Array | None] = [None] * len(weights)
    if "biases" in found:
        given = [finite(f"biases{{{i + 1}}}", b) for i, b in enumerate(_cells(found["biases"]))]
        if len(given) != len(weights):
            raise InvalidInput(f"{path} has {len(weights)} weights, but {len(given)} biases.")
        for i, b in enumerate(given):
            if b.size != max(b.shape, default=1):
                raise ShapeError(f"biases{{{i + 1}}} has shape {b.shape}, but must be a vector.")
        biases = [b.reshape(-1) for b in given]
    return _oriented(weights, biases, transposed), biases


def _check_unpacked(path: Path) -> None:
    """Refuse a file whose compressed elements unpack to more than MAX_FILE_BYTES."""
    total = 0
    with path.open("rb") as file:
        head = file.read(128)
        order = ">" if head[126:128] == b"MI" else "<"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            unpack, left = zlib.decompressobj(), size
            while left > 0 and (piece := file.read(min(left, 1 << 16))):
                left -= len(piece)
                while kind == COMPRESSED and piece:
                    total += len(unpack.decompress(piece, 1 << 22))
                    piece = unpack.unconsumed_tail
                    if total > MAX_FILE_BYTES:
                        raise InvalidInput(f"{path} unpacks to over {MAX_FILE_BYTES} bytes.")


def _cells(value: Any) -> list[Any]:
    if not isinstance(value, np.ndarray) or value.dtype != object:
        return [value]
    if value.size != max(value.shape, default=1):
        raise InvalidInput(f"a cell array has shape {value.shape}, but must be one row or column.")
    return list(value.reshape(-1))


def _oriented(
    weights: list[Array], biases: list[Array | None], transposed: bool | None
) -> list[Array]:
    if not weights or any(W.ndim != 2 for W in weights):
        raise InvalidInput("the cell array `weights` must hold matrices, at least one.")

    def follow(matrices: list[Array]) -> bool:
        sizes = zip(matrices, biases, strict=True)
        return all(
            b.shape[1] == a.shape[0] for a, b in itertools.pairwise(matrices)
        ) and all(b is None or len(b) == len(W) for W, b in sizes)  # fmt: skip

    flipped = [W.T for W in weights]
    straight, reverse = follow(weights), follow(flipped)
    if transposed is None and straight and reverse:
        raise InvalidInput(
            "its weights fit together both as (out, in), as LipSDP has them, and as (in, out). "
            "Say which: transposed=False or transposed=True."
        )
    chosen = flipped if transposed or (transposed is None and not straight) else weights
    if not follow(chosen):
        raise ShapeError(
            f"its weights have the shapes {', '.join(str(W.shape) for W in weights)}, which do not "
            "follow each other as (out, in)" + (" transposed." if transposed else ".")
        )
    return chosen
