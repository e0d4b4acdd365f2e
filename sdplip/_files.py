"""System files: `.npz` archives of the arrays of a system, a perceptron's or convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import finite, read_npz, vector
from ._stages import Activate, Convolve, Pair, Stage
from .convolutional import ConvSystem, unpack
from .errors import InvalidInput, ShapeError
from .system import UNKNOWN, System

DEFAULT_SIZE = (28, 28)


def load(path: str | Path, size: Pair | None = None) -> System | ConvSystem:
    """The network in a file of `System.save`, of `ConvSystem.save` or of the same arrays.

    Args:
        size: of the images of a chain K0 K1 … without an array `size`; None is 28 x 28.

    Raises:
        InvalidInput: see `System.load` and `ConvSystem.load`; every message names the file.
    """
    arrays = read_npz(Path(path))
    try:
        if any(name[0] == "K" or name == "stages" for name in arrays):
            return _convolutions(arrays, size)
        return _system(arrays)
    except InvalidInput as error:
        raise type(error)(f"{path}: {error}") from error


def read_system(path: Path) -> System:
    """See `System.load`."""
    network = load(path)
    if isinstance(network, ConvSystem):
        raise InvalidInput(f"{path}: it holds convolutions. Use ConvSystem.load, then unroll().")
    return network


def _convolutions(arrays: dict[str, Any], size: Pair | None) -> ConvSystem:
    if "stages" in arrays:
        try:
            content = json.loads(str(arrays.pop("stages")[()]))
            described = unpack(content.pop("stages"), arrays)
            if arrays:
                raise KeyError(f"arrays beside the stages: {', '.join(arrays)}")
            return ConvSystem(tuple(described), **content)
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
            raise InvalidInput(f"its stages are no description of the network: {error}.") from error
        except ValueError as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"its stages are no readable text ({error}).") from error
    stored = [int(side) for side in finite("size", arrays.pop("size", size or DEFAULT_SIZE)).flat]
    count = sum(name[0] == "K" for name in arrays)
    known = {f"{k}{i}" for i in range(count) for k in "Kb"} | {"alpha", "beta", "activation"}
    if not arrays.keys() <= known or any(f"K{i}" not in arrays for i in range(count)):
        raise InvalidInput(
            f"it holds the arrays {', '.join(sorted(arrays))}; a chain of convolutions has "
            "K0 b0 K1 b1 ... alpha beta activation size."
        )
    low, high = (finite(k, arrays.get(k, d)) for k, d in (("alpha", 0.0), ("beta", 1.0)))
    if low.shape or high.shape:
        raise ShapeError("alpha and beta of a chain of convolutions must be scalars.")
    name = str(arrays.get("activation", _guess(float(low), float(high))))
    stages: list[Stage] = []
    for i in range(count):
        stages += [Activate(name, low, high)] * (i > 0)
        stages.append(Convolve(arrays[f"K{i}"], arrays.get(f"b{i}", np.zeros(()))))
    return ConvSystem(tuple(stages), arrays["K0"].shape[1], (stored[0], stored[-1]))


def _system(arrays: dict[str, Any]) -> System:
    slopes = (arrays.pop("alpha", np.zeros(())), arrays.pop("beta", np.ones(())))
    names = arrays.pop("activation", None)
    layers = sorted((k for k in arrays if k[0] == "W"), key=lambda k: (len(k), k))
    known = {f"{k}{i}" for i in range(len(layers)) for k in "Wb"} if layers else set("ABCDbc")
    if not arrays or not arrays.keys() <= known or len(layers) > len(known & arrays.keys()):
        raise InvalidInput(
            f"it holds the arrays {', '.join(sorted(arrays)) or '(none)'}; a system file "
            "has A B C D b c alpha beta activation, or W0 b0 W1 b1 ... alpha beta."
        )
    if layers:
        weights = [arrays[f"W{i}"] for i in range(len(layers))]
        biases = [arrays.get(f"b{i}") for i in range(len(layers))]
        system = System.feedforward(weights, biases, activation=UNKNOWN)
    else:
        system = System(**_fill(arrays), activation=UNKNOWN)  # type: ignore[arg-type]
    alpha, beta = (
        vector(k, finite(k, s), system.units)
        for k, s in zip(("alpha", "beta"), slopes, strict=True)
    )
    if names is None:
        names = np.asarray([_guess(a, b) for a, b in zip(alpha, beta, strict=True)], np.str_)
    elif names.dtype.kind != "U":
        raise InvalidInput(f"activation has dtype {names.dtype}, but must be text.")
    return system.replaced(alpha=alpha, beta=beta, activation=names)


def _guess(alpha: float, beta: float) -> str:
    if (alpha, beta) == (0, 1):
        return "relu"
    return f"leaky_relu({float(alpha)!r})" if beta == 1 and 0 < alpha < 1 else UNKNOWN


def _fill(arrays: dict[str, Any]) -> dict[str, Any]:
    """Zero blocks for the missing ones of A, B, C, D; sizes from those present."""
    sizes: dict[str, int] = {}
    for name, dims in {"A": "nn", "B": "nm", "C": "pn", "D": "pm", "b": "n", "c": "p"}.items():
        shape = arrays[name].shape if name in arrays else ()
        if name in arrays and len(shape) != len(dims):
            raise ShapeError(f"{name} has shape {shape}, but must have {len(dims)} dimensions.")
        for dim, size in zip(dims, shape, strict=False):
            sizes.setdefault(dim, size)
    if "m" not in sizes or "p" not in sizes:
        raise InvalidInput(
            "The sizes of input and output follow from B, C and D; too few are given."
        )
    n, m, p = (sizes.get(d, 0) for d in "nmp")
    blocks = {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m)}
    return {**{k: np.zeros(s) for k, s in blocks.items()}, **arrays}
