"""Files with a fixed batch: one sample's network, where all samples have the same."""

import numpy as np
import pytest
import torch
from networks import Images, export
from torch import nn

pytest.importorskip("onnx")

import sdplip
from sdplip.errors import InvalidInput
from sdplip.importing import TooLarge, batches, load, values

PARTS = ("A", "B", "C", "D", "b", "c", "alpha", "beta", "activation")


def same(one, other):
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in PARTS)


@pytest.mark.parametrize("opset", [13, 18])
def test_a_fixed_batch_is_one_sample(tmp_path, opset):
    torch.manual_seed(0)
    net = Images(nn.MaxPool2d(2))
    shape = (3, 8, 8)
    alone = load(export(net, torch.zeros(1, *shape), tmp_path / "one.onnx", opset=opset))
    path = export(net, torch.zeros(3, *shape), tmp_path / "three.onnx", opset=opset)
    assert same(load(path), alone) and same(load(path, input_shape=shape), alone)
    whole = load(path, input_shape=(3, *shape))
    assert (whole.inputs, whole.outputs) == (3 * alone.inputs, 3 * alone.outputs)
    x = torch.randn(3, *shape)
    np.testing.assert_allclose(alone(x.double().flatten(1).numpy()), net(x).detach(), atol=2e-5)
    per_entry = torch.arange(576.0).reshape(3, *shape)
    assert load(path, normalize=(per_entry, 1.0)).inputs == whole.inputs


def test_pairs_of_classes_are_those_of_a_sample(tmp_path):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    path = export(net, torch.zeros(2, 4), tmp_path / "net.onnx")
    bounds = sdplip.margin_bounds(load(path)).bounds
    np.testing.assert_allclose(bounds, sdplip.margin_bounds(net.double()).bounds, rtol=1e-6)
    one = sdplip.lipschitz(load(path), lower=False).bound
    both = sdplip.lipschitz(load(path, input_shape=(2, 4)), lower=False).bound
    assert both == pytest.approx(one, rel=1e-6)


class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.a = f, nn.Linear(4, 4)

    def forward(self, x):
        return self.f(self, x)


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m.a(x - x.mean(0, keepdim=True)),
        lambda m, x: m.a(x).relu() + x.flip(0),
        lambda m, x: m.a(x).relu() * torch.tensor([[1.0], [2.0]]),
        lambda m, x: m.a(x) + torch.tensor([[1.0], [2.0]]),
        lambda m, x: m.a(x).relu().T,
        lambda m, x: m.a(x).sum(),
        # No sample on random inputs shows it.
        lambda m, x: m.a(x) + (x.flip(0) - 1e9).relu(),
    ],
    ids=["mean", "flipped", "scaled", "shifted", "transposed", "sum", "seldom"],
)
def test_samples_that_are_no_copies_stay_together(f, tmp_path):
    path = export(Function(f), torch.zeros(2, 4), tmp_path / "net.onnx")
    assert load(path).inputs == 8


def test_a_vector_is_no_batch(tmp_path):
    path = export(nn.ReLU(), torch.zeros(4), tmp_path / "net.onnx")
    assert load(path).inputs == 4


def test_a_batch_that_is_too_large_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "LIMIT", 1 << 12)
    path = export(
        nn.Sequential(nn.Linear(40, 9), nn.ReLU()), torch.zeros(9, 40), tmp_path / "n.onnx"
    )
    with pytest.raises(TooLarge, match="fixed at 9; export it with a batch of 1"):
        load(path)
    with pytest.raises(InvalidInput, match="input_shape"):
        load(path, input_shape=(3, 40))
    assert batches.one_sample(sdplip.System.elementwise("abs", 6), 4).inputs == 6
