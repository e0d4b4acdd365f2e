"""Bounds against independent computations: other solvers, exhaustive search, known optima."""

import contextlib
import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_systems import mlp
from torch import nn

from sdplip import Region, System, check, conditions, lipschitz
from sdplip.errors import CertificationError, InvalidInput, NotWellPosed
from sdplip.verify import norm_product
from sdplip.verify.form import form
from sdplip.verify.interior import minimise
from sdplip.verify.reduce import normalise, start

SEEDS = st.integers(0, 10**6)


def wellposed(rng, n, m, p, gain=0.9):
    A = rng.normal(size=(n, n))
    A *= gain / np.linalg.norm(A, 2)
    return System.equilibrium(A, rng.normal(size=(n, m)), rng.normal(size=(p, n)),
                              b=rng.normal(size=n))  # fmt: skip


def largest_jacobian(system, norm=2):
    """Over every 0/1 pattern, reachable or not: an upper bound of the truth for any bias."""
    best = 0.0
    for pattern in itertools.product([0.0, 1.0], repeat=system.units):
        S = np.diag(pattern)
        inner = np.linalg.solve(np.eye(system.units) - S @ system.A, S @ system.B)
        best = max(best, np.linalg.norm(system.D + system.C @ inner, norm))
    return best


@given(SEEDS, st.booleans(), st.sampled_from([2, np.inf]))
@settings(max_examples=15)
def test_no_jacobian_exceeds_the_bound(seed, cyclic, norm):
    rng = np.random.default_rng(seed)
    system = wellposed(rng, 7, 3, 2, 0.3) if cyclic else mlp(rng, 3, 4, 3, 2)
    certificate = lipschitz(system, norm)
    truth = largest_jacobian(system, norm)
    assert truth <= certificate.bound * (1 + 1e-9)
    assert certificate.lower <= truth * (1 + 1e-9)
    assert certificate.proven
    check(certificate, system)


@pytest.mark.parametrize("solver", ["interior", "CLARABEL", "SCS"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.3)", "sigmoid"])
def test_solvers_agree_and_none_is_trusted(rng, solver, activation):
    system = mlp(rng, 4, 6, 5, 3, activation=activation)
    reference = optimum(system)
    bound = lipschitz(system, method=solver, lower=False).bound
    slack = 2e-2 if solver == "SCS" else 1e-6
    assert reference * (1 - 1e-6) <= bound <= reference * (1 + slack)


def optimum(system):
    """The condition as published (LipSDP-Neuron), in CVXPY, unscaled and unreduced."""
    n, m = system.B.shape
    lam, rho = cp.Variable(n, nonneg=True), cp.Variable(nonneg=True)
    U = np.block([[system.B, system.A], [np.zeros((n, m)), np.eye(n)]])
    F = np.hstack([system.D, system.C])
    E = np.zeros((m + n, m + n))
    E[:m, :m] = np.eye(m)
    a, b = np.diag(system.alpha), np.diag(system.beta)
    L = cp.diag(lam)
    Q = cp.bmat([[-2 * a @ b @ L, (a + b) @ L], [(a + b) @ L, -2 * L]])
    M = rho * E - F.T @ F - U.T @ Q @ U
    task = cp.Problem(cp.Minimize(rho), [(M + M.T) / 2 >> 0])
    task.solve(solver="CLARABEL")
    return float(np.sqrt(rho.value))


def test_the_interior_point_form_is_the_condition(rng):
    system = wellposed(rng, 4, 3, 2)
    system = System(
        system.A, system.B, system.C, rng.normal(size=(2, 3)),
        activation="leaky_relu(0.2)",
    )  # fmt: skip
    arrays = {k: getattr(system, k) for k in ("A", "B", "C", "D", "alpha", "beta")}
    lam = rng.random(4)
    np.testing.assert_allclose(
        form(**arrays)(1.3, lam), conditions.lipschitz(**arrays, Lam=lam, rho=1.3), atol=1e-12
    )


@given(SEEDS, st.booleans())
@settings(max_examples=15)
def test_the_gap_of_the_interior_point_method_is_small(seed, cyclic):
    rng = np.random.default_rng(seed)
    system = wellposed(rng, 8, 4, 3) if cyclic else mlp(rng, 4, 6, 6, 3)
    problem = normalise(system)
    found = minimise(problem.form(), *start(problem))
    assert found.dual <= found.rho * (1 + 1e-9)
    assert found.rho <= found.dual * (1 + 1e-6)


CHANGES = {
    "zero row": lambda W, k: W * (np.arange(len(W)) > 0)[:, None],
    "zero column": lambda W, k: W * (np.arange(W.shape[1]) > 0),
    "tiny": lambda W, k: W * 1e-20,
    "huge": lambda W, k: W * 1e15,
    "mixed": lambda W, k: W * [1e15, 1e-20, 1.0][k],
    "rank one": lambda W, k: np.outer(W[:, 0], W[0]),
    "duplicates": lambda W, k: np.repeat(W[:1], len(W), axis=0),
    "heavy-tailed": lambda W, k: np.sign(W) * np.exp(4 * abs(W)),
    "row scales": lambda W, k: W * np.logspace(-8, 4, len(W))[:, None],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("norm", [2, np.inf])
def test_degenerate_weights(rng, change, norm):
    system = mlp(rng, 3, 4, 4, 2, change=CHANGES[change])
    certificate = lipschitz(system, norm)
    truth = largest_jacobian(system, norm)
    assert np.isfinite(certificate.bound)
    assert truth <= certificate.bound * (1 + 1e-9)
    assert certificate.bound <= norm_product(system, norm) * (1 + 1e-6)
    check(certificate, system)


@pytest.mark.parametrize("norm", [2, np.inf])
def test_a_constant_network_has_the_bound_zero(rng, norm):
    for zero in range(3):
        system = mlp(rng, 3, 4, 4, 2, change=lambda W, k, zero=zero: W * (k != zero))
        certificate = lipschitz(system, norm)
        assert certificate.bound == 0.0
        check(certificate, system)


@given(SEEDS)
@settings(max_examples=10)
def test_linear_maps_get_their_norm(seed):
    W = np.random.default_rng(seed).normal(size=(4, 6))
    for norm in (2, np.inf):
        truth = np.linalg.norm(W, norm)
        assert truth <= lipschitz(System.linear(W), norm).bound <= truth * (1 + 1e-9)


def test_the_coupled_form_is_not_used():
    """ReLU(x) − ReLU(x − 1) has the constant 1; 'LipSDP-Network' gives it 5e-6."""
    system = System.feedforward([[[1.0], [1.0]], [[1.0, -1.0]]], [[0.0, -1.0], None])
    certificate = lipschitz(system)
    assert 1.0 <= certificate.bound <= 1.0 + 1e-6
    assert certificate.lower == pytest.approx(1.0)


def test_a_bias_cannot_fool_the_bound(rng):
    """A skip of 10 around a small perceptron: the bound is at least 10."""
    inner = mlp(rng, 4, 6, 4)
    certificate = lipschitz(inner + System.linear(10 * np.eye(4)))
    assert certificate.bound >= certificate.lower > 9
    assert certificate.bound <= 10 + lipschitz(inner).bound + 1e-6


def test_ill_posed_networks_say_so(rng):
    with pytest.raises(NotWellPosed, match="no equilibrium, or several"):
        lipschitz(System.equilibrium(2 * np.eye(3), np.eye(3), np.eye(3)))
    with pytest.raises(NotWellPosed, match="no ℓ∞ bound"):
        lipschitz(System.equilibrium(2 * np.eye(3), np.eye(3), np.eye(3)), "inf")
    A = rng.normal(size=(5, 5))
    A *= 3 / np.linalg.eigvals(A).real.max()
    with pytest.raises(NotWellPosed):
        lipschitz(System.equilibrium(A, np.eye(5), np.eye(5)), lower=False)


@pytest.mark.parametrize("gamma", [0.999, 0.999999])
def test_nearly_ill_posed_networks_keep_a_valid_bound(gamma):
    system = System.equilibrium([[gamma]], [[1.0]], [[1.0]])
    truth = 1 / (1 - gamma)
    assert truth * (1 - 1e-9) <= lipschitz(system, lower=False).bound <= truth * (1 + 1e-5)


def test_negative_slopes(rng):
    base = mlp(rng, 3, 4, 2, activation="unknown")
    system = System(
        base.A, base.B, base.C, base.D, alpha=-0.5, beta=1.5, activation="unknown"
    )  # fmt: skip
    for norm in (2, np.inf):
        certificate = lipschitz(system, norm)
        worst = max(
            np.linalg.norm(system.C @ np.diag(s) @ system.B, norm)
            for s in itertools.product([-0.5, 1.5], repeat=4)
        )
        assert worst <= certificate.bound * (1 + 1e-9)
        assert certificate.lower is None


def test_linf_linear_program_equals_the_closed_form(rng):
    for system in (wellposed(rng, 6, 3, 2, 0.3), mlp(rng, 3, 5, 4, 2)):
        closed = lipschitz(system, np.inf, lower=False)
        program = lipschitz(system, np.inf, method="CLARABEL", lower=False)
        assert program.bound == pytest.approx(closed.bound, rel=1e-6)
        check(program, system)


def test_linf_is_exact_on_a_monotone_network(rng):
    """All weights positive and all units on: the bound is the constant."""
    W = [abs(rng.normal(size=s)) for s in ((4, 3), (2, 4))]
    system = System.feedforward(W, [np.full(4, 1e-3), None])
    truth = np.linalg.norm(W[1] @ W[0], np.inf)
    certificate = lipschitz(system, np.inf)
    assert truth <= certificate.bound <= truth * (1 + 1e-9)
    assert certificate.lower == pytest.approx(truth)


def test_modules_are_taken_and_device_or_mode_does_not_matter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    certificate = lipschitz(net.train())
    assert net.training
    assert certificate.bound <= norm_product(System.from_module(net)) * (1 + 1e-9)
    with pytest.raises(InvalidInput, match="neither a System"):
        lipschitz(np.eye(3))


@pytest.mark.parametrize("bad", [1, "3", 0, -2, "nuclear", float("nan")])
def test_unknown_norms_are_refused(bad, rng):
    with pytest.raises(InvalidInput, match="choose 2 or inf"):
        lipschitz(mlp(rng, 2, 3, 1), bad)


def test_unknown_solvers_are_refused(rng):
    for norm in (2, np.inf):
        with pytest.raises(InvalidInput, match="MOSEKK"):
            lipschitz(mlp(rng, 2, 3, 1), norm, method="MOSEKK")
    with pytest.raises(InvalidInput, match="acyclic"):
        lipschitz(wellposed(rng, 3, 2, 2), method="layerwise")


def test_the_recursion_is_valid_and_looser(rng):
    system = mlp(rng, 4, 6, 6, 3)
    loose, tight = lipschitz(system, method="layerwise"), lipschitz(system)
    check(loose, system)
    assert tight.bound <= loose.bound


OPTIMA = {
    "digits_fnn2": (5.1097147694, 7.092249),
    "digits_fnn3": (9.7286138977, 14.694210),
    "lipsdp_random": (36.482229604, 43.305574),
    "lipsdp_mnist": (24.366348871, 31.503507),
    "mnist_mlp_9x32": (93.66811930, 568.279610),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_trained_networks_come_out_at_their_known_optima(nets_dir, name):
    system = System.load(nets_dir / f"{name}.npz")
    known, product = OPTIMA[name]
    certificate = lipschitz(system)
    assert known * (1 - 1e-8) <= certificate.bound <= known * (1 + 1e-6)
    assert certificate.norm_product == pytest.approx(product, rel=1e-6)
    assert certificate.lower <= certificate.bound
    assert certificate.optimum <= certificate.bound
    check(certificate, system)


def test_the_trained_equilibrium_network(nets_dir):
    system = System.load(nets_dir / "lben_gamma1_w80.npz")
    certificate = lipschitz(system)
    assert certificate.bound == pytest.approx(0.91581, abs=1e-5)
    assert 0.8648 <= certificate.lower <= certificate.bound
    check(certificate, system)


def test_wide_networks_take_the_structured_method(rng):
    system = mlp(rng, 64, 64, 10)
    certificate = lipschitz(system, lower=False)
    assert certificate.solver == "interior"
    assert certificate.bound <= certificate.optimum * (1 + 1e-6)


def test_a_constant_loop_has_a_negligible_bound():
    """Slopes (0, 0) in a cycle: the unit cannot move, so the output cannot either."""
    system = System([[0.5]], [[1.0]], [[2.0]], [[0.0]], alpha=0.0, beta=0.0, activation="unknown")
    certificate = lipschitz(system)
    assert 0 <= certificate.bound <= 1e-20
    check(certificate, system)


def test_extreme_blocks_get_a_bound_or_a_clear_error(rng):
    silent = System.equilibrium([[-1.0]], [[0.0]], [[1.0]])
    assert 0 <= lipschitz(silent).bound <= 1e-10
    for scale in (1e155, 1e-160):
        with contextlib.suppress(CertificationError):
            system = mlp(rng, 2, 3, 2, change=lambda W, k, s=scale: W * (s if k else 1))
            bound = lipschitz(system, lower=False).bound
            assert bound >= largest_jacobian(system)
    for shape in ((0, 2), (2, 0)):
        with pytest.raises(InvalidInput, match="nothing to bound"):
            lipschitz(System.linear(np.zeros(shape)))


def test_what_cancels_keeps_a_valid_if_loose_bound():
    """x − x through a unit with slopes [1, 1]: the constant is 0, the condition is degenerate."""
    system = System.elementwise("identity", 3) + System.linear(-np.eye(3))
    certificate = lipschitz(system)
    check(certificate, system)
    assert 0 <= certificate.bound <= 1e-2


@pytest.mark.parametrize("spread", [1e2, 1e4, 1e6])
def test_badly_scaled_loops_are_balanced_first(rng, spread):
    base = wellposed(rng, 6, 3, 2)
    scale = spread ** rng.uniform(-1, 1, size=6)
    skewed = System.equilibrium(
        base.A * scale[:, None] / scale, base.B * scale[:, None], base.C / scale
    )
    certificate = lipschitz(skewed, lower=False)
    check(certificate, skewed)
    assert certificate.bound == pytest.approx(lipschitz(base, lower=False).bound, rel=1e-4)


def test_the_optimum_is_below_the_bound(rng):
    for system in (wellposed(rng, 6, 3, 2, 0.3), mlp(rng, 3, 5, 4, 2)):
        for norm in (2, np.inf):
            certificate = lipschitz(system, norm, lower=False)
            assert certificate.optimum <= certificate.bound
            assert 0 <= certificate.gap <= 1e-6


def test_a_module_that_is_not_what_it_looks_like_gets_no_bound():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(InvalidInput, match="Residual"):
        lipschitz(Residual(nn.Linear(4, 4)).half())


@pytest.mark.parametrize("norm", [2, np.inf])
@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-160, 1e-120])
def test_a_tiny_linear_map_never_gets_the_bound_zero(norm, size):
    with contextlib.suppress(CertificationError):
        assert lipschitz(System.linear([[size, size]]), norm).bound >= size


def test_a_time_limit_leaves_a_valid_bound_and_progress_encloses_it(rng):
    system = mlp(rng, 24, *[24] * 6, 4)
    seen = []
    tight = lipschitz(system, progress=lambda *state: seen.append(state))
    for _, upper, below in seen:
        assert below <= tight.bound * (1 + 1e-9) and tight.bound <= upper * (1 + 1e-6)
    assert len(seen) >= 3
    for limit in (1e-6, 0.05):
        hasty = lipschitz(system, time_limit=limit, lower=False)
        assert hasty.proven and hasty.bound >= tight.bound * (1 - 1e-9)
        check(hasty, system)
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidInput, match="time_limit"):
            lipschitz(system, time_limit=limit)


@pytest.mark.parametrize("method", ["auto", "interior"])
def test_a_start_from_a_near_network_changes_nothing_but_the_way(rng, method):
    system = mlp(rng, 6, 12, 12, 3)
    near = mlp(np.random.default_rng(7), 6, 12, 12, 3)
    first, other = lipschitz(system, method=method), lipschitz(near, method=method)
    for begin in (first, other):
        again = lipschitz(system, method=method, start=begin)
        assert again.bound == pytest.approx(first.bound, rel=1e-7)
        check(again, system)


def test_methods_are_ordered_by_what_they_know(rng):
    system = mlp(rng, 8, 16, 16, 16, 4)
    bounds = {m: lipschitz(system, method=m) for m in ("chain", "descent", "layerwise", "product")}
    for certificate in bounds.values():
        check(certificate, system)
    values = [certificate.bound for certificate in bounds.values()]
    assert values[0] <= min(values[1:]) * (1 + 1e-9)
    assert values[3] <= norm_product(system) * (1 + 1e-6)
    skips = System.linear(np.eye(8)) + mlp(rng, 8, 6, 8)
    for method in ("chain", "descent", "product"):
        with pytest.raises(InvalidInput, match="needs a chain"):
            lipschitz(skips, method=method)


def test_a_cycle_that_the_input_does_not_reach():
    """Solving for its units leaves an interval around 0, of which no norm is 0."""
    system = System.equilibrium([[0.9]], [[0.0]], [[1.0]], activation="identity")
    region = Region.ball([1.0], 0.5)
    assert 0 <= lipschitz(system, region=region).bound < 1e-200
