"""ATen operators by name, in terms of `operations`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._elementwise import THRESHOLD, parametrised
from ..errors import InvalidInput
from . import maxima
from . import operations as op
from .values import Term, Value, join


def _pairs(padding: int | Sequence[int], axes: int) -> list[tuple[int, int]]:
    return [(p, p) for p in _each(padding, axes)]


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _conv(
    x: Term,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Term:
    axes = weight.dim() - 2
    steps, spread = _each(stride, axes), _each(dilation, axes)
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(spread, weight.shape[2:])]  # noqa: B905
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = _pairs(padding, axes)
    return op.convolve(x, weight, bias, steps, pads, spread, groups)


def _batch_norm(
    x: Term,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> list[Term]:
    return [op.batch_norm(x, mean, variance, weight, bias, epsilon)]


def _pool(axes: int) -> Callable[..., Term]:
    def pool(
        x: Term,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = (),
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Term:
        if ceil_mode or divisor_override:
            raise InvalidInput("ceil_mode and divisor_override are not translated.")
        size = _each(kernel, axes)
        steps = size if stride == () or stride == [] else _each(stride, axes)
        return op.average(x, size, steps, _pairs(padding, axes), count_include_pad)

    return pool


def _max_pool(axes: int) -> Callable[..., Term]:
    def pool(
        x: Term,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = (),
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> Term:
        size = _each(kernel, axes)
        steps = _each(stride, axes) if stride not in ((), []) else size
        spread = _each(dilation, axes)
        return maxima.pool(x, size, steps, _pairs(padding, axes), spread, ceil_mode)

    return pool


def _first(f: Callable[..., Term]) -> Callable[..., list[Term]]:
    """Values without the indices."""
    return lambda *args: [f(*args)]


def _extreme(of_two: Callable[..., Term], along: Callable[..., Term]) -> Callable[..., Any]:
    """torch.max or torch.min: of a tensor, along an axis with the indices, or of two tensors."""

    def extreme(x: Term, other: Any = None, keepdim: bool = False) -> Any:
        if other is None:
            return along(x)
        return [along(x, other, keepdim)] if isinstance(other, int) else of_two(x, other)

    return extreme


def _converted(x: Term, *, dtype: torch.dtype | None = None, **others: Any) -> Term:
    if dtype not in (None, torch.float64):
        raise InvalidInput(f"a tensor that depends on the input is rounded to {dtype}.")
    return x


def _conv_transpose(
    x: Term,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Term:
    axes = weight.dim() - 2
    cut, more = _each(padding, axes), _each(output_padding, axes)
    pads = [(p, p - m) for p, m in zip(cut, more, strict=True)]
    steps, spread = _each(stride, axes), _each(dilation, axes)
    return op.transposed(x, weight, bias, steps, pads, spread, groups)


def _prelu(x: Term, weight: Tensor) -> Term:
    shape = [1, -1, *[1] * (len(x.shape) - 2)] if len(x.shape) > 1 else [-1]
    return op.prelu(x, weight.reshape(shape) if weight.numel() > 1 else weight)


def _softplus(x: Term, beta: float = 1.0, threshold: float = 20.0) -> Term:
    if threshold < THRESHOLD:
        raise InvalidInput(
            f"softplus has threshold = {threshold:g}, where it jumps down by exp(-threshold). "
            f"Use torch.nn.Softplus(threshold={THRESHOLD})."
        )
    return op.softplus(x, beta)


def _dropout(x: Term, p: float, train: bool) -> Term:
    if train and p:
        raise InvalidInput("dropout is in training mode; call model.eval().")
    return x


def _sum(f: Callable[..., Tensor]) -> Callable[..., Term]:
    def reduce(x: Term, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Term:
        places = list(range(len(x.shape))) if dim is None or dim == [] else dim
        return op.linear(x, lambda t: f(t, dim=places, keepdim=keepdim))

    return reduce


def _einsum(equation: str, parts: Sequence[Term]) -> Term:
    places = [i for i, part in enumerate(parts) if isinstance(part, Value)]
    if len(places) > 1:
        raise InvalidInput("it multiplies tensors that depend on the input.")
    place = places[0]

    def summed(t: Tensor) -> Tensor:
        return torch.einsum(equation, *parts[:place], t, *parts[place + 1 :])

    return op.linear(parts[place], summed)


def _add(x: Term, y: Any, *, alpha: float = 1) -> Term:
    return op.add(x, op.scaled(y, alpha))


def _filled(x: Term, y: Term | float = 0.0, *_: Any, **options: Any) -> Term:
    """y as a tensor of the shape of x."""
    return op.add(torch.zeros(tuple(x.shape), dtype=torch.float64), y)


def _chosen(mask: Any, x: Term | float, y: Term | float) -> Term:
    """x where the mask is true, y elsewhere."""
    op.constant(mask, "chooses by")
    double = torch.float64
    parts = [v if isinstance(v, Value | Tensor) else torch.tensor(v, dtype=double) for v in (x, y)]
    return join(parts, lambda both: torch.where(mask, both[0], both[1]))


def _written(x: Term, y: Term, dim: int, places: Sequence[int]) -> Term:
    """y written over these places along an axis of x."""
    where = torch.tensor(list(places), dtype=torch.long)
    return join([x, y], lambda both: both[0].index_copy(dim, where, both[1]))


def _slice_written(
    x: Term, y: Term, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Term:
    return _written(x, y, dim, range(x.shape[dim])[start:end:step])


def _select_written(x: Term, y: Term, dim: int, index: int) -> Term:
    place = range(x.shape[dim])[index]
    return _written(x, op.linear(y, lambda t: t.unsqueeze(dim)), dim, [place])


def _power(x: Value, exponent: float) -> Value:
    if exponent not in (1, 2, 3):
        raise InvalidInput(f"the power {exponent:g} has no bounded slopes.")
    return x if exponent == 1 else x.activate("square" if exponent == 2 else "cube")


def _named(name: str) -> Callable[..., Term]:
    return lambda x: op.activate(x, name)


def _parametrised(family: str, *defaults: float) -> Callable[..., Term]:
    return lambda x, *given: op.activate(x, parametrised(family, *given, *defaults[len(given) :]))


OPERATORS: dict[str, Callable[..., Term | list[Term]]] = {
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_to_copy": _converted,
    "adaptive_avg_pool1d": lambda x, size: op.linear(
        x, lambda t: nn.functional.adaptive_avg_pool1d(t, size)
    ),
    "adaptive_max_pool1d": _first(lambda x, size: maxima.adaptive_pool(x, size, 1)),
    "adaptive_max_pool2d": _first(lambda x, size: maxima.adaptive_pool(x, size, 2)),
    "adaptive_max_pool3d": _first(lambda x, size: maxima.adaptive_pool(x, size, 3)),
    "add": _add,
    "addmm": lambda bias, x, y: op.add(op.matmul(x, y), bias),
    "amax": maxima.along,
    "amin": maxima.least_along,
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "bmm": op.matmul,
    "cat": lambda parts, dim=0: join(parts, lambda tensors: torch.cat(tensors, dim)),
    "celu": _parametrised("celu", 1.0),
    "clamp": lambda x, low=None, high=None: op.clip(x, low, high),
    "clip": lambda x, low=None, high=None: op.clip(x, low, high),
    "clamp_max": lambda x, high: op.clip(x, None, high),
    "clamp_min": lambda x, low: op.clip(x, low, None),
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "copy": _filled,
    "div": op.divide,
    "dropout": _dropout,
    "einsum": _einsum,
    "elu": op.elu,
    "feature_dropout": _dropout,
    "fill": _filled,
    "fmax": maxima.greatest,
    "fmin": maxima.least,
    "gelu": lambda x, approximate="none": op.activate(
        x, "gelu" if approximate == "none" else "gelu_tanh"
    ),
    "hardtanh": _parametrised("hardtanh", -1.0, 1.0),
    "leaky_relu": _parametrised("leaky_relu", 0.01),
    "linear": op.dense,
    "log_sigmoid": _named("logsigmoid"),
    "masked_fill": lambda x, mask, value: _chosen(mask, value, x),
    "matmul": op.matmul,
    "max": _extreme(maxima.greatest, maxima.along),
    **{f"max_pool{k}d": _max_pool(k) for k in (1, 2, 3)},
    **{f"max_pool{k}d_with_indices": _first(_max_pool(k)) for k in (1, 2, 3)},
    "maximum": maxima.greatest,
    "mean": _sum(torch.mean),
    "min": _extreme(maxima.least, maxima.least_along),
    "minimum": maxima.least,
    "mm": op.matmul,
    "mul": op.multiply,
    "neg": op.negative,
    "full_like": _filled,
    "ones_like": lambda x, **_: _filled(x, 1.0),
    "pad": lambda x, sides, mode="constant", value=None: op.pad(x, sides, mode, value),
    "pow": _power,
    "prelu": _prelu,
    "relu6": _named("hardtanh(0.0,6.0)"),
    "rsub": lambda x, y, alpha=1: op.add(y, op.negative(op.scaled(x, alpha))),
    "select_scatter": _select_written,
    "slice_scatter": _slice_written,
    "softplus": _softplus,
    "special_expit": _named("sigmoid"),
    "stack": lambda parts, dim=0: join(parts, lambda tensors: torch.stack(tensors, dim)),
    "sub": lambda x, y, alpha=1: op.add(x, op.negative(op.scaled(y, alpha))),
    "sum": _sum(torch.sum),
    "where": _chosen,
    "zeros_like": _filled,
    **{
        name: _named(name)
        for name in (
            *("abs", "asinh", "atan", "cos", "erf", "hardsigmoid", "hardswish", "mish", "relu"),
            *("selu", "sigmoid", "silu", "sin", "softsign", "tanh", "tanhshrink"),
        )
    },
}
"""By the name of the ATen operator."""

LINEAR = {
    *("_unsafe_view", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "alias", "clone", "contiguous"),
    *("cumsum", "detach", "diagonal", "expand", "expand_as", "flatten", "flip", "gather", "im2col"),
    *("index", "index_select", "movedim", "narrow", "permute", "pixel_shuffle", "pixel_unshuffle"),
    *("repeat", "repeat_interleave", "reshape", "roll", "rot90", "select", "slice", "squeeze"),
    *("swapaxes", "t", "tile", "transpose", "tril", "triu", "unflatten", "unfold", "unsqueeze"),
    *("upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d"),
    *("upsample_nearest2d", "view", "view_as"),
}
"""Operators that are exactly linear in their first argument, whatever the others are."""

PLACEMENT = ("device", "layout", "memory_format")
"""Options that say where and how a tensor is stored, not what it holds."""

LISTS = {"chunk", "split", "split_with_sizes", "unbind", "tensor_split"}
"""Linear operators that return several tensors."""
