"""What is imported has the bound of the same network built by hand, above what is attained."""

import numpy as np
import pytest
import torch
from networks import Dense, export
from torch import nn

import sdplip
from sdplip import System
from sdplip.errors import CertificationError
from sdplip.importing import from_torch, load


def by_hand(net, name):
    """The skips of `Dense`, composed from systems."""
    arrays = [p.detach().double().numpy() for p in (net.a.weight, net.a.bias, net.b.weight)]
    A, a, B = arrays
    C, c = (p.detach().double().numpy() for p in (net.c.weight, net.c.bias))
    sigma = System.elementwise(name, 8)
    h = sigma @ System.linear(A, a)
    both = System.linear(np.eye(8)) + sigma @ System.linear(np.eye(8) + B)
    after = System.linear(C[:, 6:], c) @ both @ h
    return after + System.linear(C[:, :6])


@pytest.mark.parametrize(
    ("act", "name"),
    [(nn.ReLU(), "relu"), (nn.GELU(), "gelu"), (nn.SiLU(), "silu"), (nn.Hardswish(), "hardswish"),
     (nn.LeakyReLU(-0.5), "leaky_relu(-0.5)")],
    ids=lambda a: a if isinstance(a, str) else "",
)  # fmt: skip
def test_the_bound_is_that_of_the_network_by_hand(tmp_path, act, name):
    net = Dense(act)
    expected = sdplip.lipschitz(by_hand(net, name), lower=False).bound
    assert sdplip.lipschitz(from_torch(net, torch.zeros(1, 6)), lower=False).bound == pytest.approx(
        expected, rel=1e-6
    )
    path = export(net, torch.zeros(1, 6), tmp_path / "net.onnx")
    assert sdplip.lipschitz(load(path), lower=False).bound == pytest.approx(expected, rel=1e-6)
    x = torch.randn(200, 6)
    J = torch.func.vmap(torch.func.jacrev(net))(x[:, None]).squeeze()
    assert float(torch.linalg.matrix_norm(J.detach(), 2).max()) <= expected


@pytest.mark.parametrize(("name", "slope"), [("silu", 1.0998), ("hardswish", 1.4999)])
def test_published_tables_would_be_below_the_truth(name, slope):
    """Slopes in [0, 1], as some assume, give the bound 1 for x ↦ σ(x)."""
    bound = sdplip.lipschitz(System.elementwise(name, 1)).bound
    assert slope <= bound <= slope + 2e-4


def test_a_module_is_checked_as_it_was_bounded():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    for certificate in (
        sdplip.lipschitz(net, input_shape=(1, 6, 6), lower=False),
        sdplip.margin_bounds(net, pairs=7, input_shape=(1, 6, 6)).certificates[0, 7],
    ):
        assert sdplip.check(certificate, net, input_shape=(1, 6, 6)) is certificate
        with pytest.raises(CertificationError, match="another model"):
            sdplip.check(certificate, net, input_shape=(1, 8, 6))
