"""Random systems against the exact constant over every vertex of their slopes.

The Jacobian C(I − SA)⁻¹SB + D is, in each diagonal entry of S, a quotient of affine functions with
a common denominator: while det(I − SA) keeps its sign, the largest norm is at a vertex.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import CertificationError, NotWellPosed, System, check, lipschitz


def draw(seed):
    rng = np.random.default_rng(seed)
    n, m, p = rng.integers(1, 6), rng.integers(1, 4), rng.integers(1, 4)
    scale = np.where(rng.random(2) < 0.5, 1.0, 10.0 ** rng.uniform(-3, 3, size=2))
    A = rng.normal(size=(n, n)) * rng.choice([0.1, 0.3, 0.6, 1, 2])
    if rng.random() < 0.4:
        A = np.tril(A, -1)
    if rng.random() < 0.3:
        A[rng.random((n, n)) < 0.5] = 0
    B, C = rng.normal(size=(n, m)) * scale[0], rng.normal(size=(p, n)) * scale[1]
    D = rng.normal(size=(p, m)) * (rng.random() < 0.5)
    low, high = np.zeros(n), np.ones(n)
    if rng.random() < 0.5:
        low = rng.choice([0, -0.5, -1, 0.2, 0.5], size=n)
        high = low + rng.choice([0, 0.1, 0.8, 1, 1.5], size=n)
    return System(A, B, C, D, alpha=low, beta=high, activation="unknown")


def vertices(system, norm):
    """The largest Jacobian norm over the vertices, and whether every vertex is regular alike."""
    signs, largest, n = set(), 0.0, system.units
    for corner in itertools.product([False, True], repeat=n):
        S = np.diag(np.where(corner, system.beta, system.alpha))
        inner = np.eye(n) - S @ system.A
        signs.add(np.sign(np.linalg.det(inner)))
        if 0 not in signs:
            J = system.D + system.C @ np.linalg.solve(inner, S @ system.B)
            largest = max(largest, np.linalg.norm(J, norm))
    return largest, len(signs) == 1


def examine(seed):
    system = draw(seed)
    for norm in (2, np.inf):
        largest, regular = vertices(system, norm)
        try:
            certificate = lipschitz(system, norm, lower=False)
        except (NotWellPosed, CertificationError):
            continue
        assert regular, "a bound for an ill-posed network"
        assert largest <= certificate.bound * (1 + 1e-10)
        check(certificate, system)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_no_bound_is_below_the_constant(seed):
    examine(seed)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=3000)
def test_no_bound_is_below_the_constant_at_length(seed):
    examine(seed)


def test_acyclic_networks_always_get_a_bound():
    found = 0
    for seed in range(150):
        system = draw(seed)
        if system.is_feedforward:
            found += 1
            lipschitz(system, 2, lower=False)
            lipschitz(system, np.inf, lower=False)
    assert found > 30
