"""Networks of convolutions on images of one size; unrolled they are a `System`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import Array, write_named
from ._stages import (
    Activate,
    Add,
    Convolve,
    Head,
    Pair,
    Pool,
    Shape,
    Stage,
    apply_all,
    chain_shapes,
    checked,
    pair,
    put,
    size_of,
    spaced,
    unit_count,
    unroll_all,
)
from .errors import InvalidInput, ShapeError
from .system import System

__all__ = ["Activate", "Add", "ConvSystem", "Convolve", "Head", "Pool", "Stage"]

UNROLLED = 6000
"""The most inputs, units and outputs together that `ConvSystem.unroll` turns into matrices."""


@dataclass(frozen=True, eq=False)
class ConvSystem:
    """A chain of stages on images of `channels` channels and the size (height, width).

    Calling it evaluates the network. With nothing between two convolutions they follow each other
    directly; a `Head` is possible as the last stage only.

    Raises:
        ShapeError: a stage that does not fit the one before it.
        InvalidInput: no stages, or something that is no stage.
    """

    stages: tuple[Stage, ...]
    channels: int
    size: Pair

    def __post_init__(self) -> None:
        if isinstance(self.channels, bool) or not isinstance(self.channels, int | np.integer):
            raise InvalidInput(f"channels = {self.channels!r}, but must be a whole number.")
        stages = tuple(self.stages)
        last = checked(stages[-1:], Convolve, Activate, Pool, Add, Head)
        put(self, stages=(*checked(stages[:-1], Convolve, Activate, Pool, Add), *last))
        put(self, size=pair("size", self.size), channels=int(self.channels))
        if not self.stages or self.channels < 1:
            raise InvalidInput("A ConvSystem needs a stage and a channel; give at least one.")
        self.shapes  # noqa: B018 - for its errors

    def __repr__(self) -> str:
        shapes = " → ".join("x".join(map(str, shape)) for shape in (self.start, *self.shapes))
        return f"ConvSystem({shapes})"

    @property
    def start(self) -> Shape:
        """(c, h, w) of the input."""
        return self.channels, *self.size

    @cached_property
    def shapes(self) -> list[Shape]:
        """(c, h, w) after every stage."""
        return chain_shapes(self.stages, self.start)[1:]

    @property
    def inputs(self) -> int:
        return size_of(self.start)

    @property
    def outputs(self) -> int:
        return size_of(self.shapes[-1])

    @cached_property
    def units(self) -> int:
        """Activations, every pixel counted."""
        return unit_count(self.stages, self.start)

    def __call__(self, x: Any) -> Any:
        """y (..., c′, h′, w′), with a head (..., p), at x (..., c, h, w): Torch or NumPy, as x is.

        Raises:
            ShapeError: other images. InvalidInput: an activation is unknown.
        """
        if not isinstance(x, Tensor):
            return self(torch.as_tensor(np.array(x, dtype=np.float64))).numpy()
        if x.shape[-3:] != self.start:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, but images {self.start} are needed in the end."
            )
        if not x.is_floating_point():
            raise InvalidInput(
                f"x has dtype {x.dtype}, but must be floating point; use x.double()."
            )
        y = apply_all(self.stages, x.reshape(-1, *self.start))
        return y.reshape(*x.shape[:-3], *y.shape[1:])

    def unroll(self) -> System:
        """The same network on flattened images (channel, row, column), as dense matrices.

        Between linear stages that follow each other stand units of slope 1, so that the entries are
        the stored weights, whose products would be rounded.

        Raises:
            InvalidInput: too large for that.
        """
        if not self.unrolls:
            raise InvalidInput(
                f"ConvSystem: inputs, units and outputs are {self._unrolled_size} together, but "
                f"unrolled may be {UNROLLED}. Use smaller images, or verify it by frequency: as a "
                "whole, in norm 2."
            )
        return unroll_all(spaced(self.stages), self.start)

    @property
    def unrolls(self) -> bool:
        """Whether it is small enough for `unroll`."""
        return self._unrolled_size <= UNROLLED

    @cached_property
    def _unrolled_size(self) -> int:
        return self.inputs + unit_count(spaced(self.stages), self.start) + self.outputs

    def digest(self) -> str:
        """SHA-256 over the stages and every array, bit for bit: what a certificate is tied to."""
        text, arrays = self._packed()
        h = hashlib.sha256(b"sdplip convolutions 1" + text.encode())
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name], dtype="<f8")
            h.update(f"{name}{array.shape}".encode() + array.tobytes())
        return h.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write an `.npz` file, atomically: the arrays, and the stages as text."""
        text, arrays = self._packed()

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(file, stages=np.asarray(text), **arrays)  # type: ignore[arg-type]

        write_named(Path(path), write)

    @classmethod
    def load(cls, path: str | Path, size: Pair | None = None) -> ConvSystem:
        """Read an `.npz` file: what `save` wrote, or a chain K0 b0 K1 b1 … alpha beta.

        Args:
            size: of the images, for a chain without an array `size`; None is 28 x 28.

        Raises:
            InvalidInput: unreadable, another kind of file, or with unknown arrays.
        """
        from ._files import load

        network = load(path, size)
        if not isinstance(network, cls):
            raise InvalidInput(f"{path}: it is a dense system. Use System.load.")
        return network

    def _packed(self) -> tuple[str, dict[str, Array]]:
        arrays: dict[str, Array] = {}
        content = {
            "channels": self.channels,
            "size": self.size,
            "stages": pack(self.stages, arrays),
        }
        return json.dumps(content), arrays


def pack(stages: Sequence[Stage], arrays: dict[str, Array]) -> list[dict[str, Any]]:
    """The stages as JSON; their arrays go to `arrays`, numbered in this order."""
    packed: list[dict[str, Any]] = []
    for stage in stages:
        k = len(arrays) // 2
        match stage:
            case Convolve():
                arrays |= {f"K{k}": stage.weight, f"b{k}": stage.bias}
                keep = ("stride", "padding", "padding_mode")
                packed.append({"convolve": k, **{name: getattr(stage, name) for name in keep}})
            case Activate():
                arrays |= {f"alpha{k}": stage.alpha, f"beta{k}": stage.beta}
                packed.append({"activate": k, "name": stage.name})
            case Pool():
                packed.append({"pool": stage.size})
            case Add():
                body = pack(stage.body, arrays)
                packed.append({"add": body, "skip": pack(stage.skip, arrays)})
            case Head():
                arrays |= {f"W{k}": stage.weight, f"b{k}": stage.bias}
                packed.append({"head": k})
    return packed


def unpack(packed: Sequence[dict[str, Any]], arrays: dict[str, Array]) -> list[Stage]:
    """The stages that `pack` described; KeyError or TypeError where it did not."""
    stages: list[Stage] = []
    for kept in packed:
        match kept:
            case {"convolve": k, **rest}:
                stages.append(Convolve(arrays.pop(f"K{k}"), arrays.pop(f"b{k}"), **rest))
            case {"activate": k, "name": name}:
                stages.append(Activate(name, arrays.pop(f"alpha{k}"), arrays.pop(f"beta{k}")))
            case {"pool": size}:
                stages.append(Pool(size))
            case {"add": body, "skip": skip}:
                first = unpack(body, arrays)
                stages.append(Add(tuple(first), tuple(unpack(skip, arrays))))
            case {"head": k}:
                stages.append(Head(arrays.pop(f"W{k}"), arrays.pop(f"b{k}")))
            case _:
                raise KeyError(f"an unknown stage {kept!r}")
    return stages
