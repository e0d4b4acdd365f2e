"""The blocks of a chain's condition are those of the whole, and prove the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdplip import System, conditions, lipschitz
from sdplip.verify.certificate import holds
from sdplip.verify.layered import definite, tridiagonal, without_inputs
from sdplip.verify.reduce import least_rho, normalise, prune, start
from sdplip.verify.rigorous import Ball, positive_definite, tridiagonal_definite

NAMES = ("A", "B", "C", "D", "alpha", "beta")


def draw(rng, sizes):
    weights = [rng.normal(size=s) / s[1] ** 0.5 for s in zip(sizes[1:], sizes, strict=False)]
    system, units = System.feedforward(weights), sum(sizes[1:-1])
    low, high = rng.choice([0.0, -0.4, 0.2], size=units), rng.choice([0.9, 1.0], size=units)
    arrays = (system.A, system.B, system.C, system.D)
    return prune(System(*arrays, alpha=low, beta=high, activation="unknown"))


def both(system, lam):
    """The blocks at ρ = 0, and the whole at any ρ."""
    arrays = {name: getattr(system, name) for name in NAMES}

    def whole(rho):
        return conditions.lipschitz(**arrays, Lam=Ball(lam), rho=Ball(rho))

    return tridiagonal(system, arrays, lam), whole


@given(st.integers(0, 2**32 - 1))
def test_the_blocks_are_those_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    system = draw(rng, rng.integers(1, 6, size=rng.integers(4, 7)))
    (diagonal, below), whole = both(system, rng.uniform(1, 2, size=system.units))
    M, place = whole(0.0), 0
    rest = M.mid.copy()
    for k, block in enumerate(diagonal):
        own = slice(place, place + len(block.mid))
        parts = [(own, own, block)]
        if k:
            before = slice(place - len(diagonal[k - 1].mid), place)
            parts.append((own, before, below[k - 1]))
            rest[before, own] = 0.0
        for rows, columns, part in parts:
            # Both enclose the exact block, so they meet.
            assert (abs(part.mid - M.mid[rows, columns]) <= part.rad + M.rad[rows, columns]).all()
            assert (part.rad <= 1e-14 * (1 + abs(part.mid))).all()
            rest[rows, columns] = 0.0
        place = own.stop
    assert not rest.any()


@given(st.integers(0, 2**32 - 1))
def test_both_proofs_show_what_is_true_and_refuse_what_is_not(seed):
    rng = np.random.default_rng(seed)
    system = draw(rng, rng.integers(1, 9, size=rng.integers(4, 8)))
    problem = normalise(system)
    scaled = start(problem)[1] * rng.uniform(1, 1.1, size=system.units)
    least, lam = problem.gain**2 * least_rho(problem.form(), scaled), problem.lam(scaled)
    (diagonal, below), whole = both(system, lam)
    for share, true in ((1 + 1e-9, True), (1 - 1e-9, False), (0.99, False)):
        rho = least * share
        first = diagonal[0].plus(np.arange(system.inputs), rho)
        assert tridiagonal_definite([first, *diagonal[1:]], below) is true
        assert positive_definite(whole(rho)) is true


@pytest.mark.parametrize("classes", [None, (2, 0)])
def test_a_bound_of_a_chain_is_refused_a_little_below(rng, classes):
    system = draw(rng, (4, 6, 5, 7, 3))
    found = lipschitz(system, classes=classes, lower=False)
    lam = np.array(found.multipliers)
    assert found.gap < 1e-8
    assert holds(system, 2.0, found.bound, lam, classes)
    assert not holds(system, 2.0, found.bound * (1 - 1e-9 - found.inflation), lam, classes)


def seeing(rng, outputs):
    """Skips and a direct term; of 5 units the first three see 20 inputs, and have αβ = 0."""
    A, B = np.tril(rng.normal(size=(5, 5)), -1) / 3, rng.normal(size=(5, 20))
    B[3:] = 0
    low, high = rng.choice([0.0, -0.4, 0.2], size=5), rng.choice([0.9, 1.0], size=5)
    low[:3] = 0
    high[0] *= -1
    low[0], high[0] = high[0], low[0]
    C, D = rng.normal(size=(outputs, 5)), rng.normal(size=(outputs, 20)) * rng.integers(2)
    return System(A, B, C, D, alpha=low, beta=high, activation="unknown")


@given(st.integers(0, 2**32 - 1))
def test_inputs_are_eliminated_from_what_is_true_and_from_what_is_not(seed):
    rng = np.random.default_rng(seed)
    system = seeing(rng, rng.integers(1, 4))
    problem = normalise(system)
    scaled = start(problem)[1] * rng.uniform(1, 1.1, size=system.units)
    least, lam = problem.gain**2 * least_rho(problem.form(), scaled), problem.lam(scaled)
    arrays = {name: getattr(system, name) for name in NAMES}
    assert without_inputs(arrays, lam)[0].shape == (system.outputs + 5,) * 2
    _, whole = both(system, lam)
    shown = definite(system, arrays, lam)
    for share, true in ((1 + 1e-9, True), (1 - 1e-9, False), (0.5, False), (0, False), (-1, False)):
        assert shown(least * share) is true
        assert positive_definite(whole(least * share)) is true


@pytest.mark.parametrize("sizes", [(30, 6, 4), (30, 6, 5, 4)], ids=str)
@pytest.mark.parametrize("classes", [None, (2, 0)])
def test_bounds_of_many_inputs_are_refused_a_little_below(rng, sizes, classes):
    shapes = zip(sizes[1:], sizes, strict=False)
    system = System.feedforward([rng.normal(size=s) / s[1] ** 0.5 for s in shapes])
    found = lipschitz(system, classes=classes, lower=False)
    lam = np.array(found.multipliers)
    assert found.gap < 1e-8 and found.inflation < 1e-8
    assert holds(system, 2.0, found.bound, lam, classes)
    assert not holds(system, 2.0, found.bound * (1 - 1e-9 - found.inflation), lam, classes)


def test_inputs_that_bent_units_see_stay(rng):
    system = seeing(rng, 2)
    slopes = {"alpha": np.full(5, -0.5), "beta": system.beta + 0.5}
    arrays = {name: getattr(system, name) for name in NAMES} | slopes
    assert without_inputs(arrays, np.ones(5)) is None


def test_what_is_no_chain_of_layers_has_no_blocks(rng):
    skips = System.residual(*(rng.normal(size=s) for s in ((3, 3), (3, 4), (3, 4))))
    single = System.feedforward([rng.normal(size=(4, 3)), rng.normal(size=(2, 4))])
    for system in (skips, single):
        arrays = {name: getattr(system, name) for name in NAMES}
        assert tridiagonal(system, arrays, np.ones(system.units)) is None
