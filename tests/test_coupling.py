"""A large sparse A is held sparse, and nothing that is said about the system depends on that."""

import copy
import hashlib
import itertools
import pickle
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import sdplip
from sdplip import System, _coupling, check, lipschitz
from sdplip.errors import InvalidInput, ShapeError
from sdplip.verify import lower_bound
from sdplip.verify.reduce import normalise

ARRAYS = ("A", "B", "C", "D", "b", "c", "alpha", "beta")
SEEDS = st.integers(0, 10**6)


def held(limit, make):
    """What `make` gives where systems of more than `limit` units may be held sparse."""
    before, _coupling.SPARSE = _coupling.SPARSE, limit
    try:
        return make()
    finally:
        _coupling.SPARSE = before


def both(make):
    """The same system held dense, then sparse."""
    return held(10**9, make), held(-1, make)


def chain(rng, sizes, activation="relu"):
    weights = [rng.normal(size=(b, a)) / a**0.5 for a, b in itertools.pairwise(sizes)]
    biases = [rng.normal(size=len(W)) for W in weights]
    return System.feedforward(weights, biases, activation)


def draw(seed):
    """A chain of 4 to 7 layers of 1 to 5 units, or one with a skip, of mixed slopes, some zero."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=rng.integers(6, 9))
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    for W in weights:
        W *= rng.random(W.shape) < 0.9
    if rng.random() < 0.1:
        weights[3] *= 0.0
    system = System.feedforward(weights, [rng.normal(size=len(W)) for W in weights], "tanh")
    low, high = -rng.choice([0.0, 0.3], size=system.units), rng.choice([1.0, 1.2])
    system = system.replaced(alpha=low, beta=high * np.ones(system.units))
    if rng.random() < 0.3:
        system = system + System.linear(rng.normal(size=(system.outputs, system.inputs)))
    return system


def is_sparse(system):
    return "A" not in vars(system)


def digest(system):
    """By the definition: every array, row by row, then the names of the activations."""
    h = hashlib.sha256(b"sdplip system 1")
    for name in ARRAYS:
        array = getattr(system, name)
        h.update(f"{name}{array.shape}".encode() + array.astype("<f8").tobytes())
    h.update("\0".join(system.activation.tolist()).encode())
    return h.hexdigest()


@settings(deadline=None)
@given(SEEDS)
def test_arrays_digest_and_structure_are_those_of_a_dense_one(seed):
    dense, few = both(lambda: draw(seed))
    assert few.digest() == dense.digest() == digest(dense) == digest(few)
    assert repr(few) == repr(dense) and few.is_feedforward
    rng = np.random.default_rng(seed)
    assert len(few.levels) == len(dense.levels)
    for one, other, level in zip(few.feeds, dense.feeds, dense.levels, strict=True):
        for own, its in zip(one, other, strict=True):
            assert (own == its).all()
        row = np.zeros((len(level), dense.units))
        row[:, one.fed] = one.block
        assert (one.units == level).all() and (row == dense.A[level]).all()
    rows, columns = (rng.integers(0, few.units, size=k) for k in (4, 3))
    assert (few.block(rows, columns) == dense.A[np.ix_(rows, columns)]).all()
    x = torch.as_tensor(rng.normal(size=(3, few.inputs)))
    assert torch.equal(few(x), dense(x))


@settings(deadline=None, max_examples=8)
@given(SEEDS, st.sampled_from(["auto", "interior", "layerwise", "chain", "descent", "product"]))
def test_certificates_are_those_of_a_dense_one(seed, method):
    dense, few = both(lambda: draw(seed))
    if dense.D.any() or (dense.alpha.any() and method == "product"):
        method = "auto"
    known = {}
    for system in (dense, few):
        found = lipschitz(system, method=method, lower=False)
        known[system] = asdict(found) | {"seconds": 0.0}
        assert check(found, few) is found and check(found, dense) is found
    assert known[dense] == known[few]


@pytest.mark.parametrize("norm", [2, np.inf])
def test_pairs_regions_and_norms(norm):
    dense, few = both(lambda: chain(np.random.default_rng(0), (3, 5, 4, 5, 4, 5, 2)))
    assert is_sparse(few) and not is_sparse(dense)
    box = sdplip.Region.box(-np.ones(3), np.ones(3))
    for options in ({"classes": (0, 1)}, {"region": box}):
        one, other = (lipschitz(system, norm, **options) for system in (dense, few))
        assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
        assert check(other, dense) is other


def test_everything_that_asks_for_A(tmp_path):
    dense, few = both(lambda: chain(np.random.default_rng(0), (3, 5, 4, 5, 4, 5, 2)))
    assert is_sparse(few)
    again = held(-1, lambda: pickle.loads(pickle.dumps(few)))
    for twin in (again, copy.copy(few), copy.deepcopy(few), few.replaced(c=few.c)):
        assert twin.digest() == dense.digest()
        with pytest.raises(ValueError, match="read-only"):
            twin.B[0, 0] = 1.0
    assert is_sparse(few) and is_sparse(again), "none of these needs it"
    A = few.A
    assert isinstance(A, np.ndarray) and A.dtype == np.float64 and (A == dense.A).all()
    assert few.A is A and not A.flags.writeable
    for array in (few.coupling.data, few.coupling.indices, few.feeds[1].block):
        with pytest.raises(ValueError, match="read-only"):
            array.flat[0] = 1
    with pytest.raises(AttributeError, match="'System' object has no attribute 'a'"):
        few.a  # noqa: B018
    assert replace(few, c=few.c).digest() == dense.digest()
    few.save(tmp_path / "net.npz")
    assert held(-1, lambda: System.load(tmp_path / "net.npz")).digest() == dense.digest()
    assert few != dense and few == few


@settings(deadline=None)
@given(SEEDS, SEEDS)
def test_series_and_sums(one, other):
    def make():
        first, second = draw(one), draw(other)
        rng = np.random.default_rng(one)
        link = System.linear(rng.normal(size=(second.inputs, first.outputs)))
        joined = second @ link @ first
        side = System.linear(rng.normal(size=(joined.outputs, joined.inputs)))
        return joined @ System.elementwise("relu", joined.inputs) + side

    dense, few = both(make)
    assert few.digest() == dense.digest()
    assert sorted(np.concatenate(few.levels)) == list(range(few.units))


def test_zeros_keep_their_sign(rng):
    A = np.zeros((6, 6))
    A[3, 1], A[4, 0] = -0.0, 2.0
    arrays = (A, rng.normal(size=(6, 2)), rng.normal(size=(2, 6)), np.zeros((2, 2)))
    dense, few = both(lambda: System(*arrays))
    assert is_sparse(few) and few.digest() == dense.digest()
    assert few.digest() != System(abs(A), *arrays[1:]).digest()
    assert [len(level) for level in few.levels] == [5, 1], "-0 feeds nothing"


def test_sparse_arrays_are_taken(rng):
    A = np.tril(rng.normal(size=(9, 9)), -7)
    rest = (rng.normal(size=(9, 2)), rng.normal(size=(2, 9)), np.zeros((2, 2)))
    dense = System(A, *rest)
    rows, columns = A.nonzero()
    twice = sparse.coo_array(
        (np.tile(A[rows, columns] / 2, 2), (np.tile(rows, 2), np.tile(columns, 2))), A.shape
    )
    for form in (sparse.csr_array(A), sparse.csc_matrix(A), twice):
        for few in both(lambda form=form: System(form, *rest)):
            assert few.digest() == dense.digest()
    A[8, 0] = np.nan
    with pytest.raises(InvalidInput, match="A contains nan"):
        System(sparse.csr_array(A), *rest)
    with pytest.raises(InvalidInput, match="complex"):
        System(sparse.csr_array(A * 1j), *rest)
    with pytest.raises(InvalidInput, match="A has dtype object"):
        System(sparse.coo_array(A[0]), *rest)
    with pytest.raises(ShapeError, match="A has shape"):
        System(sparse.csr_array(A[:8]), *rest)


def test_a_cycle_is_seen(rng):
    A = np.zeros((8, 8))
    A[0, 5] = A[5, 2] = A[2, 0] = 0.3
    rest = (rng.normal(size=(8, 2)), rng.normal(size=(2, 8)), np.zeros((2, 2)))
    dense, few = both(lambda: System(A, *rest))
    assert is_sparse(few) and few.levels is None and few.feeds is None
    x = rng.normal(size=(3, 2))
    np.testing.assert_allclose(few(x), dense(x), atol=1e-12)
    assert lipschitz(few, lower=False).bound == lipschitz(dense, lower=False).bound


def test_a_deep_chain_needs_no_square_array(tmp_path):
    """4,000 units, of which A has 128 MB; all that is held at any time is a fraction of it."""
    lipschitz(chain(np.random.default_rng(0), (9,) * 40), method="product")
    tracemalloc.start()
    try:
        system = chain(np.random.default_rng(0), (40,) * 102)
        found = lipschitz(system, method="product", lower=False)
        found.save(tmp_path / "bound.json")
        check(sdplip.Certificate.load(tmp_path / "bound.json"), system)
        below = lower_bound(system, samples=2, steps=2)
        relu = System.elementwise("relu", 40)
        longer = relu @ System.linear(np.eye(40)) @ system
        longer(np.zeros((2, 40)))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert system.units == 4000 and is_sparse(system) and is_sparse(longer)
    assert 0 < below <= found.bound
    assert most < system.units**2 * 8 / 3


def test_the_scales_of_a_deep_chain_stay_in_range():
    """Norms of 1.2 each, which 2^-1 times the largest entry would multiply by 2.4 a layer."""
    problem = normalise(System.feedforward([np.full((4, 4), 0.3)] * 900))
    assert problem.gain == pytest.approx(1.2**900, rel=1e-9)
    assert max(np.linalg.norm(feed.block, 2) for feed in problem.feeds[1:]) == pytest.approx(1.0)
