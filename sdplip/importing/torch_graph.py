"""Torch modules of any structure, through torch.export."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._modules import check_module, copied
from ..activations import elementwise
from ..errors import InvalidInput, SdplipError
from . import operations as op
from .checking import SINGLE_PRECISION, STAND_IN, Normalisation, Original, Source
from .convolutions import build
from .torch_operators import LINEAR, LISTS, OPERATORS, PLACEMENT
from .values import Slopes, Value


def read_module(
    module: Any,
    example: Tensor,
    normalisation: Normalisation | None,
    slopes: Mapping[str, Slopes],
) -> Source:
    """See `importing.from_torch`."""
    owner = type(module).__name__
    if isinstance(module, torch.export.ExportedProgram):
        raise InvalidInput(
            "An exported program has its precision and its mode fixed; give the module itself."
        )
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise InvalidInput(f"{owner}: example must be a floating-point tensor: one input.")
    check_module("from_torch", module)
    own = copied("from_torch", module)
    twin = copy.deepcopy(own).double()
    kinds = {t.dtype for t in (*own.parameters(), *own.buffers()) if t.is_floating_point()}
    kind = kinds.pop() if len(kinds) == 1 else example.dtype
    example = example.detach().to("cpu", torch.float64, copy=True)
    program = _exported(twin, example)
    originals: list[Original] = [("the module in float64", 1e-9, _runner(twin, torch.float64))]
    if kind == torch.float32:
        originals.append(("the module in float32", SINGLE_PRECISION, _runner(own, kind)))
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

    # Of nodes that `slopes` declares, by name, the node whose value is their argument.
    stands: dict[str, str] = {}

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
                values[node] = _run(node, values, where, slopes, stands)
            elif node.op == "output":
                # Others are what the module wrote into its input.
                found = [values[n] for n in node.args[0] if str(n) == signature.user_outputs[0]]
                output = found[0] if found else None
        if not isinstance(output, Value):
            raise InvalidInput(f"{owner}: the output does not depend on the input.")
        return output

    shape = tuple(example.shape)
    system = build(shape, follow)
    if stands:
        stood_in = _StoodIn(program, names[0], known, stands)
        originals = [(f"the module with {STAND_IN} for what is declared", 1e-9, stood_in)]
    return Source(owner, system, shape, originals)


class _StoodIn(torch.fx.Interpreter):
    """A program with `STAND_IN` in place of some nodes, see `read_module`."""

    def __init__(
        self, program: Any, entry: str, known: Mapping[str, Any], stands: Mapping[str, str]
    ) -> None:
        super().__init__(program.graph_module)
        self.stands, self.known, self.entry = stands, known, entry
        outputs = next(n for n in self.graph.nodes if n.op == "output").args[0]
        self.place = [str(n) for n in outputs].index(program.graph_signature.user_outputs[0])

    def run_node(self, n: Any) -> Any:
        if n.name not in self.stands:
            return super().run_node(n)
        (argument,) = (v for k, v in self.env.items() if k.name == self.stands[n.name])
        return elementwise(STAND_IN)(argument)

    def __call__(self, x: Tensor) -> Tensor:
        inputs = [x.clone() if n.name == self.entry else self.known[n.name]
                  for n in self.graph.nodes if n.op == "placeholder"]  # fmt: skip
        with torch.no_grad():
            return self.run(*inputs)[self.place].double()


def _exported(module: nn.Module, example: Tensor) -> Any:
    """Its graph without side effects."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, (example,)).run_decompositions({})
        # Whatever the module's own code, or what the tracer cannot follow, raises.
        except Exception as error:
            raise InvalidInput(
                f"{type(module).__name__} cannot be exported for an input of shape "
                f"{tuple(example.shape)}, the first number being the batch: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error


def _runner(module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor | None]:
    def run(x: Tensor) -> Tensor | None:
        try:
            # A copy, for the module may write into its input.
            with torch.no_grad():
                y = module(x.to(dtype, copy=True))
        # Constants of its own may be of another precision than its parameters.
        except RuntimeError:
            return None
        if not isinstance(y, Tensor) or y.is_complex():
            found = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise InvalidInput(
                f"{type(module).__name__} returns {found}, but must return one tensor of real "
                "numbers."
            )
        overflows = dtype != torch.float64 and not y.isfinite().all()
        return None if overflows else y.double()

    return run


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


def _run(
    node: Any, values: Any, where: str, slopes: Mapping[str, Slopes], stands: dict[str, str]
) -> Any:
    def value(argument: Any) -> Any:
        return torch.fx.node.map_arg(argument, lambda other: values.get(other, other))

    args, kwargs = value(node.args), value(node.kwargs)
    target = node.target
    if target is operator.getitem:
        if args[1] >= len(args[0]):
            raise InvalidInput(f"{where}: indices of a maximum jump, and have no bounded slopes.")
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
            return first.linear(lambda t: target(t, *args[1:], **options))
        if name in LISTS and isinstance(first, Value):
            count = len(target(torch.zeros(first.shape).double(), *args[1:], **kwargs))
            return [first.linear(_part(target, i, args[1:], kwargs)) for i in range(count)]
        units = op.declared(name, where, flat, slopes)
        f = partial(_at, target, args, kwargs)
        op.check_declared(f, tuple(units.shape), slopes[name])
        given = [n.name for n in node.all_input_nodes if isinstance(values[n], Value)]
        stands[node.name] = given[0]
        return units
    except SdplipError as error:
        text = str(error)
        raise type(error)(text if where in text else f"{where}: {text}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise InvalidInput(f"{where} cannot be translated as it stands here ({e}).") from e
