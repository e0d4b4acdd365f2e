"""The layers' closed forms certify a network by themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdplip import CertificationError, InvalidInput, System, check, lipschitz
from sdplip.layers import (
    AOLLinear,
    CPLLinear,
    LBENLinear,
    NEMONLinear,
    OrthogonalLinear,
    SandwichLinear,
    SLLLinear,
)
from sdplip.verify import promised as module
from sdplip.verify.promised import promise

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-8}


def chain(dtype):
    kind = {"dtype": dtype}
    return nn.Sequential(
        nn.Flatten(),
        OrthogonalLinear(5, 6, **kind),
        nn.ReLU(),
        SLLLinear(6, hidden=7, **kind),
        CPLLinear(6, hidden=4, **kind),
        nn.LeakyReLU(0.3),
        SandwichLinear(6, 4, **kind),
        LBENLinear(4, 8, 3, gamma=2.0, **kind),
        nn.Tanh(),
        nn.Sequential(AOLLinear(3, 5, **kind), nn.Identity()),
        nn.Linear(5, 2, **kind),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chain_of_layers_is_certified_without_a_solver(dtype):
    model = chain(dtype)
    last = float(torch.linalg.matrix_norm(model[-1].weight.detach().double(), 2))
    certificate = promise(model)
    check(certificate, System.from_module(model))
    assert certificate.solved == pytest.approx(2.0 * last, rel=1e-12)
    assert 0 < certificate.inflation <= DTYPES[dtype]
    assert lipschitz(model, lower=False).bound <= certificate.bound


def test_a_trained_layer_without_room_is_certified():
    """Orthogonal weights: T = WᵀW, and no part of the condition is positive definite."""
    model = nn.Sequential(*(SLLLinear(4, hidden=4, dtype=torch.float64) for _ in range(3)))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.linalg.qr(torch.randn(4, 4).double())[0])
    certificate = promise(model)
    assert 1 <= certificate.bound <= 1 + 1e-8
    check(certificate, System.from_module(model))


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.3, 1.0), (-0.5, 1.5), (-2.0, 1.0), (1.0, 1.0)])
def test_the_multiplier_of_an_activation_gives_its_largest_slope(slopes):
    class Slopes(nn.Module):
        def system(self):
            eye, zero = np.eye(3), np.zeros((3, 3))
            low, high = slopes
            return System(zero, eye, eye, zero, alpha=low, beta=high, activation="unknown")

    [(lam, rho)] = module._parts(Slopes(), "", 3)
    assert rho == max(map(abs, slopes)) ** 2
    found = replace(lipschitz(Slopes().system(), lower=False), optimum=None, lower=None)
    bound = np.sqrt(rho) * (1 + 1e-8)
    lam = tuple(((1 + 1e-9) * lam).tolist())
    check(replace(found, multipliers=lam, bound=float(bound)), Slopes().system())


def test_what_has_no_closed_form_is_named():
    with pytest.raises(InvalidInput, match=r"NEMONLinear \(at '1'\)"):
        promise(nn.Sequential(nn.Linear(3, 4), NEMONLinear(4, 5, 2)))


def test_a_wrong_witness_proves_nothing(monkeypatch):
    """The multipliers are a proposal: what is wrong with them cannot make a bound."""
    layer = SandwichLinear(4, 4, dtype=torch.float64)
    witness = layer.witness()
    monkeypatch.setattr(
        SandwichLinear, "witness", lambda self: witness | {"Lam": 0.9 * witness["Lam"]}
    )
    with pytest.raises(CertificationError, match="lipschitz"):
        promise(layer)
    monkeypatch.setattr(
        SandwichLinear, "witness", lambda self: witness | {"rho": torch.tensor(0.5)}
    )
    with pytest.raises(CertificationError, match="lipschitz"):
        promise(layer)
