"""The barrier of a chain, and the equations of its Newton steps for deep ones."""

import numpy as np
import pytest

from sdplip import System
from sdplip.verify import chain, descent, equations
from sdplip.verify.barrier import Barrier, Hessian
from sdplip.verify.equations import Equations
from sdplip.verify.reduce import normalise, prune, start
from sdplip.verify.semiseparable import Semiseparable

SLOPES = [(0.0, 1.0), (0.2, 1.0), (-0.3, 1.1), (-1.0, -0.2)]


def problem_of(rng, sizes, slopes=(0.0, 1.0), gain=1.0):
    pairs = zip(sizes[1:], sizes, strict=False)
    system = System.feedforward([gain * rng.normal(size=s) / s[1] ** 0.5 for s in pairs])
    arrays = (system.A, system.B, system.C, system.D)
    low, high = slopes
    return normalise(prune(System(*arrays, alpha=low, beta=high, activation="unknown")))


def hessian_of(rng, sizes, slopes=(0.0, 1.0), wide=0.01):
    problem = problem_of(rng, sizes, slopes)
    barrier = Barrier.of(descent.layers(problem), *start(problem))
    x = 1 + wide * rng.random(barrier.units + 1)
    return barrier, x, Hessian(barrier, x, *barrier.eliminate(x))


def full(hessian):
    lower = np.tril(hessian.dense())
    return lower + np.tril(lower, -1).T


@pytest.mark.parametrize("slopes", SLOPES)
def test_log_det_is_that_of_the_matrix(rng, slopes):
    problem = problem_of(rng, (3, 4, 1, 5, 2), slopes)
    rho, lam = start(problem)
    layers = descent.layers(problem)
    x = 1 + 0.01 * rng.random(len(lam) + 1)
    barrier = Barrier.of(layers, rho, lam)
    whole = layers.gather(barrier.layered(x))
    expected = np.linalg.slogdet(problem.form()(rho * x[0], lam * whole))[1]
    expected -= 3 * np.log(rho) + np.log(lam).sum()  # M = D M' D with the roots of ρ and λ in D
    expected += 0 if barrier.implied else np.log(x[1:]).sum()
    assert barrier.log_det(x) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    x[0] = 0.0
    assert barrier.log_det(x) == -np.inf and barrier.eliminate(x) is None
    assert barrier.log_det(np.full_like(x, -1.0)) == -np.inf


@pytest.mark.parametrize("slopes", SLOPES)
def test_the_hessian_is_the_second_derivative(rng, slopes):
    barrier, x, hessian = hessian_of(rng, (3, 4, 1, 5, 2), slopes)
    h, unit = 1e-4, np.eye(len(x))

    def traces(y):
        return Hessian(barrier, y, *barrier.eliminate(y)).traces

    first = [(barrier.log_det(x + h * e) - barrier.log_det(x - h * e)) / (2 * h) for e in unit]
    second = [(traces(x - h * e) - traces(x + h * e)) / (2 * h) for e in unit]
    np.testing.assert_allclose(hessian.traces, first, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(full(hessian), second, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("slopes", SLOPES)
def test_products_are_those_with_the_dense_matrix(rng, slopes):
    for sizes in ((3, 4, 2, 5, 2), (1, 1, 1, 1), (6, *[5] * 30, 4), (2, 9, 1)):
        _, x, hessian = hessian_of(rng, sizes, slopes)
        d = rng.normal(size=(3, len(x)))
        np.testing.assert_allclose(hessian.product(d), d @ full(hessian), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("sizes", [(3, *[4] * 40, 2), (8, *[3, 6] * 12, 1), (2, 5, 3), (1, 1, 1)])
def test_a_fine_enough_factor_is_exact(rng, slopes, sizes):
    _, x, hessian = hessian_of(rng, sizes, slopes)
    factor = Semiseparable(hessian, 1e-15)
    assert factor.definite
    b = rng.normal(size=(2, len(x)))
    expected = np.linalg.solve(full(hessian), b.T).T
    np.testing.assert_allclose(factor(b), expected, rtol=1e-6, atol=1e-6 * abs(expected).max())


def test_a_coarse_factor_has_few_columns_and_is_close(rng):
    hessian = hessian_of(rng, (8, *[8] * 60, 4))[2]
    H = full(hessian)
    scale = 1 / np.sqrt(H.diagonal())
    factor = Semiseparable(hessian, 1e-4)
    assert factor.definite
    # No cut needs more, whatever the depth: the bound by the groups is 32.
    assert max(group.U.shape[1] for group in factor.groups) <= 25
    # P⁻¹H is near the identity.
    values = np.linalg.eigvals(factor((H * scale).T) / scale[:, None]).real
    np.testing.assert_allclose(values, 1, atol=0.1)


@pytest.mark.parametrize("slopes", SLOPES[:3])
def test_deep_chains_end_at_the_dense_optimum(rng, slopes, monkeypatch):
    problem = problem_of(rng, (6, *[6] * 30, 3), slopes)
    dense = chain.minimise(problem)
    monkeypatch.setattr(equations, "_linear", lambda *_: 0.0)
    solved = []
    monkeypatch.setattr(Equations, "solve", counted(Equations.solve, solved))
    deep = chain.minimise(problem)
    assert not any(dense_used for dense_used in solved)
    assert deep.stopped == dense.stopped == "gap"
    assert deep.rho == pytest.approx(dense.rho, rel=2e-9)
    assert deep.dual <= dense.rho * (1 + 1e-12) and dense.dual <= deep.rho * (1 + 1e-12)


def counted(solve, into):
    def inner(self, *args):
        found = solve(self, *args)
        into.append(self.dense)
        return found

    return inner


def test_what_no_factor_can_do_goes_to_the_dense_one(rng, monkeypatch):
    _, x, hessian = hessian_of(rng, (4, *[4] * 20, 2))
    monkeypatch.setattr(equations, "_linear", lambda *_: 0.0)
    monkeypatch.setattr(Semiseparable, "_factor", lambda *_: False)
    each = Equations(80, 4)
    b = rng.normal(size=(2, len(x)))
    solution = each.solve(hessian, b, lambda x, r: abs(r).max(), 1e-12)
    found, left = solution.x, solution.left
    assert each.dense
    np.testing.assert_allclose(left, b - found @ full(hessian), atol=1e-9)
    np.testing.assert_allclose(found @ full(hessian), b, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(solution.near(b), found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["rank one", "zero rows", "duplicates", "tiny", "huge"])
def test_odd_weights(rng, kind, monkeypatch):
    weights = [rng.normal(size=(5, 5)) / 5**0.5 for _ in range(12)]
    if kind == "rank one":
        weights[4] = np.outer(*rng.normal(size=(2, 5)))
    elif kind == "zero rows":
        weights[4][:3] = 0.0
    elif kind == "duplicates":
        weights[4][1:] = weights[4][0]
    else:
        weights[4] *= 1e-100 if kind == "tiny" else 1e100
    problem = normalise(prune(System.feedforward(weights)))
    dense = chain.minimise(problem)
    monkeypatch.setattr(equations, "_linear", lambda *_: 0.0)
    deep = chain.minimise(problem)
    assert deep.rho == pytest.approx(dense.rho, rel=1e-7)
    assert deep.dual <= dense.rho * (1 + 1e-10)
