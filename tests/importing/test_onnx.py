"""ONNX files become the systems of their networks; whatever is not understood is refused."""

import numpy as np
import pytest
import torch
from networks import Dense, Images, export
from torch import nn

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sdplip import System, importing  # noqa: E402
from sdplip.errors import InvalidInput, SdplipError, UncheckedWarning  # noqa: E402
from sdplip.importing import onnx_file  # noqa: E402

NEW = {"opset": 18, "dynamo": True}
WAYS = [pytest.param(NEW, marks=pytest.mark.slow), {"opset": 13}, {"opset": 17}]
"""The newer exporter takes seconds for each network."""
ACTIVATIONS = [
    (nn.ReLU(), "relu"),
    (nn.LeakyReLU(-0.5), "leaky_relu(-0.5)"),
    (nn.PReLU(8), "leaky_relu(0.25)"),
    (nn.Tanh(), "tanh"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.ELU(0.5), "elu(0.5)"),
    (nn.CELU(1.5), "celu(1.5)"),
    (nn.SELU(), "elu(1.6732631921768188)"),
    (nn.GELU(), "gelu"),
    (nn.GELU("tanh"), "gelu_tanh"),
    (nn.SiLU(), "silu"),
    (nn.Mish(), "mish"),
    (nn.Hardswish(), "hardswish"),
    (nn.Hardtanh(-0.5, 2), "hardtanh(-0.5,2.0)"),
    (nn.ReLU6(), "hardtanh(0.0,6.0)"),
    (nn.Hardsigmoid(), "hardtanh(0.0,1.0)"),
    (nn.Softsign(), "softsign"),
    (nn.Tanhshrink(), "tanh"),
]


def single(x, system):
    return system(np.asarray(x, dtype=np.float64).reshape(len(x), -1))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(("act", "name"), ACTIVATIONS, ids=lambda a: str(a).split("(")[0])
def test_every_activation_through_skips(tmp_path, act, name, way):
    net = Dense(act)
    path = export(net, torch.zeros(1, 6), tmp_path / "net.onnx", **way)
    system = importing.load(path)
    assert system.units == 16 and set(system.activation) == {name}
    x = torch.randn(7, 6)
    np.testing.assert_allclose(single(x, system), net(x).detach(), atol=2e-5)


@pytest.mark.parametrize("way", [NEW, {"opset": 13}], ids=str)
def test_perceptrons_keep_every_bit(tmp_path, way):
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4, bias=False), nn.ReLU(),
                        nn.Linear(4, 3))  # fmt: skip
    path = export(net, torch.zeros(1, 5), tmp_path / "net.onnx", **way)
    weights = [layer.weight for layer in net[::2]]
    biases = [layer.bias for layer in net[::2]]
    expected = System.feedforward(weights, biases)
    system = importing.load(path)
    for part in "ABCDbc":
        assert np.array_equal(getattr(system, part), getattr(expected, part)), part


POOLS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(2),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_convolutions_unroll(tmp_path, pool):
    net = Images(pool)
    path = export(net, torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx")
    system, x = importing.load(path), torch.randn(5, 3, 8, 8)
    np.testing.assert_allclose(single(x, system), net(x).detach(), rtol=1e-4, atol=2e-5)


def test_an_open_batch_is_one_sample(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    path = tmp_path / "net.onnx"
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    export(net, torch.zeros(2, 1, 6, 6), path, input_names=["x"], dynamic_axes=axes)
    with pytest.raises(InvalidInput, match="input_shape"):
        importing.load(path)
    with pytest.raises(InvalidInput, match="input_shape"):
        importing.load(path, input_shape=(3, 6, 6))
    system, x = importing.load(path, input_shape=(1, 6, 6)), torch.randn(3, 1, 6, 6)
    np.testing.assert_allclose(single(x, system), net(x).detach(), atol=1e-5)


def test_normalisation_given_is_that_in_the_network(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    path = export(net, torch.zeros(1, 3, 4, 4), tmp_path / "net.onnx")
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    system, x = importing.load(path, normalize=(mean, std)), torch.randn(5, 3, 4, 4)
    inner = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    np.testing.assert_allclose(single(x, system), net(inner.float()).detach(), atol=2e-5)
    for bad in ((0.1,), (0.1, 0.0), ([0.1] * 5, 1.0), ("a", 1.0), 3.0):
        with pytest.raises(InvalidInput):
            importing.load(path, normalize=bad)


# --- graphs made by hand ---


def write(path, nodes, constants=(), shape=(1, 4), out=(1, 4), domains=(), kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, out)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()],
    )
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 18), *domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def node(kind, *inputs, out="y", **attributes):
    return helper.make_node(kind, list(inputs), [out], name=f"the_{kind}", **attributes)


W = np.arange(16, dtype=np.float32).reshape(4, 4) / 8 - 1


@pytest.mark.parametrize(
    ("nodes", "f"),
    [
        ([node("Gemm", "x", "w", "b", alpha=0.5, beta=2.0, transB=1)], lambda x: x @ W.T / 2 + 2),
        ([node("Gemm", "x", "w", transB=0)], lambda x: x @ W),
        ([node("MatMul", "x", "w")], lambda x: x @ W),
        ([node("Sub", "b", "x")], lambda x: 1 - x),
        ([node("Mul", "x", "r")], lambda x: x * [1, 2, 3, 4]),
        ([node("Div", "x", "r")], lambda x: x / [1, 2, 3, 4]),
        ([node("Max", "x", "r")], lambda x: np.maximum(x, [1, 2, 3, 4])),
        ([node("Min", "x", "r")], lambda x: np.minimum(x, [1, 2, 3, 4])),
        ([node("Max", "x")], lambda x: x),
        ([node("Max", "x", "r", "low")], lambda x: np.maximum(x, [1, 2, 3, 4])),
        ([node("Min", "b", "x", "low")], lambda x: np.minimum(x, -0.25)),
        ([node("Neg", "x")], np.negative),
        ([node("Abs", "x")], np.abs),
        ([node("Sum", "x", "x", "b")], lambda x: 2 * x + 1),
        ([node("Clip", "x", "low")], lambda x: np.maximum(x, -0.25)),
        ([node("Clip", "x", "", "low")], lambda x: np.minimum(x, -0.25)),
        ([node("HardSigmoid", "x", alpha=0.5, beta=0.25)], lambda x: np.clip(x / 2 + 0.25, 0, 1)),
        ([node("ThresholdedRelu", "x", alpha=0.0)], None),
        ([node("Shrink", "x", bias=0.5, lambd=0.5)],
         lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
        ([node("Shrink", "x", bias=0.0, lambd=0.5)], None),
        ([node("Slice", "x", "s", "e", "a", "m", out="t"),
          node("Concat", "t", "x", out="u", axis=1), node("Slice", "u", "z", "four", "a")],
         lambda x: np.concatenate([x[:, 3:0:-2], x], 1)[:, :4]),
        ([node("Flatten", "x", out="t", axis=-1), node("Gemm", "t", "w")], lambda x: x @ W),
        ([node("Slice", "x", "z", "z")], None),
        ([node("Transpose", "x", out="t", perm=[1, 0]), node("Reshape", "t", "shape")],
         lambda x: x),
        ([node("Unsqueeze", "x", "a", out="t"), node("Squeeze", "t", "a")], lambda x: x),
        ([node("Pad", "x", "pads", out="t"), node("Slice", "t", "z", "four", "a")],
         lambda x: np.concatenate([0 * x[:, :1], x[:, :3]], 1)),
        ([node("Pad", "x", "pads", mode="reflect")], lambda x: x[:, [1, 0, 1, 2, 3]]),
        ([node("Pad", "x", "pads", mode="edge")], lambda x: x[:, [0, 0, 1, 2, 3]]),
        ([node("Pad", "x", "pads", mode="else")], None),
        ([node("Gather", "x", "pick", axis=1)], lambda x: x[:, [3, 3, 0, 2]]),
        ([node("ReduceMean", "x", "a", out="t", keepdims=1), node("Add", "t", "x")],
         lambda x: x + x.mean(1, keepdims=True)),
        ([node("ReduceSum", "x", "a", out="t", keepdims=1), node("Sub", "x", "t")],
         lambda x: x - x.sum(1, keepdims=True)),
        ([node("Shape", "x", out="t"), node("Reshape", "x", "t")], lambda x: x),
        ([node("Cast", "x", to=TensorProto.DOUBLE, out="t"), node("Cast", "t", to=1)], lambda x: x),
        ([node("Cast", "x", to=TensorProto.INT64, out="t"), node("Cast", "t", to=1)], None),
        ([node("Dropout", "x")], lambda x: x),
        ([node("Softmax", "x")], None),
        ([node("Mul", "x", "x")], None),
        ([node("Div", "b", "x")], None),
        ([node("Exp", "x")], None),
        ([node("Pow", "x", "two")], None),
        ([node("Sigmoid", "x", out="t"), node("Mul", "t", "t")], None),
        ([node("Sigmoid", "x", out="t"), node("Neg", "x", out="u"), node("Mul", "t", "u")], None),
    ],
    ids=lambda nodes: "-".join(n.op_type for n in nodes) if isinstance(nodes, list) else "",
)  # fmt: skip
def test_operators(tmp_path, nodes, f):
    constants = {
        "w": W, "b": np.ones(4, np.float32), "r": np.arange(1, 5, dtype=np.float32),
        "low": np.float32(-0.25), "s": [3], "e": [0], "a": [1], "m": [-2], "z": [0], "four": [4],
        "shape": [0, -1], "pads": [0, 1, 0, 0], "pick": [-1, 3, 0, 2], "two": np.float32(2),
    }  # fmt: skip
    used = {name for n in nodes for name in n.input}
    constants = {k: np.asarray(v) for k, v in constants.items() if k in used}
    if nodes[0].op_type == "Transpose":
        constants["shape"] = np.array([1, -1])
    path = write(tmp_path / "net.onnx", nodes, constants)
    if f is None:
        with pytest.raises(InvalidInput, match=r"node 'the_\w+'|holds nothing"):
            importing.load(path)
        return
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected = np.concatenate([f(row[None]) for row in x])
    np.testing.assert_allclose(single(x, importing.load(path)), expected, atol=1e-6)


def test_an_output_that_the_original_returns_reversed(tmp_path):
    """The reference evaluation returns a view with negative strides."""
    constants = {"s": [-1], "e": [-100], "a": [1], "m": [-1]}
    slice_ = node("Slice", "x", "s", "e", "a", "m")
    system = importing.load(write(tmp_path / "net.onnx", [slice_], constants))
    np.testing.assert_array_equal(system.D, np.eye(4)[::-1])
    system = importing.load(write(tmp_path / "net.onnx", [slice_], constants, (1, 1), (1, 1)))
    np.testing.assert_array_equal(system.D, [[1]])


def test_groups_of_pads_strides_and_automatic_pads(tmp_path):
    K = np.random.default_rng(0).normal(size=(4, 1, 3, 2)).astype(np.float32)
    cases = [
        {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID", "kernel_shape": [3, 2]},
    ]
    for options in cases:
        conv = node("Conv", "x", "k", group=2, **options)
        path = write(tmp_path / "net.onnx", [conv], {"k": K}, (1, 2, 5, 6), (1, 4, None, None))
        assert importing.load(path).units == 0  # compared with two other evaluations
    K = np.random.default_rng(0).normal(size=(2, 1, 3, 2)).astype(np.float32)
    for options in (
        {"group": 2, "pads": [1, 0, 1, 1], "dilations": [1, 2]},
        {"strides": [2, 3], "output_padding": [1, 1], "pads": [1, 0, 0, 1]},
    ):
        turned = node("ConvTranspose", "x", "k", **options)
        path = write(tmp_path / "net.onnx", [turned], {"k": K}, (1, 2, 5, 6), (1, None, None, None))
        assert importing.load(path).units == 0
    K = np.zeros((4, 1, 3, 2), dtype=np.float32)
    bad = node("Conv", "x", "k", group=2, kernel_shape=[2, 2])
    with pytest.raises(InvalidInput, match="kernel_shape"):
        importing.load(write(tmp_path / "net.onnx", [bad], {"k": K}, (1, 2, 5, 6), (1, 4, 4, 5)))


def test_an_operator_of_others_needs_declared_slopes(tmp_path):
    nodes = [node("Swirl", "x", out="t", domain="else"), node("MatMul", "t", "w")]
    path = write(tmp_path / "net.onnx", nodes, {"w": W}, domains=[("else", 1)])
    with pytest.raises(InvalidInput, match=r"Swirl.*slopes="):
        importing.load(path)
    with pytest.warns(UncheckedWarning, match="activation is unknown"):
        system = importing.load(path, slopes={"Swirl": (-0.5, 2.0)})
    assert (system.alpha == -0.5).all() and (system.beta == 2).all()
    assert set(system.activation) == {"unknown"}
    with pytest.raises(InvalidInput, match="dictionary"):
        importing.load(path, slopes=(0, 1))


def test_what_is_around_a_declared_operator_is_compared(tmp_path, monkeypatch):
    nodes = [node("Swirl", "x", out="t", domain="else"), node("MatMul", "t", "w")]
    path = write(tmp_path / "net.onnx", nodes, {"w": W}, domains=[("else", 1)])
    matmul = onnx_file.OPERATORS["MatMul"]
    monkeypatch.setitem(onnx_file.OPERATORS, "MatMul", lambda x, y: matmul(x, 1.001 * y))
    with pytest.raises(InvalidInput, match="apart"):
        importing.load(path, slopes={"Swirl": (-0.5, 2.0)})


@pytest.mark.parametrize(
    ("kind", "slopes", "match"),
    [
        ("Softmax", (0.0, 1.0), "elementwise, which it is not"),
        ("Sinh", (1.0, 2.0), "but one of"),
        ("Floor", (0.0, 1.0), "but one of"),
    ],
)
def test_declarations_that_samples_contradict_are_refused(tmp_path, kind, slopes, match):
    path = write(tmp_path / "net.onnx", [node(kind, "x")])
    with pytest.raises(InvalidInput, match=match):
        importing.load(path, slopes={kind: slopes})


def test_declared_slopes_are_of_functions_of_one_tensor(tmp_path):
    nodes = [node("Neg", "x", out="t"), node("Swirl", "x", "t", domain="else")]
    path = write(tmp_path / "net.onnx", nodes, domains=[("else", 1)])
    with pytest.raises(InvalidInput, match="of one tensor"):
        importing.load(path, slopes={"Swirl": (-0.5, 2.0)})


@pytest.mark.parametrize("kind", ["HardSigmoid", "LeakyRelu"])
def test_defaults_are_the_single_precision_numbers_of_the_standard(tmp_path, kind):
    system = importing.load(write(tmp_path / "net.onnx", [node(kind, "x")]))
    alpha = onnx.defs.get_schema(kind).attributes["alpha"].default_value.f
    slopes = {system.B[0, 0], system.alpha[0], system.beta[0]}
    assert alpha in slopes and alpha not in (0.2, 0.01)


@pytest.mark.parametrize(("domain", "name"), [("own", "Twice"), ("own", "Relu"), ("", "Relu")])
def test_functions_of_a_model(tmp_path, domain, name):
    """Runtimes take the standard's operator for one of its name, whatever the model defines."""
    standard = helper.make_opsetid("", 18)
    twice = helper.make_node("Add", ["a", "a"], ["b"])
    function = helper.make_function(domain, name, ["a"], ["b"], [twice], [standard])
    sides = [helper.make_tensor_value_info(k, TensorProto.FLOAT, (1, 4)) for k in "xy"]
    graph = helper.make_graph(
        [helper.make_node(name, ["x"], ["y"], domain=domain)], "g", sides[:1], sides[1:]
    )
    domains = [standard, helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=domains, ir_version=9)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    if domain:
        assert np.array_equal(importing.load(path).D, 2 * np.eye(4))
    else:
        with pytest.raises(InvalidInput, match="in its own way"):
            importing.load(path)


def test_a_translation_that_is_wrong_is_noticed(tmp_path, monkeypatch):
    """The defects found in published bounds, each put into the importer."""
    from sdplip.importing import operations

    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 12), nn.ReLU())
    path = export(net, torch.zeros(1, 2, 4, 4), tmp_path / "net.onnx")
    flat = onnx_file.OPERATORS["Flatten"]
    wrong = {
        "Gemm": lambda x, w, b, **_: operations.add(operations.matmul(x, w), b),
        "Relu": lambda x: x,
        "Flatten": lambda x, **_: flat(operations.linear(x, lambda t: t.transpose(1, 3))),
        "Conv": lambda x, w, b, **_: operations.add(
            operations.convolve(x, 1.001 * w, None, (1, 1), [(0, 0)] * 2, (1, 1), 1),
            b.reshape(-1, 1, 1),
        ),
    }
    assert importing.load(path).units == 24
    for name, defect in wrong.items():
        with monkeypatch.context() as patch:
            patch.setitem(onnx_file.OPERATORS, name, defect)
            with pytest.raises(InvalidInput, match=r"apart \(allowed"):
                importing.load(path)


def test_an_original_that_nothing_can_run_is_refused(tmp_path, monkeypatch):
    for way in ("_reference", "_runtime"):
        monkeypatch.setattr(onnx_file, way, lambda *_: lambda x: None)
    path = write(tmp_path / "net.onnx", [node("MatMul", "x", "w")], {"w": W})
    with pytest.raises(InvalidInput, match="could not be run"):
        importing.load(path)
    assert importing.load(path, sample=(np.eye(4), W)).outputs == 4


# --- hostile and damaged files ---


def test_damaged_files(tmp_path):
    path = export(nn.Linear(4, 4), torch.zeros(1, 4), tmp_path / "net.onnx")
    content = path.read_bytes()
    for k in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:k])
        with pytest.raises(InvalidInput):
            importing.load(path)
    rng = np.random.default_rng(0)
    for _ in range(60):
        altered = bytearray(content)
        altered[rng.integers(len(altered))] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        try:
            importing.load(path)
        except SdplipError:
            continue
    with pytest.raises(InvalidInput, match="does not exist"):
        importing.load(tmp_path / "none.onnx")


def external(tmp_path, location, length=64):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    path = write(tmp_path / "inner" / "net.onnx", [node("MatMul", "x", "w")])
    model = onnx.load(path)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_stays_in_its_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for place in (tmp_path, tmp_path / "inner"):
        (place / "w.bin").write_bytes(W.tobytes())
    x = np.eye(4)
    np.testing.assert_array_equal(importing.load(external(tmp_path, "w.bin"))(x), W)
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "w.bin")
    for location in ("../w.bin", str(tmp_path / "w.bin"), "link.bin", "none.bin", ""):
        with pytest.raises(InvalidInput, match="folder of the model"):
            importing.load(external(tmp_path, location))
    with pytest.raises(InvalidInput, match="size of its shape"):
        importing.load(external(tmp_path, "w.bin", length=60))
    (tmp_path / "inner" / "w.bin").write_bytes(b"short")
    with pytest.raises(InvalidInput, match=r"raw_data size|cannot be read"):
        importing.load(external(tmp_path, "w.bin"))


@pytest.mark.parametrize("opset", [9, 13, 15])
def test_batch_normalization_by_itself(tmp_path, opset):
    path = tmp_path / "net.onnx"
    rng = np.random.default_rng(0)
    facts = dict(zip("sbmv", rng.uniform(0.5, 2, (4, 4)).astype(np.float32), strict=True))
    write(path, [node("Relu", "x", out="z"), node("BatchNormalization", "z", *"sbmv")], facts)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)
    x = rng.normal(size=(5, 4))
    s, b, m, v = facts.values()
    expected = (np.maximum(x, 0) - m) / np.sqrt(v + 1e-5) * s + b
    np.testing.assert_allclose(importing.load(path)(x), expected, rtol=1e-6)
    if opset < 14:
        model.graph.node[1].output.extend(["mean", "var", "saved_mean", "saved_var"])
        onnx.save(model, path)
        with pytest.raises(InvalidInput, match="training mode"):
            importing.load(path)


def test_samples_of_a_batch_that_are_mixed(tmp_path):
    path, axis = tmp_path / "net.onnx", {"n": np.array([0])}
    nodes = [node("ReduceMean", "x", "n", out="m"), node("Sub", "x", "m", out="d"),
             node("Add", "d", "x")]  # fmt: skip
    with pytest.raises(InvalidInput, match="depends on the others of its batch"):
        importing.load(write(path, nodes, axis, shape=("batch", 4), out=("batch", 4)))
    # Of a model for one sample alone nothing else can be asked.
    system = importing.load(write(path, nodes, axis, shape=(1, 4), out=(1, 4)))
    np.testing.assert_array_equal(system.D, np.eye(4))


def test_what_weights_may_not_hold(tmp_path):
    path = tmp_path / "net.onnx"
    for bad in (np.nan, np.inf):
        broken = np.where(np.eye(4) > 0, bad, W).astype(np.float32)
        with pytest.raises(InvalidInput, match=rf"w contains {bad}"):
            importing.load(write(path, [node("MatMul", "x", "w")], {"w": broken}))
    strings = write(path, [node("MatMul", "x", "w")], {"w": np.array([["a"] * 4] * 4)})
    with pytest.raises(InvalidInput, match="real numbers"):
        importing.load(strings)


def test_sizes_beyond_memory_are_refused(tmp_path):
    path, huge = tmp_path / "net.onnx", np.array([1 << 20, 1 << 20])
    for nodes in (
        [node("Expand", "x", "n")],
        [node("ConstantOfShape", "n", out="t"), node("Add", "x", "t")],
    ):
        with pytest.raises(InvalidInput, match="too large"):
            importing.load(write(path, nodes, {"n": huge}))
    relu = [node("Relu", "x")]
    with pytest.raises(importing.TooLarge, match="limit"):
        importing.load(write(path, relu, shape=(1, 40_000), out=(1, 40_000)))


def test_graphs_that_are_no_maps(tmp_path):
    path = tmp_path / "net.onnx"
    constant = [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(W[:1]))]
    with pytest.raises(InvalidInput, match="does not depend"):
        importing.load(write(path, constant))
    model = onnx.load(write(path, [node("Relu", "x")]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidInput, match="inputs x, z"):
        importing.load(path)
    with pytest.raises(InvalidInput, match="floating-point"):
        importing.load(write(path, [node("Abs", "x")], kind=TensorProto.INT64))
