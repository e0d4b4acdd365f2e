"""Maxima of entries of tensors, in ReLU units: max(x, y) = y + relu(x - y), in a balanced tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidInput
from .convolutions import Map
from .operations import activate, add, linear, negative, select
from .values import Term, join

NOT_NEGATIVE = ("relu", "sigmoid", "hardsigmoid", "hardtanh(0.0,6.0)", "softplus")
"""Functions after which padding with zeros is, to a maximum, as good as with -inf."""

Windows = list[list[int]]
"""By output, the places along an axis that it is the maximum of."""


def greatest(*parts: Term) -> Term:
    if len(parts) == 1:
        return parts[0]
    half = (len(parts) + 1) // 2
    x, y = greatest(*parts[:half]), greatest(*parts[half:])
    return add(activate(add(x, negative(y)), "relu"), y)


def least(*parts: Term) -> Term:
    return negative(greatest(*map(negative, parts)))


def pool(
    x: Term,
    size: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> Term:
    """The maximum over windows of the last axes; padding, which is -inf, is left out of them."""
    first = len(x.shape) - len(size)
    places = [
        _windows(x.shape[first + k], size[k], stride[k], pads[k], dilation[k], ceil_mode)
        for k in range(len(size))
    ]
    for windows in places:
        _check(windows)
    if isinstance(x, Map):
        return _images(x, size, stride, pads, dilation, [len(w) for w in places])
    for k, windows in enumerate(places):
        x = _over(x, first + k, windows)
    return x


def adaptive_pool(x: Term, size: int | Sequence[int | None], axes: int) -> Term:
    """Windows that divide the last axes into so many parts, which may overlap by one entry."""
    counts = [size] * axes if isinstance(size, int) else list(size)
    first = len(x.shape) - axes
    for k, wanted in enumerate(counts):
        n = x.shape[first + k]
        count = n if wanted is None else wanted
        ends = [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
        if isinstance(x, Map) and count and n % count == 0:
            width, one = [1] * axes, [1] * axes
            width[k] = n // count
            x = pool(x, width, width, [(0, 0)] * axes, one)
        else:
            x = _over(x, first + k, [list(range(*pair)) for pair in ends])
    return x


def along(x: Term, dim: int | Sequence[int] = (), keepdim: bool = False) -> Term:
    """The maximum along axes; along all, where none is given."""
    rank = len(x.shape)
    axes = [dim] if isinstance(dim, int) else dim or range(rank)
    places = {range(rank)[axis] for axis in axes}
    if isinstance(x, Map) and places == {rank - 2, rank - 1}:
        x = adaptive_pool(x, 1, 2)
    else:
        for axis in places:
            x = _over(x, axis, [list(range(x.shape[axis]))])
    shape = [n for axis, n in enumerate(x.shape) if keepdim or axis not in places]
    return linear(x, lambda t: t.reshape(shape))


def least_along(x: Term, dim: int | Sequence[int] = (), keepdim: bool = False) -> Term:
    return negative(along(negative(x), dim, keepdim))


def _windows(
    length: int, size: int, stride: int, pads: tuple[int, int], dilation: int, ceil_mode: bool
) -> Windows:
    before, after = pads
    reach = dilation * (size - 1) + 1
    room = length + before + after - reach
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    # What begins in the padding behind is none.
    if ceil_mode and (count - 1) * stride >= length + before:
        count -= 1
    starts = range(-before, count * stride - before, stride)
    return [[i for i in range(s, s + reach, dilation) if 0 <= i < length] for s in starts]


def _check(windows: Windows) -> None:
    if not windows or not all(windows):
        raise InvalidInput("a maximum is over nothing but padding, or over nothing at all.")


def _over(x: Term, axis: int, windows: Windows) -> Term:
    if isinstance(x, Map):
        raise InvalidInput("an image has maxima over windows of its pixels only.")
    _check(windows)
    while max(map(len, windows)) > 1:
        # Windows that overlap share their pairs.
        halves = [[tuple(w[k : k + 2]) for k in range(0, len(w), 2)] for w in windows]
        met = sorted({part for parts in halves for part in parts}, key=lambda p: (-len(p), p))
        pairs = [part for part in met if len(part) == 2]
        low, high = (select(x, axis, [pair[k] for pair in pairs]) for k in (0, 1))
        alone = select(x, axis, [part[0] for part in met[len(pairs) :]])
        x = join([greatest(low, high), alone], lambda tensors: torch.cat(tensors, axis))
        place = {part: k for k, part in enumerate(met)}
        windows = [[place[part] for part in parts] for parts in halves]
    return select(x, axis, [window[0] for window in windows])


def _images(
    x: Map,
    size: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    counts: Sequence[int],
) -> Map:
    """One axis after the other, in windows of two where they divide without a rest."""
    if len(size) != 2:
        raise InvalidInput("it pools other than images.")
    padded_by_zeros = getattr(x.stage, "name", "") in NOT_NEGATIVE
    for k in (0, 1):
        width, step, spread, before = size[k], stride[k], dilation[k], pads[k][0]
        end = (counts[k] - 1) * step + spread * (width - 1) + 1
        around = before, max(end - before - x.shape[k - 2], 0)
        if any(around) and not padded_by_zeros:
            raise InvalidInput(
                "it pads an image that may be negative, with less than any number. Pool after a "
                "ReLU, or without padding."
            )
        while width == step > 2 and width % 2 == 0 and spread == 1 and not any(around):
            x = _image(x, k, 2, 2, 1, around)
            width = step = width // 2
        if width > 1 or step > 1:
            x = _image(x, k, width, step, spread, around)
    return x


def _image(x: Map, axis: int, width: int, step: int, spread: int, around: tuple[int, int]) -> Map:
    """The maximum over windows along one axis, of the image's translates."""
    shape, strides, pads = [1, 1], [1, 1], [(0, 0), (0, 0)]
    shape[axis], strides[axis], pads[axis] = spread * (width - 1) + 1, step, around
    channels = x.image[0]

    def moved(tap: Tensor) -> Map:
        kernel = tap.expand(channels, -1).reshape(channels, 1, *shape)
        return x.convolved(kernel, None, strides, pads, [1, 1], channels)

    found = greatest(*map(moved, torch.eye(shape[axis]).double()[::spread]))
    assert isinstance(found, Map)
    return found
