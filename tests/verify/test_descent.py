"""The first-order form: never below the optimum, never above its start, and differentiable."""

import itertools
import time

import numpy as np
import pytest
import torch

from sdplip import System
from sdplip.errors import InvalidInput, ShapeError
from sdplip.verify import descent
from sdplip.verify.interior import minimise
from sdplip.verify.reduce import least_rho, normalise, prune, start

SLOPES = [(0.0, 1.0), (0.2, 1.0), (-0.3, 1.1), (-1.0, -0.2), (0.5, 0.5)]


def draw(rng, *sizes, slopes=(0.0, 1.0)):
    weights = [rng.normal(size=s) / s[1] ** 0.5 for s in zip(sizes[1:], sizes, strict=False)]
    system = System.feedforward(weights)
    arrays = (system.A, system.B, system.C, system.D)
    return weights, System(*arrays, alpha=slopes[0], beta=slopes[1], activation="unknown")


def tensors(weights):
    return [torch.as_tensor(W) for W in weights]


@pytest.mark.parametrize("slopes", SLOPES[:-1])
def test_the_best_iterate_is_feasible_above_the_optimum_and_below_the_start(rng, slopes):
    weights, system = draw(rng, 3, 5, 4, 6, 2, slopes=slopes)
    problem = normalise(system)
    found = descent.minimise(problem, max_steps=60)
    optimum = minimise(problem.form(), *start(problem)).dual
    first = (float(descent.chain_bound(tensors(weights), slopes=slopes)) / problem.gain) ** 2
    assert (found.lam > 0).all()
    assert least_rho(problem.form(), found.lam) <= found.rho * (1 + 1e-8)
    assert optimum <= found.rho <= first * (1 + 1e-8)
    assert found.rho <= optimum * 1.05


@pytest.mark.parametrize("slopes", SLOPES)
def test_every_choice_of_scales_and_margins_gives_a_bound(rng, slopes):
    weights, _ = draw(rng, 3, 5, 4, 2)
    for _ in range(20):
        scales = [torch.as_tensor(rng.normal(size=n)) for n in (5, 4)]
        margins = [torch.as_tensor(rng.normal()) for _ in range(2)]
        bound = float(descent.chain_bound(tensors(weights), scales, margins, slopes))
        S = [np.diag(rng.choice(slopes, size=n)) for n in (5, 4)]
        J = weights[2] @ S[1] @ weights[1] @ S[0] @ weights[0]
        assert np.linalg.norm(J, 2) <= bound * (1 + 1e-10)


def test_slopes_may_differ_between_units_and_layers(rng):
    weights, system = draw(rng, 3, 5, 4, 2)
    low, high = -rng.random(9), rng.random(9)
    pairs = [tuple(map(torch.as_tensor, (low[v], high[v]))) for v in (slice(5), slice(5, 9))]
    system = System(
        *(getattr(system, k) for k in "ABCD"), alpha=low, beta=high, activation="unknown"
    )
    problem = normalise(system)
    bound = float(descent.chain_bound(tensors(weights), slopes=pairs))
    found = descent.minimise(problem, max_steps=0)
    # Scaled layers: the closed form does not depend on the weights' scale.
    assert problem.gain * found.rho**0.5 == pytest.approx(bound, rel=1e-8)


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3, 3), (2, 5, 3, 4, 1), (4, 1, 3, 3, 2)])
@pytest.mark.parametrize("signs", list(itertools.product([-0.5, 0.0], repeat=3)))
def test_layers_with_and_without_negative_slopes_mix(rng, sizes, signs):
    weights, _ = draw(rng, *sizes)
    ones = [torch.ones(n, dtype=torch.float64) for n in sizes[1:-1]]
    slopes = [(low * one, one) for low, one in zip(signs, ones, strict=True)]
    bound = float(descent.chain_bound(tensors(weights), slopes=slopes))
    # By the way for negative slopes all along.
    signed = [(low - 1e-12, high) for low, high in slopes]
    other = float(descent.chain_bound(tensors(weights), slopes=signed))
    assert other == pytest.approx(bound, rel=1e-6)
    patterns = rng.random((300, sum(sizes[1:-1]))) < 0.5
    largest, product = 0.0, 1.0
    for pattern in patterns:
        J, left = weights[0], pattern
        for low, W in zip(signs, weights[1:], strict=True):
            J = W @ (np.where(left[: len(J)], low, 1.0)[:, None] * J)
            left = left[W.shape[1] :]
        largest = max(largest, np.linalg.norm(J, 2))
    for W in weights:
        product *= np.linalg.norm(W, 2)
    assert largest <= bound <= 2 * product


def test_the_gradient_is_the_derivative(rng):
    sizes = [(4, 3), (5, 4), (2, 5)]
    weights = [torch.as_tensor(rng.normal(size=s)).requires_grad_() for s in sizes]
    scales = [torch.as_tensor(0.3 * rng.normal(size=s[0])).requires_grad_() for s in sizes[:-1]]
    margins = [torch.tensor(0.1 * k, dtype=torch.float64, requires_grad=True) for k in range(2)]
    low = torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)

    def bound(*parts):
        return descent.chain_bound(parts[:3], parts[3:5], parts[5:7], slopes=(parts[7], 1.0))

    assert torch.autograd.gradcheck(bound, (*weights, *scales, *margins, low))


def test_a_batch_is_its_members(rng):
    weights = [torch.as_tensor(rng.normal(size=(3, *s))) for s in ((4, 3), (5, 4), (2, 5))]
    bounds = descent.chain_bound(weights)
    singles = [float(descent.chain_bound([W[k] for W in weights])) for k in range(3)]
    assert bounds.tolist() == pytest.approx(singles, rel=1e-12)


def test_float32_and_deep_gains_stay_in_range(rng):
    weights = [torch.as_tensor(1e-3 * rng.normal(size=(8, 8))) for _ in range(30)]
    exact = float(descent.chain_bound(weights))
    assert 0 < exact < 1e-60
    weights = [30 * W for W in weights]
    exact = float(descent.chain_bound(weights))
    single = descent.chain_bound([W.float() for W in weights])
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(exact, rel=1e-3)


def test_a_single_matrix_is_its_norm_and_a_zero_weight_gives_none(rng):
    W = torch.as_tensor(rng.normal(size=(3, 4)))
    assert float(descent.chain_bound([W])) == pytest.approx(float(torch.linalg.matrix_norm(W, 2)))
    assert float(descent.chain_bound([W, torch.zeros(2, 3, dtype=W.dtype)])) < 1e-60


def test_it_trains_a_network_to_a_bound(rng):
    weights = [torch.as_tensor(rng.normal(size=s)).requires_grad_() for s in ((6, 4), (2, 6))]
    optimiser = torch.optim.Adam(weights, lr=0.05)
    first = float(descent.chain_bound(weights).detach())
    for _ in range(30):
        optimiser.zero_grad()
        descent.chain_bound(weights).backward()
        optimiser.step()
    assert float(descent.chain_bound(weights).detach()) < first / 2


def test_what_is_no_chain_is_refused(rng):
    skip = System.residual(
        rng.normal(size=(3, 3)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    )
    with pytest.raises(InvalidInput, match="chain"):
        descent.minimise(normalise(skip))
    W = torch.as_tensor(rng.normal(size=(3, 4)))
    with pytest.raises(ShapeError, match="rows"):
        descent.chain_bound([W, W])
    with pytest.raises(ShapeError, match="log_scales"):
        descent.chain_bound([W, W.mT], log_scales=[])
    with pytest.raises(InvalidInput, match="alpha > beta"):
        descent.chain_bound([W, W.mT], slopes=(1.0, 0.0))


def test_a_passed_deadline_returns_the_closed_form(rng):
    _, system = draw(rng, 3, 5, 4, 2)
    problem = normalise(system)
    seen = []
    found = descent.minimise(problem, deadline=0.0, progress=lambda *args: seen.append(args))
    assert found.stopped == "time"
    assert found.rho >= minimise(problem.form(), *start(problem)).dual
    assert [s[0] for s in seen] == [0]


SHAPES = [
    (3, 12, 2),
    (9, 4, 3, 12, 5, 1),
    (12, 3, 3, 3, 20, 3, 3, 2),
    (6, 6, 6, 6, 6),
    (4, 30, 20, 2),
]


@pytest.mark.parametrize("slopes", SLOPES[:-1])
@pytest.mark.parametrize("sizes", SHAPES)
def test_the_least_rho_is_that_of_the_dense_matrix(rng, sizes, slopes):
    weights, _ = draw(rng, *sizes)
    weights[0][0] = 0.0
    weights[-1][:] = np.outer(rng.normal(size=sizes[-1]), weights[-1][0])
    weights[1][:, 1] = weights[1][:, 0]
    weights[0], weights[1] = 1e150 * weights[0], 1e-150 * weights[1]
    system = System.feedforward(weights)
    n = system.units
    low = np.where(rng.random(n) < 0.3, slopes[0], (slopes[0] + slopes[1]) / 2)
    arrays = (system.A, system.B, system.C, system.D)
    system = prune(System(*arrays, alpha=low, beta=slopes[1], activation="unknown"))
    problem = normalise(system)
    found = descent.minimise(problem, max_steps=3)
    chain = descent.layers(problem)
    dense = least_rho(problem.form(), found.lam)
    assert descent.least_rho(chain, found.lam) == pytest.approx(dense, rel=1e-9)
    assert found.rho == pytest.approx(dense, rel=1e-9)
    assert descent.least_rho(chain, 0.3 * found.lam) == least_rho(problem.form(), 0.3 * found.lam)


def test_the_iterated_eigenvalue_is_the_computed_one(rng, monkeypatch):
    _, system = draw(rng, 9, 20, 30, 20, 2, slopes=(-0.3, 1.1))
    problem = normalise(system)
    expected = descent.minimise(problem, max_steps=20)
    monkeypatch.setattr(descent, "DENSE", 5)
    found = descent.minimise(problem, max_steps=20)
    assert found.rho == pytest.approx(expected.rho, rel=1e-3)
    assert least_rho(problem.form(), found.lam) == pytest.approx(found.rho, rel=1e-9)


def test_every_tensor_is_on_the_device(rng):
    """Under another default device, what does not follow `device` meets what does, and fails."""
    _, system = draw(rng, 9, 20, 30, 20, 2, slopes=(-0.3, 1.1))
    problem = normalise(system)
    expected = descent.minimise(problem, max_steps=3)
    with torch.device("meta"):
        found = descent.minimise(problem, max_steps=3, device="cpu")
    assert found.rho == expected.rho
    assert (found.lam == expected.lam).all()


def test_a_rate_falls_with_the_time_as_with_the_steps(rng):
    _, system = draw(rng, 3, 5, 4, 2)
    problem = normalise(system)
    limited = descent.minimise(problem, deadline=time.monotonic() + 0.3, max_steps=10**6)
    assert limited.stopped == "time"
    assert limited.rho <= descent.minimise(problem, max_steps=0).rho
    assert least_rho(problem.form(), limited.lam) <= limited.rho * (1 + 1e-8)
