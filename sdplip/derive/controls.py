"""Negative controls: wrong variants of an ansatz, which must fail symbolically and on instances."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from ..errors import DerivationError, InvalidInput
from .exact import instance, sizes_of

if TYPE_CHECKING:
    from .derivation import Derivation, Goal


@dataclass(frozen=True)
class Check:
    """One check: `general` says whether it covers all sizes or only instances."""

    name: str
    holds: bool
    detail: str
    general: bool = False


def controls(derivation: Derivation, goals: Sequence[Goal]) -> list[Check]:
    """Perturbed ansätze must fail symbolically and on instances."""
    found = []
    for name, changes in derivation.controls.items():
        symbolic = not _still_holds(derivation, goals, changes)
        instances = _violated(derivation, changes)
        fails = [k for k, v in {"symbols": symbolic, "instances": instances}.items() if v]
        detail = f"fails on {' and on '.join(fails) or 'neither symbols nor instances'}"
        found.append(Check(f"control: {name}", symbolic and instances, detail))
    caught, harmless = [], []
    for name, changes in _perturbations(derivation):
        still = _still_holds(derivation, goals, changes)
        violated = _violated(derivation, changes)
        if still and violated:
            text = f"{name} satisfies the identity, but not the condition on instances"
            return [*found, Check("perturbations", False, text)]
        if still:
            harmless.append(name)
        elif violated:
            caught.append(name)
    detail = f"caught: {', '.join(caught) or 'none'}"
    detail += f"; harmless, still proved: {', '.join(harmless)}" if harmless else ""
    return [*found, Check("perturbations", len(caught) + len(derivation.controls) >= 2, detail)]


def _perturbations(derivation: Derivation) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for name, value in derivation.ansatz.items():
        expr = sp.sympify(value)
        if isinstance(expr, sp.ZeroMatrix) or name not in derivation.condition.symbols:
            continue
        found.append((f"{name} with its sign changed", {name: -expr}))
        found.append((f"{name} without a factor 2", {name: expr / 2}))
    return found


def _still_holds(derivation: Derivation, goals: Sequence[Goal], changes: Mapping[str, Any]) -> bool:
    try:
        first, problems = derivation.identity_holds(goals, changes)
    except (DerivationError, InvalidInput):
        return False
    return first and not problems


def _violated(derivation: Derivation, changes: Mapping[str, Any]) -> bool:
    """Whether the condition fails at the changed ansatz for some small instance."""
    rng = random.Random(2)
    for sizes in sizes_of(derivation) * 2:
        try:
            matrix = instance(derivation, sizes, rng, changes).condition(derivation)
        except (ValueError, ZeroDivisionError, sp.matrices.exceptions.MatrixError):
            continue
        values = np.array(sp.Matrix(matrix).tolist(), dtype=float)
        if derivation.condition.cone == "nonnegative":
            lowest = values.min()
        else:
            lowest = np.linalg.eigvalsh((values + values.T) / 2)[0]
        if lowest < -1e-9 * max(1.0, np.abs(values).max()):
            return True
    return False
