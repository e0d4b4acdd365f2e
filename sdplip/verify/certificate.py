"""Certificates: a bound with the multipliers that prove it, checked from the model alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from torch import nn

from .. import conditions
from .._arrays import Array, parse_norm, read_at_most, write_named
from .._modes import own_modes
from ..convolutional import ConvSystem
from ..errors import CertificationError, InvalidInput
from ..system import System
from .fold import fold
from .layered import Blocks, definite, folds, times_power, whole
from .reduce import live_units, prune
from .region import Region
from .rigorous import LARGE, UNIT, Ball
from .subject import subject

FORMAT = "sdplip certificate 2"
FAMILY = FORMAT.rstrip("0123456789")
SYSTEM, CONVOLUTION = "system", "convolution"
LARGEST = 1 << 30
"""Bytes that are read of a file."""
EXTREME = 250
"""Binary exponents from which on squares of numbers are better scaled."""


@dataclass(frozen=True)
class Certificate:
    """‖f(x) − f(x′)‖ ≤ bound · ‖x − x′‖ for all x, x′ (of `region`), with what shows it.

    The statement is about the arrays of the system in exact arithmetic. Not part of it: the
    rounding of a forward pass, and where a system was composed from layers, the rounding of the
    products of their float64 matrices (relative 1e-16).
    """

    bound: float
    """The Lipschitz bound, in `norm` on input and output."""
    norm: float
    """2.0 or inf."""
    multipliers: tuple[float, ...] = field(repr=False)
    """Λ (norm 2) or η (norm inf), one per unit; 0 for one that cannot matter, or is substituted."""
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
    """SHA-256 of the exact weights, `System.digest`."""
    version: str
    kind: str = SYSTEM
    """"system", or "convolution": one multiplier per channel, proved for every frequency."""
    classes: tuple[int, int] | None = None
    """(i, j): the bound is one of the difference y_i − y_j, not of all outputs."""
    region: Region | None = None
    """Where the bound holds; None is everywhere."""
    solved: float | None = None
    """The bound as the solver left it, before the proof: evidence only."""

    def save(self, path: str | Path) -> None:
        """Write as JSON; numbers are exact (shortest text that reads back the same).

        Raises:
            InvalidInput: the folder does not exist.
        """
        content = _text(self.to_json()).encode()
        write_named(Path(path), lambda scratch: scratch.write_bytes(content))

    def to_json(self) -> dict[str, Any]:
        """A JSON document: the fields (norm as text), the format and a hash over them."""
        content: dict[str, Any] = {"format": FORMAT, **vars(self), "norm": _norm_name(self.norm)}
        content["multipliers"] = list(self.multipliers)
        content["classes"] = None if self.classes is None else list(self.classes)
        content["region"] = None if self.region is None else self.region.to_json()
        return {**content, "sha256": _digest(content)}

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate.

        Raises:
            InvalidInput: unreadable or not a certificate.
            CertificationError: edited since it was written.
        """
        try:
            text = read_at_most(Path(path), LARGEST).decode()
            content = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} is no readable certificate ({error}).") from error
        certificate = cls.from_json(content, str(path))
        # Which also finds a key that is there twice, and every other second way to write it.
        if text != _text(content):
            raise CertificationError(f"{path} was edited: it is not as `save` writes it.")
        return certificate

    @classmethod
    def from_json(cls, content: Any, where: str = "The document") -> Certificate:
        """The certificate in a JSON document; raises as `load`."""
        expected = {"format", "sha256", *(f.name for f in fields(cls))}
        found = content.get("format") if isinstance(content, Mapping) else None
        if found != FORMAT:
            if isinstance(found, str) and found.startswith(FAMILY):
                raise InvalidInput(
                    f"{where} is of the format {found!r}, but this version reads {FORMAT!r}. "
                    "Verify the model anew."
                )
            raise InvalidInput(f"{where} is not of the format {FORMAT!r}.")
        if content.keys() != expected:
            odd = ", ".join(map(repr, sorted(content.keys() ^ expected)))
            raise InvalidInput(f"{where} lacks or adds the fields: {odd}.")
        content = dict(content)
        if content.pop("sha256") != _digest(content):
            raise CertificationError(f"{where} was edited: its hash does not fit its content.")
        content.pop("format")
        for name, kinds in _KINDS.items():
            value = content[name]
            told = not isinstance(value, float | int) or 0 <= value < math.inf
            if not (isinstance(value, kinds) and told) or isinstance(value, bool):
                raise InvalidInput(f"{where}: {name} = {value!r} is of the wrong kind.")
        if not all(isinstance(v, float) for v in content["multipliers"]):
            raise InvalidInput(f"{where}: the multipliers must be numbers with a decimal point.")
        for name, known in _CHOICES.items():
            if not re.fullmatch(known, content[name]):
                raise InvalidInput(f"{where}: {name} = {content[name]!r} is not known.")
        content["norm"] = parse_norm(content["norm"])
        content["multipliers"] = tuple(content["multipliers"])
        if content["classes"] is not None:
            content["classes"] = _pair(content["classes"], content["outputs"], where)
        if content["region"] is not None:
            content["region"] = Region.from_json(content["region"])
        return cls(**content)

    @property
    def gap(self) -> float | None:
        """How far the bound may be above the best one, relative to it: bound / optimum − 1."""
        return None if not self.optimum else self.bound / self.optimum - 1

    @property
    def inflation(self) -> float | None:
        """What the proof added to the solver's bound, relative to it: bound / solved − 1."""
        return None if not self.solved else self.bound / self.solved - 1


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
    "kind": (str,),
    "classes": (list, NoneType),
    "region": (Mapping, NoneType),
    "solved": (float, NoneType),
}
"""What a JSON document must hold, besides the flag `proven`; numbers finite and at least 0."""

_CHOICES = {"kind": f"{SYSTEM}|{CONVOLUTION}", "norm": "2|inf", "model": "[0-9a-f]{64}"}


@own_modes
def check(
    certificate: Certificate,
    model: System | ConvSystem | nn.Module,
    input_shape: Sequence[int] | None = None,
) -> Certificate:
    """Establish the bound anew from the multipliers and the model, given as to `lipschitz`, alone.

    Returns:
        The certificate, whose bound, multipliers, norm, sizes, model, kind, classes and region are
        then established; its other fields are what the verification reported.

    Raises:
        CertificationError: another model, or the condition does not hold (or not by enough for a
            proof in float64); the message says which.
        InvalidInput: no certificate, or no model.
    """
    if not isinstance(certificate, Certificate):
        raise InvalidInput(
            f"check: the certificate is a {type(certificate).__name__}. Read it with "
            "Certificate.load, and give it before the model."
        )
    system = subject(model, certificate.kind == SYSTEM, input_shape)
    digest = system.digest()
    if certificate.model != digest:
        raise CertificationError(
            f"The certificate is for another model: it names {certificate.model[:12]}…, this model "
            f"is {digest[:12]}…. Verify this model anew."
        )
    if certificate.norm not in (2.0, math.inf):
        raise CertificationError(f"The certificate is in norm {certificate.norm!r}, not 2 or inf.")
    if certificate.classes is not None:
        _pair(list(certificate.classes), system.outputs, "The certificate")
    if certificate.proven is not True or (certificate.lower or 0.0) > certificate.bound:
        raise CertificationError("The certificate contradicts itself: see proven, lower, bound.")
    multipliers = np.asarray(certificate.multipliers, dtype=np.float64)
    stated = (certificate.inputs, certificate.units, certificate.outputs, multipliers.size)
    sizes = (system.inputs, system.units, system.outputs, _count(system, certificate))
    if stated != sizes:
        raise CertificationError(
            "The certificate is for {} inputs, {} units, {} outputs and {} multipliers, but the "
            "model has {}, {}, {} and {}.".format(*stated, *sizes)
        )
    if not _shown(certificate, system, multipliers):
        raise CertificationError(
            f"The condition does not hold at bound {certificate.bound!r} with these multipliers: "
            "the bound is not proven."
        )
    return certificate


def _count(system: System | ConvSystem, certificate: Certificate) -> int:
    """How many multipliers there must be."""
    if isinstance(system, System) != (certificate.kind == SYSTEM):
        raise CertificationError(
            f"The certificate is of the kind {certificate.kind!r}, but the model is a "
            f"{type(system).__name__}."
        )
    if isinstance(system, System):
        return system.units
    if certificate.norm != 2 or certificate.classes or certificate.region:
        raise CertificationError(
            "Certificates of convolutions are about norm 2 and all outputs, everywhere; this one "
            f"has norm = {certificate.norm:g}, classes = {certificate.classes} and region = "
            f"{certificate.region}."
        )
    from .frequency import multiplier_count

    return multiplier_count(system)


# What overflows proves nothing, and says so.
@np.errstate(all="ignore")
def _shown(certificate: Certificate, system: System | ConvSystem, multipliers: Array) -> bool:
    if isinstance(system, ConvSystem):
        from .frequency import frequency_holds

        return frequency_holds(system, certificate.bound, multipliers)
    if certificate.region is not None:
        from .local import restrict

        system = restrict(system, certificate.region)
    return holds(system, certificate.norm, certificate.bound, multipliers, certificate.classes)


def holds(
    system: System,
    norm: float,
    bound: float,
    multipliers: Array,
    classes: tuple[int, int] | None = None,
) -> bool:
    """Whether bound and multipliers (n,) satisfy the condition, in rounding-safe arithmetic.

    Args:
        multipliers: those of units that cannot matter, or are substituted, are not used.
        classes: (i, j) for the bound of y_i − y_j, whose rows are subtracted exactly.
    """
    return _shows(system, norm, bound, multipliers, classes)(bound)


def _shows(
    system: System,
    norm: float,
    size: float,
    multipliers: Array,
    classes: tuple[int, int] | None,
) -> Callable[[float], bool]:
    """`holds` as a function of the bound, which is about `size`."""
    if classes is not None:
        from .margins import difference

        system = difference(system, *classes)
    live = live_units(system)
    small, kept = prune(system), multipliers[live]
    if small.units == 0 and not small.D.any():
        return lambda bound: 0 <= bound < math.inf
    C, D = (Ball(X, 0.0 if classes is None else UNIT * abs(X)) for X in (small.C, small.D))
    arrays = {name: getattr(small, name) for name in ("B", "alpha", "beta")}
    arrays |= {"A": Blocks(small), "C": C, "D": D}
    folded = fold(small, C, D) if norm != 2 or folds(small) else None
    if folded is not None:
        arrays, kept = folded.arrays, kept[folded.kept]
    usable = np.isfinite(multipliers).all() and (kept > 0).all() and 0 <= size < math.inf
    if not usable:
        return lambda bound: False
    arrays, kept, exponent = _rescaled(arrays, kept, size, norm)
    if norm == 2:
        shown = definite(None if folded else small, arrays, kept)

        def at(bound: float) -> bool:
            # M is affine in ρ, which is below bound²: what is proved for √ρ holds for the bound.
            gamma = Ball(math.ldexp(bound, -exponent))
            return shown(float((gamma * gamma).lower))

        return at
    rows = conditions.linf(**whole(arrays), eta=Ball(kept), c=1.0, gamma=Ball(0.0))
    split = 2 * kept.size
    top = -rows[split:].lower
    strict = bool((rows[:split].lower > 0).all())
    return lambda bound: strict and bool((math.ldexp(bound, -exponent) >= top).all())


def _rescaled(
    arrays: dict[str, Any], kept: Array, bound: float, norm: float
) -> tuple[dict[str, Any], Array, int]:
    """The same condition in units and outputs for which multipliers and bound are about 1.

    By powers of two, which round nothing; only where products of the numbers might underflow. The
    last is the exponent by which the bound is to be divided.
    """
    own, out = np.frexp(kept)[1].astype(np.int64), int(np.frexp(bound)[1])
    if max(abs(out), abs(own).max(initial=0)) < EXTREME:
        return arrays, kept, 0
    unit, power = (own, -1) if norm != 2 else ((2 * out - own) // 2, 2)
    steps = {"B": -unit[:, None], "C": unit - out, "D": np.array(-out)}
    scaled: dict[str, Any] = {name: times_power(arrays[name], step) for name, step in steps.items()}
    A = arrays["A"]
    scaled["A"] = (
        replace(A, steps=unit) if isinstance(A, Blocks) else times_power(A, unit - unit[:, None])
    )
    kept = np.ldexp(kept, power * unit - (2 * out if norm == 2 else 0))
    return arrays | scaled, kept, out


def prove(
    system: System,
    norm: float,
    least: float,
    multipliers: Array,
    classes: tuple[int, int] | None = None,
    most: float = 1e-6,
) -> float | None:
    """About the smallest bound that `holds`, from what a solver says is the least.

    least·(1 + 10⁻ᵏ) for k = 14, 13, … up to `most`, for large systems from k = 9 on, then ten
    times that excess, so that other checkers, whose arithmetic may be coarser, can show it, too.
    None where none is shown.
    """
    shown = _shows(system, norm, least, multipliers, classes)
    # Of large matrices a decomposition takes long, and is that exact only rarely.
    finest = -14 if system.units + system.inputs < LARGE else -9
    for excess in 10.0 ** np.arange(finest, 0):
        if excess > most:
            break
        if shown(float(least * (1 + excess))):
            # The condition is monotone in the bound.
            return float(least * (1 + 10 * excess))
    return None


def _pair(value: list[Any], outputs: int, where: str) -> tuple[int, int]:
    fits = len(value) == 2 and all(type(v) is int and 0 <= v < outputs for v in value)
    if not fits or value[0] == value[1]:
        raise InvalidInput(
            f"{where}: classes = {value!r}, but must be two different numbers below {outputs}."
        )
    return value[0], value[1]


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _norm_name(norm: float) -> str:
    return "2" if norm == 2 else "inf"


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
