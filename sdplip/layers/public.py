"""Weights that the published code of [LBEN], [MON] and [NEMON] has saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInput, ShapeError
from ._base import LIMIT, check_finite
from .lben import LBENLinear
from .mon import MONLinear
from .nemon import NEMONLinear
from .represent import soft_unbound

OWNER = "load_public"

_BOUNDED = {"B.weight", "B.bias", "V.weight", "S.weight", "G.weight", "G.bias"}
_FREE = {"U.weight", "U.bias", "Wout.weight", "Wout.bias"}

KINDS: dict[str, set[str]] = {
    "bounded LBEN": _BOUNDED | {"psi"},
    "early bounded LBEN": _BOUNDED | {"Lambda"},
    "early bounded MON": _BOUNDED,
    "LBEN": _FREE | {"V.weight", "S.weight", "psi"},
    "MON": _FREE | {"A.weight", "B.weight"},
    "NEMON": _FREE | {"A.weight", "d"},
}
"""The fully connected networks of the published code, told apart by the names in their files,
which begin with mon.linear_module but for Wout."""


def load_public(
    source: str | Path | Mapping[str, Tensor], *, gamma: float, m: float, **options: Any
) -> LBENLinear | NEMONLinear:
    """The layer that computes what a published fully connected network computes, its read-out too.

    Args:
        source: a file written by torch.save(network.state_dict(), ...), or such a state_dict.
        gamma: the bound that the network was trained for; inf for kinds without a bound. No file
            holds it, and another one makes another network of the same weights.
        m: as trained, and no file holds it either: ε of LBEN and MON (1 in their fully connected
            experiments), the bound on NEMON's matrix measure.
        options: method, tol, max_steps and dtype of the layer; dtype is the file's by default.

    Returns:
        `LBENLinear`, `MONLinear` or `NEMONLinear` with ReLU, for rows of inputs as in the training:
        images flattened and normalised.

    Raises:
        InvalidInput: unreadable; another kind of network, such as a convolutional one; gamma or m
            out of range; NaN or Inf; parameters beyond what a layer keeps. ShapeError: sizes that
            disagree.

    Source: the code published with [LBEN], also its early form of Λ instead of ψ, [MON], [NEMON].
    """
    state = _state(source)
    kind, e = _told_apart(state)
    bounded = "G.weight" in e
    if not (math.isfinite(gamma) if bounded else gamma == math.inf):
        rule = "has a bound: give the one it was trained for" if bounded else "has none: give inf"
        raise InvalidInput(f"{OWNER}: gamma = {gamma}, but a network of the kind {kind} {rule}.")
    drive, read = ("B", "G") if bounded else ("U", "Wout")
    n, inputs, outputs = _sizes(e, drive, read)
    values = {"B": e[f"{drive}.weight"], "bias": e[f"{drive}.bias"]}
    values |= {"C": e[f"{read}.weight"], "out_bias": e[f"{read}.bias"]}
    options = {"dtype": values["B"].dtype, **options}
    layer: LBENLinear | NEMONLinear
    if kind == "NEMON":
        values |= {"T": e["A.weight"], "d": _within("d", e["d"])}
        limits = {"T": LIMIT}
        layer = NEMONLinear(inputs, n, outputs, c=m, **options)
    else:
        values |= _inner(kind, e)
        family, eps = LBENLinear if "psi" in values else MONLinear, m / 2 if _early(kind) else m
        layer = family(inputs, n, outputs, gamma=gamma, eps=eps, **options)
        outer = LIMIT * math.sqrt(min(gamma, 1))
        limits = {"V": LIMIT, "S": LIMIT, "B": outer, "C": outer}
    for name, limit in limits.items():
        size = float(values[name].double().norm())
        if size > limit * math.sqrt(n):
            raise InvalidInput(
                f"{OWNER}: {name} has the norm {size:.4g}, but a layer of {n} units keeps it below "
                f"{limit * math.sqrt(n):.4g}. Build a System of the weights, and as_lben of it."
            )
    with torch.no_grad():
        for name, value in values.items():
            layer.get_parameter(name).copy_(value)
    return layer


def _inner(kind: str, e: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """V, S and ψ of A = I - Λ⁻¹(… + VᵀV + εI + S - Sᵀ), Λ = e^{-ψ}; no ψ where Λ = I.

    The early code has half of VᵀV + mI + S - Sᵀ there, the later VᵀV + mI + Sᵀ - S, and [MON]
    AᵀA + mI + Bᵀ - B.
    """
    if kind == "MON":
        return {"V": e["A.weight"], "S": e["B.weight"].mT}
    if not _early(kind):
        psi = _within("psi", e["psi"])
        return {"V": e["V.weight"], "S": e["S.weight"].mT, "psi": psi}
    values = {"V": e["V.weight"].double() / math.sqrt(2), "S": e["S.weight"] / 2}
    if "Lambda" not in e:
        return values
    if not bool((e["Lambda"] > 0).all()):
        raise InvalidInput(
            f"{OWNER}: Lambda = {float(e['Lambda'].min()):.4g} in one entry, but must be positive: "
            "no bound holds for this network."
        )
    return {**values, "psi": _within("log Lambda", -e["Lambda"].double().log())}


def _early(kind: str) -> bool:
    return kind.startswith("early")


def _within(name: str, x: Tensor) -> Tensor:
    return soft_unbound(OWNER, name, x.double())


def _state(source: str | Path | Mapping[str, Tensor]) -> Mapping[Any, Any]:
    state: Any = source
    if not isinstance(source, Mapping):
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # what damaged files raise is of many kinds
            raise InvalidInput(
                f"{OWNER}: {source} cannot be read as weights ({type(error).__name__}: {error}). "
                "Give a file of torch.save(network.state_dict(), path)."
            ) from error
    if not isinstance(state, Mapping):
        raise InvalidInput(
            f"{OWNER}: {source} holds {type(state).__name__}, but must hold a state_dict. Save "
            "network.state_dict()."
        )
    for name, value in state.items():
        dense = isinstance(value, Tensor) and value.layout is torch.strided
        if not (isinstance(name, str) and dense and value.is_floating_point()):
            raise InvalidInput(
                f"{OWNER}: {name!r} is no dense tensor of real numbers, but a state_dict of these "
                "networks has nothing else. Save network.state_dict()."
            )
    check_finite(OWNER, state)
    return state


def _told_apart(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The kind, and the entries by their short names."""
    for kind, names in KINDS.items():
        full = {name if name[0] == "W" else f"mon.linear_module.{name}": name for name in names}
        if full.keys() == state.keys():
            return kind, {full[name]: value.detach() for name, value in state.items()}
    raise InvalidInput(
        f"{OWNER}: the entries are {', '.join(sorted(state)) or '(none)'}, but must be those of a "
        "fully connected network in layers.public.KINDS. Other networks cannot be loaded."
    )


def _sizes(e: Mapping[str, Tensor], drive: str, read: str) -> tuple[int, int, int]:
    """Units, inputs and outputs."""
    for name in (f"{drive}.weight", f"{read}.weight"):
        if e[name].ndim != 2:
            raise ShapeError(f"{OWNER}: {name} has shape {tuple(e[name].shape)}, but is a matrix.")
    (n, inputs), outputs = e[f"{drive}.weight"].shape, len(e[f"{read}.weight"])
    special: dict[str, tuple[int, ...]] = {
        f"{drive}.weight": (n, inputs),
        f"{read}.weight": (outputs, n),
    }
    special |= {f"{read}.bias": (outputs,)}
    for name, value in e.items():
        shape = special.get(name, (n, n) if name.endswith("weight") else (n,))
        if value.shape != shape:
            raise ShapeError(
                f"{OWNER}: {name} has shape {tuple(value.shape)}, but with {drive}.weight "
                f"{(n, inputs)} it must be {shape}. The file is damaged or of another network."
            )
    return n, inputs, outputs
