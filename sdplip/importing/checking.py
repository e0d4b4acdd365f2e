"""The imported system against what it was imported from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import finite
from .._modules import apart, gap, probes
from ..convolutional import Activate, Add, ConvSystem, Stage
from ..errors import InvalidInput, ShapeError, UncheckedWarning
from ..system import UNKNOWN, System
from .operations import add, divide

SINGLE_PRECISION = 1e-4
"""How far, relatively, a network in float32 may be from itself in float64."""
STAND_IN = "tanh"
"""What originals compute in place of functions that are known by declared slopes alone."""
Original = tuple[str, float, Callable[[Tensor], Tensor | None]]
"""What it is, the relative tolerance, and x ↦ y, or None where it cannot be run."""


@dataclass(frozen=True)
class Source:
    """An extracted system with the networks that it must agree with.

    Attributes:
        owner: what was imported, for messages.
        shape: of the input as the originals take it.
    """

    owner: str
    system: System | ConvSystem
    shape: tuple[int, ...]
    originals: list[Original]


@dataclass(frozen=True)
class Normalisation:
    """x ↦ (x - mean) / std: one number, one per channel of (…, c, h, w), or one per entry."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, normalize: Any) -> Normalisation | None:
        if normalize is None:
            return None
        try:
            mean, std = (torch.from_numpy(finite("normalize", part)) for part in normalize)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"normalize = {normalize!r} is not (mean, std) with finite numbers ({error})."
            ) from error
        if not (std > 0).all():
            raise InvalidInput(f"normalize has the deviations {std}, but they must be positive.")
        return cls(mean, std)

    def __call__(self, x: Any) -> Any:
        shape = tuple(x.shape)
        mean, std = (self._fitted(part, shape) for part in (self.mean, self.std))
        return divide(add(x, -mean), std)

    def _fitted(self, part: Tensor, shape: tuple[int, ...]) -> Tensor:
        if part.dim() == 1 and len(shape) >= 3 and shape[-3] == len(part):
            return part.reshape(-1, 1, 1)
        if part.dim() and tuple(part.shape) not in (shape[-part.dim() :], (1,)):
            raise ShapeError(
                f"normalize has numbers of shape {tuple(part.shape)} for an input of shape "
                f"{shape}; give one number, one per channel, or one per entry."
            )
        return part


def checked(
    source: Source, normalisation: Normalisation | None = None, sample: Any = None
) -> System | ConvSystem:
    """The system, once it agrees with every original on random inputs of several sizes.

    Raises:
        InvalidInput: with the largest difference found.

    Warns:
        UncheckedWarning: nothing could be compared.
    """
    compared = False
    known = not _has_unknown(source.system)
    system = source.system if known else _stood_in(source.system)
    for what, relative, original in source.originals:
        for x in _inputs(system):
            rows = [normalisation(row) if normalisation else row
                    for row in x.reshape(len(x), *source.shape)]  # fmt: skip
            results = [row for row in map(original, rows) if row is not None]
            if len(results) < len(x):
                break
            y = torch.stack([row.reshape(-1) for row in results])
            compared |= _agrees(source, system, x, y, relative, f"{what}, on random inputs,")
            if source.shape[:1] == (1,) and _mixed(original, rows, results, relative):
                raise InvalidInput(
                    f"{source.owner}: what {what} makes of a sample depends on the others of its "
                    "batch, so that a bound for one alone does not hold there. Give a batch as one "
                    "input, or take what mixes samples out."
                )
    if sample is not None and known:
        x, y = _sample(sample, source.system.inputs)
        compared |= _agrees(source, system, x, y, 1e-4, "the sample")
    if source.originals and not compared:
        raise InvalidInput(
            f"{source.owner}: the original could not be run, so that nothing shows that the "
            "extracted system is right. For ONNX, install onnxruntime, or give sample=(x, y)."
        )
    if not (compared and known):
        reason = "its file holds no network to run" if known else "an activation is unknown"
        said = f"the system could not be compared with the original, because {reason}."
        if compared:
            said = f"{reason}: with {STAND_IN} in its place the system agrees with the original."
        warnings.warn(
            f"{source.owner}: {said}" + (" Give sample=(x, y)." if known else ""),
            UncheckedWarning,
            stacklevel=4,
        )
    return source.system


def _mixed(
    original: Callable[[Tensor], Tensor | None],
    samples: list[Tensor],
    alone: list[Tensor],
    relative: float,
) -> bool:
    """Whether it takes samples in a batch, and makes something else of them than of each alone."""
    try:
        together = original(torch.cat(samples))
    # Whatever a module that takes one sample only raises.
    except Exception:
        return False
    expected = torch.cat(alone) if alone[0].dim() else torch.stack(alone)
    if together is None or together.shape != expected.shape:
        return False
    return apart(together, expected, relative) is not None


def _inputs(system: System | ConvSystem) -> list[Tensor]:
    if isinstance(system, System):
        return probes(system)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, system.inputs, generator=generator, dtype=torch.float64)
    return [size * x for size in (1.0, 1e-3, 1e3)]


def _gap(system: System | ConvSystem, x: Tensor, y: Tensor, relative: float) -> str | None:
    if isinstance(system, System):
        return gap(system, x, y, relative)
    return apart(system(x.reshape(-1, *system.start)).flatten(1), y, relative)


def _has_unknown(system: System | ConvSystem) -> bool:
    if isinstance(system, System):
        return bool((system.activation == UNKNOWN).any())

    def within(stages: Sequence[Stage]) -> bool:
        return any(
            within([*stage.body, *stage.skip])
            if isinstance(stage, Add)
            else isinstance(stage, Activate) and stage.name == UNKNOWN
            for stage in stages
        )

    return within(system.stages)


def _stood_in(system: System | ConvSystem) -> System | ConvSystem:
    """With `STAND_IN` for what is unknown."""
    if isinstance(system, System):
        names = np.where(system.activation == UNKNOWN, STAND_IN, system.activation)
        return replace(system, activation=names, alpha=None, beta=None)  # type: ignore[arg-type]

    def within(stages: Sequence[Stage]) -> tuple[Stage, ...]:
        return tuple(
            Add(within(stage.body), within(stage.skip))
            if isinstance(stage, Add)
            else Activate(STAND_IN)
            if isinstance(stage, Activate) and stage.name == UNKNOWN
            else stage
            for stage in stages
        )

    return replace(system, stages=within(system.stages))


def _sample(sample: Any, inputs: int) -> tuple[Tensor, Tensor]:
    try:
        x, y = (torch.from_numpy(finite("sample", part)) for part in sample)
        x = x.reshape(-1, inputs)
        return x, y.reshape(len(x), -1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"sample is not (x, y), inputs of {inputs} numbers with as many outputs ({error})."
        ) from error


def _agrees(
    source: Source,
    system: System | ConvSystem,
    x: Tensor,
    y: Tensor,
    relative: float,
    what: str,
) -> bool:
    """Whether any of the inputs could be compared."""
    # Overflow of single precision on large inputs says nothing about the extraction.
    inside = ~y.isinf().any(1)
    found = _gap(system, x[inside], y[inside], relative)
    if found is not None:
        raise InvalidInput(
            f"{source.owner}: {what} and the extracted system {found}. Only a system that agrees "
            "with its original is imported."
        )
    return bool(inside.any())
