"""Tensors of a network as affine functions of its input and hidden units.

Every entry of every tensor is offset + Σ coefficient · variable; the variables are the entries of
the input, then the units in the order in which they appear. Whatever is linear acts on the
coefficients; an activation turns its argument into rows of the system and its result into new
variables. So a skip connection of any shape needs no thought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..activations import elementwise
from ..errors import InvalidInput
from ..system import System

LIMIT = 1 << 27
"""The most numbers that one tensor of coefficients may hold: 1 GiB."""

POWERS = ("square", "cube")
"""Not Lipschitz: allowed only inside of a function whose whole is known, as in GELU by tanh."""

Slopes = tuple[float, float]


class TooLarge(InvalidInput):
    """A network whose dense system would not fit into memory."""


@dataclass(frozen=True, eq=False)
class Block:
    """Units that appeared together: their pre-activations and what they compute."""

    first: int
    columns: Tensor
    data: Tensor
    offset: Tensor
    names: NDArray[np.str_]
    slopes: Slopes | None
    where: str


class Reading:
    """A network while it is read.

    Attributes:
        where: the node being read, for messages.
    """

    where = "the input"


class Network(Reading):
    """The variables of a system while it is read: inputs, then blocks of units.

    Args:
        shape: of the input.
        most: the most variables.
    """

    def __init__(self, shape: Sequence[int], most: float = math.inf) -> None:
        self.inputs, self.units, self.blocks, self.most = prod(shape), 0, list[Block](), most
        if not self.inputs:
            raise InvalidInput(f"The input has shape {tuple(shape)}, which holds nothing.")
        self.input = self._fresh(self.inputs, shape, 0)

    def _fresh(self, count: int, shape: Sequence[int], first: int) -> Affine:
        self.fits(count * count)
        data = torch.eye(count, dtype=torch.float64).reshape(count, *shape)
        offset = torch.zeros(tuple(shape), dtype=torch.float64)
        return Affine(self, torch.arange(first, first + count), data, offset)

    def fits(self, numbers: int) -> None:
        limit = min(LIMIT, self.most**2)
        if numbers > limit:
            raise TooLarge(
                f"At {self.where} the unrolled system needs arrays of {numbers:,} numbers; the "
                f"limit is {limit:,}. Verify smaller images or a part of the network."
            )

    def add_units(self, v: Affine, names: str | NDArray[np.str_], slopes: Slopes | None) -> Affine:
        """σ(v) as new variables; slopes are given where the function is unknown."""
        count, first = v.offset.numel(), self.inputs + self.units
        if first + count > self.most:
            raise TooLarge(f"At {self.where} the system has {first + count:,} inputs and units.")
        every = np.broadcast_to(np.asarray(names, dtype=np.str_), tuple(v.shape)).reshape(-1)
        rows = v.data.reshape(len(v.columns), count)
        fresh = self._fresh(count, v.shape, first)
        self.blocks.append(
            Block(first, v.columns, rows, v.offset.reshape(-1), every, slopes, self.where)
        )
        self.units += count
        return fresh

    def block_of(self, variable: int) -> Block | None:
        found = [block for block in self.blocks if block.first <= variable]
        return found[-1] if found else None

    def system(self, y: Affine) -> System:
        """The system with output y, without the units that do not reach it."""
        if not y.offset.numel():
            raise InvalidInput(f"The output has shape {tuple(y.shape)}, which holds nothing.")
        outputs = y.data.reshape(len(y.columns), -1)
        used = torch.zeros(self.inputs + self.units, dtype=torch.bool)
        used[y.columns] = (outputs != 0).any(1)
        for block in reversed(self.blocks):
            mine = used[block.first : block.first + len(block.offset)]
            used[block.columns] |= (block.data[:, mine] != 0).any(1)
        keep = used[self.inputs :]
        n, m = int(keep.sum()), self.inputs
        self.fits(n * n)
        target = torch.cat([torch.arange(m), m + keep.cumsum(0) - 1])
        used[:m] = True

        def rows(columns: Tensor, data: Tensor) -> Tensor:
            out = torch.zeros(data.shape[1], m + n, dtype=torch.float64)
            out[:, target[columns[used[columns]]]] = data[used[columns]].mT
            return out

        kept, names, slopes = [torch.zeros(0, m + n).double()], list[str](), list[Slopes]()
        offsets = [torch.zeros(0).double()]
        for block in self.blocks:
            mine = keep[block.first - m :][: len(block.offset)]
            for name in block.names[mine.numpy()]:
                if name in POWERS:
                    raise InvalidInput(
                        f"{block.where} is a {name}, whose slopes are not bounded; it is known "
                        "only inside of GELU."
                    )
                names.append(str(name))
                slopes.append(block.slopes or _own(str(name)))
            kept.append(rows(block.columns, block.data[:, mine]))
            offsets.append(block.offset[mine])
        inner, outer = torch.cat(kept), rows(y.columns, outputs)
        alpha, beta = np.array(slopes, dtype=np.float64).reshape(n, 2).T
        return System(
            inner[:, m:].numpy(),
            inner[:, :m].numpy(),
            outer[:, m:].numpy(),
            outer[:, :m].numpy(),
            torch.cat(offsets).numpy(),
            y.offset.reshape(-1).numpy(),
            alpha,
            beta,
            np.array(names, dtype=np.str_),
        )


def _own(name: str) -> Slopes:
    found = elementwise(name)
    return found.alpha, found.beta


class Value:
    """A tensor of the network being read, in one of two forms: `Affine`, or `convolutions.Map`."""

    network: Reading

    @property
    def shape(self) -> torch.Size:
        raise NotImplementedError

    def linear(self, f: Callable[[Tensor], Tensor]) -> Value:
        """f of this tensor, where f is exactly linear: no constant term."""
        raise NotImplementedError

    def plus(self, other: Term) -> Value:
        raise NotImplementedError

    def activate(self, names: str | NDArray[np.str_], slopes: Slopes | None = None) -> Value:
        """An elementwise function; slopes are given where it is unknown."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Affine(Value):
    """A tensor: data[k] are the coefficients of variable columns[k], each of the tensor's shape."""

    network: Network
    columns: Tensor
    data: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        if self.data.is_complex() or self.offset.is_complex():
            raise InvalidInput(f"{self.network.where} computes complex numbers.")

    @property
    def shape(self) -> torch.Size:
        return self.offset.shape

    def linear(self, f: Callable[[Tensor], Tensor]) -> Affine:
        offset = f(self.offset)
        self.network.fits(len(self.columns) * offset.numel())
        return Affine(self.network, self.columns, torch.vmap(f)(self.data), offset)

    def plus(self, other: Term) -> Affine:
        if isinstance(other, Value):
            return join([self, other], lambda parts: parts[0] + parts[1])
        offset = self.offset + other
        data = self.data
        if offset.shape != self.shape:
            data = torch.vmap(lambda t: t.expand(offset.shape))(data)
        return Affine(self.network, self.columns, data, offset)

    def widened(self, columns: Tensor) -> Tensor:
        """The coefficients of a sorted superset of this tensor's columns."""
        if len(columns) == len(self.columns):
            return self.data
        self.network.fits(len(columns) * self.offset.numel())
        out = torch.zeros(len(columns), *self.shape, dtype=torch.float64)
        out[torch.searchsorted(columns, self.columns)] = self.data
        return out

    def activate(self, names: str | NDArray[np.str_], slopes: Slopes | None = None) -> Affine:
        return self.network.add_units(self, names, slopes)


Term = Value | Tensor


def join(parts: Sequence[Term], f: Callable[[list[Tensor]], Tensor]) -> Any:
    """f of several tensors, where f is exactly linear in all of them together."""
    if any(isinstance(part, Value) and not isinstance(part, Affine) for part in parts):
        raise InvalidInput("images are joined other than by a sum.")
    values = [part for part in parts if isinstance(part, Affine)]
    if not values:
        return f([torch.as_tensor(part) for part in parts])
    columns = torch.cat([value.columns for value in values]).unique()
    offsets = [p.offset if isinstance(p, Affine) else torch.as_tensor(p).double() for p in parts]
    offset, network = f(offsets), values[0].network
    network.fits(len(columns) * offset.numel())
    data = [
        p.widened(columns)
        if isinstance(p, Affine)
        else torch.zeros(1, *p.shape, dtype=torch.float64).expand(len(columns), *p.shape)
        for p in parts
    ]
    return Affine(network, columns, torch.vmap(lambda *t: f(list(t)))(*data), offset)
