"""Bounds by spatial frequency: never below the unrolled network's, and equal to it on a torus."""

import numpy as np
import pytest
import sympy as sp
import torch
from conv_systems import kernel, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import lipschitz
from sdplip.convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool
from sdplip.errors import CertificationError, InvalidInput
from sdplip.verify.frequency import (
    frequency_holds,
    lipschitz_conv,
    multiplier_count,
)
from sdplip.verify.frequency_lower import lower_bound_conv
from sdplip.verify.torus import torus

SEEDS = st.integers(0, 10**6)
CIRCULAR = {"padding_mode": "circular"}


def chain(rng, depth=3, channels=2, size=(4, 4), name="relu", **convolution):
    stages = [Convolve(kernel(rng, channels, 1, 3, 3), **convolution)]
    for _ in range(depth - 1):
        stages += [Activate(name), Convolve(kernel(rng, channels, channels, 3, 3), **convolution)]
    return ConvSystem(tuple(stages), 1, size)


def dense(network):
    """The bound and the dual value over multipliers per unit, by the dense method."""
    return lipschitz(network.unroll(), lower=False)


def assert_proven(network, found):
    assert frequency_holds(network, found.bound, found.multipliers)
    assert len(found.multipliers) == multiplier_count(network)
    assert found.optimum <= found.bound * (1 + 1e-12)


def test_equal_to_the_unrolled_optimum_on_a_torus(rng):
    found = lipschitz_conv(chain(rng, **CIRCULAR))
    assert found.bound == pytest.approx(dense(chain(np.random.default_rng(0), **CIRCULAR)).bound)
    assert found.bound / found.optimum - 1 < 1e-7


def strided(rng):
    return ConvSystem(
        (
            Convolve(kernel(rng, 2, 1, 3, 3), stride=(2, 1), **CIRCULAR),
            Activate("unknown", -0.2, [1.0, 0.7]),
            Convolve(kernel(rng, 2, 2, 2, 2), stride=2, padding=0, **CIRCULAR),
            Activate("relu"),
            Convolve(kernel(rng, 1, 2, 1, 3), **CIRCULAR),
        ),
        1,
        (8, 4),
    )


def pooled(rng):
    stages = chain(rng, 2, **CIRCULAR).stages
    ending = (Activate("tanh"), Head(np.repeat(kernel(rng, 3, 2), 6, 1)))
    return ConvSystem((*stages, Activate("relu"), Pool(2), *ending), 1, (6, 4))


def residual(rng):
    body = (
        Convolve(kernel(rng, 2, 2, 3, 3), **CIRCULAR),
        Activate("relu"),
        Convolve(kernel(rng, 2, 2, 3, 3), **CIRCULAR),
    )
    first = Convolve(kernel(rng, 2, 1, 3, 3), **CIRCULAR)
    block = (Add(body), Activate("leaky_relu(0.1)"), Add(body, (Activate("relu"),)))
    return ConvSystem((first, Activate("relu"), *block), 1, (4, 3))


def linear(rng):
    return ConvSystem(chain(rng, 3, **CIRCULAR).stages[::2], 1, (3, 5))


@pytest.mark.parametrize("build", [strided, pooled, residual, linear])
def test_equal_to_the_unrolled_optimum_in_every_form(build, rng):
    network = build(rng)
    found, truth = lipschitz_conv(network), dense(network)
    assert found.bound == pytest.approx(truth.bound, rel=1e-7)
    assert_proven(network, found)


def check_sound(network, seed):
    """lower ≤ unrolled optimum ≤ bound, and the slopes of random secants below both."""
    found = lipschitz_conv(network)
    assert_proven(network, found)
    truth = dense(network)
    assert truth.optimum <= found.bound * (1 + 1e-9)
    lower = lower_bound_conv(network, samples=2, steps=10, seed=seed)
    assert lower is None or lower <= truth.bound * (1 + 1e-12)
    x = torch.randn(2, 50, *network.start, dtype=torch.float64)
    secants = (network(x[0]) - network(x[1])).flatten(1).norm(dim=1)
    secants = secants / (x[0] - x[1]).flatten(1).norm(dim=1)
    assert float(secants.max()) <= found.bound


@settings(max_examples=8)
@given(SEEDS)
def test_zero_padding_is_never_under_bounded(seed):
    check_sound(random_network(np.random.default_rng(seed)), seed)


@settings(max_examples=8)
@given(SEEDS)
def test_circular_padding_is_never_under_bounded(seed):
    check_sound(random_network(np.random.default_rng(seed), "circular"), seed)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_many_networks_are_never_under_bounded(mode):
    for seed in range(10**7, 10**7 + 400):
        check_sound(random_network(np.random.default_rng(seed), mode), seed)


@pytest.mark.parametrize(
    "between",
    [[], [Activate("identity")], [Activate("leaky_relu(0.9)")], [Activate("unknown", -1, -1)]],
)
def test_the_end_of_the_image_lies_between_two_convolutions(between):
    """On the plane these two nearly cancel, sin⁴ω ≤ 1; on one pixel they are the factor 2.25."""
    low = np.array([[[[0.25, 1, 1.5, 1, 0.25]]]])
    high = low * [1, -1, 1, -1, 1]
    network = ConvSystem((Convolve(low), *between, Convolve(high)), 1, (1, 1))
    found = lipschitz_conv(network)
    assert dense(network).optimum == pytest.approx(2.25)
    assert found.bound >= 2.25
    inside = ConvSystem((Convolve(low, **CIRCULAR), Convolve(high, **CIRCULAR)), 1, (8, 8))
    assert lipschitz_conv(inside).bound == pytest.approx(1)


def test_no_tap_reaches_around_the_torus():
    """Around two pixels, the outer taps cancel; on the image each meets one."""
    network = ConvSystem((Convolve([[[[1.0, 0, -1]]]]),), 1, (1, 2))
    assert lipschitz_conv(network).bound >= 1
    stretched = ConvSystem((Convolve([[[[1.0, 0, -1]]]], padding=(0, 2)),), 1, (1, 2))
    assert lipschitz_conv(stretched).bound >= np.linalg.norm(stretched.unroll().D, 2)


@settings(max_examples=8)
@given(SEEDS, st.floats(-3, 3))
def test_planted_constants_are_met(seed, power):
    """Shifts and permutations of channels keep norms: the constant is the product of the scales."""
    rng = np.random.default_rng(seed)
    mode = ["zeros", "circular"][seed % 2]
    stages, constant = [], 1.0
    for _ in range(3):
        weight = np.zeros((3, 3, 3, 3))
        row, column = (1, 1) if mode == "zeros" else rng.integers(0, 3, 2)
        weight[np.arange(3), rng.permutation(3), row, column] = scale = 10.0**power
        constant *= scale
        stages += [Convolve(weight, padding_mode=mode), Activate("relu")]
    found = lipschitz_conv(ConvSystem(tuple(stages), 3, (4, 4)))
    assert constant <= found.bound * (1 + 1e-14) and found.bound <= constant * (1 + 1e-8)


def test_the_proof_is_refused_below_the_optimum_and_for_other_weights(rng):
    network = ConvSystem(
        (*chain(rng, 2).stages, Activate("relu"), Head(kernel(rng, 2, 32))), 1, (4, 4)
    )
    found = lipschitz_conv(network)
    lam = found.multipliers
    assert not frequency_holds(network, found.optimum * (1 - 1e-9), lam)
    assert not frequency_holds(network, float("nan"), lam)
    assert not frequency_holds(network, found.bound, lam[1:])
    for i in range(len(lam)):
        for change in (0.0, 0.5 * lam[i], -lam[i], np.inf):
            assert not frequency_holds(
                network, found.bound, np.where(np.arange(len(lam)) == i, change, lam)
            )
    scaled = Convolve(network.stages[0].weight * (1 + 1e-6))
    other = ConvSystem((scaled, *network.stages[1:]), 1, (4, 4))
    assert not frequency_holds(other, found.bound, lam)
    larger = Head(network.stages[-1].weight * (1 + 1e-6))
    assert not frequency_holds(
        ConvSystem((*network.stages[:-1], larger), 1, (4, 4)), found.bound, lam
    )


def test_waves_enclose_cosines_and_sines():
    data = torus(ConvSystem((Convolve(np.ones((1, 1, 3, 5)), **CIRCULAR),), 1, (7, 12)))
    k = data.frequencies()
    for wave, function in zip(data.waves(k), (sp.cos, sp.sin), strict=True):
        assert wave.rad.max() < 1e-15
        for i, j in np.ndindex(len(k), len(data.taps)):
            if (i + j) % 5:
                continue
            turns = sum(
                sp.Rational(int(k[i, a] * data.taps[j, a]), n) for a, n in enumerate(data.size)
            )
            exact = function(2 * sp.pi * turns).evalf(40)
            assert abs(sp.Float(wave.mid[i, j], 40) - exact) <= sp.Float(wave.rad[i, j], 40)


@pytest.mark.parametrize(
    ("size", "shape", "options", "torus_size"),
    [
        ((28, 27), (3, 3), {}, (30, 28)),
        ((28, 28), (5, 7), {}, (30, 32)),
        ((28, 28), (3, 3), {"padding": 0}, (28, 28)),
        ((28, 28), (3, 3), {"padding": 2}, (30, 30)),
        ((7, 5), (4, 2), {"stride": 2, "padding": 1}, (4, 4)),
        ((6, 9), (3, 3), CIRCULAR, (6, 9)),
    ],
)
def test_the_torus_is_the_smallest_even_one(size, shape, options, torus_size):
    network = ConvSystem((Convolve(np.ones((1, 1, *shape)), **options),), 1, size)
    assert torus(network).size == torus_size


def test_what_no_torus_serves_is_refused(rng):
    weight = kernel(rng, 1, 1, 3, 3)
    mixed = ConvSystem((Convolve(weight), Convolve(weight, **CIRCULAR)), 1, (4, 4))
    with pytest.raises(InvalidInput, match="mixes"):
        lipschitz_conv(mixed)
    uneven = Add((Pool(2),), (Convolve(weight, padding=0),))
    with pytest.raises(InvalidInput, match="strides"):
        lipschitz_conv(ConvSystem((uneven,), 1, (4, 4)))


def test_what_is_too_large_is_refused():
    pixel = Convolve(np.ones((1, 1, 1, 1)), stride=64, padding=0)
    for stages, size in (((pixel, pixel), (64**2, 64**2)), ((Activate("relu"),), (10**9, 10**9))):
        with pytest.raises(InvalidInput, match="at most"):
            lipschitz_conv(ConvSystem(stages, 1, size))


def test_a_time_limit_gives_a_looser_bound_that_is_proven(rng):
    network = chain(rng, 5)
    best, early = lipschitz_conv(network), lipschitz_conv(network, deadline=0.0)
    assert early.bound > best.bound * 1.01 and early.steps == 0
    assert_proven(network, early)


def test_progress_closes_the_gap(rng):
    seen = []
    found = lipschitz_conv(chain(rng), progress=lambda *row: seen.append(row))
    steps, upper, lower = zip(*seen, strict=True)
    assert list(steps) == list(range(found.steps + 1))
    assert lower[-1] <= upper[-1] <= upper[0] and lower == tuple(sorted(lower))
    assert upper[-1] == pytest.approx(found.bound, rel=1e-9)


@pytest.mark.parametrize("zero", [0, 2])
def test_zero_weights_have_the_bound_zero(rng, zero):
    stages = list(chain(rng, 2).stages)
    stages[zero] = Convolve(np.zeros_like(stages[zero].weight))
    network = ConvSystem(tuple(stages), 1, (4, 4))
    found = lipschitz_conv(network)
    assert found.bound == 0 and frequency_holds(network, 0.0, found.multipliers)


def test_a_dead_channel_does_not_matter(rng):
    stages = list(chain(rng, 2).stages)
    weight = stages[0].weight.copy()
    weight[1] = 0
    network = ConvSystem((Convolve(weight), *stages[1:]), 1, (4, 4))
    thin = ConvSystem(
        (Convolve(weight[:1]), stages[1], Convolve(stages[2].weight[:, :1])), 1, (4, 4)
    )
    found = lipschitz_conv(network)
    assert found.multipliers[1] == 0 < found.multipliers[0]
    assert found.bound == pytest.approx(lipschitz_conv(thin).bound, rel=1e-7)


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e30, 1e100])
def test_scale_does_not_matter(scale):
    network = chain(np.random.default_rng(1))
    stages = list(network.stages)
    stages[0] = Convolve(stages[0].weight * scale)
    scaled = lipschitz_conv(ConvSystem(tuple(stages), 1, (4, 4)))
    assert scaled.bound == pytest.approx(lipschitz_conv(network).bound * scale, rel=1e-7)


@pytest.mark.parametrize("before", [0, 2])
def test_lower_bounds_of_what_cancels_are_not_rounding(rng, before):
    """0.1 + 0.2 − 0.3 is 2.8e-17: the unrolled bound is proven, the noise is twice as large."""
    K = kernel(rng, 1, 1, 3, 3)
    body = (Convolve(0.1 * K),)
    for factor in (0.2, -0.3):
        body = (Add(body, (Convolve(factor * K),)),)
    network = ConvSystem((Convolve(K), Activate("relu"), *body)[2 - before :], 1, (5, 5))
    assert lower_bound_conv(network) <= dense(network).bound


def test_a_search_that_is_late_ends_with_what_it_has(rng):
    network = chain(rng)
    late = lower_bound_conv(network, deadline=0.0)
    assert 0 < late <= lower_bound_conv(network) * (1 + 1e-9)


def test_beyond_the_range_of_numbers_nothing_is_claimed(rng):
    stages = (
        Convolve(np.full((1, 1, 3, 3), 1e200)),
        Activate("relu"),
        Convolve(np.ones((1, 1, 3, 3))),
    )
    with pytest.raises(CertificationError, match="Rescale"):
        lipschitz_conv(ConvSystem(stages, 1, (4, 4)))


def test_lower_bounds_meet_linear_maps_and_know_no_unknowns(rng):
    network = linear(rng)
    system = network.unroll()
    norm = np.linalg.norm(system(np.eye(system.inputs)), 2)
    assert norm * (1 - 1e-3) <= lower_bound_conv(network) <= norm
    assert lower_bound_conv(ConvSystem((Add((Activate("unknown"),)),), 1, (2, 2))) is None
    constant = ConvSystem((Convolve(np.zeros((1, 1, 1, 1)), np.ones(1)),), 1, (2, 2))
    assert lower_bound_conv(constant) == 0


@pytest.mark.parametrize(("name", "optimum"), [("4x8", 27.52636), ("8x8", 81.30907)])
def test_published_chains(nets_dir, name, optimum):
    network = ConvSystem.load(nets_dir / f"conv_chain_{name}.npz")
    found = lipschitz_conv(network)
    assert found.optimum <= optimum * (1 + 1e-6) and found.bound / found.optimum - 1 < 1e-7
    assert found.bound == pytest.approx(optimum, rel=1e-6)
