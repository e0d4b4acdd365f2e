"""ONNX files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import MAX_FILE_BYTES
from .._extras import need
from ..errors import InvalidInput, SdplipError
from . import operations as op
from .checking import SINGLE_PRECISION, STAND_IN, Normalisation, Original, Source
from .convolutions import build
from .onnx_operators import OPERATORS
from .values import Slopes, TooLarge, Value

SINGLE, DOUBLE, HALF, BRAIN = 1, 11, 10, 16
STANDARD = ("", "ai.onnx")
COUNTED = ("BatchNormalization", "Split")
"""Operators whose result depends on how many outputs the node has."""


def read_onnx(
    path: Path,
    input_shape: Sequence[int] | None,
    normalisation: Normalisation | None,
    slopes: Mapping[str, Slopes],
) -> Source:
    """See `importing.load`."""
    model = _model(path)
    inlined = _inlined(model, path)
    graph = inlined.graph
    # Of nodes that `slopes` declares, by their output, the name of their argument.
    stands: dict[str, str] = {}
    try:
        constants = {t.name: _tensor(t.name, t) for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise InvalidInput(
                f"it has the inputs {', '.join(i.name for i in inputs) or '(none)'} and the "
                f"outputs {', '.join(o.name for o in graph.output) or '(none)'}; a system has one "
                "of each. Export the part between one input and one output."
            )
        shape = _shape(inputs[0], input_shape)
        wanted = graph.output[0].name
        nodes = _needed(graph, wanted)

        def follow(entry: Value) -> Value:
            start = normalisation(entry) if normalisation else entry
            values: dict[str, Any] = {**constants, inputs[0].name: start}
            for node in nodes:
                entry.network.where = f"node {node.name or node.output[0]!r} ({node.op_type})"
                values.update(_run(node, values, entry.network.where, slopes, stands, model))
            if not isinstance(values.get(wanted), Value):
                raise InvalidInput(f"its output {wanted} does not depend on its input.")
            return values[wanted]

        system = build(shape, follow)
    except InvalidInput as error:
        many = isinstance(error, TooLarge) and shape[0] > 1
        hint = f" Its batch is fixed at {shape[0]}; export it with a batch of 1." if many else ""
        raise type(error)(f"{path}: {error}{hint}") from error
    original = _stood_in(inlined, stands) if stands else model
    return Source(str(path), system, tuple(shape), _originals(original, inputs[0], tuple(shape)))


def _onnx() -> Any:
    need("Reading ONNX files", "onnx", extra="onnx")
    import onnx

    return onnx


def _model(path: Path) -> Any:
    """The model with its external data, checked."""
    onnx = _onnx()
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInput(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
        model = onnx.load(str(path), load_external_data=False)
        _load_external(onnx, model, path)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist.") from None
    except (DecodeError, OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        if isinstance(error, SdplipError):
            raise
        text = " ".join(str(error).split())[:300]
        raise InvalidInput(f"{path} is no readable ONNX model ({text}). Export it again.") from None
    return model


def _inlined(model: Any, path: Path) -> Any:
    """Without functions of its own. What runs the original has the model as it is."""
    for function in model.functions:
        if function.domain in STANDARD:
            raise InvalidInput(
                f"{path}: it defines {function.name}, an operator of the standard, in its own way, "
                "which not everything that runs it heeds. Name the function otherwise."
            )
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    return inline_local_functions(model)


def _load_external(onnx: Any, model: Any, path: Path) -> None:
    """Tensors stored beside the model: only files in its own folder, of the size stated."""
    folder = path.parent.resolve()
    for tensor in model.graph.initializer:
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        file = (folder / facts.get("location", "")).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise InvalidInput(
                f"{path}: {tensor.name} is stored in {facts.get('location')!r}, which is no file "
                "in the folder of the model. Keep the two together."
            )
        offset, length = int(facts.get("offset", 0)), facts.get("length")
        size = prod(tensor.dims) * _bytes(onnx, tensor)
        if offset < 0 or size > MAX_FILE_BYTES or (length is not None and int(length) != size):
            raise InvalidInput(f"{path}: {tensor.name} does not have the size of its shape.")
        with file.open("rb") as opened:
            opened.seek(offset)
            tensor.raw_data = opened.read(size)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _bytes(onnx: Any, tensor: Any) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def _tensor(name: str, proto: Any) -> Tensor:
    onnx = _onnx()
    if onnx.external_data_helper.uses_external_data(proto):
        raise InvalidInput(f"{name} is stored outside of the model's initializers.")
    try:
        array = onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"{name} cannot be read: {error}.") from error
    if proto.data_type in (SINGLE, DOUBLE, HALF, BRAIN):
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise InvalidInput(
                f"{name} contains {array[~np.isfinite(array)][0]}; every entry must be finite."
            )
    elif array.dtype.kind not in "iub":
        raise InvalidInput(f"{name} has dtype {array.dtype}, but must hold real numbers.")
    return torch.from_numpy(array.copy())


def _shape(proto: Any, given: Sequence[int] | None) -> list[int]:
    """The input's shape for one sample: a first dimension without a size is the batch."""
    kind = proto.type.tensor_type
    if kind.elem_type not in (SINGLE, DOUBLE, HALF, BRAIN):
        raise InvalidInput(f"its input {proto.name} does not hold floating-point numbers.")
    sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    if given is not None and kind.HasField("shape"):
        whole = [sizes[0] or 1, *given] if len(sizes) == len(given) + 1 else list(given)
        fits = len(whole) == len(sizes) and all(
            have in (0, want) for have, want in zip(sizes, whole, strict=True)
        )
        if not fits:
            raise InvalidInput(f"input_shape = {tuple(given)}, but its input has {sizes}.")
        return whole
    if given is not None:
        return [1, *given]
    if sizes and not sizes[0]:
        sizes[0] = 1
    if not sizes or not all(sizes):
        raise InvalidInput(
            f"its input {proto.name} has no fixed size; give input_shape=, of one sample."
        )
    return sizes


def _needed(graph: Any, wanted: str) -> list[Any]:
    """The nodes from which the output is computed, in their order."""
    names, nodes = {wanted}, []
    for node in reversed(graph.node):
        if names & set(node.output):
            nodes.append(node)
            names |= set(node.input)
    return nodes[::-1]


def _run(
    node: Any,
    values: dict[str, Any],
    where: str,
    slopes: Mapping[str, Slopes],
    stands: dict[str, str],
    model: Any,
) -> dict[str, Any]:
    onnx = _onnx()
    operator = OPERATORS.get(node.op_type) if node.domain in STANDARD else None
    if missing := [name for name in node.input if name and name not in values]:
        raise InvalidInput(f"{where} takes {missing[0]}, which nothing computes.")
    inputs = [values[name] if name else None for name in node.input]
    while inputs and inputs[-1] is None:
        inputs.pop()
    options = {a.name: _attribute(onnx, a) for a in node.attribute}
    if node.op_type in COUNTED:
        options["count"] = len(node.output)
    try:
        if operator is not None:
            result = operator(*inputs, **options)
        else:
            result = op.declared(node.op_type, where, inputs, slopes)
            entry = next(n for n in node.input if isinstance(values.get(n), Value))
            f = _alone(node, entry, values, model)
            op.check_declared(f, tuple(result.shape), slopes[node.op_type])
            stands[node.output[0]] = entry
    except SdplipError as error:
        text = str(error)
        raise type(error)(text if where in text else f"{where}: {text}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise InvalidInput(f"{where} cannot be translated as it stands here ({e}).") from e
    results = result if isinstance(result, list) else [result]
    return dict(zip(node.output, results, strict=False))


def _attribute(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, onnx.TensorProto):
        return _tensor(attribute.name, value)
    return value


# --- the original, run ---


def _alone(
    node: Any, entry: str, values: Mapping[str, Any], model: Any
) -> Callable[[Tensor], Tensor | None]:
    """One node as a function of the input of this name, in float64; for samples of any shape."""
    onnx = _onnx()
    constants = {name: v for name in node.input if isinstance(v := values.get(name), Tensor)}
    sides = [onnx.helper.make_tensor_value_info(name, DOUBLE, None)
             for name in (entry, node.output[0])]  # fmt: skip
    parts = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in constants.items()]
    graph = onnx.helper.make_graph([node], "alone", sides[:1], sides[1:], parts)
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    return _reference(_double(single), entry, (), one=False)


def _stood_in(model: Any, stands: Mapping[str, str]) -> Any:
    """With `STAND_IN` in place of the nodes with these outputs."""
    onnx = _onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.output[0] in stands:
            outputs = list(node.output)[:1]
            other = onnx.helper.make_node(STAND_IN.title(), [stands[outputs[0]]], outputs)
            node.CopyFrom(other)
    return copy


def _originals(model: Any, entry: Any, shape: tuple[int, ...]) -> list[Original]:
    """The reference evaluation in float64, and onnxruntime as it is, where they can run it."""
    double = _double(model)
    kind, dims = entry.type.tensor_type.elem_type, entry.type.tensor_type.shape.dim
    precise, one = kind in (SINGLE, DOUBLE), bool(dims) and dims[0].HasField("dim_value")
    return [
        ("the model evaluated in float64", 1e-7, _reference(double, entry.name, shape, one)),
        (
            "the model run by onnxruntime",
            SINGLE_PRECISION if precise else 5e-2,
            _runtime(model, entry.name, kind),
        ),
    ]


def _double(model: Any) -> Any:
    """The model with float64 in place of float32."""
    onnx = _onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)

    def widen(tensor: Any) -> None:
        if tensor.data_type == SINGLE:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    for tensor in copy.graph.initializer:
        widen(tensor)
    for node in (*copy.graph.node, *(node for f in copy.functions for node in f.node)):
        if node.op_type == "BatchNormalization":
            # The evaluator takes statistics of the batch in opsets 9 to 13; so they count nothing.
            kept = [a for a in node.attribute if a.name != "momentum"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("momentum", 1.0)])
        for attribute in node.attribute:
            if attribute.HasField("t"):
                widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == SINGLE:
                attribute.i = DOUBLE
    for info in (*copy.graph.input, *copy.graph.output):
        if info.type.tensor_type.elem_type == SINGLE:
            info.type.tensor_type.elem_type = DOUBLE
    del copy.graph.value_info[:]
    return copy


def _reference(
    model: Any, name: str, shape: tuple[int, ...], one: bool
) -> Callable[[Tensor], Tensor | None]:
    """`one`: whether it takes this shape alone, which the evaluator does not check."""
    from onnx.reference import ReferenceEvaluator

    evaluators: list[Any] = []

    def run(x: Tensor) -> Tensor | None:
        if one and tuple(x.shape) != shape:
            return None
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                if not evaluators:
                    evaluators.append(ReferenceEvaluator(model))
                y = evaluators[0].run(None, {name: x.numpy()})[0]
        # The evaluator raises whatever its NumPy code does; onnxruntime is the other witness.
        except Exception:
            return None
        return _copy(y)

    return run


def _copy(y: Any) -> Tensor:
    # Not ascontiguousarray, which leaves the negative stride of an axis of one entry.
    return torch.from_numpy(np.array(y, dtype=np.float64, order="C"))


def _runtime(model: Any, name: str, kind: int) -> Callable[[Tensor], Tensor | None]:
    onnx = _onnx()
    sessions: list[Any] = []
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)

    def run(x: Tensor) -> Tensor | None:
        try:
            import onnxruntime

            if not sessions:
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4
                options.intra_op_num_threads = 1
                sessions.append(
                    onnxruntime.InferenceSession(
                        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                    )
                )
            y = sessions[0].run(None, {name: x.numpy().astype(dtype)})[0]
        # Not installed, an operator it lacks, or a model too large to serialise.
        except Exception:
            return None
        return _copy(y)

    return run
