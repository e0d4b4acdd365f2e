"""ONNX operators that move, select or sum entries: linear, whatever the entries are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInput
from . import operations as op
from .values import LIMIT, Term, Value, join

FLOATS, INTEGERS = {1: torch.float64, 11: torch.float64}, {6: torch.int32, 7: torch.int64}


def _integers(value: Any, what: str) -> list[int]:
    op.constant(value, f"takes as {what}")
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.dim() > 1:
            raise InvalidInput(f"{what} has shape {tuple(value.shape)} and is no list of integers.")
        return [int(i) for i in value.reshape(-1)]
    return [int(i) for i in value]


def _fitting(shape: Sequence[int]) -> list[int]:
    if any(size < 0 for size in shape) or prod(shape) > LIMIT:
        raise InvalidInput(f"a tensor of shape {tuple(shape)} is too large or has no size.")
    return list(shape)


def _reshape(x: Term, shape: Tensor, *, allowzero: int = 0) -> Term:
    sizes = _integers(shape, "shape")
    if not allowzero:
        if len(sizes) > len(x.shape) and 0 in sizes[len(x.shape) :]:
            raise InvalidInput(f"shape = {sizes} copies a dimension of {tuple(x.shape)} amiss.")
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return op.linear(x, lambda t: t.reshape(sizes))


def _flatten(x: Term, *, axis: int = 1) -> Term:
    rows = prod(x.shape[:axis])
    return op.linear(x, lambda t: t.reshape(rows, -1))


def _transpose(x: Term, *, perm: Sequence[int] | None = None) -> Term:
    order = list(perm) if perm is not None else list(range(len(x.shape)))[::-1]
    return op.linear(x, lambda t: t.permute(order))


def _squeeze(x: Term, where: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Term:
    if where is None and axes is None:
        return op.linear(x, torch.squeeze)
    places = tuple(_integers(where if where is not None else axes, "axes"))
    if any(x.shape[place] != 1 for place in places):
        raise InvalidInput(f"axes {places} of shape {tuple(x.shape)} are not all of size 1.")
    return op.linear(x, lambda t: t.squeeze(places))


def _unsqueeze(x: Term, where: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Term:
    places = _integers(where if where is not None else axes, "axes")
    rank = len(x.shape) + len(places)
    sizes = iter(x.shape)
    new = {place % rank for place in places}
    shape = [1 if i in new else next(sizes) for i in range(rank)]
    return op.linear(x, lambda t: t.reshape(shape))


def _concat(*parts: Term, axis: int) -> Term:
    return join(parts, lambda tensors: torch.cat(tensors, axis))


def _slice(
    x: Term,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Term:
    first, last = _integers(starts, "starts"), _integers(ends, "ends")
    places = range(len(first)) if axes is None else _integers(axes, "axes")
    strides = [1] * len(first) if steps is None else _integers(steps, "steps")
    for place, start, end, step in zip(places, first, last, strides, strict=True):
        x = op.select(x, place, range(x.shape[place])[start:end:step])
    return x


def _gather(x: Term, index: Tensor, *, axis: int = 0) -> Term:
    op.constant(index, "gathers by")
    size = x.shape[axis]
    flat = [int(i) for i in index.reshape(-1)]
    if any(not -size <= i < size for i in flat):
        raise InvalidInput(f"indices {flat[:8]} leave an axis of size {size}.")
    axis %= len(x.shape)
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
    return op.linear(op.select(x, axis, [i % size for i in flat]), lambda t: t.reshape(shape))


def reducing(f: Callable[[Term, list[int], bool], Term]) -> Callable[..., Term]:
    """An operator that reduces axes, by f(x, axes, whether they are kept)."""

    def reduce(
        x: Term,
        where: Tensor | None = None,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Term:
        given = where if where is not None else axes
        places = [] if given is None else _integers(given, "axes")
        if not places and noop_with_empty_axes:
            return x
        return f(x, places or list(range(len(x.shape))), bool(keepdims))

    return reduce


def _summed(f: Callable[..., Tensor]) -> Callable[..., Term]:
    return reducing(lambda x, axes, keep: op.linear(x, lambda t: f(t, dim=axes, keepdim=keep)))


def _global_average(x: Term) -> Term:
    axes = len(x.shape) - 2
    return op.average(x, x.shape[2:], [1] * axes, [(0, 0)] * axes, True)


def _pad(
    x: Term,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Term:
    modes = {"wrap": "circular", "edge": "replicate", "constant": "constant", "reflect": "reflect"}
    if mode not in modes:
        raise InvalidInput(f"Pad with mode {mode!r} is not translated.")
    flat, rank = _integers(pads, "pads"), len(x.shape)
    places = list(range(rank)) if axes is None else [a % rank for a in _integers(axes, "axes")]
    sides = [(0, 0)] * rank
    for k, place in enumerate(places):
        sides[place] = flat[k], flat[k + len(places)]
    _fitting([size + sum(pair) for size, pair in zip(x.shape, sides, strict=True)])
    # PyTorch's other modes take the last axes alone.
    while mode != "constant" and sides and sides[0] == (0, 0):
        sides = sides[1:]
    around = [side for pair in reversed(sides) for side in pair]
    return op.pad(x, around, modes[mode], None if value is None else float(value))


def _expand(x: Term, shape: Tensor) -> Term:
    sizes = _fitting(torch.broadcast_shapes(x.shape, _fitting(_integers(shape, "shape"))))
    return op.linear(x, lambda t: t.expand(sizes))


def _cast(x: Term, *, to: int, saturate: int = 1) -> Term:
    if isinstance(x, Value):
        if to not in FLOATS:
            raise InvalidInput(f"Cast to type {to} rounds a tensor that depends on the input.")
        return x
    kinds = {**FLOATS, **INTEGERS, 9: torch.bool}
    if to not in kinds:
        raise InvalidInput(f"Cast to type {to} is not translated.")
    return x.to(kinds[to])


def _shape(x: Term, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _filled(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    single = torch.zeros(1).double() if value is None else value.reshape(1)
    return single.expand(_fitting(_integers(shape, "shape")))


def _split(
    x: Term,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    count: int,
    num_outputs: int | None = None,
    split: Sequence[int] | None = None,
) -> list[Term]:
    given = sizes if sizes is not None else split
    whole = x.shape[axis]
    each = _integers(given, "split") if given is not None else [-(-whole // count)] * count
    if given is None:
        each[-1] = whole - sum(each[:-1])
    if len(each) != count or sum(each) != whole or min(each) < 0:
        raise InvalidInput(f"split = {each} does not divide an axis of size {whole}.")
    ends = [sum(each[: k + 1]) for k in range(count)]
    return [op.select(x, axis, range(e - n, e)) for e, n in zip(ends, each, strict=True)]


LAYOUT: dict[str, Callable[..., Term | list[Term]]] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GlobalAveragePool": _global_average,
    "Identity": lambda x: x,
    "Pad": _pad,
    "ReduceMean": _summed(torch.mean),
    "ReduceSum": _summed(torch.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
