"""What operators of ONNX and PyTorch come down to, on tensors and on affine `Value`s alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._elementwise import parametrised
from ..activations import elementwise
from ..errors import InvalidInput
from ..system import UNKNOWN
from .convolutions import Map
from .products import product, quotient
from .values import Affine, Slopes, Term, Value


def linear(x: Term, f: Callable[[Tensor], Tensor]) -> Term:
    """f(x) for an f that is exactly linear."""
    return x.linear(f) if isinstance(x, Value) else f(x)


def add(x: Term | float, y: Term | float) -> Term:
    if not isinstance(x, Value):
        x, y = y, x
    if not isinstance(x, Value):
        return y + x  # type: ignore[operator, return-value]
    # Not as_tensor alone, which would round a number to float32.
    return x.plus(y if isinstance(y, Value | Tensor) else torch.tensor(y, dtype=torch.float64))


def negative(x: Term | float) -> Term:
    if isinstance(x, Map):
        return x.times(-1.0)
    return x.linear(torch.neg) if isinstance(x, Value) else -x  # type: ignore[return-value]


def scaled(x: Term | float, factor: float) -> Term:
    return x if factor == 1 else multiply(x, factor)  # type: ignore[return-value]


def multiply(x: Term | float, y: Term | float) -> Term:
    if isinstance(x, Affine) and isinstance(y, Affine):
        return product(x, y)
    if isinstance(x, Map) and isinstance(y, Map):
        return x.gated(y)
    if isinstance(y, Value):
        x, y = y, x
    constant(y, "multiplies")
    if isinstance(x, Map):
        return x.times(y)  # type: ignore[arg-type]
    return linear(x, lambda t: t * y)  # type: ignore[arg-type, operator]


def divide(x: Term, y: Term | float) -> Term:
    if isinstance(x, Affine) and isinstance(y, Affine):
        return quotient(x, y)
    constant(y, "divides by")
    if isinstance(x, Map):
        return x.times(1 / y)  # type: ignore[operator]
    return linear(x, lambda t: t / y)  # type: ignore[operator]


def constant(y: Any, what: str) -> None:
    if isinstance(y, Value):
        raise InvalidInput(
            f"{y.network.where} {what} a tensor that depends on the input; it must be constant."
        )


def matmul(x: Term, y: Term) -> Term:
    if isinstance(y, Value):
        constant(x, "multiplies, as a matrix,")
        return y.linear(lambda t: torch.matmul(x, t))  # type: ignore[arg-type]
    return linear(x, lambda t: torch.matmul(t, y))


def dense(x: Term, weight: Term, bias: Term | None = None) -> Term:
    """x Wᵀ + b."""
    constant(weight, "has as its weight")
    out = linear(x, lambda t: F.linear(t, weight))  # type: ignore[arg-type]
    return out if bias is None else add(out, bias)


def activate(x: Term, name: str) -> Term:
    return x.activate(name) if isinstance(x, Value) else elementwise(name)(x)


def declared(name: str, where: str, inputs: Sequence[Any], slopes: Mapping[str, Slopes]) -> Value:
    """An operator on these inputs as the elementwise function that `slopes` declares it to be.

    Raises:
        InvalidInput: it is not declared, or no elementwise function of one tensor.
    """
    values = [x for x in inputs if isinstance(x, Value)]
    shapes = [tuple(x.shape) for x in inputs if isinstance(x, Value | Tensor)]
    if (
        name not in slopes
        or len(values) != 1
        or np.broadcast_shapes(*shapes) != tuple(values[0].shape)
    ):
        raise InvalidInput(
            f"{where} has no sound translation. Remove it, or, if it is an elementwise function of "
            f"one tensor, declare its slopes: slopes={{{name!r}: (alpha, beta)}}."
        )
    return values[0].activate(UNKNOWN, slopes[name])


def check_declared(
    f: Callable[[Tensor], Tensor | None], shape: tuple[int, ...], slopes: Slopes
) -> None:
    """Raise InvalidInput where samples contradict that f is elementwise, with these slopes.

    f gives None where it cannot be run.
    """
    generator = torch.Generator().manual_seed(0)
    x, h = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    for size in (0.1, 1.0, 10.0):
        one = size * x
        one.view(-1)[0] += size
        y, moved, after = f(size * x), f(one), f(size * (x + h))
        if y is None or moved is None or after is None:
            return
        if y.shape != x.shape or bool((y != moved).flatten()[1:].any()):
            raise InvalidInput("it was declared to be elementwise, which it is not.")
        slope = (after - y) / (size * h)
        if not bool(((slope >= slopes[0] - 1e-6) & (slope <= slopes[1] + 1e-6)).all()):
            raise InvalidInput(
                f"its slopes were declared to be in {list(slopes)}, but one of "
                f"{float(max(slope.min(), slope.max(), key=abs)):.6g} was found."
            )


def elu(x: Term, alpha: float = 1.0) -> Term:
    return activate(x, "elu" if alpha == 1 else parametrised("elu", alpha))


def prelu(x: Term, slope: Tensor) -> Term:
    """Leaky ReLU whose slope broadcasts against x."""
    constant(slope, "has as its slope")
    if isinstance(x, Tensor):
        return torch.where(x > 0, x, slope * x)
    if isinstance(x, Map) and slope.numel() > 1:
        # Images have one activation; what differs between channels is linear.
        return add(multiply(x, slope), multiply(x.activate("relu"), 1 - slope))
    names = np.vectorize(lambda s: parametrised("leaky_relu", s), otypes=[object])(slope.numpy())
    return x.activate(np.broadcast_to(names.astype(np.str_), tuple(x.shape)))


def clip(x: Term, low: float | None, high: float | None) -> Term:
    """min(max(x, low), high); an infinite end is none."""
    low = None if low is None or low == -np.inf else float(low)
    high = None if high is None or high == np.inf else float(high)
    if low is not None and high is not None:
        return activate(x, parametrised("hardtanh", low, high))
    if low is not None:
        return add(activate(add(x, -low), "relu"), low)
    if high is not None:
        return negative(add(activate(add(negative(x), high), "relu"), -high))
    return x


def softplus(x: Term, sharpness: float = 1.0) -> Term:
    return activate(x, "softplus" if sharpness == 1 else parametrised("softplus", sharpness))


def swish(x: Term, sharpness: float = 1.0) -> Term:
    """x · sigmoid(s·x)."""
    if sharpness <= 0:
        raise InvalidInput(f"x · sigmoid({sharpness:g} x) is known for positive factors only.")
    if sharpness == 1:
        return activate(x, "silu")
    return divide(activate(multiply(x, sharpness), "silu"), sharpness)


def convolve(
    x: Term,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Term:
    """A convolution of one, two or three axes, with zeros before and after each."""
    constant(weight, "has as its kernel")
    axes = weight.dim() - 2
    conv: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(axes)
    if conv is None or len(x.shape) not in (axes + 1, axes + 2):
        raise InvalidInput(
            f"A kernel of shape {tuple(weight.shape)} does not fit a tensor of shape "
            f"{tuple(x.shape)}."
        )
    if isinstance(x, Map):
        return x.convolved(weight, bias, stride, pads, dilation, groups)

    def slide(t: Tensor) -> Tensor:
        return conv(F.pad(t, _flat(pads)), weight, None, stride, 0, dilation, groups)

    out = linear(x, slide)
    return out if bias is None else add(out, bias.reshape(-1, *[1] * axes))


def transposed(
    x: Term,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Term:
    """A transposed convolution, weight (c_in, c_out / groups, …), with its ends cut off by pads."""
    constant(weight, "has as its kernel")
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if set(stride) == {1} and all(max(pair) <= r for pair, r in zip(pads, reach, strict=True)):
        parts = [part.transpose(0, 1) for part in weight.chunk(groups)]
        kernel = torch.cat(parts).flip(list(range(2, weight.dim())))
        around = [(r - a, r - b) for r, (a, b) in zip(reach, pads, strict=True)]
        return convolve(x, kernel, bias, stride, around, dilation, groups)
    axes = weight.dim() - 2
    conv: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]

    def slide(t: Tensor) -> Tensor:
        full = conv(t, weight, None, stride, 0, 0, groups, dilation)
        return F.pad(full, [-side for side in _flat(pads)])

    out = linear(x, slide)
    return out if bias is None else add(out, bias.reshape(-1, *[1] * axes))


def pad(x: Term, sides: Sequence[int], mode: str, value: float | None) -> Term:
    """As torch.nn.functional.pad: sides from the last axis on."""
    if mode == "constant" and value:
        raise InvalidInput(f"padding with {value:g} is not translated, only with 0.")
    if isinstance(x, Map):
        return x.padded(sides, mode)
    return linear(x, lambda t: F.pad(t, list(sides), mode))


def average(
    x: Term,
    size: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    count_padding: bool,
) -> Term:
    """The mean over windows; over the pixels inside of the image alone unless count_padding."""
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(size)]

    def slide(t: Tensor) -> Tensor:
        return pool(F.pad(t, _flat(pads)), tuple(size), tuple(stride))

    padded = any(map(any, pads))
    if isinstance(x, Map) and (count_padding or not padded):
        return x.averaged(size, stride, pads)
    if not padded or count_padding:
        return linear(x, slide)
    inside = slide(torch.ones(tuple(x.shape), dtype=torch.float64))
    return linear(x, lambda t: slide(t) / inside)


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [side for pair in reversed(pads) for side in pair]


def batch_norm(
    x: Term,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
) -> Term:
    """Evaluation with running statistics, channels on the second axis."""
    ones = [1] * (len(x.shape) - 2)
    scale = (1.0 if weight is None else weight) / torch.sqrt(variance + epsilon)
    shift = (0.0 if bias is None else bias) - mean * scale
    return add(multiply(x, scale.reshape(-1, *ones)), shift.reshape(-1, *ones))


def select(x: Term, axis: int, index: Sequence[int]) -> Term:
    """The entries of these places along an axis."""
    where = torch.as_tensor(list(index), dtype=torch.long)
    return linear(x, lambda t: t.index_select(axis % t.dim(), where))
