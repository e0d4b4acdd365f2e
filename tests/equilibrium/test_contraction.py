"""The number of iterations that a layer's `contraction` promises, for any parameters."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdplip import conditions
from sdplip.equilibrium import monotonicity, optimal_step
from sdplip.equilibrium.splitting import conditioning, contraction
from sdplip.equilibrium.tuning import CHECK_EVERY
from sdplip.errors import InvalidInput
from sdplip.layers import ROUNDING, LBENLinear, MONLinear, fold
from sdplip.layers._equilibrium import contracted
from sdplip.layers.lben import witness as lben
from sdplip.train.models import ModelConfig, build

F64 = torch.float64
KINDS = {
    "lben": (LBENLinear, {}),
    "small bound, direct path": (LBENLinear, {"gamma": 0.01, "feedthrough": True}),
    "learned": (LBENLinear, {"gamma": 3.0, "learn_gamma": True, "eps": 1e-3}),
    "well-posed": (LBENLinear, {"gamma": math.inf, "eps": 1e-6}),
    "mon": (MONLinear, {"eps": 1e-2}),
}
DAMAGE = {
    "initial": lambda p: p,
    "large": lambda p: 30 * p,
    "huge": lambda p: 1e8 * p,
    "skew": lambda p: 100 * p if p.shape == (12, 12) else p,
    "uneven": lambda p: p * torch.logspace(-3, 3, p.shape[-1], dtype=p.dtype),
    "zero": torch.zeros_like,
}


def layer_of(kind, rate, damage="initial", dtype=F64):
    torch.manual_seed(0)
    cls, options = KINDS[kind]
    layer = cls(5, 12, 3, contraction=rate, dtype=dtype, **options)
    with torch.no_grad():
        for p in (p for p in layer.parameters() if p.ndim):
            p.copy_(DAMAGE[damage](p))
        if layer.psi is not None and damage != "initial":
            layer.psi.normal_(std=20.0)
    return layer.eval()


def cayley(layer):
    """Λ^½ R Λ^-½ at the step that a solve takes, of A as it is applied, in NumPy."""
    with torch.no_grad():
        A, Lam = (layer.witness()[name].double() for name in ("A", "Lam"))
    step = optimal_step(A, "peaceman_rachford", Lam)
    root, eye = Lam.sqrt().numpy(), np.eye(12)
    N = root[:, None] * (eye - A.numpy()) / root
    return (eye - step * N) @ np.linalg.inv(eye + step * N), step


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_parameters_contract(kind, damage, dtype):
    for rate in (0.2, 0.9, 0.99):
        layer = layer_of(kind, rate, damage, dtype)
        R, _ = cayley(layer)
        assert np.linalg.norm(R, 2) <= rate * (1 + 1e-6)
        with torch.no_grad():
            w = {name: value.double() for name, value in layer.witness().items()}
        if not math.isinf(layer.gamma):
            M = conditions.equilibrium(**w)
            assert torch.linalg.eigvalsh(M)[0] > -ROUNDING * torch.linalg.matrix_norm(M, ord=2)
            assert layer.lipschitz == pytest.approx(float(w["rho"]) ** 0.5)


def test_without_it_they_do_not():
    assert np.linalg.norm(cayley(layer_of("well-posed", 1.0, "large"))[0], 2) > 0.99


@pytest.mark.parametrize("damage", ["initial", "large", "skew", "uneven"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_no_sample_needs_more_iterations_than_follow_from_it(kind, damage, activation):
    """From u = c: ‖u_k - u*‖ ≤ ρ^{k+1} ‖c‖ / (1 - ρ) where J(0) = 0, and the residual is at most
    (1 + ‖A‖) ‖u_k - u*‖ in the metric, so many times that without it."""
    rate, tol = 0.8, 1e-6
    layer = layer_of(kind, rate, damage)
    layer.activation, layer.tol, layer.fallback = activation, tol, None
    x = 10 * torch.randn(64, 5, dtype=F64)
    found = layer.solve(x)
    assert found.converged.all()
    with torch.no_grad():
        w = layer.witness()
        root = w["Lam"].sqrt()
        v = torch.nn.functional.linear(x, w["B"], layer.bias)
        _, L = monotonicity(w["A"], w["Lam"])
        _, step = cayley(layer)
        size = step * (1 + rate) * torch.linalg.vector_norm(v * root, dim=-1)
        start = (2 + L) * rate * size / (1 - rate) / root.min()
        most = ((start / tol).log() / -math.log(rate)).clamp(min=0).ceil()
    assert (found.steps <= CHECK_EVERY * (most / CHECK_EVERY).ceil().clamp(min=1)).all()


def test_conditioning_is_the_inverse():
    for rate in (1e-3, 0.1, 0.5, 0.9, 0.999):
        assert contraction(conditioning(rate)) == pytest.approx(rate)


def test_what_contracts_already_is_left_alone():
    loose, bounded = layer_of("lben", 1.0), layer_of("lben", 0.999)
    torch.testing.assert_close(loose.witness()["A"], bounded.witness()["A"], rtol=0, atol=0)
    m, L = monotonicity(loose.witness()["A"], loose.witness()["Lam"])
    assert L / m < conditioning(0.999)


def test_the_shift_is_differentiable():
    layer, names = layer_of("lben", 0.3), ["psi", "V", "S", "B", "C"]
    values = tuple(getattr(layer, name).detach().clone().requires_grad_() for name in names)
    torch.nn.init.normal_(values[0])  # where its largest entry is not unique, it has a kink

    def form(*values):
        psi, V, S, B, C = values
        w = lben(psi, V, S, B, C, None, 1.0, 1.0)
        return contracted(w["A"], w["Lam"], 1 / w["Lam"].amax(), 0.3)[:3, :3]

    assert float((form(*values) - lben(*values, None, 1.0, 1.0)["A"][:3, :3]).detach()[0, 0]) < -0.1
    assert torch.autograd.gradcheck(form, values)


def test_it_trains_and_folds_to_few_steps():
    layer = layer_of("lben", 0.5).train()
    x, g = torch.randn(9, 5, dtype=F64), torch.randn(9, 3, dtype=F64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (layer(x) * g).sum().backward()
        optimizer.step()
    layer.eval()
    folded = fold(layer, tol=1e-9)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)
    (inner,) = (m for m in folded.modules() if hasattr(m, "rate"))
    assert inner.rate <= 0.5 * (1 + 1e-9)
    assert inner.steps <= math.ceil(math.log(1e-9) / math.log(0.5))


def test_it_comes_back_with_the_state():
    layer = layer_of("lben", 0.3)
    fresh = LBENLinear(5, 12, 3, dtype=F64)
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(4, 5, dtype=F64)
    assert fresh.contraction == 0.3
    torch.testing.assert_close(fresh.eval()(x), layer(x))
    assert "contraction=0.3" in repr(layer)
    assert copy.deepcopy(layer).contraction == 0.3


def test_a_configuration_may_ask_for_it():
    config = ModelConfig("mon", (5,), 3, width=12, contraction=0.5)
    assert build(config)[-1].contraction == 0.5
    for other in ({"layer": "nemon"}, {"architecture": "equilibrium"}):
        with pytest.raises(InvalidInput, match="only lben and mon of the architecture dense"):
            replace(config, **other)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5, math.nan])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(InvalidInput, match="contraction"):
        LBENLinear(2, 3, 4, contraction=rate)
