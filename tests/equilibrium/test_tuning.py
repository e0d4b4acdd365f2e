"""What is kept between solves, and the ways to trade accuracy for time."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from well_posed import F64, drive, lben, mon, nemon

from sdplip.activations import activation
from sdplip.equilibrium import (
    Circulant,
    Dense,
    Tuning,
    error_bound,
    implicit,
    monotonicity,
    optimal_step,
    solve,
)
from sdplip.equilibrium.tuning import CHECK_EVERY, REFRESH
from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import LBENConv2d, LBENLinear, NEMONLinear


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def gradients(A, v, weight, **options):
    inputs = leaves(A, v)
    (implicit(*inputs, **options) * weight).sum().backward()
    return [x.grad for x in inputs]


def test_a_step_is_chosen_once_in_a_while():
    tuning, calls = Tuning(), []

    def compute():
        calls.append(1)
        return 0.5

    for _ in range(2 * REFRESH):
        assert tuning.choose("peaceman_rachford", compute) == 0.5
    assert len(calls) == 2
    tuning.choose("average", compute)
    assert len(calls) == 3
    # What takes much longer than at first asks for a new step.
    tuning.observe(False, 8)
    assert tuning.first(adjoint=False) == 8
    tuning.observe(False, 15)
    tuning.choose("average", compute)
    assert len(calls) == 3
    assert tuning.first(adjoint=False) == 15
    tuning.observe(False, 31)
    tuning.choose("average", compute)
    assert len(calls) == 4
    assert tuning.first(adjoint=False) == CHECK_EVERY


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": math.nan, "step_of": "average", "step_age": 1},
        {"step": -1.0, "step_of": "average", "step_age": 1},
        {"step": 0.5, "step_of": 3, "step_age": 1},
        {"step": 0.5, "step_of": "average", "step_age": "x"},
        {"step": 0.5, "step_of": "average", "step_age": 1, "look": 10**9},
    ],
)
def test_a_saved_step_that_makes_no_sense_is_dropped(state):
    tuning = Tuning(step=0.1)
    tuning.load(state)
    assert tuning.step is None


def test_a_step_is_saved_with_the_layer():
    layer = LBENLinear(3, 5, 2)
    layer(torch.randn(4, 3))
    fresh = LBENLinear(3, 5, 2)
    fresh.load_state_dict(layer.state_dict())
    assert fresh._tuning == layer._tuning
    assert fresh._tuning.step is not None
    twin = copy.deepcopy(layer)
    twin(torch.randn(4, 3))
    assert twin._tuning.age == layer._tuning.age + 1


def test_a_stale_step_costs_no_accuracy():
    torch.manual_seed(0)
    layer = LBENLinear(4, 12, 3, gamma=1.0, tol=1e-6)
    layer._tuning.step, layer._tuning.method = 30.0, "peaceman_rachford"
    x = torch.randn(9, 4)
    stale = layer(x)
    torch.testing.assert_close(layer.eval()(x), stale, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("system", [lben(12, 1.0, spread=0.2), mon(12), nemon(12)])
@pytest.mark.parametrize(
    "method", ["peaceman_rachford", "douglas_rachford", "forward_backward", "average"]
)
def test_acceleration_finds_the_same_and_seldom_later(system, method):
    A, Lam = system
    v = drive(10, 12)
    options = {"metric": Lam, "tol": 1e-9, "max_steps": 5000}
    plain = solve(A, v, method=method, **options)
    fast = solve(A, v, method=method + "+anderson", **options)
    assert fast.converged.all()
    assert fast.steps.double().mean() <= 1.2 * plain.steps.double().mean()
    exact = solve(A, v, method="newton", metric=Lam)
    torch.testing.assert_close(fast.z, exact.z, atol=1e-5, rtol=1e-5)


def test_acceleration_pays_where_iterations_are_slow():
    A, Lam = lben(20, 0.5, spread=0.3)
    options = {"metric": Lam, "tol": 1e-8, "max_steps": 5000}
    plain = solve(A, drive(5, 20), method="forward_backward", **options)
    fast = solve(A, drive(5, 20), method="forward_backward+anderson", **options)
    assert fast.steps.max() < plain.steps.max() / 3


def test_the_adaptive_average_never_stands_still():
    """The official one divides its step by 1.5 again and again, and passes its test at 1e-13."""
    A, Lam = nemon(60, c=0.9)
    v = drive(40, 60, scale=10.0)
    found = solve(A, v, method="adaptive", tol=1e-6, max_steps=20000)
    exact = solve(A, v, method="newton", metric=Lam)
    assert found.converged.all()
    torch.testing.assert_close(found.z, exact.z, atol=1e-3, rtol=1e-3)
    plain = solve(A, v, method="average", tol=1e-6, max_steps=20000)
    assert found.steps.double().mean() <= plain.steps.double().mean()


def test_auto_leaves_slow_rows_to_newton():
    A, Lam = lben(20, 0.01, spread=1.5)
    v = drive(10, 20, scale=100.0)
    found = solve(A, v, method="auto", metric=Lam, max_steps=4, tol=1e-7)
    assert found.converged.all()
    assert found.method == "auto+newton"
    A, Lam = mon(20)
    assert solve(A, v, method="auto", metric=Lam).method == "auto"


def test_polishing_is_exact_to_rounding():
    A, Lam = lben(20, 0.1)
    v = drive(10, 20)
    exact = solve(A, v, method="newton", metric=Lam).z
    rough = solve(A, v, metric=Lam, tol=1e-2)
    fine = solve(A, v, metric=Lam, tol=1e-2, polish=True)
    assert (rough.z - exact).abs().max() > 1e-6
    assert (fine.z - exact).abs().max() < 1e-12
    assert fine.steps.max() <= rough.steps.max() + 4


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_gradients_to_rounding_and_truncated_ones(name):
    A, Lam = lben(15, 0.3)
    v, weight = drive(6, 15), drive(6, 15, seed=5)
    options = {"activation": name, "metric": Lam, "polish": True}
    exact = gradients(A, v, weight, gradient="newton", **options)
    usual = gradients(A, v, weight, tol=1e-12, **options)
    for a, b in zip(exact, usual, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    # The adjoint contracts by the norm of the Cayley matrix in every step.
    step = optimal_step(Dense(A), "peaceman_rachford", Lam)
    R = Dense(A).resolvent(step).affine(-1, 2).values
    root = Lam.sqrt()
    rate = float(torch.linalg.matrix_norm(root[:, None] * R / root, ord=2))
    errors = []
    for k in (1, 3, 9, 27):
        found = gradients(A, v, weight, gradient=k, step=step, **options)[1]
        errors.append(float((found - exact[1]).norm()))
    assert errors == sorted(errors, reverse=True)
    # ‖·‖₂ and ‖·‖ in the dual metric differ by the square root of the condition of Λ.
    spread = float((Lam.max() / Lam.min()).sqrt())
    for k, error in zip((1, 3, 9, 27), errors, strict=True):
        assert error <= 10 * spread * rate**k * float(exact[1].norm())
    assert errors[-1] < 1e-2 * errors[0]


@pytest.mark.parametrize("gradient", ["exact", 0, -1, 1.5, True, None])
def test_unknown_gradients_are_refused(gradient):
    A, Lam = lben(4, 1.0)
    with pytest.raises(InvalidInput, match="gradient"):
        implicit(A, drive(2, 4), metric=Lam, gradient=gradient)


def test_newton_gradients_need_a_matrix():
    values = torch.zeros(30, 16, 4, 4, dtype=torch.complex128)
    A = Circulant(values, (30, 30))
    with pytest.raises(InvalidInput, match="units"):
        implicit(A, torch.zeros(1, 3600, dtype=F64), gradient="newton")


def test_layers_take_the_options():
    torch.manual_seed(0)
    x = torch.randn(7, 4, dtype=F64)
    layer = LBENLinear(4, 9, 3, gamma=0.5, tol=1e-11).double()
    layer(x).square().sum().backward()
    expected = layer.V.grad.clone()
    for options in (
        {"gradient": "newton"},
        {"polish": True},
        {"method": "auto"},
        {"gradient": 200},
    ):
        other = copy.deepcopy(layer)
        other.zero_grad()
        for option, value in options.items():
            setattr(other, option, value)
        other(x).square().sum().backward()
        torch.testing.assert_close(other.V.grad, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("cls", [LBENLinear, NEMONLinear])
def test_training_is_loose_and_evaluation_is_not(cls):
    torch.manual_seed(0)
    layer, x = cls(5, 20, 3), torch.randn(30, 5)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(5)
    assert layer.solve(x).residual.max() > 1e-5
    found = layer.eval().solve(x)
    assert found.residual.max() <= 1e-6
    assert found.converged.all()
    layer.train().tol = 1e-6
    assert layer.solve(x).residual.max() <= 1e-6


def test_a_warm_start_of_a_layer_saves_iterations():
    torch.manual_seed(0)
    layer = LBENLinear(5, 30, 3, gamma=0.1).eval()
    x = torch.randn(20, 5)
    cold = layer.solve(x)
    warm = layer.solve(x + 1e-5 * torch.randn_like(x), cold.z)
    assert warm.steps.double().mean() < cold.steps.double().mean() / 2
    conv = LBENConv2d(2, 3, 2, 3, gamma=0.1).eval()
    images = torch.randn(2, 2, 5, 5)
    start = conv.solve(images)
    assert (conv.solve(images, start.z).steps == 0).all()


def test_factors_are_kept_in_evaluation_only(monkeypatch):
    count = 0
    inv = torch.linalg.inv_ex

    def counted(M):
        nonlocal count
        count += 1
        return inv(M)

    monkeypatch.setattr(torch.linalg, "inv_ex", counted)
    layer, x = LBENLinear(4, 6, 2), torch.randn(3, 4)
    layer(x).sum().backward()
    assert count == 1  # forward and backward share it
    layer.eval()
    with torch.no_grad():
        layer(x), layer(x), layer(2 * x)
    assert count == 2
    with torch.no_grad():
        layer.V.mul_(0.5)
        layer(x)
    assert count == 3
    nn.init.zeros_(layer.V)


def test_a_huge_cotangent_is_no_small_one():
    v = torch.ones(2, 3, requires_grad=True)
    z = implicit(-torch.eye(3), v)
    (found,) = torch.autograd.grad(z, v, torch.full((2, 3), 2e38))
    torch.testing.assert_close(found, torch.full((2, 3), 1e38))


@pytest.mark.parametrize("size", [1e-200, 1e160, 1e200])
def test_moduli_of_extreme_matrices(size):
    A = torch.eye(3, dtype=F64) * -size
    m, L = monotonicity(A)
    assert m == pytest.approx(1 + size, rel=1e-9)
    assert pytest.approx(1 + size, rel=1e-9) == L


def test_bounds_without_ground_are_refused():
    A, v = 0.5 * torch.eye(3, dtype=F64), torch.ones(2, 3, dtype=F64)
    for modulus in (math.inf, math.nan):
        with pytest.raises(InvalidInput, match="modulus"):
            error_bound(A, v, v, modulus=modulus)
        with pytest.raises(InvalidInput, match="modulus"):
            solve(A, v, modulus=modulus)
    with pytest.raises(InvalidInput, match="NaN"):
        error_bound(A * math.nan, v, v)
    with pytest.raises(ShapeError, match="z "):
        error_bound(A, v, v[0])
    steep = replace(activation("relu"), name="steep", beta=3.0)
    with pytest.raises(InvalidInput, match="unique"):
        error_bound(A, v, v, steep)
