"""Activations: values, slopes and proximal maps against definitions, not against themselves."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdplip.activations import (
    ACTIVATIONS,
    activation,
    leaky_relu,
    linear,
    of_module,
    per_unit,
)
from sdplip.errors import InvalidInput, ShapeError

NAMES = [*ACTIVATIONS, "leaky_relu(0.2)"]
WIDE = np.longdouble


def by_definition(name: str, u: np.longdouble) -> np.longdouble:
    """σ(u) in extended precision."""
    slope = {"relu": 0.0, "identity": 1.0, "leaky_relu": 0.01, "leaky_relu(0.2)": 0.2}
    if name in slope:
        return u if u > 0 else u * WIDE(slope[name])
    if name == "tanh":
        return np.tanh(u)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-u)) if u > 0 else np.exp(u) / (1 + np.exp(u))
    if name == "elu":
        return u if u > 0 else np.expm1(u)
    return max(u, WIDE(0)) + np.log1p(np.exp(-abs(u)))


def prox_by_bisection(name: str, v: float, step: float) -> tuple[float, float]:
    """The z = σ(u) with σ(u) + step (u - σ(u)) = v, and u."""
    v_, step_ = WIDE(v), WIDE(step)
    reach = (abs(v_) + 2 + 2 * step_) / min(step_, WIDE(1))
    low, high = -reach, reach
    for _ in range(220):
        u = (low + high) / 2
        s = by_definition(name, u)
        low, high = (u, high) if s + step_ * (u - s) < v_ else (low, u)
    u = (low + high) / 2
    return float(by_definition(name, u)), float(u)


values = st.floats(-1e6, 1e6) | st.floats(-3, 3) | st.floats(-1e-3, 1e-3)
exponents = st.floats(-6, 6)


@pytest.mark.parametrize("name", NAMES)
@given(v=values, exponent=exponents)
def test_resolvent_is_the_proximal_map(name: str, v: float, exponent: float) -> None:
    step = 10.0**exponent
    expected, u = prox_by_bisection(name, v, step)
    z = float(activation(name).resolvent(torch.tensor(v, dtype=torch.float64), step))
    # exp(u) magnifies the rounding of u by |u|; u - σ(u) cancels in the bisection, not in ours.
    rounding = 16 * np.finfo(float).eps * (1 + min(abs(u), 800))
    assert abs(z - expected) <= (rounding + 4 * np.finfo(WIDE).eps * step) * abs(expected) + 1e-50


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resolvent_of_extremes_is_finite_monotone_and_nonexpansive(
    name: str, dtype: torch.dtype
) -> None:
    size = torch.logspace(-6, 6, 97, dtype=torch.float64)
    v = torch.cat([-size.flip(0), torch.zeros(1, dtype=torch.float64), size]).to(dtype)
    sigma = activation(name)
    for step in (1e-6, 1e-2, 1.0, 30.0, 1e6):
        z = sigma.resolvent(v, step)
        assert z.dtype == dtype
        assert z.isfinite().all()
        rise, run = z.double().diff(), v.double().diff()
        slack = 8 * torch.finfo(dtype).eps * z.double().abs().max()
        # The slopes of prox are β / (β + step (1 - β)) at most.
        steepest = sigma.beta / (sigma.beta + step * (1 - sigma.beta))
        assert (rise >= -slack).all()
        assert (rise <= steepest * run * (1 + 1e-6) + slack).all()


@pytest.mark.parametrize("name", NAMES)
def test_resolvent_at_step_one_is_the_activation(name: str) -> None:
    v = torch.linspace(-30, 30, 601, dtype=torch.float64)
    sigma = activation(name)
    torch.testing.assert_close(sigma.resolvent(v, 1.0), sigma(v))
    torch.testing.assert_close(sigma.resolvent(v, torch.ones_like(v)), sigma(v))


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_element_leaves_its_neighbours_alone(name: str) -> None:
    v = torch.tensor([0.3, torch.nan, -0.7, torch.inf], dtype=torch.float64)
    z = activation(name).resolvent(v, 0.4)
    clean = activation(name).resolvent(v[[0, 2]], 0.4)
    assert z[1].isnan()
    assert torch.equal(z[[0, 2]], clean)


@pytest.mark.parametrize("name", NAMES)
@given(a=st.floats(-40, 40), b=st.floats(-40, 40))
def test_difference_quotients_lie_in_the_slope_range(name: str, a: float, b: float) -> None:
    sigma = activation(name)
    u = torch.tensor([a, b], dtype=torch.float64)
    rise, run = float(sigma(u).diff()), float(u.diff())
    low, high = sorted((sigma.alpha * run, sigma.beta * run))
    assert low - 1e-14 * (1 + abs(a) + abs(b)) <= rise <= high + 1e-14 * (1 + abs(a) + abs(b))


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_that_of_autograd(name: str) -> None:
    v = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    sigma = activation(name)
    (expected,) = torch.autograd.grad(sigma(v).sum(), v)
    torch.testing.assert_close(sigma.derivative(v).detach(), expected, atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_of_values_and_resolvents(name: str) -> None:
    v = torch.tensor([-3.0, -0.6, -0.05, 0.07, 0.9, 2.5], dtype=torch.float64, requires_grad=True)
    sigma = activation(name)
    assert torch.autograd.gradcheck(sigma, v)
    for step in (0.05, 1.0, 7.0):
        s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(sigma.resolvent, (v, s))
        assert torch.autograd.gradgradcheck(lambda v, s: sigma.resolvent(v, s) ** 2, (v, s))


@pytest.mark.parametrize("name", NAMES)
def test_names_modules_and_copies_lead_back(name: str) -> None:
    sigma = activation(name)
    assert sigma.name == name
    assert of_module(sigma.module()) == sigma
    v = torch.linspace(-45, 45, 1001, dtype=torch.float64)
    torch.testing.assert_close(sigma.module()(v), sigma(v), rtol=1e-14, atol=1e-300)
    assert copy.deepcopy(sigma) == sigma
    if name in ("relu", "leaky_relu", "leaky_relu(0.2)"):
        assert torch.equal(pickle.loads(pickle.dumps(sigma))(v), sigma(v))


@given(slope=st.floats(0, 1))
def test_the_slope_of_leaky_relu_survives_its_name(slope: float) -> None:
    sigma = leaky_relu(slope)
    assert activation(sigma.name) == sigma
    assert activation(sigma.name).alpha == slope
    assert of_module(nn.LeakyReLU(slope)) == sigma


@pytest.mark.parametrize(
    "name", ["gelu", "leaky_relu(2)", "leaky_relu(-0.1)", "leaky_relu(1e)", "leaky_relu(nan)", ""]
)
def test_unknown_names_are_named(name: str) -> None:
    with pytest.raises(InvalidInput, match="relu"):
        activation(name)


@pytest.mark.parametrize(
    "module",
    [
        nn.GELU(),
        nn.Softplus(beta=2, threshold=40),
        nn.ELU(alpha=0.5),
        nn.ELU(alpha=2.0),
        nn.LeakyReLU(1.5),
        nn.LeakyReLU(-0.1),
        nn.Linear(1, 1),
    ],
)
def test_modules_without_known_slopes_are_refused(module: nn.Module) -> None:
    with pytest.raises(InvalidInput):
        of_module(module)


@pytest.mark.parametrize("threshold", [20, 30, 39.9, 40, 50])
def test_only_a_softplus_without_a_jump_is_accepted(threshold: float) -> None:
    """At PyTorch's default threshold of 20 its softplus jumps down by 2e-9."""
    module = nn.Softplus(threshold=threshold)
    if threshold < 40:
        with pytest.raises(InvalidInput, match=r"Use torch\.nn\.Softplus\(threshold=40\)"):
            of_module(module)
        return
    assert of_module(module) == ACTIVATIONS["softplus"]
    v = threshold + torch.linspace(-1e-9, 1e-9, 20_001, dtype=torch.float64)
    assert (module(v).diff() >= 0).all()


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_must_be_positive(step: float) -> None:
    with pytest.raises(InvalidInput, match="step"):
        activation("tanh").resolvent(torch.zeros(3), step)


def test_per_unit_is_each_unit_by_itself() -> None:
    names = ["tanh", "relu", "tanh", "leaky_relu(0.2)", "sigmoid", "relu"]
    sigma = per_unit(names)
    v = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0.1, 0.2, 3.0, 0.4, 5.0, 0.6], dtype=torch.float64)
    for i, name in enumerate(names):
        single = activation(name)
        assert torch.equal(sigma(v)[..., i], single(v[..., i]))
        assert torch.equal(sigma.derivative(v)[..., i], single.derivative(v[..., i]))
        for step in (0.3, steps):
            one = step if isinstance(step, float) else step[i]
            expected = single.resolvent(v[..., i], one)
            torch.testing.assert_close(sigma.resolvent(v, step)[..., i], expected)
    assert (sigma.alpha, sigma.beta) == (0.0, 1.0)
    assert per_unit(["relu", "relu"]) == ACTIVATIONS["relu"]
    assert sigma != per_unit(names[::-1])
    with pytest.raises(ShapeError, match="6 units"):
        sigma(v[..., :5])
    with pytest.raises(InvalidInput, match="module"):
        sigma.module()


def test_linear_follows_the_rows_it_belongs_to() -> None:
    slopes = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slopes[0, 0], slopes[1, 1] = 0, 1
    w = torch.ones(4, 3, dtype=torch.float64)
    index = torch.tensor([2, 0])
    assert torch.equal(linear(slopes).rows(index)(w[index]), slopes[index])
    z = linear(slopes).resolvent(w, 0.3)
    # z + step (z / d - z) = v, multiplied by d.
    torch.testing.assert_close(z * (slopes + 0.3 * (1 - slopes)), slopes * w)


@pytest.mark.parametrize("name", [*ACTIVATIONS, "leaky_relu(0.25)"])
def test_activations_pickle_and_copy(name: str) -> None:
    sigma = activation(name)
    assert pickle.loads(pickle.dumps(sigma)) == sigma
    assert copy.deepcopy(sigma) == sigma


def test_what_no_name_describes_can_still_be_copied() -> None:
    mixed = per_unit(["relu", "tanh"])
    v = torch.randn(3, 2)
    torch.testing.assert_close(copy.deepcopy(mixed)(v), mixed(v))


def test_a_subclass_may_compute_something_else() -> None:
    class Double(nn.LeakyReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(InvalidInput):
        of_module(Double())
