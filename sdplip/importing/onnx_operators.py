"""ONNX operators by name: keyword arguments are the attributes that are understood, no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._elementwise import parametrised
from ..errors import InvalidInput
from . import maxima
from . import operations as op
from .onnx_layout import LAYOUT, reducing
from .values import Term


def _single(value: float) -> float:
    """As attributes are stored, which defaults are, too."""
    return float(np.float32(value))


def _gemm(
    a: Term,
    b: Tensor,
    c: Term | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Term:
    left, right = (op.linear(t, torch.t) if flip else t for t, flip in ((a, transA), (b, transB)))
    out = op.matmul(left, right)
    out = out if alpha == 1 else op.multiply(out, alpha)
    return out if c is None else op.add(out, c if beta == 1 else op.multiply(c, beta))


def _pads(
    shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    axes = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        flat = list(pads or [0] * 2 * axes) if auto_pad == "NOTSET" else [0] * 2 * axes
        if len(flat) != 2 * axes or min(flat) < 0 or max(flat) > 1 << 20:
            raise InvalidInput(f"pads = {flat}, but must be {2 * axes} numbers from 0 up.")
        return list(zip(flat[:axes], flat[axes:], strict=True))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise InvalidInput(f"auto_pad = {auto_pad!r} is not known.")
    sizes, out = shape[-axes:], list[tuple[int, int]]()
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        half = total // 2
        out.append((half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half))
    return out


def _conv(
    x: Term,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Term:
    kernel = tuple(weight.shape[2:])
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise InvalidInput(f"kernel_shape = {tuple(kernel_shape)}, but the kernel is {kernel}.")
    ones = [1] * len(kernel)
    strides, dilations = strides or ones, dilations or ones
    around = _pads(tuple(x.shape), kernel, strides, dilations, pads, auto_pad)
    return op.convolve(x, weight, bias, tuple(strides), around, tuple(dilations), group)


def _conv_transpose(
    x: Term,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Term:
    kernel = tuple(weight.shape[2:])
    if auto_pad != "NOTSET" or (kernel_shape is not None and tuple(kernel_shape) != kernel):
        raise InvalidInput(f"auto_pad = {auto_pad!r} and kernel_shape = {kernel_shape} do not fit.")
    ones, more = [1] * len(kernel), output_padding or [0] * len(kernel)
    strides, dilations = strides or ones, dilations or ones
    cut = _pads(tuple(x.shape), kernel, strides, dilations, pads, auto_pad)
    around = [(a, b - m) for (a, b), m in zip(cut, more, strict=True)]
    return op.transposed(x, weight, bias, strides, around, dilations, group)


def _average_pool(
    x: Term,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Term:
    ones = [1] * len(kernel_shape)
    if ceil_mode or (dilations is not None and list(dilations) != ones):
        raise InvalidInput("ceil_mode and dilations of AveragePool are not translated.")
    strides = strides or ones
    around = _pads(tuple(x.shape), kernel_shape, strides, ones, pads, auto_pad)
    return op.average(x, kernel_shape, strides, around, bool(count_include_pad))


def _max_pool(
    x: Term,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Term:
    """Without the second output, the indices."""
    ones = [1] * len(kernel_shape)
    strides, dilations = strides or ones, dilations or ones
    around = _pads(tuple(x.shape), kernel_shape, strides, dilations, pads, auto_pad)
    return maxima.pool(x, kernel_shape, strides, around, dilations, bool(ceil_mode))


def _batch_norm(
    x: Term,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = _single(1e-5),
    momentum: float = 0.9,
    training_mode: int = 0,
    count: int = 1,
) -> Term:
    # Up to opset 13, further outputs are what says so.
    if training_mode or count > 1:
        raise InvalidInput("BatchNormalization is in training mode; export in evaluation mode.")
    return op.batch_norm(x, mean, variance, scale, bias, epsilon)


def _dropout(
    x: Term,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int = 0,
) -> Term:
    if training_mode is not None and bool(training_mode):
        raise InvalidInput("Dropout is in training mode; export in evaluation mode.")
    return x


def _power(x: Term, exponent: Tensor) -> Term:
    op.constant(exponent, "has as its exponent")
    if isinstance(x, Tensor):
        return torch.pow(x, exponent)
    value = float(exponent) if exponent.numel() == 1 else 0.0
    if value not in (1.0, 2.0, 3.0):
        raise InvalidInput(f"Pow with exponent {value:g} has no bounded slopes.")
    return x if value == 1 else x.activate("square" if value == 2 else "cube")


def _divide(x: Term, y: Term) -> Term:
    if isinstance(x, Tensor) and isinstance(y, Tensor) and not x.is_floating_point():
        return torch.div(x, y, rounding_mode="trunc")
    return op.divide(x, y)


def _number(value: Tensor | float | None, what: str) -> float | None:
    op.constant(value, f"has as its {what}")
    return None if value is None else float(value)


def _clip(
    x: Term,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Term:
    ends = (low if low is not None else min), (high if high is not None else max)
    return op.clip(x, _number(ends[0], "minimum"), _number(ends[1], "maximum"))


def _leaky_relu(x: Term, *, alpha: float = _single(0.01)) -> Term:
    return op.activate(x, parametrised("leaky_relu", alpha))


def _shrink(x: Term, *, bias: float = 0.0, lambd: float = 0.5) -> Term:
    if bias != lambd:
        raise InvalidInput(f"Shrink with bias {bias:g} and lambd {lambd:g} jumps.")
    return op.activate(x, parametrised("softshrink", lambd))


def _hard_sigmoid(x: Term, *, alpha: float = _single(0.2), beta: float = 0.5) -> Term:
    return op.clip(op.add(op.multiply(x, alpha), beta), 0.0, 1.0)


def _selu(
    x: Term,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Term:
    return op.multiply(op.elu(x, alpha), gamma)


def _gelu(x: Term, *, approximate: str = "none") -> Term:
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise InvalidInput(f"Gelu with approximate = {approximate!r} is not known.")
    return op.activate(x, names[approximate])


def _named(name: str) -> Callable[..., Term]:
    return lambda x: op.activate(x, name)


def _same(f: Callable[[Tensor], Tensor], what: str) -> Callable[..., Tensor]:
    """A function of constants alone."""

    def apply(x: Term) -> Tensor:
        op.constant(x, f"takes the {what} of")
        return f(x)  # type: ignore[arg-type]

    return apply


def _constant(**values: Any) -> Tensor:
    (value,) = values.values()
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


OPERATORS: dict[str, Callable[..., Term | list[Term]]] = {
    **LAYOUT,
    "Add": op.add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Celu": lambda x, *, alpha=1.0: op.activate(x, parametrised("celu", alpha)),
    "Clip": _clip,
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Dropout": _dropout,
    "Elu": lambda x, *, alpha=1.0: op.elu(x, alpha),
    "Exp": _same(torch.exp, "exponential"),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _named("hardswish"),
    "LeakyRelu": _leaky_relu,
    "MatMul": op.matmul,
    "GlobalMaxPool": lambda x: maxima.adaptive_pool(x, 1, len(x.shape) - 2),
    "Max": maxima.greatest,
    "MaxPool": _max_pool,
    "Min": maxima.least,
    "Mul": op.multiply,
    "Neg": op.negative,
    "PRelu": op.prelu,
    "Pow": _power,
    "ReduceMax": reducing(maxima.along),
    "ReduceMin": reducing(maxima.least_along),
    "Reciprocal": _same(torch.reciprocal, "reciprocal"),
    "Selu": _selu,
    "Shrink": _shrink,
    "Softplus": op.softplus,
    "Sqrt": _same(torch.sqrt, "square root"),
    "Sub": lambda x, y: op.add(x, op.negative(y)),
    "Sum": lambda *parts: reduce(op.add, parts),
    "Swish": lambda x, *, alpha=1.0: op.swish(x, alpha),
    **{
        name: _named(name.lower())
        for name in (
            *("Abs", "Asinh", "Atan", "Cos", "Erf", "Mish"),
            *("Relu", "Sigmoid", "Sin", "Softsign", "Tanh"),
        )
    },
}
"""By operator type, of the standard domain."""
