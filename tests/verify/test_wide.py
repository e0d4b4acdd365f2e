"""Wide levels eliminated before the proof, by sdplip and by the independent checker."""

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import System, check, conditions, lipschitz
from sdplip.errors import CertificationError, InvalidInput
from sdplip.verify import checker, checker_wide, descent, euclidean, layered, norm_product
from sdplip.verify.reduce import least_rho, normalise, start
from sdplip.verify.rigorous import Ball, positive_definite

NAMES = ("A", "B", "C", "D", "alpha", "beta")


def draw(rng, sizes, bent=()):
    """A perceptron whose layers in `bent` have αβ ≠ 0."""
    weights = [rng.normal(size=s) / s[1] ** 0.5 for s in zip(sizes[1:], sizes, strict=False)]
    system = System.feedforward(weights)
    low, high = np.zeros(system.units), rng.choice([0.9, 1.0], size=system.units)
    for k in bent:
        own = system.levels[k]
        low[own] = rng.choice([-0.4, 0.2], size=len(own))
    arrays = (system.A, system.B, system.C, system.D)
    return System(*arrays, alpha=low, beta=high, activation="unknown")


def skips(rng):
    """Two levels, the second fed by the inputs as well, and outputs by all."""
    A = np.zeros((9, 9))
    A[6:, :6] = rng.normal(size=(3, 6))
    arrays = [rng.normal(size=s) for s in ((9, 4), (2, 9), (2, 4))]
    return System(A, *arrays, activation="relu")


def feasible(system, rng):
    """The least ρ and multipliers, in the system's own units."""
    problem = normalise(system)
    scaled = start(problem)[1] * rng.uniform(1, 1.1, size=system.units)
    return problem.gain**2 * least_rho(problem.form(), scaled), problem.lam(scaled)


def networks(rng):
    yield draw(rng, (4, 9, 3)), 0
    yield draw(rng, (4, 9, 3), bent=[0]), 0
    yield draw(rng, (3, 4, 9, 5, 2)), 1
    yield draw(rng, (3, 4, 9, 5, 2), bent=[0, 1]), 1
    yield skips(rng), 0
    yield skips(rng), 1


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_what_is_left_is_the_schur_complement(seed):
    rng = np.random.default_rng(seed)
    for system, k in networks(rng):
        arrays = {name: getattr(system, name) for name in NAMES}
        wide = np.isin(np.arange(system.units), system.levels[k])
        lam = rng.uniform(1, 2, size=system.units)
        F = np.hstack([system.D, system.C])
        N = conditions.lipschitz(**arrays, Lam=lam, rho=0.0) + F.T @ F
        T = np.block([[np.eye(len(F)), F], [F.T, N]])
        out = np.append(np.zeros(len(F) + system.inputs, dtype=bool), wide)
        side = T[np.ix_(~out, out)]
        expected = T[np.ix_(~out, ~out)] - side @ np.linalg.solve(T[np.ix_(out, out)], side.T)
        found = layered.without(wide, arrays, lam)
        assert found.mid == pytest.approx(expected, abs=1e-12)
        assert (found.rad < 1e-10).all()


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_all_proofs_show_what_is_true_and_refuse_what_is_not(seed):
    rng = np.random.default_rng(seed)
    threshold = layered.WIDE, checker_wide.WIDE
    layered.WIDE = checker_wide.WIDE = 5
    try:
        for system, _ in networks(rng):
            arrays = {name: getattr(system, name) for name in NAMES}
            least, lam = feasible(system, rng)
            shown = layered.definite(system, arrays, lam)
            R, F = np.hstack([system.B, system.A]), np.hstack([system.D, system.C])
            known = (R, F, system.alpha, system.beta, lam)
            for share, true in ((1 + 1e-8, True), (1 - 1e-8, False), (0.5, False), (0.0, False)):
                M = conditions.lipschitz(**arrays, Lam=Ball(lam), rho=Ball(least * share))
                assert positive_definite(M) is true
                assert shown(least * share) is true
                bound = (least * share) ** 0.5
                wide = checker_wide.reduced(*known, bound, checker.levels, checker.condition)
                assert checker.definite(*wide) == true
    finally:
        layered.WIDE, checker_wide.WIDE = threshold


def test_a_level_that_feeds_bent_units_or_another_wide_one_stays(rng, monkeypatch):
    monkeypatch.setattr(layered, "WIDE", 5)
    for bent, expected in (([], [1]), ([2], [0, 2]), ([1], [1]), ([1, 2], [2])):
        system = draw(rng, (3, 6, 9, 7, 2), bent=bent)
        arrays = {name: getattr(system, name) for name in NAMES}
        wide = layered._wide(system.levels, arrays)
        chosen = [k for k, level in enumerate(system.levels) if wide[level].any()]
        assert chosen == expected
        exact = layered._levels(None, Ball(system.A))
        assert [level.tolist() for level in exact] == [own.tolist() for own in system.levels]
        # What may be off zero within a level makes it none, whatever the midpoints say.
        assert layered._levels(None, Ball(system.A, 1e-300)) == []


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e100])
def test_a_gram_matrix_is_enclosed(rng, scale):
    X = scale * rng.normal(size=(3, 1100))
    X[1, rng.random(1100) < 0.5] = 0.0
    X[2] = 0.0
    d = rng.uniform(0.1, 10, size=1100)
    rad = np.where(rng.random(X.shape) < 0.5, 1e-9 * abs(X), 0.0)
    found = layered.gram(Ball(X, rad), d)
    for _ in range(2):
        moved = X + rng.choice([-1, 0, 1], size=X.shape) * rad * (1 - 1e-6)
        for i in range(3):
            for j in range(3):
                terms = zip(moved[i].tolist(), moved[j].tolist(), d.tolist(), strict=True)
                exact = sum(Fraction(x) * Fraction(y) / Fraction(w) for x, y, w in terms)
                off = abs(exact - Fraction(float(found.mid[i, j])))
                assert off <= Fraction(float(found.rad[i, j]))
    size = np.linalg.norm(X / d**0.5, axis=1).max()
    assert found.rad.max() < 1e-8 * size**2 + 1e-200


def test_a_wide_network_is_proven_by_both_in_little_time(rng, tmp_path):
    weights = [rng.normal(size=(2000, 4)) / 2, rng.normal(size=(3, 2000)) / 45]
    system = System.feedforward(weights)
    found = lipschitz(system, time_limit=0.5)
    J = weights[1] @ (rng.random((2000, 1)) * weights[0])
    assert np.linalg.norm(J, 2) <= found.bound < 0.9 * found.norm_product
    assert found.solver == "descent"
    assert found.inflation < 1e-8
    assert check(found, system) is found
    paths = tmp_path / "bound.json", tmp_path / "net.npz"
    found.save(paths[0])
    np.savez(paths[1], W0=weights[0], W1=weights[1])
    assert f"{found.bound!r}" in checker.check(*paths)
    for false in (
        replace(found, bound=found.bound * (1 - 1e-6)),
        replace(found, multipliers=tuple(0.3 * v for v in found.multipliers)),
    ):
        with pytest.raises(CertificationError):
            check(false, system)
        false.save(paths[0])
        with pytest.raises(checker.NotProven, match="not shown"):
            checker.check(*paths)


def test_a_deadline_that_is_over_leaves_the_closed_form(rng):
    system = draw(rng, (5, 2600, 40, 3))
    found = lipschitz(system, time_limit=1e-9)
    first = descent.minimise(normalise(system), max_steps=0)
    assert found.solver == "descent"
    assert found.bound == pytest.approx(normalise(system).gain * first.rho**0.5, rel=1e-7)
    assert check(found, system) is found


@pytest.mark.parametrize("kind", ["skips", "chain", "cycle"])
def test_what_takes_longer_than_its_time_is_refused(rng, monkeypatch, kind):
    monkeypatch.setattr(euclidean, "QUICK", 0.0)
    monkeypatch.setattr(euclidean, "_pace", lambda: 10.0)
    system = {
        "skips": lambda: skips(rng),
        "chain": lambda: draw(rng, (4, 9, 3)),
        "cycle": lambda: System.equilibrium(np.eye(9) / 2, np.ones((9, 2)), np.ones((1, 9))),
    }[kind]()
    with pytest.raises(InvalidInput, match="of these 9 units takes about"):
        lipschitz(system, time_limit=1.0)
    assert lipschitz(system).proven
    assert lipschitz(system, time_limit=1e6).proven


def test_the_search_leaves_the_time_of_the_proof(rng, monkeypatch):
    system = draw(rng, (4, 9, 8, 7, 3))
    assert euclidean._plan(system, None) == (None, False)
    assert euclidean._plan(system, 1000.0) == (1000.0, False), "too quick for an estimate"
    monkeypatch.setattr(euclidean, "QUICK", 0.0)
    scaling, first, proof = euclidean.operations(system)
    assert min(scaling, first, proof) > 0
    monkeypatch.setattr(euclidean, "_pace", lambda: proof / 50)
    deadline = time.monotonic() + 1000
    end, short = euclidean._plan(system, deadline)
    assert end == pytest.approx(deadline - 50, abs=1e-6) and not short
    monkeypatch.setattr(euclidean, "_pace", lambda: (scaling + first / 2 + proof) / 1000)
    assert euclidean._plan(system, time.monotonic() + 1000)[1], "no time for a first point"


def test_without_time_for_a_search_the_product_of_norms_is_proven(rng, monkeypatch):
    monkeypatch.setattr(euclidean, "QUICK", 0.0)
    monkeypatch.setattr(euclidean, "OVERHEAD", 1e9)
    monkeypatch.setattr(euclidean, "_pace", lambda: 1.0)
    sizes = [(9, 4), (8, 9), (7, 8), (3, 7)]
    system = System.feedforward([rng.normal(size=size) for size in sizes])
    found = lipschitz(system, time_limit=1.0)
    assert (found.solver, found.proven) == ("product", True)
    assert found.bound == pytest.approx(norm_product(system), rel=1e-6)
    assert check(found, system) is found
