"""Small networks of convolutions, bounded unrolled: tighter than by frequency, and checked."""

from dataclasses import replace

import numpy as np
import pytest
from both_checkers import NOT_PROVEN, PROVEN, assert_both, write
from conv_systems import kernel, random_network
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import CertificationError, Region, check, lipschitz, margin_bounds
from sdplip.convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool
from sdplip.errors import InvalidInput
from sdplip.verify import bound, checker
from sdplip.verify.checker_layers import images
from sdplip.verify.checker_unrolled import arrays

SEEDS = st.integers(0, 10**6)


def classifier(rng):
    stages = (Convolve(kernel(rng, 2, 1, 3, 3)), Activate(), Head(kernel(rng, 3, 32)))
    return ConvSystem(stages, 1, (4, 4))


def mixed(rng):
    """No torus serves both paddings."""
    first = Convolve(kernel(rng, 1, 1, 3, 3), padding_mode="circular")
    return ConvSystem((first, Activate(), Convolve(kernel(rng, 1, 1, 3, 3))), 1, (4, 4))


@settings(max_examples=8)
@given(SEEDS)
def test_the_smaller_bound_is_taken_and_both_checkers_prove_it(tmp_path_factory, seed):
    network = random_network(np.random.default_rng(seed))
    auto, coarse = (lipschitz(network, lower=False, method=m) for m in ("auto", "frequency"))
    unrolled = lipschitz(network.unroll(), lower=False)
    assert auto.bound <= coarse.bound and coarse.solver == "frequency"
    assert auto.bound == pytest.approx(min(unrolled.bound, coarse.bound), rel=1e-7)
    assert unrolled.optimum <= coarse.bound * (1 + 1e-8)
    assert (auto.kind == "system") == auto.solver.endswith(", unrolled")
    folder = tmp_path_factory.mktemp("unrolled")
    assert_both(folder, auto, network, auto.bound, PROVEN)
    if auto.bound:
        assert_both(folder, auto, network, auto.optimum * (1 - 1e-7), NOT_PROVEN)


@settings(max_examples=60)
@given(SEEDS, st.sampled_from(["zeros", "circular"]))
def test_both_unroll_to_the_same_bits(seed, mode):
    """Also with weights of -0.0, and where linear stages follow each other in and around sums."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, mode)
    linear = Convolve(np.full((1, 1, 1, 1), -0.0), [-0.0])
    first = Convolve(kernel(rng, network.channels, 1, 1, 1), rng.normal(size=network.channels))
    sums = Add((linear, Add((), (linear,))), (Activate("tanh"), linear))
    network = ConvSystem((linear, sums, first, *network.stages), 1, network.size)
    text, given_arrays = network._packed()
    read = images({"stages": np.asarray(text), **given_arrays})
    assert checker.system(arrays(read))["sha256"] == network.unroll().digest()


def test_unrolled_weights_are_the_stored_ones(rng):
    """An average and the convolution after it are not multiplied, whose products round."""
    stages = (Activate(), Pool(3), Convolve(kernel(rng, 2, 1, 3, 3)), Head(kernel(rng, 2, 8)))
    network = ConvSystem(stages, 1, (6, 6))
    system = network.unroll()
    weights = {0.0, 1.0, 1 / 9, *(v for s in stages[2:] for v in s.weight.flat)}
    assert {v for name in "ABCD" for v in getattr(system, name).flat} <= weights
    x = rng.normal(size=(1, 6, 6))
    assert np.allclose(system(x.reshape(-1)), network(x).reshape(-1), rtol=1e-12)


def test_regions_pairs_and_the_other_norm_are_about_the_unrolled_network(rng, tmp_path):
    network, region = classifier(rng), Region.ball(np.zeros(16), 0.1)
    system = network.unroll()
    for options in ({"norm": np.inf}, {"classes": (0, 2)}, {"region": region}):
        found = lipschitz(network, **options)
        assert found.bound == lipschitz(system, **options).bound
        check(found, network)
        assert checker.main(write(tmp_path, found, network)) == PROVEN
    assert (margin_bounds(network).bounds == margin_bounds(system).bounds).all()
    with pytest.raises(InvalidInput, match="frequency"):
        lipschitz(network, np.inf, method="frequency")


def test_where_no_torus_serves_the_unrolled_network_does(rng):
    network = mixed(rng)
    found = lipschitz(network)
    assert found.bound == lipschitz(network.unroll()).bound and "unrolled" in found.solver
    with pytest.raises(InvalidInput, match="no torus"):
        lipschitz(network, method="frequency")


def test_large_networks_and_late_ones_are_bounded_by_frequency(rng, monkeypatch):
    network = classifier(rng)
    assert lipschitz(network, time_limit=1e-9).solver == "frequency"
    monkeypatch.setattr(bound, "UNROLLED_SIZE", network.units - 1)
    found = lipschitz(network)
    assert found.solver == "frequency" and found.kind == "convolution"


def test_a_certificate_of_an_unrolled_network_is_for_no_other(rng, tmp_path):
    network = classifier(rng)
    found = lipschitz(network, lower=False)
    other = replace(network, stages=(*network.stages[:2], Head(network.stages[2].weight * 2)))
    large = ConvSystem((Activate(),), 3, (64, 64))
    for wrong in (other, large):
        with pytest.raises(CertificationError, match="another model"):
            check(found, wrong)
        assert checker.main(write(tmp_path, found, wrong)) != PROVEN
