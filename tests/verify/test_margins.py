"""Class margins: against the difference system, samples, brute force and moved inputs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_systems import mlp

from sdplip import System, check, lipschitz
from sdplip.errors import InvalidInput, ShapeError
from sdplip.verify.margins import MarginBounds, difference, margin_bounds
from sdplip.verify.region import Region

SEEDS = st.integers(0, 10**6)
NORMS = [2, np.inf]


def test_the_difference_is_that_of_the_outputs(rng):
    system = mlp(rng, 4, 6, 5, 3) + System.linear(rng.normal(size=(3, 4)), rng.normal(size=3))
    x = rng.normal(size=(20, 4))
    y = system(x)
    for i, j in itertools.permutations(range(3), 2):
        np.testing.assert_allclose(difference(system, i, j)(x)[:, 0], y[:, i] - y[:, j], atol=1e-13)


@pytest.mark.parametrize("norm", NORMS)
def test_the_matrix_is_symmetric_and_that_of_the_single_problems(rng, norm):
    system = mlp(rng, 3, 8, 6, 4)
    margins = margin_bounds(system, norm)
    np.testing.assert_array_equal(margins.bounds, margins.bounds.T)
    assert (margins.bounds.diagonal() == 0).all()
    assert set(margins.certificates) == set(itertools.combinations(range(4), 2))
    whole = lipschitz(system, norm, lower=False).bound
    for (i, j), certificate in margins.certificates.items():
        check(certificate, system)
        assert certificate.classes == (i, j) and certificate.bound == margins.bounds[i, j]
        alone = lipschitz(difference(system, i, j), norm, lower=False).bound
        assert certificate.bound == pytest.approx(alone, rel=1e-6)
        assert certificate.bound <= whole * (2**0.5 if norm == 2 else 2) * (1 + 1e-6)


@given(SEEDS, st.sampled_from(NORMS), st.booleans())
@settings(max_examples=8)
def test_no_pattern_of_slopes_exceeds_its_pair(seed, norm, local):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 3, 5, 3) + System.linear(rng.normal(size=(3, 3)))
    region = Region.ball(rng.normal(size=3), 0.3) if local else None
    margins = margin_bounds(system, norm, region=region)
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=5)))
    if local:
        away = rng.normal(size=(2000, 3))
        x = np.array(region.centre) + 0.3 * away / np.linalg.norm(away, axis=1, keepdims=True)
        patterns = np.unique(x @ system.B.T + system.b > 0, axis=0) * 1.0
    for i, j in itertools.combinations(range(3), 2):
        row = np.zeros((1, 3))
        row[0, [i, j]] = 1, -1
        gains = [row @ (system.D + system.C @ np.diag(s) @ system.B) for s in patterns]
        worst = max(np.linalg.norm(gain, norm) for gain in gains)
        assert worst <= margins.bounds[i, j] * (1 + 1e-12)


@given(SEEDS, st.sampled_from(NORMS))
@settings(max_examples=8)
def test_no_input_within_the_radius_changes_its_class(seed, norm):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 2, 6, 3)
    margins = margin_bounds(system, norm)
    x = rng.normal(size=(8, 2))
    y = system(x)
    radii = margins.radius(y, error=1e-12)
    move = rng.normal(size=(400, 1, 2))
    move /= np.linalg.norm(move, norm, axis=-1, keepdims=True)
    moved = system(x + 0.999 * radii[:, None] * move)
    assert (moved.argmax(-1) == y.argmax(-1)).all()
    assert (radii > 0).all() and radii.shape == (8,)


def test_the_radius_is_the_least_quotient():
    bounds = np.array([[0, 1, 4.0], [1, 0, np.inf], [4, np.inf, 0]])
    margins = MarginBounds(bounds, {}, 2.0)
    np.testing.assert_allclose(
        margins.radius([[3.0, 1, 1], [3, 1, 2], [1, 2, 0], [1, 1, 0]]), [0.5, 0.25, 0, 0]
    )
    assert margins.radius([3.0, 1, 1])[()] < 0.5
    assert margins.radius([3.0, 1, 1], error=0.5)[()] == pytest.approx(0.25)
    assert MarginBounds(np.zeros((2, 2)), {}, 2.0).radius([1.0, 0.0]) == np.inf
    assert MarginBounds(np.zeros((2, 2)), {}, 2.0).radius([1.0, 1.0]) == 0
    with pytest.raises(ShapeError, match="logits"):
        margins.radius([1.0, 2.0])
    with pytest.raises(InvalidInput, match="error"):
        margins.radius([1.0, 2.0, 3.0], error=-1.0)
    with pytest.raises(InvalidInput, match="logits"):
        margins.radius([1.0, np.nan, 3.0])


def test_a_lead_by_rounding_alone_certifies_nothing():
    """In float32 the other class leads, by less than the logits are off."""
    W = torch.tensor([[1.0, 1e-4], [1.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([1e3, 1e-3], dtype=torch.float64)
    margins, exact = margin_bounds(System.linear(W)), W @ x
    computed = exact.float() + torch.tensor([0, 1e-4])
    assert exact[0] > exact[1] and computed[0] < computed[1]
    assert margins.radius(computed, error=0.0) > 0
    for dtype in (torch.float32, torch.bfloat16):
        assert margins.radius(computed.to(dtype)) == margins.radius(computed.to(dtype)[None]) == 0
    assert margins.radius(computed.numpy()) == 0
    np.testing.assert_allclose(margins.radius([2.0, 0.0]), 2e4, rtol=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_local_radii_stay_in_the_region(rng, norm):
    system, x = mlp(rng, 3, 6, 2), rng.normal(size=3)
    far = margin_bounds(system, norm).radius(system(x))
    for region in (Region.ball(x, 1e-3), Region.box(x - 1e-3, x + 2e-3)):
        margins = margin_bounds(system, norm, region=region)
        logits = system(x)
        room = 1e-3 / (3**0.5 if norm != 2 and region.radius else 1)
        assert margins.radius(logits, inputs=x) == pytest.approx(room, rel=1e-12)
        assert margins.radius(logits, inputs=x) <= max(far, room)
        assert margins.radius(logits, inputs=x + 1) == 0
        with pytest.raises(InvalidInput, match="give the inputs"):
            margins.radius(logits)
        with pytest.raises(ShapeError, match="inputs"):
            margins.radius(logits, inputs=x[:2])


def test_one_label_needs_its_own_pairs_only(rng):
    seen = []
    margins = margin_bounds(
        mlp(rng, 3, 5, 4), pairs=2, progress=lambda k, n, c: seen.append((k, n, c.classes))
    )
    assert seen == [(1, 3, (0, 2)), (2, 3, (1, 2)), (3, 3, (2, 3))]
    assert np.isfinite(margins.bounds[2]).all() and np.isinf(margins.bounds[0, 1])
    assert margins.radius([1.0, 0, 2, 0]) > 0
    assert margins.radius([2.0, 0, 1, 0]) == 0


def test_equal_rows_have_the_bound_zero(rng):
    W = rng.normal(size=(3, 5))
    W[1] = W[0]
    system = System.feedforward([rng.normal(size=(5, 2)), W], [rng.normal(size=5), [1.0, 0, 0]])
    margins = margin_bounds(system)
    assert margins.bounds[0, 1] == 0.0
    assert margins.bounds[0, 2] == pytest.approx(margins.bounds[1, 2])


def test_rows_that_do_not_subtract_exactly_are_still_proven():
    """1 and 2⁻⁶⁰: the exact difference is not a float64; the proof covers it."""
    system = System.feedforward([[[1.0]], [[1.0], [2.0**-60]]])
    certificate = margin_bounds(system).certificates[0, 1]
    assert check(certificate, system).bound >= 1 - 2.0**-60
    assert difference(system, 0, 1).C[0, 0] == 1.0


def test_the_room_in_a_tiny_ball_is_not_rounded_up():
    system = System.feedforward([[[1.0], [2.0]]], [[1.0, 0.0]])
    region = Region.ball([0.0], 1e-170)
    margins = margin_bounds(system, region=region)
    assert margins.radius([1.0, 0.0], inputs=[9e-171]) <= 1e-171


def test_equilibria_have_margins(rng):
    A = rng.normal(size=(5, 5))
    system = System.equilibrium(
        0.8 * A / np.linalg.norm(A, 2), rng.normal(size=(5, 2)), rng.normal(size=(3, 5))
    )
    margins = margin_bounds(system, lower=True)
    for certificate in margins.certificates.values():
        assert 0 < certificate.lower <= certificate.bound
        check(certificate, system)


def test_a_module_is_taken(rng):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    x = rng.normal(size=(4, 3)).astype(np.float32)
    logits = net(torch.from_numpy(x))
    assert (margin_bounds(net).radius(logits, error=1e-5) >= 0).all()


@pytest.mark.parametrize("pairs", [4, -1, "some", True, 1.0])
def test_unknown_pairs_are_refused(pairs, rng):
    with pytest.raises(InvalidInput, match="label from 0 to 3"):
        margin_bounds(mlp(rng, 2, 3, 4), pairs=pairs)


def test_single_outputs_and_equal_classes_are_refused(rng):
    with pytest.raises(InvalidInput, match="no pairs"):
        margin_bounds(mlp(rng, 2, 3, 1))
    for i, j in ((0, 0), (0, 3), (-1, 1)):
        with pytest.raises(InvalidInput, match="two different"):
            difference(mlp(rng, 2, 3, 3), i, j)


def test_a_time_limit_leaves_valid_bounds(rng):
    system = mlp(rng, 8, 20, 20, 4)
    quick, full = margin_bounds(system, time_limit=0.05), margin_bounds(system)
    assert (quick.bounds >= full.bounds * (1 - 1e-6)).all()
    for certificate in quick.certificates.values():
        check(certificate, system)


def test_a_module_of_any_structure_needs_its_input_shape():
    torch.manual_seed(0)
    body = [torch.nn.Conv2d(1, 2, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Flatten()]
    network = torch.nn.Sequential(*body, torch.nn.Linear(8, 3)).double().eval()
    bounds = margin_bounds(network, input_shape=(1, 4, 4)).bounds
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.func.jacrev(network)(x).detach().reshape(3, 16)
    for i, j in itertools.combinations(range(3), 2):
        assert float((jacobian[i] - jacobian[j]).norm()) <= bounds[i, j]
    with pytest.raises(InvalidInput, match="input_shape"):
        margin_bounds(network)
