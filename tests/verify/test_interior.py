"""The dense interior point method: its products, optima, gaps, starts, limits and scales."""

import itertools
import time

import cvxpy as cp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import System, conditions
from sdplip.errors import CertificationError, ShapeError
from sdplip.verify import dense
from sdplip.verify.form import form
from sdplip.verify.interior import minimise
from sdplip.verify.reduce import least_rho, normalise, prune, start

KINDS = ["chain", "skips", "equilibrium"]
SLOPES = ["relu", "leaky", "mixed"]


def draw(rng, kind, slopes="relu", n=7, m=3, p=2):
    """A random system with n units of a kind; mixed slopes hold negative ones."""
    A = rng.normal(size=(n, n)) / np.sqrt(n)
    if kind == "chain":
        level = np.arange(n) * 3 // n
        A *= level[:, None] == level + 1
    elif kind == "skips":
        A = np.tril(A, -1)
    else:
        A *= 0.4 / np.linalg.norm(A, 2)
    alpha = {"relu": 0.0, "leaky": 0.2, "mixed": rng.choice([-0.5, 0.0, 0.3], size=n)}[slopes]
    arrays = (A, rng.normal(size=(n, m)), rng.normal(size=(p, n)), rng.normal(size=(p, m)))
    return System(*arrays, alpha=alpha, beta=1.1, activation="unknown")


def reference(problem):
    """The least ρ by Clarabel, from the condition as it is stated elsewhere."""
    n, m = problem.B.shape
    lam, rho = cp.Variable(n, nonneg=True), cp.Variable()
    arrays = {k: getattr(problem, k) for k in ("A", "B", "C", "D", "alpha", "beta")}
    zero = conditions.lipschitz(**arrays, Lam=np.zeros(n), rho=0.0)
    M = zero + rho * np.diag(np.repeat([1.0, 0.0], [m, n]))
    for i in range(n):
        unit = conditions.lipschitz(**arrays, Lam=np.eye(n)[i], rho=0.0) - zero
        M += lam[i] * unit
    task = cp.Problem(cp.Minimize(rho), [M >> 0])
    task.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_feas=1e-10, tol_gap_abs=1e-10)
    return float(rho.value)


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_that_of_another_solver(rng, kind, slopes):
    problem = normalise(draw(rng, kind, slopes))
    data = problem.form()
    found = minimise(data, *start(problem))
    optimum = reference(problem)
    assert found.stopped == "gap"
    assert found.dual <= optimum * (1 + 1e-6)
    assert found.rho == pytest.approx(optimum, rel=1e-6)
    assert 0 <= found.rho - found.dual <= 1e-9 * found.rho
    assert (found.lam > 0).all()
    assert np.linalg.eigvalsh(data(found.rho, found.lam))[0] > 0


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.sampled_from(SLOPES))
@settings(max_examples=20)
def test_products_are_those_of_the_data_matrices(seed, kind, slopes):
    rng = np.random.default_rng(seed)
    system = draw(rng, kind, slopes, n=int(rng.integers(1, 9)))
    arrays = (system.A, system.B, system.C, system.D, system.alpha, system.beta)
    data = form(*arrays)
    n, d = data.R.shape
    names = dict(zip(("A", "B", "C", "D", "alpha", "beta"), arrays, strict=True))

    def M(rho, lam):
        return conditions.lipschitz(**names, Lam=lam, rho=rho)

    each = [M(1.0, np.zeros(n)) - M(0.0, np.zeros(n))]
    each += [M(0.0, unit) - M(0.0, np.zeros(n)) for unit in np.eye(n)]
    X, Z = (K @ K.T for K in rng.normal(size=(2, d, d)))
    N = rng.normal(size=(d, d))
    rho, lam = rng.normal(), rng.normal(size=n)
    R = np.hstack([system.B, system.A])
    expected = {
        "call": (data(rho, lam), M(rho, lam)),
        "left": (data.left(N), R @ N),
        "spread": (data.spread(N[:n]), R.T @ N[:n]),
        "times": (
            data.times((rho, lam, N, R @ N), (1.0, 0 * lam, X, R @ X)),
            data.combine(rho, lam) @ N + data.e[:, None] * X,
        ),
        "traces": (data.traces(X, R @ X), [np.vdot(K, X) for K in each]),
        "paired": (
            data.paired(X, R @ X, N, R @ N),
            [np.trace(K @ X @ N.T) for K in each[1:]],
        ),
        "schur": (
            np.tril(data.schur(X, R @ X, Z, R @ Z)),
            np.tril([[np.trace(K @ X @ L @ Z) for L in each] for K in each]),
        ),
    }
    for name, (ours, true) in expected.items():
        scale = 1 + np.abs(true).max()
        np.testing.assert_allclose(ours, true, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize("width", [4, 40])
def test_blocks_hold_all_of_a_deep_chain_and_little_else(rng, width):
    weights = [rng.normal(size=(width, width)) for _ in range(8)]
    data = normalise(System.feedforward(weights)).form()
    inside = np.zeros_like(data.R, dtype=bool)
    for rows, columns in data.blocks:
        inside[rows, columns] = True
    assert not data.R[~inside].any()
    assert width == 4 or inside.sum() == np.count_nonzero(data.R)


@pytest.mark.parametrize("order", [1, 2, 127, 128, 300])
def test_dense_algebra(rng, order):
    K = rng.normal(size=(order, order))
    S = K @ K.T / order + np.eye(order)
    factor = dense.cholesky(S)
    np.testing.assert_allclose(np.triu(factor).T @ np.triu(factor), S, atol=1e-12)
    np.testing.assert_allclose(dense.inverse(factor) @ S, np.eye(order), atol=1e-11)
    np.testing.assert_allclose(dense.fold(K.copy()), (K + K.T) / 2, atol=1e-15)
    assert dense.cholesky(S - 9 * np.eye(order)) is None
    b = rng.normal(size=order)
    np.testing.assert_allclose(S @ dense.solver(np.tril(S))(b), b, atol=1e-12)
    assert dense.solver(np.tril(S - 9 * np.eye(order))) is None
    for step in (K + K.T, S, -S):
        lowest = scipy.linalg.eigh(step, S, eigvals_only=True)[0]
        exact = min(-1 / lowest, 5.0) if lowest < 0 else 5.0
        assert 0.9 * exact <= dense.longest(factor, step, 0.02, 5.0) <= 1.001 * exact


def test_there_is_no_step_along_what_overflows():
    for size in (1e200, 1e308, np.inf, np.nan):
        step = np.full((20, 20), size)
        with np.errstate(all="ignore"):
            assert dense.longest(np.asfortranarray(np.eye(20)), step, 0.02, 5.0) == 0.0


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=20)
def test_planted_constants_are_reached_and_never_undercut(seed, depth, width):
    """Scaled orthogonal layers: with all slopes 1 the product of the scales is attained."""
    rng = np.random.default_rng(seed)
    scales = np.exp(3 * rng.normal(size=depth + 1))
    weights = [s * scipy.linalg.qr(rng.normal(size=(width, width)))[0] for s in scales]
    problem = normalise(System.feedforward(weights))
    found = minimise(problem.form(), *start(problem))
    constant = scales.prod()
    assert problem.gain * found.rho**0.5 == pytest.approx(constant, rel=1e-8)
    assert problem.gain * found.rho**0.5 >= constant * (1 - 1e-12)
    assert problem.gain * found.dual**0.5 <= constant * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_progress_tells_of_bounds_that_only_improve(rng, kind):
    problem = normalise(draw(rng, kind))
    seen = []
    found = minimise(problem.form(), *start(problem), progress=lambda *now: seen.append(now))
    steps, uppers, duals = map(list, zip(*seen, strict=True))
    assert steps == list(range(found.steps + 1))
    assert all(b <= a for a, b in itertools.pairwise(uppers))
    assert all(b >= a for a, b in itertools.pairwise(duals))
    assert all(dual <= found.rho * (1 + 1e-9) for dual in duals)
    assert (uppers[-1], duals[-1]) == (found.rho, found.dual)


@pytest.mark.parametrize("limit", ["at once", "on the way", "steps"])
def test_limits_leave_a_feasible_point(rng, limit):
    problem = normalise(draw(rng, "skips"))
    data, first = problem.form(), start(problem)
    until = time.monotonic() + {"at once": -1.0, "on the way": 0.1, "steps": 600.0}[limit]

    def slow(step, upper, dual):
        time.sleep(0.05 * (limit == "on the way"))

    steps = 3 if limit == "steps" else 100
    found = minimise(data, *first, deadline=until, max_steps=steps, progress=slow)
    assert found.stopped == ("steps" if limit == "steps" else "time")
    assert found.steps in {"at once": [0], "on the way": [0, 1, 2], "steps": [3]}[limit]
    assert found.rho <= first[0]
    assert np.linalg.eigvalsh(data(found.rho, found.lam))[0] > 0
    assert least_rho(data, found.lam) <= found.rho


def test_an_infeasible_start_is_refused(rng):
    problem = normalise(draw(rng, "chain"))
    rho, lam = start(problem)
    for point in ((rho / 1e3, lam), (rho, -lam), (rho, 0 * lam)):
        with pytest.raises(CertificationError, match="not strictly feasible"):
            minimise(problem.form(), *point)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_saves_steps_and_changes_no_optimum(rng, kind):
    system = draw(rng, kind, n=24)
    problem = normalise(system)
    cold = minimise(problem.form(), *start(problem))
    near = System(
        system.A * 1.001, system.B * 0.999, system.C, system.D,
        alpha=system.alpha, beta=system.beta, activation="unknown",
    )  # fmt: skip
    other = normalise(near)
    first = start(other, problem.lam(cold.lam))
    warm = minimise(other.form(), *first)
    assert first[0] < start(other)[0]
    assert warm.steps < cold.steps
    assert warm.rho == pytest.approx(minimise(other.form(), *start(other)).rho, rel=2e-9)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 1e300, 1e-300])
def test_useless_proposals_cost_nothing(rng, bad):
    problem = normalise(draw(rng, "skips"))
    cold = start(problem)
    rho, lam = start(problem, np.full(7, bad))
    assert rho <= cold[0]
    assert np.linalg.eigvalsh(problem.form()(rho, lam))[0] > 0
    with pytest.raises(ShapeError, match=r"proposed has shape \(3,\), but it must be \(7,\)"):
        start(problem, np.ones(3))


def test_multipliers_map_to_the_original_and_back(rng):
    system = draw(rng, "chain", "mixed")
    problem = normalise(system)
    rho, lam = start(problem)
    original = problem.lam(lam)
    np.testing.assert_allclose(problem.scaled(original), lam, rtol=1e-14)
    arrays = {k: getattr(system, k) for k in ("A", "B", "C", "D", "alpha", "beta")}
    M = conditions.lipschitz(**arrays, Lam=original, rho=1.001 * rho * problem.gain**2)
    assert np.linalg.eigvalsh(M)[0] > 0


@pytest.mark.parametrize("kind", ["chain", "skips"])
@pytest.mark.parametrize("sizes", [(1e150, 1, 1), (1, 1e-150, 1), (1e150, 1e150, 1e-150)])
def test_scales_overflow_nowhere_and_scale_the_optimum(rng, kind, sizes):
    """Units of level k in units of 2^..: the same network in other units, exactly."""
    system = draw(rng, kind, n=6)
    into, inner, out = (2.0 ** np.round(np.log2(size)) for size in sizes)
    level = np.zeros(6, dtype=int)
    for k, units in enumerate(system.levels):
        level[units] = k
    # The hidden units grow by `inner` per level where that does not overflow.
    grown = np.where(level > 0, inner, 1.0)
    with np.errstate(over="raise", invalid="raise"):
        scaled = System(
            system.A * grown[:, None] / grown, system.B * grown[:, None] * into,
            system.C / grown * out, system.D * out * into,
            alpha=0.0, beta=1.0, activation="unknown",
        )  # fmt: skip
        one, two = (normalise(s) for s in (with_relu(system), scaled))
        first, second = (minimise(p.form(), *start(p)) for p in (one, two))
    assert second.rho == pytest.approx(first.rho, rel=1e-8)
    assert two.gain == pytest.approx(one.gain * into * out, rel=1e-12)


def with_relu(system):
    return System(
        system.A, system.B, system.C, system.D, alpha=0.0, beta=1.0, activation="unknown"
    )  # fmt: skip


CHANGES = {
    "zero row": lambda W: W * (np.arange(len(W)) > (len(W) > 1) - 1)[:, None],
    "duplicates": lambda W: np.repeat(W[:1], len(W), axis=0),
    "rank one": lambda W: np.outer(W[:, 0], W[0]),
    "one entry": lambda W: W * (np.arange(W.size).reshape(W.shape) == 0),
    "tiny rows": lambda W: W * (10.0 ** -np.arange(0, 12 * len(W), 12))[:, None],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sizes", [(4, 6, 5, 3), (30, 6, 2), (3, 1, 1, 1, 2)])
def test_degenerate_weights_have_small_gaps(rng, change, sizes):
    weights = [CHANGES[change](rng.normal(size=s[::-1])) for s in itertools.pairwise(sizes)]
    problem = normalise(prune(System.feedforward(weights)))
    found = minimise(problem.form(), *start(problem))
    assert found.rho <= found.dual * (1 + 1e-7)
    jacobian = weights[-1]
    for W in weights[-2::-1]:
        jacobian = jacobian @ W
    assert problem.gain * found.rho**0.5 >= np.linalg.norm(jacobian, 2) * (1 - 1e-12)


def test_gaps_are_relative_however_small_the_gain(rng):
    weights = [rng.normal(size=(4, 4)) / 20 for _ in range(41)]
    problem = normalise(System.feedforward(weights))
    found = minimise(problem.form(), *start(problem))
    assert found.rho < 1e-10
    assert 0 < found.rho <= found.dual * (1 + 1e-8)
