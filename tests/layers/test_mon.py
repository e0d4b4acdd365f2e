"""MON layers: what they have beyond LBEN's, which they are, with Λ = I."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from equilibrium_conv_cases import matrix

from sdplip import conditions
from sdplip.equilibrium import monotonicity
from sdplip.errors import InvalidInput
from sdplip.layers import (
    CONVOLUTIONS,
    LAYERS,
    ImplicitLinear,
    LBENConv2d,
    LBENLinear,
    MONConv2d,
    MONLinear,
    MultiscaleLBEN,
    MultiscaleMON,
    fold,
    lipschitz_bound,
)

F64 = torch.float64
SIZES = {"mon": (MONLinear, LBENLinear, (5, 7, 4)), "conv": (MONConv2d, LBENConv2d, (2, 3, 2, 3)),
         "multiscale": (MultiscaleMON, MultiscaleLBEN, (2, (2, 3), 2, 3))}  # fmt: skip
INPUTS = {"mon": (6, 5), "conv": (3, 2, 4, 6), "multiscale": (3, 2, 4, 6)}


def pair(name, **options):
    """A MON and the LBEN of the same parameters with ψ = 0."""
    ours, other, sizes = SIZES[name]
    mon = ours(*sizes, dtype=F64, tol=1e-12, **options)
    lben = other(*sizes, dtype=F64, tol=1e-12, **{"gamma": math.inf, **options})
    with torch.no_grad():
        for key, parameter in lben.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if key == "psi" else mon.get_parameter(key))
    return mon, lben


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.5, "feedthrough": True}, {"gamma": 2.0, "learn_gamma": True}],
    ids=["well-posed", "bounded", "learned"],
)  # fmt: skip
def test_it_is_lben_without_a_metric(name, options):
    mon, lben = pair(name, **options)
    x = torch.randn(*INPUTS[name], dtype=F64)
    torch.testing.assert_close(mon(x), lben(x), rtol=1e-12, atol=1e-12)
    assert mon.lipschitz == lben.lipschitz
    assert {*dict(lben.named_parameters())} - {*dict(mon.named_parameters())} == {"psi"}
    assert not any("psi" in key for key in mon.state_dict())


def test_it_is_the_published_parametrisation():
    layer = MONLinear(5, 7, 4, eps=0.3, dtype=F64)
    A, B, eye = layer.V.detach(), layer.S.detach().mT, torch.eye(7, dtype=F64)
    w = layer.witness()
    torch.testing.assert_close(w["A"].detach(), (1 - 0.3) * eye - A.mT @ A + B - B.mT)
    assert (w["Lam"] == 1).all()
    assert monotonicity(w["A"])[0] >= 0.3
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1e6)
    assert monotonicity(layer.witness()["A"])[0] > 0.29


def test_a_bound_holds_and_is_verified():
    layer = MONLinear(5, 7, 4, gamma=0.7, feedthrough=True, dtype=F64)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    w = {k: v.detach().numpy() for k, v in layer.witness().items()}
    assert conditions.equilibrium.margin(**w) > 0
    assert np.ptp(w["Lam"]) == 0
    x, h = torch.randn(50, 5, dtype=F64), torch.randn(50, 5, dtype=F64)
    layer.tol = 1e-12
    assert ((layer(x + h) - layer(x)).norm(dim=1) <= 0.7 * h.norm(dim=1) * (1 + 1e-9)).all()
    assert lipschitz_bound(layer) == 0.7


def test_circular_convolution_by_matrices():
    layer = MONConv2d(2, 3, 2, 3, eps=0.4, padding_mode="circular", dtype=F64)
    V, S = (matrix(K.detach(), (4, 4), 1) for K in (layer.V, layer.S))
    expected = (1 - 0.4) * torch.eye(48, dtype=F64) - V.mT @ V - S + S.mT
    A = torch.from_numpy(layer.system((4, 4)).A.copy())
    torch.testing.assert_close(A, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SIZES)
def test_copies_files_dtypes_and_training(name, tmp_path):
    layer = SIZES[name][0](*SIZES[name][2], gamma=1.0)
    x = torch.randn(*INPUTS[name])
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    fresh = SIZES[name][0](*SIZES[name][2])
    fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert fresh.lipschitz == 1.0
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.eval()(x), layer.eval()(x))
    layer.train().double()(x.double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    moved = SIZES[name][0](*SIZES[name][2], device="meta").to_empty(device="cpu")
    moved.load_state_dict(fresh.state_dict())
    assert torch.equal(moved.eval()(x), fresh(x))


def test_states_of_lben_and_mon_are_not_mixed_up():
    mon, lben = pair("mon")
    with pytest.raises(InvalidInput, match=r"MONLinear.*LBENLinear|LBENLinear.*MONLinear"):
        lben.load_state_dict(mon.state_dict(), strict=False)


def test_it_folds():
    layer = MONLinear(5, 7, 4, dtype=F64, tol=1e-10)
    x = torch.randn(6, 5, dtype=F64)
    folded = fold(torch.nn.Sequential(layer).eval(), samples=x, tol=1e-10)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-7, atol=1e-8)


def test_gamma_is_checked_and_none_is_learned_from_infinity():
    with pytest.raises(InvalidInput, match="MONLinear: gamma = -1"):
        MONLinear(2, 3, 2, gamma=-1)
    with pytest.raises(InvalidInput, match="MONLinear: gamma = inf"):
        MONLinear(2, 3, 2, learn_gamma=True)
    assert MONLinear not in LAYERS.values() and MONConv2d not in CONVOLUTIONS.values()


@pytest.mark.parametrize("cls", [MONLinear, MONConv2d, MultiscaleMON, ImplicitLinear])
def test_its_signature_tells_all_options(cls):
    ours, theirs = (inspect.signature(c).parameters for c in (cls, cls.__bases__[-1]))
    assert list(ours) == list(theirs)
    changed = {name: p.default for name, p in ours.items() if p.default != theirs[name].default}
    assert changed == ({"c": 0.99} if cls is ImplicitLinear else {"gamma": math.inf})
    sizes = (2, 3, 2) if cls in (MONLinear, ImplicitLinear) else (2, (3,), 2, 3)
    with pytest.raises(TypeError, match="gama"):
        cls(*sizes, gama=1.0)
