"""System files: `.npz` archives of the arrays of a system, or of a perceptron's layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import finite, read_npz, vector
from .errors import InvalidInput, ShapeError
from .system import UNKNOWN, System


def read_system(path: Path) -> System:
    """See `System.load`; every error names the file."""
    arrays = read_npz(path)
    try:
        return _system(arrays)
    except InvalidInput as error:
        raise type(error)(f"{path}: {error}") from error


def _system(arrays: dict[str, Any]) -> System:
    if any(name.startswith("K") for name in arrays):
        raise InvalidInput(
            f"it is a chain of convolutions (arrays {', '.join(sorted(arrays))}); only "
            "dense systems can be loaded. Unroll it into W0 b0 W1 b1 ..."
        )
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
    return replace(system, alpha=alpha, beta=beta, activation=names)


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
