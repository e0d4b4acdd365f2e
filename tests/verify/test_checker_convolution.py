"""The independent checker on convolutions: it proves what sdplip does, and nothing below truth."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from both_checkers import NOT_PROVEN, PROVEN, UNREADABLE, assert_both, write
from conv_systems import kernel, random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

from sdplip import lipschitz
from sdplip.convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool
from sdplip.verify import checker
from sdplip.verify.frequency_lower import lower_bound_conv

SEEDS = st.integers(0, 10**6)
CIRCULAR = {"padding_mode": "circular"}
PROOF = run_path(str(Path(checker.__file__).with_name("checker_convolution.py")))


def residual(rng):
    """Everything that there is: a stride, a sum, a pool, paddings, slopes per channel, a head."""
    block = (Activate("relu"), Convolve(kernel(rng, 2, 2, 3, 3)), Activate("tanh"))
    stages = (
        Convolve(kernel(rng, 2, 1, 2, 3), stride=(2, 1), padding=(1, 0, 1, 1)),
        Activate("unknown", [-0.2, 0.0], [1.0, 0.7]),
        Add(block, (Convolve(kernel(rng, 2, 2, 1, 1)),)),
        Convolve(kernel(rng, 2, 2, 3, 3)),
        Pool(2),
        Activate("relu"),
        Head(kernel(rng, 3, 2 * 2 * 2)),
    )
    return ConvSystem(stages, 1, (8, 4))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    network = residual(np.random.default_rng(0))
    certificate = lipschitz(network, method="frequency", lower=False)
    return write(tmp_path_factory.mktemp("images"), certificate, network), certificate, network


# --- the same as sdplip ---


def assert_same(folder, network):
    certificate = lipschitz(network, method="frequency", lower=False)
    assert certificate.solved <= certificate.bound
    claims = [(certificate.bound, PROVEN), (1.5 * certificate.bound, PROVEN)]
    if certificate.bound:
        claims.append((certificate.optimum * (1 - 1e-9), NOT_PROVEN))
    for bound, expected in claims:
        assert_both(folder, certificate, network, bound, expected)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@given(SEEDS)
@settings(max_examples=10)
def test_both_prove_and_refuse_the_same(tmp_path_factory, mode, seed):
    assert_same(tmp_path_factory.mktemp("same"), random_network(np.random.default_rng(seed), mode))


def test_slopes_that_cancel_are_proven_by_both(tmp_path, rng):
    """α + β = 0 leaves no room for errors of the products that it multiplies."""
    for _ in range(3):
        first = Add((Convolve(kernel(rng, 2, 2, 3, 3)),))
        network = ConvSystem((first, Activate("abs")), 2, (7, 5))
        assert_same(tmp_path, network)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_both_prove_and_refuse_the_same_at_length(tmp_path, mode):
    for seed in range(10**6, 10**6 + 60):
        assert_same(tmp_path, random_network(np.random.default_rng(seed), mode))


def test_everything_there_is_in_one_network(files):
    assert checker.main(files[0]) == PROVEN


@pytest.mark.parametrize("name", ["4x8", pytest.param("8x8", marks=pytest.mark.slow)])
def test_published_chains(nets_dir, tmp_path, name):
    path = nets_dir / f"conv_chain_{name}.npz"
    certificate = lipschitz(ConvSystem.load(path), method="frequency", lower=False)
    assert 0 < certificate.inflation <= 1e-8
    for factor, expected in ((1, PROVEN), (1 - 1e-6, NOT_PROVEN)):
        replace(certificate, bound=certificate.bound * factor).save(tmp_path / "c.json")
        assert checker.main([str(tmp_path / "c.json"), str(path)]) == expected


@pytest.mark.parametrize(
    "arrays",
    [
        {"K0": np.ones((2, 1, 3, 3), np.float32), "size": 5},
        {"K0": np.ones((2, 1, 2, 3)), "b0": 0.5, "K1": np.ones((1, 2, 3, 4)), "size": [4, 6]},
        {"K0": np.ones((1, 1, 1, 1)), "K1": -np.ones((1, 1, 1, 1)), "alpha": 0.1, "size": 2},
        {"K0": np.ones((1, 1, 1, 1)), "K1": np.ones((1, 1, 1, 1)), "activation": "tanh", "size": 3},
        {"K0": np.ones((1, 1, 1, 1)), "K1": np.ones((1, 1, 1, 1)), "alpha": -1.0, "size": 3},
    ],
)
def test_it_reads_chains_as_sdplip_does(arrays, tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, **arrays)
    network, net = ConvSystem.load(path), checker.read_model(str(path))
    assert net["sha256"] == network.digest()
    assert net["sizes"] == [network.inputs, network.units, network.outputs]
    lipschitz(network, method="frequency", lower=False).save(tmp_path / "c.json")
    assert checker.main([str(tmp_path / "c.json"), str(path)]) == PROVEN


# --- nothing that was touched ---


@given(st.integers(0, 10**9), st.integers(0, 7), st.integers(0, 1))
@settings(max_examples=300)
def test_every_flipped_bit_is_refused(files, tmp_path_factory, place, bit, which):
    arguments = list(files[0])
    data = bytearray(Path(arguments[which]).read_bytes())
    data[place % len(data)] ^= 1 << bit
    forged = tmp_path_factory.mktemp("bits") / ("c.json", "m.npz")[which]
    forged.write_bytes(data)
    arguments[which] = str(forged)
    if checker.main(arguments) == PROVEN:
        # Some bytes of a zip archive, such as the dates, are not about its content.
        assert which == 1 and ConvSystem.load(forged).digest() == files[2].digest()


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@given(SEEDS)
@settings(max_examples=60)
def test_one_ulp_of_weights_or_slopes_is_refused(files, tmp_path_factory, seed):
    rng, arrays = np.random.default_rng(seed), arrays_of(files[0][1])
    name = sorted({*arrays} - {"stages"})[seed % (len(arrays) - 1)]
    spot = tuple(rng.integers(s) for s in arrays[name].shape)
    arrays[name][spot] = np.nextafter(arrays[name][spot], np.inf)
    np.savez(path := tmp_path_factory.mktemp("ulp") / "m.npz", **arrays)
    assert checker.main([files[0][0], str(path)]) != PROVEN


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"stride": [2, 1]', '"stride": [1, 2]'),
        ('"padding": [1, 0, 1, 1]', '"padding": [0, 1, 1, 1]'),
        ('"zeros"', '"circular"'),
        ('"name": "tanh"', '"name": "relu"'),
        ('"pool": [2, 2]', '"pool": [1, 4]'),
        ('"size": [8, 4]', '"size": [4, 8]'),
        ('"channels": 1', '"channels": true'),
        ('"channels": 1', '"channels": 1, "channels": 1'),
        ('"pool": [2, 2]', '"pool": [2, 2], "stride": [1, 1]'),
        ('"stride": [2, 1]', '"stride": [2, 0]'),
        ('"stride": [2, 1]', '"stride": [2.0, 1]'),
        ('"stride": [2, 1]', '"stride": [1000000, 1]'),
        ('"padding": [1, 0, 1, 1]', '"padding": [-1, 0, 1, 1]'),
        ('"padding": [1, 0, 1, 1]', '"padding": [1000000, 0, 1, 1]'),
        ('"head": ', '"activate": '),
    ],
)
def test_other_stages_are_refused_whatever_the_certificate_names(files, tmp_path, old, new):
    arrays = arrays_of(files[0][1])
    text = str(arrays["stages"]).replace(old, new, 1)
    assert text != str(arrays["stages"])
    np.savez(tmp_path / "m.npz", **{**arrays, "stages": np.array(text)})
    assert checker.main([files[0][0], str(tmp_path / "m.npz")]) != PROVEN


def forged(files, network, **change):
    """The certificate as one for another network, with its digest."""
    sizes = {"inputs": network.inputs, "units": network.units, "outputs": network.outputs}
    return replace(files[1], model=network.digest(), optimum=None, **sizes, **change)


def test_the_same_multipliers_do_not_prove_another_network(files, tmp_path):
    stages = list(files[2].stages)
    for i, stage in enumerate(stages):
        if isinstance(stage, Convolve | Head):
            other = replace(stage, weight=stage.weight * (1 + 1e-6))
        elif isinstance(stage, Activate):
            other = replace(stage, name="unknown", beta=stage.beta * (1 + 1e-6))
        else:
            continue
        network = ConvSystem((*stages[:i], other, *stages[i + 1 :]), 1, (8, 4))
        assert checker.main(write(tmp_path, forged(files, network), network)) == NOT_PROVEN


def test_other_multipliers_prove_nothing(files, tmp_path):
    lam = np.array(files[1].multipliers)
    for i in range(len(lam)):
        for value in (0.0, 0.5 * lam[i], -lam[i], 1e300):
            changed = tuple(np.where(np.arange(len(lam)) == i, value, lam).tolist())
            claim = replace(files[1], multipliers=changed)
            assert checker.main(write(tmp_path, claim, files[2])) == NOT_PROVEN
    for changed in ((), files[1].multipliers[:-1], (*files[1].multipliers, 1.0)):
        claim = replace(files[1], multipliers=changed)
        assert checker.main(write(tmp_path, claim, files[2])) != PROVEN


@pytest.mark.parametrize("change", [{"norm": np.inf}, {"classes": (0, 1)}, {"kind": "system"}])
def test_other_claims_are_refused(files, tmp_path, change):
    assert checker.main(write(tmp_path, replace(files[1], **change), files[2])) != PROVEN


def test_a_region_is_refused(files, tmp_path):
    content = files[1].to_json() | {"region": {"centre": [0.0] * 32, "radius": 1.0}}
    content.pop("sha256")
    bare = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    content["sha256"] = checker.hashlib.sha256(bare).hexdigest()
    (tmp_path / "c.json").write_text(json.dumps(content, indent=1) + "\n")
    assert checker.main([str(tmp_path / "c.json"), files[0][1]]) == UNREADABLE


# --- nothing below the truth ---


@given(SEEDS, st.floats(0, 2))
@settings(max_examples=20)
def test_no_multipliers_prove_less_than_a_jacobian(tmp_path_factory, seed, spread):
    """Whatever the multipliers: near those that were found, and far from them."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, ["zeros", "circular"][seed % 2])
    found = lipschitz(network, method="frequency", lower=False)
    truth = lower_bound_conv(network, samples=3, steps=20, seed=seed) or 0.0
    network.save(path := tmp_path_factory.mktemp("truth") / "m.npz")
    net = checker.read_model(str(path))
    claim = {"norm": "2", "classes": None, "region": None, "bound": truth * (1 - 1e-6)}
    for _ in range(5 if truth else 0):
        lam = np.array(found.multipliers) * np.exp(spread * rng.normal(size=len(found.multipliers)))
        claim["multipliers"] = (lam * truth**2 / found.bound**2).tolist()
        with np.errstate(all="ignore"):
            assert not PROOF["holds"](net, claim, checker.condition, checker.definite)


@pytest.mark.parametrize("between", [[], [Activate("identity")], [Activate("leaky_relu(0.9)")]])
def test_the_end_of_the_image_lies_between_two_convolutions(between, tmp_path):
    """On the plane these two nearly cancel, sin⁴ω ≤ 1; on one pixel they are the factor 2.25."""
    low = np.array([[[[0.25, 1, 1.5, 1, 0.25]]]])
    high = low * [1, -1, 1, -1, 1]
    network = ConvSystem((Convolve(low), *between, Convolve(high)), 1, (1, 1))
    certificate = lipschitz(network, method="frequency", lower=False)
    assert checker.main(write(tmp_path, certificate, network)) == PROVEN
    for size in 10.0 ** np.arange(-6, 7, 0.25):
        claim = replace(certificate, bound=2.24, multipliers=(size,), optimum=None)
        assert checker.main(write(tmp_path, claim, network)) == NOT_PROVEN


def test_no_tap_reaches_around_the_torus(tmp_path):
    """Around two pixels, the outer taps cancel; on the image each meets one."""
    network = ConvSystem((Convolve([[[[1.0, 0, -1]]]]),), 1, (1, 2))
    certificate = lipschitz(network, method="frequency", lower=False)
    for bound, expected in ((certificate.bound, PROVEN), (0.999, NOT_PROVEN)):
        claim = replace(certificate, bound=bound, optimum=None)
        assert checker.main(write(tmp_path, claim, network)) == expected


def test_a_network_of_zeros_has_the_bound_zero(tmp_path):
    network = ConvSystem((Convolve(np.zeros((1, 1, 3, 3))), Activate("relu")), 1, (3, 3))
    certificate = lipschitz(network, method="frequency", lower=False)
    assert certificate.bound == 0
    assert checker.main(write(tmp_path, certificate, network)) == PROVEN


# --- its arithmetic ---


@pytest.mark.parametrize("n", [1, 3, 12, 35])
def test_cosines_are_right_to_the_last_bit(n):
    with mp.workdps(40):
        for j, value in enumerate(PROOF["cosines"](n)):
            assert abs(mp.cos(2 * mp.pi * j / n) - mp.mpf(float(value))) < 2.0**-53


@given(SEEDS)
@settings(max_examples=10)
def test_the_error_bound_holds_against_fractions(tmp_path_factory, seed):
    """At ω = 0, where a convolution is the sum of its taps: three in sequence, in rationals."""
    rng = np.random.default_rng(seed)
    kernels = [kernel(rng, *s) for s in ((2, 1, 3, 1), (3, 2, 2, 2), (2, 3, 1, 3))]
    network = ConvSystem(tuple(Convolve(K, **CIRCULAR) for K in kernels), 1, (4, 4))
    network.save(path := tmp_path_factory.mktemp("error") / "m.npz")
    net = checker.read_model(str(path))
    top, near = (PROOF["Walk"](net, [4, 4], 1, None, k) for k in (None, np.zeros((1, 2), int)))
    exact = np.array([[Fraction(1)]])
    for K in kernels:
        sums = np.vectorize(Fraction, otypes=[object])(K).sum((2, 3))
        exact = sums.dot(exact)
    error = 1.01 * top.cost[0] * checker.U * top.outputs[0]
    assert (abs(near.outputs[0, ::2, ::2] - exact) <= error[::2, ::2]).all()
    assert (abs(near.outputs[0, 1::2, ::2]) <= error[1::2, ::2]).all() and (error <= 1e-12).all()
