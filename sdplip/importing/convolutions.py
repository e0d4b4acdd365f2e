"""Tensors of a network as chains of convolutions, for networks too large to unroll."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._arrays import Array
from ..convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool, Stage
from ..errors import InvalidInput
from ..system import UNKNOWN, System
from .values import LIMIT, Affine, Network, Reading, Slopes, Term, TooLarge, Value

COMFORTABLE = 6000
"""From more inputs and units on, a chain of convolutions is kept as one."""
MOST_PIXELS = 1 << 22
CHUNK = 256
"""How many pixels go through a dense layer at a time, to read off its weights."""


@dataclass(frozen=True, eq=False)
class Map(Value):
    """An image (1, c, h, w) after the stages from the input, or the output of a dense head.

    Attributes:
        before: the image before the last stage; None at the input.
        stage: the last stage.
        size: the shape of this tensor, whatever the order of its entries is that of the image.
        image: (c, h, w); of what the head is applied to, where there is one.
        padding, mode: what was put around the image (top, bottom, left, right), as a convolution
            that follows pads.
    """

    network: Reading
    before: Map | None
    stage: Stage | None
    size: torch.Size
    image: tuple[int, int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    mode: str = "zeros"

    @property
    def shape(self) -> torch.Size:
        return self.size

    def then(self, stage: Stage) -> Map:
        if isinstance(self.stage, Head) or tuple(self.size[-3:]) != self.image:
            raise self._refused("needs an image")
        return self._followed(stage)

    def _followed(self, stage: Stage) -> Map:
        image = stage.shape(self.image)
        return Map(self.network, self, stage, torch.Size((*self.size[:-3], *image)), image)

    def linear(self, f: Callable[[Tensor], Tensor]) -> Map:
        """A change of shape alone, or a dense head."""
        if any(self.padding):
            raise self._refused("pads an image without a convolution after it")
        if not isinstance(self.stage, Head):
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(self.size, dtype=torch.float64, generator=generator)
            out = f(probe)
            # A linear map that keeps a random vector is the identity.
            if torch.equal(out.reshape(-1), probe.reshape(-1)):
                return replace(self, size=out.shape)
        head, count = self.stage if isinstance(self.stage, Head) else None, prod(self.image)
        out = f(torch.tensor(head.bias if head else np.zeros(count)).reshape(self.size))
        if count * max(out.numel(), CHUNK) > LIMIT:
            raise TooLarge(f"At {self.network.where} a dense layer is too large.")
        parts = []
        for first in range(0, count, CHUNK):
            pixels = np.arange(first, min(first + CHUNK, count))
            rows = head.weight.T[pixels] if head else np.equal.outer(pixels, np.arange(count))
            part = torch.tensor(rows, dtype=torch.float64).reshape(-1, *self.size)
            parts.append(torch.vmap(f)(part).reshape(len(pixels), -1))
        matrix = torch.cat(parts).mT
        before = self.before if isinstance(self.stage, Head) else self
        stage = Head(matrix.numpy(), out.reshape(-1).numpy())
        return Map(self.network, before, stage, out.shape, self.image)

    def plus(self, other: Term) -> Map:
        if isinstance(other, Map):
            return self._sum(other)
        assert not isinstance(other, Value)
        if isinstance(self.stage, Head):
            bias = torch.tensor(self.stage.bias).reshape(self.size) + other
            if bias.shape != self.size:
                raise self._refused("adds a larger tensor")
            stage = Head(self.stage.weight, bias.reshape(-1).numpy())
            return replace(self, stage=stage)
        return self._scaled(np.ones(self.image[0]), self._per_channel(other))

    def times(self, factor: Tensor | float) -> Map:
        if isinstance(self.stage, Head):
            return self.linear(lambda t: t * factor)
        return self._scaled(self._per_channel(factor), np.zeros(self.image[0]))

    def gated(self, other: Map) -> Map:
        """x · y, which is SiLU where one is the sigmoid of the other."""
        for x, y in ((self, other), (other, self)) if self.size == other.size else ():
            if y.before is x and isinstance(y.stage, Activate) and y.stage.name == "sigmoid":
                return x.then(Activate("silu"))
        raise self._refused("multiplies images")

    def _per_channel(self, value: Tensor | float) -> Array:
        if torch.is_complex(torch.as_tensor(value)):
            raise self._refused("computes complex numbers")
        full = torch.as_tensor(value, dtype=torch.float64).expand(self.size)
        flat = full.reshape(self.image[0], -1)
        if tuple(self.size[-3:]) != self.image or bool((flat != flat[:, :1]).any()):
            raise self._refused("has a constant that differs between the pixels")
        return flat[:, 0].numpy()

    def _scaled(self, factor: Array, shift: Array) -> Map:
        """factor · x + shift by channel: in the convolution before, or as one of a single pixel."""
        last = self.stage
        if isinstance(last, Convolve) and self.before is not None:
            weight = factor[:, None, None, None] * last.weight
            bias = factor * last.bias + shift
            return replace(self, stage=replace(last, weight=weight, bias=bias))
        return self.then(Convolve(np.diag(factor)[:, :, None, None], shift))

    def convolved(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        pads: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Map:
        if weight.dim() != 4:
            raise self._refused("is no convolution of images")
        out, inner, *taps = weight.shape
        spread = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
        kernel = torch.zeros(out, inner * groups, *spread, dtype=torch.float64)
        each = out // groups
        for g in range(groups):
            rows = slice(g * each, (g + 1) * each)
            columns = slice(g * inner, (g + 1) * inner)
            kernel[rows, columns, :: dilation[0], :: dilation[1]] = weight[rows]
        shift = None if bias is None else bias.numpy()
        own, mode = (*pads[0], *pads[1]), self.mode
        if (any(own) and mode != "zeros") or min(*own, *self.padding) < 0:
            raise self._refused("pads an image twice, or cuts it")
        padding = tuple(a + b for a, b in zip(own, self.padding, strict=True))
        stage = Convolve(kernel.numpy(), shift, tuple(stride), padding, mode)  # type: ignore[arg-type]
        return self._followed(stage) if any(self.padding) else self.then(stage)

    def padded(self, sides: Sequence[int], mode: str) -> Map:
        flat = (*sides, 0, 0, 0, 0)[:4]
        modes = {"constant": "zeros", "circular": "circular"}
        plain = tuple(self.size[-3:]) == self.image and mode in modes
        if not plain or min(flat) < 0 or any(sides[4:]) or isinstance(self.stage, Head):
            raise self._refused("pads other than an image, with zeros or circularly")
        left, right, top, bottom = flat
        c, h, w = self.image
        size = torch.Size((*self.size[:-3], c, h + top + bottom, w + left + right))
        return replace(self, size=size, padding=(top, bottom, left, right), mode=modes[mode])

    def averaged(
        self, size: Sequence[int], stride: Sequence[int], pads: Sequence[tuple[int, int]]
    ) -> Map:
        exact = not any(map(any, pads)) and (
            list(size) == list(stride) or tuple(size) == self.image[1:]
        )
        if exact and len(size) == 2:
            return self.then(Pool(tuple(size)))  # type: ignore[arg-type]
        taps = torch.full((self.image[0], 1, *size), 1 / prod(size), dtype=torch.float64)
        return self.convolved(taps, None, stride, pads, [1] * len(size), self.image[0])

    def activate(self, names: str | NDArray[np.str_], slopes: Slopes | None = None) -> Map:
        distinct = np.unique(names)
        if len(distinct) > 1:
            raise self._refused("has an activation that differs between units")
        name = str(distinct[0])
        if slopes is None:
            return self.then(Activate(name))
        return self.then(Activate(UNKNOWN, np.array(slopes[0]), np.array(slopes[1])))

    def stages(self) -> tuple[Stage, ...]:
        """From the input to here."""
        return tuple(step.stage for step in self._path() if step.stage is not None)

    def _path(self) -> list[Map]:
        return [*(self.before._path() if self.before else []), self]

    def _sum(self, other: Map) -> Map:
        """Both as chains from where they part."""
        mine, theirs = self._path(), other._path()
        common = {id(step.stage) for step in theirs}
        last = max(i for i, step in enumerate(mine) if id(step.stage) in common)
        fork = mine[last]
        body = tuple(step.stage for step in mine[last + 1 :])
        there = next(i for i, step in enumerate(theirs) if step.stage is fork.stage)
        skip = tuple(step.stage for step in theirs[there + 1 :])
        images = not any((*self.padding, *other.padding)) and self.size == other.size
        if not images or any(isinstance(stage, Head) for stage in (*body, *skip)):
            raise self._refused("adds tensors that are no images of one size")
        plain = torch.Size((*self.size[:-3], *fork.image))
        fork = replace(fork, size=plain, padding=(0, 0, 0, 0), mode="zeros")
        return fork.then(Add(body, skip))  # type: ignore[arg-type]

    def _refused(self, what: str) -> InvalidInput:
        return InvalidInput(f"{self.network.where} {what}, which a chain of convolutions cannot.")


def image(size: tuple[int, int, int], shape: Sequence[int] | None = None) -> Map:
    """The input of a network of convolutions."""
    return Map(Reading(), None, None, torch.Size(size if shape is None else shape), size)


def build(shape: Sequence[int], follow: Callable[[Value], Value]) -> System | ConvSystem:
    """The system of what `follow` does to the input: dense, or convolutions where too large.

    Args:
        shape: of the input; (1, c, h, w) or (c, h, w) for convolutions.
        follow: reads the network, from the input to its output.

    Raises:
        TooLarge: too large to unroll, and no chain of convolutions.
    """
    try:
        return _dense(shape, follow, COMFORTABLE)
    except TooLarge:
        pass
    try:
        return _convolutions(shape, follow)
    except InvalidInput as error:
        reason = str(error)
    try:
        return _dense(shape, follow, float("inf"))
    except TooLarge as error:
        raise TooLarge(f"{error} It cannot stay a chain of convolutions: {reason}") from None


def _dense(shape: Sequence[int], follow: Callable[[Value], Value], most: float) -> System:
    network = Network(shape, most)
    y = follow(network.input)
    assert isinstance(y, Affine)
    return network.system(y)


def _convolutions(shape: Sequence[int], follow: Callable[[Value], Value]) -> ConvSystem:
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise InvalidInput(f"the input, of shape {tuple(shape)}, is not one image: (1, C, H, W).")
    if prod(shape) > MOST_PIXELS:
        raise InvalidInput(f"the input, of shape {tuple(shape)}, is too large an image.")
    c, h, w = shape[-3:]
    y = follow(image((c, h, w), shape))
    assert isinstance(y, Map)
    return ConvSystem(y.stages(), c, (h, w))
