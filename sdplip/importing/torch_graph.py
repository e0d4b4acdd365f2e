"""Torch modules of any structure, through torch.export."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._elementwise import THRESHOLD, parametrised
from .._modules import check_module
from ..errors import InvalidInput, SdplipError
from . import operations as op
from .checking import Normalisation, Source
from .convolutions import build
from .values import Slopes, Term, Value, join


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


def _add(x: Term, y: Any, *, alpha: float = 1) -> Term:
    return op.add(x, op.scaled(y, alpha))


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
    "add": _add,
    "addmm": lambda bias, x, y: op.add(op.matmul(x, y), bias),
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "bmm": op.matmul,
    "cat": lambda parts, dim=0: join(parts, lambda tensors: torch.cat(tensors, dim)),
    "celu": _parametrised("celu", 1.0),
    "clamp": lambda x, low=None, high=None: op.clip(x, low, high),
    "clamp_max": lambda x, high: op.clip(x, None, high),
    "clamp_min": lambda x, low: op.clip(x, low, None),
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "div": op.divide,
    "dropout": _dropout,
    "elu": op.elu,
    "feature_dropout": _dropout,
    "gelu": lambda x, approximate="none": op.activate(
        x, "gelu" if approximate == "none" else "gelu_tanh"
    ),
    "hardtanh": _parametrised("hardtanh", -1.0, 1.0),
    "leaky_relu": _parametrised("leaky_relu", 0.01),
    "linear": op.dense,
    "log_sigmoid": _named("logsigmoid"),
    "matmul": op.matmul,
    "maximum": op.greatest,
    "mean": _sum(torch.mean),
    "minimum": op.least,
    "mm": op.matmul,
    "mul": op.multiply,
    "neg": op.negative,
    "pad": lambda x, sides, mode="constant", value=None: op.pad(x, sides, mode, value),
    "pow": _power,
    "prelu": _prelu,
    "relu6": _named("hardtanh(0.0,6.0)"),
    "rsub": lambda x, y, alpha=1: op.add(y, op.negative(op.scaled(x, alpha))),
    "softplus": _softplus,
    "stack": lambda parts, dim=0: join(parts, lambda tensors: torch.stack(tensors, dim)),
    "sub": lambda x, y, alpha=1: op.add(x, op.negative(op.scaled(y, alpha))),
    "sum": _sum(torch.sum),
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
    *("detach", "expand", "expand_as", "flatten", "flip", "index_select", "movedim", "narrow"),
    *("permute", "pixel_shuffle", "pixel_unshuffle", "reshape", "roll", "select", "slice"),
    *("squeeze", "swapaxes", "t", "transpose", "unflatten", "unsqueeze", "upsample_nearest2d"),
    *("view", "view_as"),
}
"""Operators that are exactly linear in their first argument, whatever the others are."""

PLACEMENT = ("device", "layout", "memory_format")
"""Options that say where and how a tensor is stored, not what it holds."""

LISTS = {"chunk", "split", "split_with_sizes", "unbind", "tensor_split"}
"""Linear operators that return several tensors."""


def read_module(
    module: Any,
    example: Tensor,
    normalisation: Normalisation | None,
    slopes: Mapping[str, Slopes],
) -> Source:
    """See `importing.from_torch`."""
    owner = type(module).__name__
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise InvalidInput(f"{owner}: example must be a floating-point tensor: one input.")
    example = example.detach().cpu().double()
    program, run = _exported(module, example)
    graph, signature = program.graph, program.graph_signature
    names = signature.user_inputs
    if len(names) != 1 or len(signature.user_outputs) != 1 or signature.buffers_to_mutate:
        raise InvalidInput(
            f"{owner} has {len(names)} inputs, {len(signature.user_outputs)} outputs and changes "
            f"the buffers {list(signature.buffers_to_mutate.values())}; a system has one input, "
            "one output and no memory."
        )
    known = {
        **{k: program.state_dict[v] for k, v in signature.inputs_to_parameters.items()},
        **{
            k: program.state_dict[v] if v in program.state_dict else program.constants[v]
            for k, v in signature.inputs_to_buffers.items()
        },
        **{k: program.constants[v] for k, v in signature.inputs_to_lifted_tensor_constants.items()},
    }

    def follow(entry: Value) -> Value:
        start = normalisation(entry) if normalisation else entry
        values: dict[Any, Any] = {}
        output: Any = None
        for node in graph.nodes:
            where = entry.network.where = f"{owner}: node {node.name!r} ({node.target})"
            if node.op == "placeholder":
                values[node] = start if node.name == names[0] else _constant(node, known)
            # Assertions have no users.
            elif node.op == "call_function" and node.users:
                values[node] = _run(node, values, where, slopes)
            elif node.op == "output":
                # Others are what the module wrote into its input.
                found = [values[n] for n in node.args[0] if str(n) == signature.user_outputs[0]]
                output = found[0] if found else None
        if not isinstance(output, Value):
            raise InvalidInput(f"{owner}: the output does not depend on the input.")
        return output

    shape = tuple(example.shape)
    return Source(owner, build(shape, follow), shape, [("the module in float64", 1e-9, run)])


def _exported(module: Any, example: Tensor) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """The graph of a float64 copy in evaluation mode, without side effects, and the copy."""
    if isinstance(module, torch.export.ExportedProgram):
        raise InvalidInput(
            "An exported program has its precision and its mode fixed; give the module itself."
        )
    check_module("from_torch", module)
    twin = copy.deepcopy(module).cpu().double().eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(twin, (example,)).run_decompositions({})
        # Whatever the module's own code, or what the tracer cannot follow, raises.
        except Exception as error:
            raise InvalidInput(
                f"{type(module).__name__} cannot be exported for an input of shape "
                f"{tuple(example.shape)}: {' '.join(str(error).split())[:300]}"
            ) from error

    def run(x: Tensor) -> Tensor:
        # A copy, for the module may write into its input.
        with torch.no_grad():
            y = twin(x.clone())
        if not isinstance(y, Tensor) or y.is_complex():
            found = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise InvalidInput(
                f"{type(module).__name__} returns {found}, but must return one tensor of real "
                "numbers."
            )
        return y.double()

    return program, run


def _constant(node: Any, known: Mapping[str, Any]) -> Tensor:
    value = known.get(node.name)
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{node.name} is an input that is no tensor of the module.")
    value = value.detach()
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise InvalidInput(f"{node.name} contains NaN or Inf; every entry must be finite.")
    return value.double()


def _part(target: Any, place: int, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor]:
    return lambda t: target(t, *args, **kwargs)[place]


def _at(target: Any, args: Any, kwargs: Any, x: Tensor) -> Any:
    """An operator with x for the tensor that depends on the input."""
    put = torch.utils._pytree.tree_map(lambda a: x if isinstance(a, Value) else a, (args, kwargs))
    return target(*put[0], **put[1])


def _check_declared(f: Callable[[Tensor], Any], shape: tuple[int, ...], slopes: Slopes) -> None:
    """Raise InvalidInput where samples contradict that f is elementwise, with these slopes."""
    generator = torch.Generator().manual_seed(0)
    x, h = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    for size in (0.1, 1.0, 10.0):
        one = size * x
        one.view(-1)[0] += size
        y, moved, steps = f(size * x), f(one), f(size * (x + h)) - f(size * x)
        if y.shape != x.shape or bool((y != moved).flatten()[1:].any()):
            raise InvalidInput("it was declared to be elementwise, which it is not.")
        slope = steps / (size * h)
        if not bool(((slope >= slopes[0] - 1e-6) & (slope <= slopes[1] + 1e-6)).all()):
            raise InvalidInput(
                f"its slopes were declared to be in {list(slopes)}, but one of "
                f"{float(max(slope.min(), slope.max(), key=abs)):.6g} was found."
            )


def _run(node: Any, values: Any, where: str, slopes: Mapping[str, Slopes]) -> Any:
    def value(argument: Any) -> Any:
        return torch.fx.node.map_arg(argument, lambda other: values[other])

    args, kwargs = value(node.args), value(node.kwargs)
    target = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    tags = getattr(target, "tags", ())
    name = target.name().removeprefix("aten::").split(".")[0] if tags else str(target)
    first = args[0] if args else None
    flat, _ = torch.utils._pytree.tree_flatten((args, kwargs))
    try:
        if not any(isinstance(leaf, Value) for leaf in flat):
            if torch.Tag.nondeterministic_seeded in tags:
                raise InvalidInput("it draws random numbers.")
            return target(*args, **kwargs)
        options = {k: v for k, v in kwargs.items() if k not in PLACEMENT}
        if name in OPERATORS:
            return OPERATORS[name](*args, **options)
        if name in LINEAR and isinstance(first, Value):
            return first.linear(lambda t: target(t, *args[1:], **kwargs))
        if name in LISTS and isinstance(first, Value):
            count = len(target(torch.zeros(first.shape).double(), *args[1:], **kwargs))
            return [first.linear(_part(target, i, args[1:], kwargs)) for i in range(count)]
        units = op.declared(name, where, flat, slopes)
        _check_declared(lambda x: _at(target, args, kwargs, x), tuple(units.shape), slopes[name])
        return units
    except SdplipError as error:
        text = str(error)
        raise type(error)(text if where in text else f"{where}: {text}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise InvalidInput(f"{where} cannot be translated as it stands here ({e}).") from e
