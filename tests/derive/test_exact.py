"""Exact positive semidefiniteness and exact instances, against eigenvalues."""

import random

import numpy as np
import pytest
import sympy as sp
from derive_cases import rational, shipped
from hypothesis import given
from hypothesis import strategies as st

from sdplip.derive.exact import instance, is_psd

seeds = st.integers(0, 2**16)
sizes = st.integers(1, 5)


def symmetric(rng, n):
    full = rational(rng, n, n)
    return sp.Matrix(full + full.T)


def eigenvalues(matrix):
    return np.linalg.eigvalsh(np.array(matrix.tolist(), dtype=float))


@given(seeds, sizes)
def test_agrees_with_eigenvalues_away_from_zero(seed, n):
    rng = random.Random(seed)
    M = symmetric(rng, n) + rng.randint(-2, 6) * sp.eye(n)
    lowest = eigenvalues(M)[0]
    if abs(lowest) > 1e-6:
        assert is_psd(M) == (lowest > 0)


@given(seeds, sizes, st.integers(0, 4))
def test_gram_matrices_of_any_rank_are_psd(seed, n, rank):
    """Singular matrices, where floating point cannot tell."""
    F = sp.Matrix(rational(random.Random(seed), rank, n))
    gram = F.T * F if rank else sp.zeros(n, n)
    assert is_psd(gram)
    assert is_psd(gram + gram.trace() * sp.eye(n) / 10**30)


@given(seeds, sizes)
def test_a_step_beyond_the_boundary_is_seen(seed, n):
    """A singular M ⪰ 0 less any multiple of vvᵀ for v in its kernel is indefinite."""
    F = sp.Matrix(rational(random.Random(seed), n - 1, n))
    kernel = F.nullspace() if n > 1 else [sp.Matrix([1])]
    gram = F.T * F if n > 1 else sp.zeros(1, 1)
    v = kernel[0]
    assert is_psd(gram + v * v.T / 10**40)
    assert not is_psd(gram - v * v.T / 10**40)


@given(seeds, sizes)
def test_congruence_keeps_the_answer(seed, n):
    rng = random.Random(seed)
    M = symmetric(rng, n) + 2 * sp.eye(n)
    order = rng.sample(range(n), n)
    scale = sp.diag(*[sp.Rational(rng.choice([-3, 1, 7]), 2) for _ in range(n)])
    assert is_psd(M[order, order]) == is_psd(M)
    assert is_psd(scale * M * scale) == is_psd(M)


@pytest.mark.parametrize(
    ("matrix", "answer"),
    [
        ([[0]], True),
        ([[-1]], False),
        ([[0, 1], [1, 0]], False),
        ([[0, 1], [1, 5]], False),
        ([[0, 0], [0, -1]], False),
        ([[1, 1], [1, 1]], True),
        ([[1, 2], [2, 4]], True),
        ([[1, 2], [2, 3]], False),
        ([[1, 1, 0], [1, 1, 1], [0, 1, 1]], False),
        ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], True),
        ([[2, 0, 0], [0, 0, 0], [0, 0, 0]], True),
    ],
)
def test_known_matrices(matrix, answer):
    assert is_psd(sp.Matrix(matrix)) == answer


def test_the_empty_matrix_is_psd():
    assert is_psd(sp.zeros(0, 0))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2)], ids=str)
def test_an_instance_is_the_layer_of_its_values(size):
    """H, G, Λ of SLL from W and q, recomputed here; T may exceed its closed form a little."""
    derivation = shipped("sll").derivation
    found = {f.name: f.symbol for f in derivation.free}
    m, n = found["W"].shape
    at = instance(derivation, dict(zip((m, n), size, strict=True)), random.Random(0))
    W, q, T = (at.values[name] for name in "WqT")
    S = W.T * W
    for i in range(size[1]):
        exact = sum(abs(S[i, j]) * q[j] / q[i] for j in range(size[1]))
        assert exact <= T[i, i] <= exact * sp.Rational(100001, 100000) + sp.Rational(1, 10**5)
    assert at.outputs["H"] == sp.eye(size[0])
    assert at.outputs["G"] == -2 * W * T.inv()
    assert at.outputs["Lam"] == 2 * T.inv()
    matrix = sp.Matrix(at.condition(derivation))
    assert is_psd(matrix)
    assert eigenvalues(matrix)[0] > -1e-9


def test_the_decomposition_is_the_condition_on_instances():
    derivation = shipped("sll").derivation
    (goal,) = derivation.goals()
    m, n = next(f.symbol.shape for f in derivation.free if f.name == "W")
    at = instance(derivation, {m: 3, n: 2}, random.Random(4))
    assert sp.Matrix(at.condition(derivation)) == sp.Matrix(at.sum(goal.squares))


def test_changes_replace_entries_of_the_ansatz():
    derivation = shipped("sll").derivation
    m, n = next(f.symbol.shape for f in derivation.free if f.name == "W")
    change = {"G": 2 * derivation.ansatz["G"]}
    plain, other = (
        instance(derivation, {m: 2, n: 2}, random.Random(4), changes) for changes in ({}, change)
    )
    assert other.outputs["G"] == 2 * plain.outputs["G"]
    assert not is_psd(sp.Matrix(other.condition(derivation)))
