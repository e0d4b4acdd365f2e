"""The independent checker over regions: the slopes of sdplip, which samples confirm."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from both_checkers import NOT_PROVEN, PROVEN, UNREADABLE, assert_both, write
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import System, lipschitz
from sdplip.activations import elementwise
from sdplip.verify import checker
from sdplip.verify.local import restrict
from sdplip.verify.ranges import slope_range
from sdplip.verify.region import Region

SEEDS = st.integers(0, 10**6)
REGION = run_path(str(Path(checker.__file__).with_name("checker_region.py")))
NAMES = [
    *("relu", "leaky_relu", "leaky_relu(0.3)", "leaky_relu(1.7)", "leaky_relu(-0.4)", "identity"),
    *("abs", "softplus", "softplus(3.0)", "celu(0.6)", "elu", "tanh", "sigmoid", "atan", "asinh"),
    *("erf", "softsign", "silu", "gelu", "gelu_tanh", "mish", "hardswish", "hardsigmoid", "sin"),
    *("cos", "selu", "tanhshrink", "logsigmoid", "elu(0.5)", "elu(-0.7)", "hardtanh(-0.3,0.8)"),
    "softshrink(0.25)",
]


def draw(rng, names=("relu", "tanh", "silu", "leaky_relu(0.2)", "identity", "hardtanh(-1.0,1.0)")):
    """A network with skips, three levels deep, and a box or a ball of any size around any input."""
    n, m = 12, 4
    A = np.tril(rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.4), -1)
    A[[3, 7, 11], [0, 4, 8]] = 1.0
    blocks = [rng.normal(size=s) for s in ((n, m), (2, n), (2, m))]
    activation = list(rng.choice(names, size=n))
    system = System(A, *blocks, b=rng.normal(size=n), activation=activation)
    centre, size = rng.normal(size=m), 10.0 ** rng.uniform(-4, 1)
    if rng.random() < 0.5:
        return system, Region.ball(centre, size)
    half = size * rng.random(m)
    return system, Region.box(centre - half, centre + half)


def slopes(system, region):
    arrays = {name: getattr(system, name) for name in "ABCDbc"}
    sizes = [system.inputs, system.units, system.outputs]
    net = arrays | {"names": system.activation.tolist(), "sizes": sizes}
    with np.errstate(all="ignore"):
        found = REGION["slopes"](net, checker.levels(net["A"]), region.to_json(), checker.SLOPES)
    return found["alpha"], found["beta"]


def inside(rng, region, count):
    """Inputs of the region, many of them at its border."""
    low, high = region.limits
    if region.radius is None:
        return np.clip(low + (high - low) * rng.uniform(-0.5, 1.5, (count, len(low))), low, high)
    away = rng.normal(size=(count, region.inputs))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    share = np.minimum(rng.uniform(0, 1.5, (count, 1)), 1)
    return np.array(region.centre) + region.radius * share * away


# --- its slopes ---


@given(SEEDS)
@settings(max_examples=40)
def test_the_slopes_are_those_of_sdplip_and_of_samples(seed):
    rng = np.random.default_rng(seed)
    names = list(rng.choice(NAMES, 4))
    system, region = draw(rng, names)
    alpha, beta = slopes(system, region)
    local = restrict(system, region)
    np.testing.assert_array_equal(alpha, local.alpha)
    np.testing.assert_array_equal(beta, local.beta)
    x = inside(rng, region, 200)
    z = system.hidden(torch.from_numpy(x)).numpy()
    v = z @ system.A.T + x @ system.B.T + system.b
    rise, run = z[1:] - z[:-1], v[1:] - v[:-1]
    noise = 1e-12 * (1 + abs(v).max() + abs(z).max()) * (1 + abs(system.A).max())
    assert (rise * np.sign(run) >= alpha * abs(run) - noise).all()
    assert (rise * np.sign(run) <= beta * abs(run) + noise).all()


@pytest.mark.slow
def test_the_slopes_are_those_of_sdplip_at_length():
    for seed in range(10**6, 10**6 + 400):
        rng = np.random.default_rng(seed)
        system, region = draw(rng, NAMES)
        local = restrict(system, region)
        np.testing.assert_array_equal(slopes(system, region), (local.alpha, local.beta))


@pytest.mark.parametrize("name", NAMES)
def test_every_function_its_derivative_and_the_most_that_this_changes(name):
    sigma, s = elementwise(name), REGION["function"](name, checker.SLOPES)
    v = np.linspace(-9.1234, 9.1357, 6001)
    at = torch.from_numpy(v)
    np.testing.assert_allclose(s.f(v), sigma(at).numpy(), rtol=1e-13, atol=1e-14)
    # Torch divides by 6 in float32 there.
    exact = 1e-8 if name == "hardsigmoid" else 1e-13
    np.testing.assert_allclose(s.slope(v), sigma.derivative(at).numpy(), rtol=0, atol=exact)
    change = np.diff(s.slope(v))
    if s.kind == "bent":
        jumps = {"hardswish": 2, "hardsigmoid": 2, "selu": 1, "elu": 1, "hardtanh": 2}
        jumps |= {"softshrink": 2}
        allowed = s.bends[0] * np.diff(v) + 1e-13
        assert (abs(change) > allowed).sum() <= jumps.get(name.partition("(")[0], 0)
    elif s.kind == "rising":
        assert (change >= -1e-15).all()
    elif s.kind == "peaked":
        assert (change * np.sign(v[1:] + v[:-1]) <= 1e-15).all()


@pytest.mark.parametrize("name", NAMES)
@given(st.floats(-4, 4), st.floats(0, 6))
@settings(max_examples=15)
def test_lines_and_values_enclose_the_function(name, low, span):
    s = REGION["function"](name, checker.SLOPES)
    ends = np.array([low]), np.array([low + span])
    with np.errstate(all="ignore"):
        (below, above), (below_offset, above_offset) = REGION["lines"](s, *ends)
        lowest, highest = REGION["value_range"](s, *ends)
    v = np.linspace(low, low + span, 201)
    value = s.f(v)
    noise = 1e-14 * (1 + abs(value))
    assert (below * v + below_offset <= value + noise).all() and (lowest <= value + noise).all()
    assert (value <= above * v + above_offset + noise).all() and (value <= highest + noise).all()


@pytest.mark.parametrize(
    ("name", "low", "high", "slope"),
    [
        ("sin", 1e16, 1e16 + 2, -1.0),
        ("hardtanh(1e+16,1e+18)", 1.0, 1e16 + 2, 1.0),
        ("hardtanh(1000000000000000.0,1000000000000001.0)", 1e15, 1e15 + 63.375, 1.0),
    ],
)
def test_where_numbers_are_sparse_no_slope_between_two_of_them_is_missed(name, low, high, slope):
    """cos(1e16 + 0.894…) = -1, and from a kink to the next number the slope is 1."""
    ends = np.array([low]), np.array([high])
    theirs = REGION["slope_range"](REGION["function"](name, checker.SLOPES), *ends)
    for alpha, beta in (theirs, slope_range(np.array([name]), *ends)):
        assert alpha <= slope <= beta


# --- the same as sdplip, and nothing that was touched ---


@pytest.mark.parametrize(("norm", "classes"), [*itertools.product((2, np.inf), (None, (1, 0)))])
@given(SEEDS)
@settings(max_examples=4)
def test_both_prove_and_refuse_the_same(tmp_path_factory, norm, classes, seed):
    system, region = draw(np.random.default_rng(seed))
    certificate = lipschitz(system, norm, region=region, classes=classes, lower=False)
    folder = tmp_path_factory.mktemp("local")
    for factor, expected in ((1.0, PROVEN), (1.5, PROVEN), (1 - 1e-5, NOT_PROVEN)):
        assert_both(folder, certificate, system, certificate.bound * factor, expected)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Around an input where each unit is off or on, as far as that goes and no further."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) for s in ((5, 3), (4, 5), (2, 4))]
    system = System.feedforward(weights, [rng.normal(size=len(W)) for W in weights])
    region = Region.ball(rng.normal(size=3), 0.05)
    certificate = lipschitz(system, region=region, lower=False)
    return write(tmp_path_factory.mktemp("region"), certificate, system), certificate, system


@given(st.integers(0, 10**9), st.integers(0, 7))
@settings(max_examples=200)
def test_every_flipped_bit_of_a_certificate_is_refused(files, tmp_path_factory, place, bit):
    data = bytearray(Path(files[0][0]).read_bytes())
    data[place % len(data)] ^= 1 << bit
    forged = tmp_path_factory.mktemp("bits") / "c.json"
    forged.write_bytes(data)
    assert checker.main([str(forged), files[0][1]]) != PROVEN


def test_a_larger_region_is_not_proven(files, tmp_path):
    _, certificate, system = files
    everywhere = lipschitz(system, lower=False).bound
    assert certificate.bound < 0.9 * everywhere
    centre = np.array(certificate.region.centre)
    others = [None, Region.ball(centre, 10.0), Region.ball(-centre, 0.05)]
    others += [Region.box(centre - 3, centre + 3)]
    for region in others:
        claim = replace(certificate, region=region)
        assert checker.main(write(tmp_path, claim, system)) == NOT_PROVEN


def test_another_model_with_its_digest_is_not_proven(files, tmp_path):
    _, certificate, system = files
    # With this bias, the first unit has its kink in the middle of the region.
    b = np.append(-system.B[0] @ np.array(certificate.region.centre), system.b[1:])
    for name, value in (("B", system.B * (1 + 1e-6)), ("b", b)):
        other = replace(system, **{name: value})
        claim = replace(certificate, model=other.digest())
        assert checker.main(write(tmp_path, claim, other)) == NOT_PROVEN


@pytest.mark.parametrize("norm", [2, np.inf])
def test_a_deep_network_of_units_that_are_on_or_off_loses_nothing_to_rounding(norm, tmp_path):
    """Products of the magnitudes of 20 layers are 1e9 times the product: no error may grow so."""
    rng = np.random.default_rng(20)
    sizes = [6, *[24] * 20, 3]
    weights = [1.4 * rng.normal(size=(b, a)) / a**0.5 for a, b in itertools.pairwise(sizes)]
    system = System.feedforward(weights, [0.3 * rng.normal(size=len(W)) for W in weights])
    region = Region.ball(rng.normal(size=6), 3e-3)
    certificate = lipschitz(system, norm, region=region, lower=False)
    assert 0 < certificate.inflation <= 1e-8
    assert checker.main(write(tmp_path, certificate, system)) == PROVEN
    low = replace(certificate, bound=certificate.bound * (1 - 1e-6))
    assert checker.main(write(tmp_path, low, system)) == NOT_PROVEN


def test_cycles_and_unknown_activations_are_refused(tmp_path, capsys):
    rng = np.random.default_rng(1)
    A = rng.normal(size=(4, 4)) / 8
    cyclic = System.equilibrium(A, rng.normal(size=(4, 2)), rng.normal(size=(2, 4)))
    region = Region.ball(np.zeros(2), 0.1)
    certificate = lipschitz(cyclic, region=region, lower=False)
    assert checker.main(write(tmp_path, certificate, cyclic)) == UNREADABLE
    assert "cycles are not supported; use sdplip check" in capsys.readouterr().out
    unknown = System.feedforward([np.ones((2, 2))] * 2, activation="unknown")
    claim = replace(lipschitz(unknown, lower=False), region=region)
    assert checker.main(write(tmp_path, claim, unknown)) == UNREADABLE
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["region"] == {"centre": [0.0, 0.0], "radius": 0.1}
