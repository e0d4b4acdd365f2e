"""Implicit deep learning: NEMON layers whose ‖A‖_∞ is bounded."""

import copy
import pickle

import pytest
import torch
from layer_cases import EXTREMES, make, put

from sdplip import conditions, lipschitz
from sdplip.errors import InvalidInput
from sdplip.layers import LAYERS, ImplicitLinear, NEMONLinear
from sdplip.layers.nemon import witness

F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_the_norm_of_a_is_bounded_for_any_parameters(extreme, dtype):
    layer = make(ImplicitLinear, dtype=dtype, c=0.9)
    put(layer, extreme)
    x = torch.randn(4, layer.in_features, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    w = {name: value.detach().double() for name, value in layer.witness().items()}
    assert w["A"].abs().sum(dim=-1).max() <= w["c"] <= 0.9 * (1 + 1e-6)
    measured = {name: w[name].numpy() for name in ("A", "eta", "c")}
    assert conditions.measure.margin(**measured) >= 0
    assert layer.solve(x).converged.all()


def test_rows_inside_the_ball_are_left_alone_and_others_lie_on_its_border():
    layer = ImplicitLinear(3, 4, 2, c=0.5, dtype=F64)
    with torch.no_grad():
        layer.T.copy_(torch.tensor([[0.1, -0.2, 0, 0.1], [3, 0, 0, -1], [0] * 4, [0, 0, 0, 0.5]]))
    A = layer.witness()["A"].detach()
    torch.testing.assert_close(A[[0, 2, 3]], layer.T.detach()[[0, 2, 3]])
    torch.testing.assert_close(A[1], torch.tensor([0.375, 0, 0, -0.125], dtype=F64))


def test_it_is_a_nemon_of_the_same_matrix():
    layer = make(ImplicitLinear, dtype=F64, c=0.7)
    with torch.no_grad():
        layer.T.mul_(9)
    A = layer.witness()["A"].detach()
    # c + T_ii - Σ|T_ij| = a_ii with the off-diagonal entries of A and a T_ii that is not positive.
    off = A - torch.diag(A.diagonal())
    T = off + torch.diag((A.diagonal() - 0.7 + off.abs().sum(-1)) / 2)
    found = witness(T, torch.zeros(len(A), dtype=F64), torch.tensor(0.7, dtype=F64))["A"]
    torch.testing.assert_close(found, A, rtol=1e-12, atol=1e-12)


def test_its_bounds_hold():
    layer = make(ImplicitLinear, dtype=F64).eval()
    assert layer.norm == float("inf") and layer.c == 0.99
    x, h = torch.randn(50, layer.in_features, dtype=F64), torch.randn(50, layer.in_features)
    moved = (layer(x + h.double()) - layer(x)).abs().amax(-1)
    assert (moved <= layer.lipschitz * h.abs().amax(-1).double() * (1 + 1e-9)).all()
    found = lipschitz(layer.system(), norm=2)
    assert found.lower <= found.bound


def test_copies_files_and_training(tmp_path):
    layer = ImplicitLinear(5, 7, 4, c=0.8)
    x = torch.randn(6, 5)
    assert "d" not in dict(layer.named_parameters())
    layer.reset_parameters()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    fresh = ImplicitLinear(5, 7, 4)
    fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert fresh.c == 0.8
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    layer.linf_bound().backward()
    assert layer.T.grad.any() and layer.B.grad.any() and layer.C.grad.any()
    with pytest.raises(InvalidInput, match=r"ImplicitLinear.*NEMONLinear|NEMONLinear.*Implicit"):
        NEMONLinear(5, 7, 4).load_state_dict(layer.state_dict(), strict=False)


def test_c_is_checked():
    for c in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidInput, match="ImplicitLinear: c ="):
            ImplicitLinear(2, 3, 2, c=c)
    # One that float32 would round to 1 stays below it.
    assert ImplicitLinear(2, 3, 2, c=1 - 1e-12).witness()["c"] < 1
    assert ImplicitLinear not in LAYERS.values()
