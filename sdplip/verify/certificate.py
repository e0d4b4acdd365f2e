"""Certificates: a bound with the multipliers that prove it, checked from the model alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from torch import nn

from .. import conditions
from .._arrays import Array, parse_norm, write_atomically
from ..errors import CertificationError, InvalidInput
from ..system import System
from .reduce import live_units, prune
from .rigorous import Ball, positive_definite

FORMAT = "sdplip certificate 1"


@dataclass(frozen=True)
class Certificate:
    """‖f(x) − f(x′)‖ ≤ bound · ‖x − x′‖ for all x, x′, with what shows it.

    The statement is about the arrays of the system in exact arithmetic. Not part of it: the
    rounding of a forward pass, and where a system was composed from layers, the rounding of the
    products of their float64 matrices (relative 1e-16).
    """

    bound: float
    """The Lipschitz bound, in `norm` on input and output."""
    norm: float
    """2.0 or inf."""
    multipliers: tuple[float, ...]
    """Λ (norm 2) or η (norm inf), one per unit; 0 for a unit that cannot matter."""
    proven: bool
    """Whether `check` established the bound in rounding-safe arithmetic."""
    lower: float | None
    """The largest Jacobian norm found: the constant lies in [lower, bound]."""
    optimum: float | None
    """A value below the best bound over all diagonal multipliers, by duality: evidence only."""
    norm_product: float | None
    """The product-of-norms bound, for comparison; None where there is none."""
    solver: str
    seconds: float
    """Wall-clock time of the whole verification."""
    inputs: int
    units: int
    outputs: int
    model: str
    """SHA-256 of the system, `System.digest`."""
    version: str

    def save(self, path: str | Path) -> None:
        """Write as JSON; numbers are exact (shortest text that reads back the same)."""
        text = json.dumps(self.to_json(), indent=1) + "\n"
        write_atomically(Path(path), lambda scratch: scratch.write_text(text))

    def to_json(self) -> dict[str, Any]:
        """A JSON document: the fields (norm as text), the format and a hash over them."""
        content = {"format": FORMAT, **asdict(self), "norm": _norm_name(self.norm)}
        content["multipliers"] = list(self.multipliers)
        return {**content, "sha256": _digest(content)}

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate.

        Raises:
            InvalidInput: unreadable or not a certificate.
            CertificationError: edited since it was written.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} is no readable certificate ({error}).") from error
        return cls.from_json(content, str(path))

    @classmethod
    def from_json(cls, content: Any, where: str = "The document") -> Certificate:
        """The certificate in a JSON document; raises as `load`."""
        expected = {"format", "sha256", *(f.name for f in fields(cls))}
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise InvalidInput(f"{where} is not of the format {FORMAT!r}.")
        if content.keys() != expected:
            odd = ", ".join(sorted(content.keys() ^ expected))
            raise InvalidInput(f"{where} lacks or adds the fields: {odd}.")
        content = dict(content)
        if content.pop("sha256") != _digest(content):
            raise CertificationError(f"{where} was edited: its hash does not fit its content.")
        content.pop("format")
        for name, kinds in _KINDS.items():
            if not isinstance(content[name], kinds) or isinstance(content[name], bool):
                raise InvalidInput(f"{where}: {name} = {content[name]!r} is of the wrong kind.")
        if not all(isinstance(v, float) for v in content["multipliers"]):
            raise InvalidInput(f"{where}: the multipliers must be numbers with a decimal point.")
        content["norm"] = parse_norm(content["norm"])
        content["multipliers"] = tuple(content["multipliers"])
        return cls(**content)

    @property
    def gap(self) -> float | None:
        """How far the bound may be above the best one, relative to it: bound / optimum − 1."""
        return None if not self.optimum else self.bound / self.optimum - 1


_KINDS: dict[str, tuple[type, ...]] = {
    "bound": (float,),
    "norm": (str,),
    "multipliers": (list,),
    "lower": (float, NoneType),
    "optimum": (float, NoneType),
    "norm_product": (float, NoneType),
    "solver": (str,),
    "seconds": (float,),
    "inputs": (int,),
    "units": (int,),
    "outputs": (int,),
    "model": (str,),
    "version": (str,),
}
"""What a JSON document must hold, besides the flag `proven`."""


def as_system(model: Any) -> System:
    """The system of a model; a module is checked against what is extracted from it."""
    if isinstance(model, System):
        return model
    if isinstance(model, nn.Module):
        return System.from_module(model)
    raise InvalidInput(
        f"{type(model).__name__} is neither a System nor a torch module; "
        "build one with System.feedforward, System.equilibrium or System.load."
    )


def check(certificate: Certificate, model: System | nn.Module) -> Certificate:
    """Establish the bound anew from the multipliers and the model alone.

    Returns:
        The certificate, whose bound, multipliers, norm, sizes and model are then established; its
        other fields are what the verification reported.

    Raises:
        CertificationError: another model, or the condition does not hold (or not by enough for a
            proof in float64); the message says which.
    """
    system = as_system(model)
    digest = system.digest()
    if certificate.model != digest:
        raise CertificationError(
            f"The certificate is for another model: it names {certificate.model[:12]}…, this model "
            f"is {digest[:12]}…. Verify this model anew."
        )
    multipliers = np.asarray(certificate.multipliers, dtype=np.float64)
    sizes = (certificate.inputs, certificate.units, certificate.outputs)
    if multipliers.shape != (system.units,) or sizes != (
        system.inputs,
        system.units,
        system.outputs,
    ):
        raise CertificationError(
            f"The certificate is for sizes {sizes} with {multipliers.size} multipliers, the model "
            f"has {system.inputs} inputs, {system.units} units and {system.outputs} outputs."
        )
    if certificate.proven is not True or (certificate.lower or 0.0) > certificate.bound:
        raise CertificationError("The certificate contradicts itself: see proven, lower, bound.")
    if not holds(system, certificate.norm, certificate.bound, multipliers):
        raise CertificationError(
            f"The condition does not hold at bound {certificate.bound!r} with these multipliers: "
            "the bound is not proven."
        )
    return certificate


def holds(system: System, norm: float, bound: float, multipliers: Array) -> bool:
    """Whether bound and multipliers (n,) satisfy the condition, in rounding-safe arithmetic."""
    if not (math.isfinite(bound) and bound >= 0 and np.isfinite(multipliers).all()):
        return False
    live = live_units(system)
    small, kept = prune(system), multipliers[live]
    if not (kept > 0).all():
        return False
    if small.units == 0 and not small.D.any():
        return True
    arrays = {k: getattr(small, k) for k in ("A", "B", "C", "D", "alpha", "beta")}
    if norm == 2:
        # ρ is below bound², so what is proved for √ρ holds for the bound.
        rho = Ball(bound) * Ball(bound)
        M = conditions.lipschitz(**arrays, Lam=Ball(kept), rho=Ball(float(rho.lower)))
        return positive_definite(M)
    rows = conditions.linf(**arrays, eta=Ball(kept), c=1.0, gamma=bound).lower
    split = 2 * small.units
    return bool((rows[:split] > 0).all() and (rows[split:] >= 0).all())


def _norm_name(norm: float) -> str:
    return "2" if norm == 2 else "inf"


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
