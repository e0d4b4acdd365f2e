"""Lower bounds: never above a known constant, close to it, inside their region, and on time."""

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_systems import mlp

from sdplip import System, lipschitz
from sdplip.activations import elementwise
from sdplip.errors import ShapeError
from sdplip.verify import norm_product
from sdplip.verify.exact import exact_gain
from sdplip.verify.lower import _attained, lower_bound
from sdplip.verify.network import Network
from sdplip.verify.region import Region

SEEDS = st.integers(0, 10**6)
NORMS = st.sampled_from([2.0, np.inf])


def orthogonal(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def planted(rng, n, depth, activation):
    """Orthogonal layers, scaled: the constant is at most the product of the scales."""
    scales = 10.0 ** rng.uniform(-3, 3, size=depth + 1)
    weights = [scale * orthogonal(rng, n) for scale in scales]
    biases = [scale * rng.normal(size=n) for scale in scales]
    # The orthogonal factors in float64 are so only up to rounding.
    return System.feedforward(weights, biases, activation), np.prod(scales) * (1 + 1e-13 * depth)


@given(SEEDS, st.sampled_from(["relu", "tanh", "leaky_relu(0.2)", "elu", "softplus"]))
@settings(max_examples=20)
def test_never_above_a_planted_constant(seed, activation):
    rng = np.random.default_rng(seed)
    system, truth = planted(rng, int(rng.integers(1, 7)), int(rng.integers(1, 4)), activation)
    assert 0 <= lower_bound(system, steps=20, samples=4, seed=seed) <= truth


@given(SEEDS, NORMS)
@settings(max_examples=15)
def test_at_most_the_largest_gain_of_any_pattern_and_mostly_near_it(seed, norm):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 2, 5, 2)
    gains = [
        np.linalg.norm(system.C @ np.diag(s) @ system.B, norm)
        for s in np.unique(_patterns(rng, system), axis=0) * 1.0
    ]
    found = lower_bound(system, norm)
    everything = max(
        np.linalg.norm(system.C @ np.diag(s) @ system.B, norm)
        for s in itertools.product([0.0, 1.0], repeat=5)
    )
    assert found <= everything
    assert found >= 0.97 * max(gains)


def _patterns(rng, system):
    x = rng.normal(size=(4000, 2)) * 10.0 ** rng.uniform(-1, 2, size=(4000, 1))
    return x @ system.B.T + system.b > 0


def test_kinks_at_the_data_do_not_raise_the_result():
    """x − relu(x) + relu(−x) is 0, but with slope 0 at both kinks its derivative at 0 is 1."""
    system = System.feedforward([[[1.0], [-1.0]], [[-1.0, 1.0]]]) + System.linear([[1.0]])
    assert lower_bound(system, points=np.zeros((3, 1))) == 0.0
    assert _attained(system, 2, np.zeros(1), np.ones(1)) == 0.0
    assert exact_gain(system, 2, np.zeros(1), np.ones(1)) == 0.0


def test_units_without_sign_are_enclosed():
    """At 0 each of two kinks may have either slope: x ↦ relu(x) − relu(−x) still has gain 1."""
    system = System.feedforward([[[1.0], [-1.0]], [[1.0, -1.0]]])
    assert lower_bound(system, points=np.zeros((1, 1))) == pytest.approx(1.0, rel=1e-12)
    assert _attained(system, 2, np.zeros(1), np.ones(1)) <= 1.0


@given(SEEDS, NORMS)
@settings(max_examples=15)
def test_the_exact_gain_is_that_of_fractions(seed, norm):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 3, 4, 3, 2, activation=["relu", "leaky_relu(0.3)"][seed % 2])
    x, w = rng.normal(size=3), rng.normal(size=3)
    exact = _fractions(system, x, w)
    found = exact_gain(system, norm, x, w)
    if norm == 2:
        ratio = sum(y * y for y in exact) / sum(Fraction(v) ** 2 for v in w)
        assert Fraction(found) ** 2 <= ratio <= Fraction(found) ** 2 * (1 + Fraction(1, 10**14))
    else:
        ratio = max(map(abs, exact)) / max(abs(Fraction(v)) for v in w)
        assert Fraction(found) <= ratio <= Fraction(found) * (1 + Fraction(1, 10**14))


def _fractions(system, x, w):
    low = Fraction(float(system.alpha[0]))
    x, w = [Fraction(v) for v in x], [Fraction(v) for v in w]

    def row(weights, vector):
        return sum((Fraction(a) * v for a, v in zip(weights, vector, strict=True)), Fraction(0))

    n = system.units
    z, dz = [Fraction(0)] * n, [Fraction(0)] * n
    for i in range(n):
        v = row(system.A[i], z) + row(system.B[i], x) + Fraction(system.b[i])
        slope = 1 if v > 0 else low
        dv = row(system.A[i], dz) + row(system.B[i], w)
        z[i], dz[i] = slope * v, slope * dv
    return [row(system.C[k], dz) + row(system.D[k], w) for k in range(system.outputs)]


def test_deep_networks_whose_rounding_outgrows_them_keep_a_bound(rng):
    system = mlp(rng, *[12] * 61, 3)
    x, w = rng.normal(size=12), rng.normal(size=12)
    assert _attained(system, 2, x, w) == 0.0
    found = lower_bound(system, steps=20)
    assert 0 < found <= norm_product(system)


@given(SEEDS, st.sampled_from(["relu", "tanh", "silu"]))
@settings(max_examples=10)
def test_the_network_agrees_with_autograd(seed, activation):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 3, 5, 4, 2, activation=activation) + System.linear(rng.normal(size=(2, 3)))
    if seed % 3 == 0:
        A = rng.normal(size=(5, 5))
        system = System.equilibrium(
            0.5 * A / np.linalg.norm(A, 2), rng.normal(size=(5, 3)), rng.normal(size=(2, 5)),
            rng.normal(size=(2, 3)), b=rng.normal(size=5), activation="tanh",
        )  # fmt: skip
    net, x, w = Network(system), rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    u = rng.normal(size=(4, 2))
    slope = net.sigma(net.preactivations(x))[1]
    forward = net.output(net.push(slope, w)[1], w)
    on_v = net.pull(slope, net.output_adjoint(u))[1]
    backward = net.input_adjoint(on_v, u)
    for k in range(4):
        J = torch.autograd.functional.jacobian(system, torch.from_numpy(x[k])).numpy()
        np.testing.assert_allclose(forward[k], J @ w[k], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(backward[k], J.T @ u[k], rtol=1e-9, atol=1e-9)


@given(SEEDS)
@settings(max_examples=10)
def test_equilibria_have_lower_bounds_below_their_bounds(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(6, 6))
    A *= 0.9 / np.linalg.norm(A, 2)
    activation = ["relu", "tanh"][seed % 2]
    system = System.equilibrium(
        A, rng.normal(size=(6, 3)), rng.normal(size=(2, 6)), b=rng.normal(size=6),
        activation=activation,
    )  # fmt: skip
    found, bound = lower_bound(system), lipschitz(system, lower=False).bound
    assert 0.3 * bound <= found <= bound


@pytest.mark.parametrize("activation", ["silu", "sin", "hardswish"])
@pytest.mark.parametrize("norm", [2, np.inf])
def test_equilibria_that_no_proximal_map_finds_have_a_bound(activation, norm):
    rng = np.random.default_rng(0)
    A, B, C = 0.1 * rng.normal(size=(5, 5)), rng.normal(size=(5, 2)), rng.normal(size=(2, 5))
    system = System.equilibrium(A, B, C, activation=activation)
    found = lipschitz(system, norm)
    assert found.lower is None
    x = torch.tensor(rng.normal(size=(200, 2)))
    z, sigma = torch.zeros(200, 5).double(), elementwise(activation)
    for _ in range(200):
        z = sigma(z @ torch.tensor(A).mT + x @ torch.tensor(B).mT)
    dx, dy = (v[:100] - v[100:] for v in (x.numpy(), z.numpy() @ C.T))
    gains = np.linalg.norm(dy, norm, axis=1) / np.linalg.norm(dx, norm, axis=1)
    assert 0.1 * found.bound < gains.max() <= found.bound


@given(SEEDS, NORMS)
@settings(max_examples=10)
def test_a_region_of_one_linear_piece_has_its_gain(seed, norm):
    rng = np.random.default_rng(seed)
    system, x = mlp(rng, 4, 7, 5, 3), rng.normal(size=4)
    J = torch.autograd.functional.jacobian(system, torch.from_numpy(x)).numpy()
    truth = np.linalg.norm(J, norm)
    found = lower_bound(system, norm, region=Region.ball(x, 1e-9))
    assert truth * (1 - 1e-9) <= found <= truth * (1 + 1e-13)


def test_directions_stay_in_a_flat_region(rng):
    system, x = mlp(rng, 3, 6, 2), rng.normal(size=3)
    J = torch.autograd.functional.jacobian(system, torch.from_numpy(x)).numpy()
    half = np.array([1e-9, 0.0, 0.0])
    found = lower_bound(system, region=Region.box(x - half, x + half))
    assert found == pytest.approx(np.linalg.norm(J[:, 0]), rel=1e-9)
    assert lower_bound(system, region=Region.ball(x, 0.0)) == 0.0


def test_regions_only_lower_it(rng):
    system = mlp(rng, 3, 12, 12, 2)
    small = lower_bound(system, region=Region.ball(np.zeros(3), 0.05))
    assert small <= lower_bound(system) * 1.02


def test_data_points_are_used(rng):
    """A unit that is on in a tiny, far place: random points miss it, the data do not."""
    W = np.array([[1.0, 0.0], [0.0, 1.0], [1e4, 1e4]])
    system = System.feedforward([W, np.ones((1, 3))], [[0, 0, -1e12], [0.0]])
    blind = lower_bound(system, samples=4, steps=5)
    assert blind < 2
    assert lower_bound(system, points=torch.full((2, 2), 1e8)) > 1e4
    with pytest.raises(ShapeError, match="points"):
        lower_bound(system, points=np.zeros(2))
    with pytest.raises(ShapeError, match="dimension"):
        lower_bound(system, region=Region.ball(np.zeros(3), 1.0))


def test_trivial_systems(rng):
    W = rng.normal(size=(3, 5))
    for norm in (2, np.inf):
        truth = np.linalg.norm(W, norm)
        assert truth * (1 - 1e-12) <= lower_bound(System.linear(W), norm) <= truth * (1 + 1e-15)
    assert lower_bound(System.linear(np.zeros((2, 2)))) == 0.0
    assert lower_bound(System([[0]], [[1.0]], [[1.0]], [[0.0]], activation="unknown")) is None
    constant = System.feedforward([np.zeros((4, 3)), np.ones((2, 4))])
    assert lower_bound(constant) == 0.0


def test_a_deadline_ends_the_search_with_what_it_has(rng):
    system = mlp(rng, 30, 200, 200, 10)
    early = lower_bound(system, deadline=time.monotonic())
    assert 0 < early <= lower_bound(system, steps=40) * 1.5


def test_wide_systems_do_without_a_whole_jacobian(rng):
    system = System.feedforward([rng.normal(size=(40, 300)), rng.normal(size=(300, 40))])
    W = system.C @ np.diag((np.arange(40) % 2) * 1.0) @ system.B
    found = lower_bound(system, steps=30)
    assert found > 0.8 * np.linalg.norm(W, 2)
    assert found <= np.linalg.norm(system.C, 2) * np.linalg.norm(system.B, 2)


def test_trained_networks(nets_dir):
    best = {"lipsdp_random": 36.4822, "digits_fnn3": 9.45, "lben_gamma1_w80": 0.8648}
    for name, least in best.items():
        assert lower_bound(System.load(nets_dir / f"{name}.npz")) >= least
