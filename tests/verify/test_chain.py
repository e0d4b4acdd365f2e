"""The interior point method on the blocks of a chain, against the dense one and planted bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import System, lipschitz
from sdplip.errors import CertificationError, InvalidInput, NotConvergedWarning
from sdplip.verify import chain, convex, descent, interior
from sdplip.verify.barrier import Barrier
from sdplip.verify.central import _Point, central
from sdplip.verify.reduce import least_rho, normalise, prune, start

SLOPES = [(0.0, 1.0), (0.2, 1.0), (-0.3, 1.1), (-1.0, -0.2)]


def with_slopes(weights, low, high):
    system = System.feedforward(weights)
    arrays = (system.A, system.B, system.C, system.D)
    return prune(System(*arrays, alpha=low, beta=high, activation="unknown"))


def draw(rng, sizes, slopes=(0.0, 1.0), gain=1.0):
    pairs = zip(sizes[1:], sizes, strict=False)
    return with_slopes([gain * rng.normal(size=s) / s[1] ** 0.5 for s in pairs], *slopes)


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("sizes", [(3, 5, 2), (7, 4, 6, 3, 2), (1, 1, 1, 1), (4, 1, 5, 3)])
def test_the_optimum_is_the_dense_one(rng, sizes, slopes):
    problem = normalise(draw(rng, sizes, slopes))
    found = chain.minimise(problem)
    dense = interior.minimise(problem.form(), *start(problem), tol=1e-10)
    assert found.stopped == "gap"
    assert found.dual <= dense.rho * (1 + 1e-10)
    assert dense.dual <= found.rho * (1 + 1e-10)
    assert found.rho == pytest.approx(dense.rho, rel=1e-7)
    assert (found.lam > 0).all()
    assert least_rho(problem.form(), found.lam) <= found.rho * (1 + 1e-10)


def test_the_optimum_is_that_of_another_solver(rng):
    problem = normalise(draw(rng, (3, 5, 4, 2), (-0.2, 1.0)))
    found = chain.minimise(problem)
    other = least_rho(problem.form(), convex.solve(problem, "CLARABEL"))
    assert found.rho == pytest.approx(other, rel=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=12)
def test_planted_constants_are_never_under_bounded(seed):
    rng = np.random.default_rng(seed)
    n, depth, constant = rng.integers(1, 6), rng.integers(1, 7), 10 ** rng.uniform(-6, 6)
    weights = [np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(depth + 1)]
    weights[rng.integers(depth + 1)] *= constant
    low = rng.choice([-1.0, -0.5, 0.0, 0.3, 0.9])
    problem = normalise(with_slopes(weights, low, 1.0))
    found = chain.minimise(problem)
    # With every unit at slope 1 the network is an orthogonal map times the constant.
    assert problem.gain * found.rho**0.5 >= constant * (1 - 1e-12)
    assert problem.gain * max(found.dual, 0.0) ** 0.5 <= constant * (1 + 1e-9)
    assert problem.gain * found.rho**0.5 <= constant * (1 + 1e-6)


@pytest.mark.parametrize("slopes", SLOPES[:3])
def test_deep_and_vanishing_gains_keep_their_relative_gap(rng, slopes):
    problem = normalise(draw(rng, (8,) * 25, slopes, gain=0.2))
    found = chain.minimise(problem)
    assert found.rho < 1e-4
    assert found.stopped == "gap"
    assert 0 < found.rho - found.dual <= 1e-8 * found.rho
    # Feasible, by an elimination of its own.
    assert least_rho(problem.form(), found.lam) <= found.rho * (1 + 1e-8)


def test_slopes_may_differ_between_units(rng):
    weights = [rng.normal(size=s) for s in ((4, 3), (5, 4), (2, 5))]
    low, high = -rng.random(9), rng.random(9)
    low[:3] = 0.0
    problem = normalise(with_slopes(weights, low, high))
    found = chain.minimise(problem)
    dense = interior.minimise(problem.form(), *start(problem), tol=1e-10)
    assert found.rho == pytest.approx(dense.rho, rel=1e-7)


def nearly_linear(seed, room):
    """Slopes in [1 − room, 1]: the constant is all but that of the product of the weights."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=s) for s in ((4, 3), (3, 4), (5, 3), (2, 5))]
    product = np.linalg.multi_dot(weights[::-1])
    return with_slopes(weights, 1 - room, 1.0), np.linalg.norm(product, 2)


def test_where_rounding_stops_it_the_dense_method_goes_on():
    system, constant = nearly_linear(1, 1e-7)
    with pytest.warns(NotConvergedWarning, match="may lie above the best one"):
        alone = lipschitz(system, method="chain", lower=False)
    best = lipschitz(system, lower=False)
    assert (alone.solver, best.solver) == ("chain", "interior")
    assert constant * (1 - 1e-5) <= best.bound < 0.9998 * alone.bound
    assert alone.gap is None or alone.gap > 1e-4


@pytest.mark.filterwarnings("ignore:method = 'chain' stopped:UserWarning")
@pytest.mark.parametrize("seed", range(4))
def test_the_better_of_both_methods_is_kept(seed):
    system, constant = nearly_linear(seed, 3e-6)
    chained, dense, found = (
        lipschitz(system, method=method, lower=False) for method in ("chain", "interior", "auto")
    )
    assert constant * (1 - 1e-5) <= found.bound
    assert found.bound < (1 + 2e-5) * min(chained.bound, dense.bound)


def test_multipliers_that_rounding_flatters_do_not_win():
    system, constant = nearly_linear(6, 1e-8)
    assert constant <= lipschitz(system, lower=False).bound < 1.0001 * constant


def test_rounding_leaves_no_dual_value_above_the_constant():
    for seed in range(12):
        system, constant = nearly_linear(seed, 1e-7)
        problem = normalise(system)
        found = chain.minimise(problem)
        assert problem.gain * max(found.dual, 0.0) ** 0.5 <= constant


def test_the_least_rho_is_the_dense_one(rng):
    problem = normalise(draw(rng, (3, 5, 4, 2), (-0.3, 1.1)))
    layers = descent.layers(problem)
    lam = 1.1 * start(problem)[1]
    for scale in (1.0, 1e-6, 1e6):
        dense = least_rho(problem.form(), scale * lam)
        assert descent.least_rho(layers, scale * lam) == pytest.approx(dense, rel=1e-9)
    assert descent.least_rho(layers, 1e-6 * lam) == np.inf
    assert descent.least_rho(layers, 0 * lam) == np.inf


@pytest.mark.parametrize("slopes", SLOPES)
def test_a_central_start_is_close_to_the_central_path(rng, slopes):
    problem = normalise(draw(rng, (5,) * 16, slopes))
    layers = descent.layers(problem)
    found = central(layers, 60)

    def potential(rho, lam):
        barrier = Barrier.of(layers, rho, lam)
        # M = D M' D with the roots of ρ and λ in D.
        size = 5 * np.log(rho) + (1 if barrier.implied else 2) * np.log(lam).sum()
        value = barrier.log_det(np.ones(len(lam) + 1)) + size
        return np.log(rho) - value / (2 * barrier.order)

    straight = descent.minimise(problem, max_steps=60, rate=0.1)
    straight = (2 * straight.rho, straight.lam)
    values = [potential(*point) for point in (found, straight, start(problem))]
    assert np.isfinite(values[0])
    assert values[0] < min(values[1:])


@pytest.mark.parametrize("slopes", SLOPES)
def test_the_gradient_of_the_potential_is_its_derivative(rng, slopes):
    layers = descent.layers(normalise(draw(rng, (3, 5, 1, 4, 2), slopes)))
    free, h = 0.3 * rng.normal(size=14), 1e-5
    steps = h * np.eye(len(free))
    differences = [_Point(layers, free + e).value - _Point(layers, free - e).value for e in steps]
    gradient = _Point(layers, free).gradient()
    np.testing.assert_allclose(gradient, np.array(differences) / (2 * h), rtol=1e-6, atol=1e-6)


def test_what_is_no_chain_is_refused(rng):
    A = np.tril(rng.normal(size=(4, 4)), -1)
    others = [
        System.residual(np.eye(3), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))),
        System(A, rng.normal(size=(4, 2)), rng.normal(size=(3, 4)), np.zeros((3, 2))),
        System.equilibrium(0.1 * rng.normal(size=(3, 3)), np.eye(3), np.eye(3)),
        System.linear(np.eye(2)),
    ]
    for problem in map(normalise, others):
        assert not chain.fits(problem)
        with pytest.raises(InvalidInput, match="chain"):
            chain.minimise(problem)


def test_an_infeasible_start_is_refused(rng):
    problem = normalise(draw(rng, (3, 4, 2)))
    with pytest.raises(CertificationError, match="strictly feasible"):
        chain.minimise(problem, 1e-9, np.ones(4))


def test_a_deadline_keeps_a_feasible_point_and_progress_shows_the_gap(rng):
    problem = normalise(draw(rng, (4, 6, 5, 3)))
    seen = []
    best = chain.minimise(problem, progress=lambda *args: seen.append(args))
    assert [s[0] for s in seen] == list(range(best.steps + 1))
    assert all(dual <= best.rho <= rho for _, rho, dual in seen)
    assert (np.diff([s[1] for s in seen]) <= 0).all()
    late = chain.minimise(problem, deadline=0.0)
    assert late.stopped == "time"
    assert late.rho >= best.dual
    assert least_rho(problem.form(), late.lam) <= late.rho
