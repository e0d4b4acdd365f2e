"""The stages of a network of convolutions: what each computes, and its matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ._arrays import Array, finite, vector
from .activations import elementwise
from .errors import InvalidInput, ShapeError
from .system import UNKNOWN, System

Shape = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Convolve:
    """A convolution as `torch.nn.Conv2d` computes it; groups and dilation are zeros in the weight.

    Args:
        weight, bias: (c_out, c_in, k₁, k₂), (c_out,); float64, finite; no bias is zero.
        stride: one number or two (height, width).
        padding: "same" (by k - 1 in all), "valid", one number, two (height, width), or four
            (top, bottom, left, right), which it is afterwards.
        padding_mode: "zeros" or "circular".

    Raises:
        ShapeError, InvalidInput: weights that are none, or padding for which no bound holds.
    """

    weight: Array
    bias: Array = None  # type: ignore[assignment]
    stride: Pair = 1  # type: ignore[assignment]
    padding: tuple[int, int, int, int] = "same"  # type: ignore[assignment]
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        weight = _tensor("weight", self.weight, 4)
        if not weight.size:
            raise ShapeError(f"weight has shape {weight.shape}, but no side may be 0.")
        bias = vector("bias", finite("bias", 0.0 if self.bias is None else self.bias), len(weight))
        reach = (weight.shape[2] - 1, weight.shape[3] - 1)
        padding = _padding(self.padding, reach)
        if self.padding_mode not in ("zeros", "circular"):
            raise InvalidInput(
                f"Convolve: padding_mode = {self.padding_mode!r}, but bounds hold for zeros and "
                "circular only: the others repeat pixels, which expands."
            )
        if self.padding_mode == "circular" and any(
            padding[2 * a] + padding[2 * a + 1] > reach[a] for a in range(2)
        ):
            raise InvalidInput(
                f"Convolve: padding = {padding}, but circular padding by more than kernel - 1 in "
                "all repeats pixels, which expands. Use padding='same'."
            )
        put(self, weight=weight, bias=bias, padding=padding, stride=pair("stride", self.stride))

    def shape(self, shape: Shape) -> Shape:
        """(c, h, w) of the outputs for inputs (c, h, w)."""
        if shape[0] != self.weight.shape[1]:
            raise ShapeError(
                f"Convolve: the weight takes {self.weight.shape[1]} channels, but gets {shape[0]}."
            )
        sizes = []
        for axis, n in enumerate(shape[1:]):
            before, after = self.padding[2 * axis : 2 * axis + 2]
            kernel, stride = self.weight.shape[2 + axis], self.stride[axis]
            if n + before + after < kernel:
                raise ShapeError(
                    f"Convolve: the image is {shape[1]} x {shape[2]}, smaller than the kernel "
                    f"{self.weight.shape[2:]} with its padding. Use padding='same'."
                )
            if self.padding_mode == "circular" and (n % stride or max(before, after) > n):
                raise ShapeError(
                    f"Convolve: the image is {shape[1]} x {shape[2]}, but with circular padding "
                    f"its sides must be multiples of the stride {self.stride} and at least as "
                    f"large as the padding {self.padding}. Use padding_mode='zeros'."
                )
            sizes.append((n + before + after - kernel) // stride + 1)
        return len(self.weight), sizes[0], sizes[1]

    def apply(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.padding
        mode = "circular" if self.padding_mode == "circular" else "constant"
        x = F.pad(x, (left, right, top, bottom), mode=mode)
        weight, bias = (torch.as_tensor(a.copy()).to(x) for a in (self.weight, self.bias))
        return F.conv2d(x, weight, bias, self.stride)

    def unroll(self, shape: Shape) -> System:
        out = self.shape(shape)
        matrix = np.zeros((*out, *shape))
        for i, j in np.ndindex(self.weight.shape[2:]):
            y, rows = self._reached(0, i, out[1], shape[1])
            x, columns = self._reached(1, j, out[2], shape[2])
            taps = self.weight[:, :, i, j]
            matrix[:, y[:, None], x, :, rows[:, None], columns] += taps
        bias = np.repeat(self.bias, out[1] * out[2]) + 0.0
        return System.linear(matrix.reshape(size_of(out), size_of(shape)), bias)

    def _reached(self, axis: int, tap: int, count: int, n: int) -> tuple[Any, Any]:
        """The outputs along an axis whose tap lies on a pixel, and these pixels."""
        place = np.arange(count) * self.stride[axis] + tap - self.padding[2 * axis]
        if self.padding_mode == "circular":
            return np.arange(count), place % n
        inside = np.flatnonzero((place >= 0) & (place < n))
        return inside, place[inside]


@dataclass(frozen=True, eq=False)
class Activate:
    """An activation on every pixel; alpha and beta (scalars or one per channel) as in `System`."""

    name: str = "relu"
    alpha: Array = None  # type: ignore[assignment]
    beta: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        slopes = {k: finite(k, getattr(self, k)) for k in ("alpha", "beta") if self._given(k)}
        n = max([1, *(s.size for s in slopes.values())])
        # A system without inputs and outputs checks the slopes against the activation's own.
        zero = np.zeros((n, n))
        units = System(zero, zero[:, :0], zero[:0], zero[:0, :0], activation=self.name, **slopes)  # type: ignore[arg-type]
        put(self, alpha=units.alpha, beta=units.beta)

    def _given(self, name: str) -> bool:
        return getattr(self, name) is not None

    def slopes(self, channels: int) -> tuple[Array, Array]:
        """alpha and beta (channels,)."""
        if self.alpha.size not in (1, channels):
            raise ShapeError(
                f"Activate: slopes for {self.alpha.size} channels, but there are {channels}."
            )
        low, high = (np.broadcast_to(s, channels) for s in (self.alpha, self.beta))
        return low, high

    def shape(self, shape: Shape) -> Shape:
        self.slopes(shape[0])
        return shape

    def apply(self, x: Tensor) -> Tensor:
        if self.name == UNKNOWN:
            raise InvalidInput(
                "This network's activation is unknown (only its slopes are), so it has no value "
                "to compute. Give Activate(NAME)."
            )
        return elementwise(self.name)(x)

    def unroll(self, shape: Shape) -> System:
        n, pixels = size_of(shape), shape[1] * shape[2]
        alpha, beta = (np.repeat(s, pixels) for s in self.slopes(shape[0]))
        zero, eye = np.zeros((n, n)), np.eye(n)
        return System(zero, eye, eye, zero, alpha=alpha, beta=beta, activation=self.name)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Pool:
    """The average of every `size` block of pixels, as `torch.nn.AvgPool2d(size)`.

    Its weights are 1 / (size₁·size₂), rounded to float64.
    """

    size: Pair = 2  # type: ignore[assignment]

    def __post_init__(self) -> None:
        put(self, size=pair("size", self.size))

    def convolve(self, channels: int) -> Convolve:
        """The same as a convolution."""
        taps = np.full(self.size, 1 / (self.size[0] * self.size[1]))
        return Convolve(np.eye(channels)[..., None, None] * taps, None, self.size, "valid")  # type: ignore[arg-type]

    def shape(self, shape: Shape) -> Shape:
        if self.size[0] > shape[1] or self.size[1] > shape[2]:
            raise ShapeError(
                f"Pool: size = {self.size}, but the image is {shape[1]} x {shape[2]}. Use a "
                "smaller block."
            )
        return shape[0], shape[1] // self.size[0], shape[2] // self.size[1]

    def apply(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.size)

    def unroll(self, shape: Shape) -> System:
        return self.convolve(shape[0]).unroll(shape)


@dataclass(frozen=True, eq=False)
class Add:
    """body(x) + skip(x), two chains of stages; an empty one is the identity."""

    body: tuple[Stage, ...]
    skip: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        put(self, body=checked(self.body, Convolve, Activate, Pool, Add))
        put(self, skip=checked(self.skip, Convolve, Activate, Pool, Add))

    def shape(self, shape: Shape) -> Shape:
        body, skip = (chain_shapes(chain, shape)[-1] for chain in (self.body, self.skip))
        if body != skip:
            raise ShapeError(f"Add: the body gives {body}, but the skip {skip}; they must agree.")
        return body

    def apply(self, x: Tensor) -> Tensor:
        return apply_all(self.body, x) + apply_all(self.skip, x)

    def unroll(self, shape: Shape) -> System:
        return unroll_all(self.skip, shape) + unroll_all(self.body, shape)


@dataclass(frozen=True, eq=False)
class Head:
    """The dense last layer: weight (p, c·h·w) on the image flattened as torch does, bias (p,)."""

    weight: Array
    bias: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        weight = _tensor("weight", self.weight, 2)
        bias = finite("bias", 0.0 if self.bias is None else self.bias)
        put(self, weight=weight, bias=vector("bias", bias, len(weight)))

    def shape(self, shape: Shape) -> Shape:
        if self.weight.shape[1] != size_of(shape):
            raise ShapeError(
                f"Head: weight has shape {self.weight.shape}, but gets {shape}, which is "
                f"{size_of(shape)} numbers."
            )
        return len(self.weight), 1, 1

    def apply(self, x: Tensor) -> Tensor:
        weight, bias = (torch.as_tensor(a.copy()).to(x) for a in (self.weight, self.bias))
        return x.flatten(-3) @ weight.mT + bias

    def unroll(self, shape: Shape) -> System:
        self.shape(shape)
        return System.linear(self.weight + 0.0, self.bias + 0.0)


Stage = Convolve | Activate | Pool | Add | Head


def chain_shapes(stages: Sequence[Stage], shape: Shape) -> list[Shape]:
    """(c, h, w) before every stage, and after the last."""
    shapes = [shape]
    for stage in stages:
        shapes.append(stage.shape(shapes[-1]))
    return shapes


def unit_count(stages: Sequence[Stage], shape: Shape) -> int:
    count = 0
    for stage, before in zip(stages, chain_shapes(stages, shape), strict=False):
        if isinstance(stage, Activate):
            count += size_of(before)
        elif isinstance(stage, Add):
            count += unit_count(stage.body, before) + unit_count(stage.skip, before)
    return count


def apply_all(stages: Sequence[Stage], x: Tensor) -> Tensor:
    for stage in stages:
        x = stage.apply(x)
    return x


def spaced(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The same map with an identity activation between linear stages that follow each other.

    Unrolled, no weights are multiplied then: entries are weights as they are stored, but for sums
    of paths.
    """
    apart: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Add):
            stage = Add(spaced(stage.body), spaced(stage.skip))
        if apart and not isinstance(apart[-1], Activate) and _multiplies(stage):
            apart.append(Activate("identity"))
        apart.append(stage)
    return tuple(apart)


def _multiplies(stage: Stage) -> bool:
    """Whether weights meet what comes first."""
    if isinstance(stage, Add):
        return any(_multiplies(chain[0]) for chain in (stage.body, stage.skip) if chain)
    return not isinstance(stage, Activate)


def unroll_all(stages: Sequence[Stage], shape: Shape) -> System:
    shapes = chain_shapes(stages, shape)
    if not stages:
        return System.linear(np.eye(size_of(shape)))
    system = stages[0].unroll(shape)
    for stage, before in zip(stages[1:], shapes[1:], strict=False):
        system = stage.unroll(before) @ system
    return system


def checked(stages: Any, *kinds: type) -> tuple[Any, ...]:
    for stage in stages:
        if not isinstance(stage, kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise InvalidInput(
                f"{type(stage).__name__} is no stage that may stand here; use one of {names}."
            )
    return tuple(stages)


def size_of(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _tensor(name: str, value: Any, dimensions: int) -> Array:
    array = finite(name, value)
    if array.ndim != dimensions:
        raise ShapeError(f"{name} has shape {array.shape}, but must have {dimensions} dimensions.")
    return array


def pair(name: str, value: Any) -> Pair:
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(_whole(v) and v >= 1 for v in both):
        raise InvalidInput(f"{name} = {value!r}, but must be a whole number ≥ 1, or two of them.")
    return int(both[0]), int(both[1])


def _padding(value: Any, reach: Pair) -> tuple[int, int, int, int]:
    if isinstance(value, str):
        if value not in ("same", "valid"):
            raise InvalidInput(f"padding = {value!r}, but must be 'same', 'valid' or numbers.")
        value = [r * (value == "same") for r in reach]
        value = [value[0] // 2, (value[0] + 1) // 2, value[1] // 2, (value[1] + 1) // 2]
    ends = list(value) if isinstance(value, tuple | list) else [value, value]
    ends = [ends[0], ends[0], ends[1], ends[1]] if len(ends) == 2 else ends
    if len(ends) != 4 or not all(_whole(v) and v >= 0 for v in ends):
        raise InvalidInput(
            f"padding = {value!r}, but must be a whole number ≥ 0, two (height, width) or four "
            "(top, bottom, left, right)."
        )
    return int(ends[0]), int(ends[1]), int(ends[2]), int(ends[3])


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def put(stage: Any, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        object.__setattr__(stage, name, value)
