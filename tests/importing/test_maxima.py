"""Max pooling and other maxima become ReLU units, and the bounds above them hold."""

import numpy as np
import pytest
import torch
from networks import export
from torch import nn
from torch.nn import functional as F

import sdplip
from sdplip import System, importing
from sdplip.convolutional import ConvSystem
from sdplip.errors import InvalidInput
from sdplip.importing import convolutions, from_torch


class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.a = f, nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x):
        return self.f(self, x)


def values(system, x):
    x = x.double()
    return system(x if isinstance(system, ConvSystem) else x.flatten(1)).flatten(1)


FUNCTIONS = {
    "pool": lambda m, x: F.max_pool2d(x, 2),
    "overlap": lambda m, x: F.max_pool2d(m.a(x).relu(), 3, 2, 1),
    "ceiling": lambda m, x: F.max_pool2d(m.a(x), 3, 2, 1, ceil_mode=True),
    "dilated": lambda m, x: F.max_pool2d(m.a(x), (2, 3), (1, 2), (1, 1), (2, 1), True),
    "dilated after relu": lambda m, x: F.max_pool2d(m.a(x).relu(), (5, 3), (1, 2), (2, 1), (1, 2)),
    "wide": lambda m, x: F.max_pool2d(m.a(x), (4, 5), (3, 2)),
    "values": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "lines": lambda m, x: F.max_pool1d(x.flatten(1, 2), 3, 1, 1),
    "volumes": lambda m, x: F.max_pool3d(x, (2, 2, 3), 1),
    "adaptive": lambda m, x: F.adaptive_max_pool2d(m.a(x), (3, None)),
    "adaptive blocks": lambda m, x: F.adaptive_max_pool2d(m.a(x), (4, 1)),
    "adaptive lines": lambda m, x: F.adaptive_max_pool1d(x.flatten(1, 2), 5),
    "blocks of four": lambda m, x: F.max_pool2d(m.a(x), 4, (4, 1)),
    "amax": lambda m, x: m.a(x).amax((2, -1), keepdim=True),
    "amax of channels": lambda m, x: x.amax(1),
    "amin": lambda m, x: m.a(x).amin((2, 3)),
    "max": lambda m, x: m.a(x).flatten(1).max(1).values,
    "min": lambda m, x: m.a(x).min(2, keepdim=True)[0],
    "of two": lambda m, x: torch.max(m.a(x), 2 * m.a(-x)) + torch.fmin(m.a(x), x[:, :1]),
    "limits": lambda m, x: torch.minimum(x, torch.arange(7.0).to(x)).clamp(min=-0.5),
}


@pytest.mark.parametrize("comfortable", [6000, 1], ids=["unrolled", "images"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_maxima_of_torch(name, comfortable, monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", comfortable)
    net, x = Function(FUNCTIONS[name]), torch.randn(5, 2, 8, 7)
    system = from_torch(net, torch.zeros(1, 2, 8, 7))
    assert comfortable == 1 or isinstance(system, System)
    with torch.no_grad():
        y = torch.stack([net(row[None]).flatten() for row in x])
    torch.testing.assert_close(values(system, x).float(), y, atol=1e-5, rtol=1e-5)


REFUSED = {
    "indices": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[1] * x.sum(),
    "places": lambda m, x: x.max(1)[1] * 1.0,
    "argmax": lambda m, x: x.argmax(1) * 1.0,
    "fractions": lambda m, x: F.fractional_max_pool2d(x, 2, 2),
    "largest": lambda m, x: x.topk(2, 1).values,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jumps_is_refused(name):
    with pytest.raises(InvalidInput, match="node '"):
        from_torch(Function(REFUSED[name]), torch.zeros(1, 2, 8, 7))


def test_padding_of_negative_images_is_unrolled(monkeypatch):
    """Zeros in place of what is less than any number would be wrong there."""
    monkeypatch.setattr(convolutions, "COMFORTABLE", 1)
    pool = nn.MaxPool2d(3, 2, 1)
    for before, kind in ((nn.Tanh(), System), (nn.ReLU(), ConvSystem)):
        net, x = nn.Sequential(before, pool), torch.randn(4, 1, 7, 7) - 2
        system = from_torch(net, torch.zeros(1, 1, 7, 7))
        assert isinstance(system, kind)
        torch.testing.assert_close(values(system, x).float(), net(x).flatten(1))


def test_windows_that_overlap_share_their_pairs():
    line = from_torch(nn.MaxPool1d(4, 1), torch.zeros(1, 1, 20))
    assert line.units == 19 + 17
    block = from_torch(nn.MaxPool2d(2), torch.zeros(1, 1, 6, 6))
    assert block.units == 9 * 3


@pytest.mark.parametrize(
    ("pool", "constant"),
    [(nn.MaxPool2d(2), 1.0), (nn.MaxPool2d(3, 2, 1), 2.0), (nn.MaxPool2d(2, 1), 2.0)],
    ids=str,
)
def test_bounds_of_pooling_itself(pool, constant):
    """√(the most windows that a pixel is in): one large pixel is the maximum of all of them."""
    found = sdplip.lipschitz(from_torch(pool, torch.zeros(1, 1, 6, 6)))
    assert constant - 1e-9 <= found.lower <= found.bound <= constant + 1e-6


def test_both_routes_bound_what_is_attained(monkeypatch):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                        nn.Flatten(), nn.Linear(12, 3)).double()  # fmt: skip
    x = 3 * torch.randn(200, 1, 8, 8, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(net))(x[:, None]).reshape(200, 3, 64)
    attained = float(torch.linalg.matrix_norm(jacobians.detach(), 2).max())
    for comfortable, method in ((6000, "auto"), (1, "frequency")):
        monkeypatch.setattr(convolutions, "COMFORTABLE", comfortable)
        system = from_torch(net, torch.zeros(1, 1, 8, 8).double())
        found = sdplip.lipschitz(system, method=method, lower=False)
        assert attained <= found.bound
        assert sdplip.check(found, system) is found


@pytest.mark.parametrize("opset", [11, 18])
def test_pooling_of_onnx(tmp_path, opset):
    pytest.importorskip("onnx")
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True), nn.Tanh(),
                        nn.AdaptiveMaxPool2d(1))  # fmt: skip
    path = export(net, torch.zeros(1, 2, 9, 8), tmp_path / "net.onnx", opset=opset)
    system, x = importing.load(path), torch.randn(4, 2, 9, 8)
    torch.testing.assert_close(values(system, x).float(), net(x).flatten(1), atol=1e-5, rtol=1e-5)


def test_operators_of_onnx(tmp_path, monkeypatch):
    """Compared with two other evaluations as they are read."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def load(kind, count=1, constants=(), rank=4, **attributes):
        names = [c[0] for c in constants]
        outputs = ["y", "places"][:count]
        nodes = [helper.make_node(kind, ["x", *names], outputs, name="the_one", **attributes)]
        if count > 1 and attributes.get("storage_order"):
            nodes.append(helper.make_node("Cast", ["places"], ["z"], to=TensorProto.FLOAT))
        shapes = {"x": (1, 2, 7, 6), nodes[-1].output[0]: [None] * rank}
        sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                 for name, shape in shapes.items()]  # fmt: skip
        parts = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
        graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], parts)
        opset = helper.make_opsetid("", 18)
        path = tmp_path / "net.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
        return importing.load(path)

    for options in (
        {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID", "strides": [3, 1]},
        {"strides": [2, 2], "ceil_mode": 1},
    ):
        assert load("MaxPool", kernel_shape=[3, 2], **options).units
    assert load("MaxPool", 2, kernel_shape=[2, 2]).outputs == 2 * 6 * 5
    with pytest.raises(InvalidInput, match="places, which nothing computes"):
        load("MaxPool", 2, kernel_shape=[2, 2], storage_order=1)
    for comfortable in (6000, 1):
        monkeypatch.setattr(convolutions, "COMFORTABLE", comfortable)
        with pytest.raises(InvalidInput, match="nothing but padding"):
            load("MaxPool", kernel_shape=[2, 2], pads=[0, 2, 0, 0])
    assert load("GlobalMaxPool").outputs == 2
    for kind in ("ReduceMax", "ReduceMin"):
        assert load(kind, constants=[("axes", [-1, 1])], rank=2, keepdims=0).outputs == 7
        assert load(kind).outputs == 1
    rows = [(name, np.full(6, value, np.float32)) for name, value in (("a", -1), ("b", 0.5))]
    assert load("Max", constants=rows).units == 84 * 2
