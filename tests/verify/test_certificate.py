"""Certificates stand alone: written exactly, tied to one model, refused when touched."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdplip import Certificate, CertificationError, InvalidInput, System, check, lipschitz
from sdplip.convolutional import Activate, Convolve, ConvSystem
from sdplip.verify.certificate import CONVOLUTION, _digest, holds, prove
from sdplip.verify.frequency import lipschitz_conv
from sdplip.verify.region import Region


@pytest.fixture(params=[2, np.inf], ids=["two", "inf"])
def case(request, rng):
    system = System.feedforward([rng.normal(size=s) for s in ((5, 3), (4, 5), (2, 4))])
    return system, lipschitz(system, request.param)


def test_round_trip_is_exact(case, tmp_path):
    system, certificate = case
    certificate.save(tmp_path / "net.cert.json")
    again = Certificate.load(tmp_path / "net.cert.json")
    assert again == certificate
    check(again, system)
    assert [f.name for f in tmp_path.iterdir()] == ["net.cert.json"]


def test_no_folder_is_made_for_a_file(case, tmp_path):
    system, certificate = case
    for save in (system.save, certificate.save):
        with pytest.raises(InvalidInput, match="Create it first"):
            save(tmp_path / "no" / "file")
    assert not list(tmp_path.iterdir())


def test_one_ulp_in_the_model_is_noticed(case):
    system, certificate = case
    for name in ("A", "B", "C", "b", "beta"):
        array = getattr(system, name).copy()
        spot = np.unravel_index(abs(array).argmax(), array.shape)
        array[spot] = np.nextafter(array[spot], np.inf)
        blocks = {k: getattr(system, k) for k in ("A", "B", "C", "D", "b", "c", "alpha", "beta")}
        with pytest.raises(CertificationError, match="another model"):
            check(certificate, System(**{**blocks, name: array}))


@pytest.mark.parametrize("field", ["bound", "lower", "multipliers", "norm_product", "model"])
def test_an_edited_certificate_is_refused(case, field):
    _, certificate = case
    content = certificate.to_json()
    value = content[field]
    content[field] = value[::-1] if isinstance(value, list | str) else value * 0.99
    with pytest.raises(CertificationError, match="edited"):
        Certificate.from_json(content)


@given(st.floats(0.0, 0.9999))
def test_a_forged_bound_with_a_fitting_hash_fails_the_condition(factor):
    rng = np.random.default_rng(0)
    system = System.feedforward([rng.normal(size=s) for s in ((5, 3), (2, 5))])
    for norm in (2, np.inf):
        content = lipschitz(system, norm, lower=False).to_json()
        content["bound"] *= factor
        content.pop("sha256")
        forged = Certificate.from_json({**content, "sha256": _digest(content)})
        with pytest.raises(CertificationError, match="does not hold"):
            check(forged, system)


@pytest.mark.parametrize("bad", [-1.0, 0.0, float("nan"), float("inf")])
def test_bad_multipliers_prove_nothing(case, bad):
    system, certificate = case
    content = certificate.to_json()
    content["multipliers"][0] = bad
    content.pop("sha256")
    with pytest.raises(CertificationError, match="does not hold"):
        check(Certificate.from_json({**content, "sha256": _digest(content)}), system)


def test_malformed_files_are_refused(case, tmp_path):
    _, certificate = case
    path = tmp_path / "c.json"
    for text in ("", "[]", "{", "{}", json.dumps({"format": "other"}), "[" * 100000):
        path.write_text(text)
        with pytest.raises(InvalidInput):
            Certificate.load(path)
    content = certificate.to_json()
    content.pop("bound")
    with pytest.raises(InvalidInput, match="bound"):
        Certificate.from_json(content)
    with pytest.raises(InvalidInput, match=r"none\.json"):
        Certificate.load(tmp_path / "none.json")


def test_dead_units_need_no_multiplier(rng):
    weights = [rng.normal(size=(5, 3)), rng.normal(size=(2, 5))]
    weights[0][1] = 0
    weights[1][:, 3] = 0
    system = System.feedforward(weights)
    certificate = lipschitz(system)
    assert certificate.multipliers[1] == certificate.multipliers[3] == 0
    check(certificate, system)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lower", "abc"),
        ("lower", -1.0),
        ("optimum", math.nan),
        ("norm_product", math.inf),
        ("solved", True),
        ("seconds", None),
        ("model", None),
        ("model", "\x1b[2J" + "0" * 60),
        ("norm", "2.0"),
        ("bound", 10**400),
        ("bound", -1.0),
        ("inputs", True),
        ("units", 2.5),
        ("multipliers", [1]),
    ],
)
def test_fields_of_the_wrong_kind_are_refused(case, field, value):
    _, certificate = case
    content = {**certificate.to_json(), field: value}
    content.pop("sha256")
    with pytest.raises(InvalidInput, match=field):
        Certificate.from_json({**content, "sha256": _digest(content)})


@pytest.mark.parametrize(("field", "value"), [("lower", 1e9), ("proven", False), ("units", 7)])
def test_a_certificate_that_contradicts_itself_or_the_model_is_refused(case, field, value):
    system, certificate = case
    content = {**certificate.to_json(), field: value}
    content.pop("sha256")
    with pytest.raises(CertificationError):
        check(Certificate.from_json({**content, "sha256": _digest(content)}), system)


def test_a_proof_in_one_norm_is_none_in_another():
    """The condition of ℓ∞ holds; that of ‖y‖₁ ≤ 11·‖x‖₁ was never asked for."""
    system = System.linear(np.outer(np.ones(20), [1.0, 10.0]))
    certificate = lipschitz(system, norm=math.inf)
    assert certificate.bound < 12 and np.linalg.norm(system.D, 2) > 40
    for norm in (1.0, math.nan, "2", "inf", None):
        with pytest.raises(CertificationError, match="norm"):
            check(replace(certificate, norm=norm), system)
    for classes in ((-1, 0), (True, False), (0, 1, 2)):
        with pytest.raises(InvalidInput, match="two different numbers"):
            check(replace(certificate, classes=classes), system)


def test_modules_can_be_checked_and_the_certificate_comes_back():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    certificate = lipschitz(net)
    assert check(certificate, net) is certificate


# --- format 2 ---

REGIONS = [
    Region.box([-1.0, 0.1, 2.0], [0.0, 0.1, 1e300]),
    Region.ball([0.1, -0.0, 1e-300], 0.5),
]


@pytest.mark.parametrize("region", [None, *REGIONS])
@pytest.mark.parametrize("classes", [None, (1, 0)])
def test_views_are_written_and_read_exactly(case, region, classes, tmp_path):
    claim = replace(case[1], region=region, classes=classes, solved=case[1].bound * 0.99)
    claim.save(tmp_path / "c.json")
    again = Certificate.load(tmp_path / "c.json")
    assert again == claim and again.inflation == claim.bound / claim.solved - 1
    assert (tmp_path / "c.json").read_text() == json.dumps(claim.to_json(), indent=1) + "\n"


def test_another_version_of_the_format_is_named(case, tmp_path):
    content = case[1].to_json() | {"format": "sdplip certificate 1"}
    with pytest.raises(InvalidInput, match=r"certificate 1.*reads.*certificate 2.*anew"):
        Certificate.from_json(content)


def test_there_is_one_way_to_write_a_certificate(case, tmp_path):
    case[1].save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    bound = json.dumps(case[1].bound)
    for other in (
        text.replace('{\n "format"', '{\n "bound": 0.5,\n "format"'),
        text.replace(f'"bound": {bound}', f'"bound": {bound}0'),
        text + "\n",
        text.replace("\n", "\r\n"),
        json.dumps(json.loads(text)),
    ):
        assert other != text
        (tmp_path / "c.json").write_bytes(other.encode())
        with pytest.raises(CertificationError, match="edited"):
            Certificate.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "other"),
        ("classes", [0, 0]),
        ("classes", [0, 2]),
        ("classes", [-1, 0]),
        ("classes", [True, 0]),
        ("classes", [0]),
        ("classes", "01"),
        ("region", {}),
        ("region", []),
        ("region", {"lower": [0.0]}),
        ("region", {"lower": [1.0], "upper": [0.0]}),
        ("region", {"centre": [0.0], "radius": -1.0}),
        ("region", {"centre": [0.0], "radius": 1}),
        ("region", {"centre": [[0.0]], "radius": 1.0}),
        ("region", {"centre": [0.0], "radius": 1.0, "more": 1.0}),
        ("region", {"centre": [0.0], "radius": 1.0, "lower": [0.0], "upper": [0.0]}),
    ],
)
def test_views_of_the_wrong_kind_are_refused(case, field, value):
    content = {**case[1].to_json(), field: value}
    content.pop("sha256")
    with pytest.raises(InvalidInput):
        Certificate.from_json({**content, "sha256": _digest(content)})


def test_a_region_is_checked_with_slopes_of_its_own(rng):
    """Far from every kink the network is linear, and there the bound is that of its Jacobian."""
    weights = [rng.normal(size=s) for s in ((5, 3), (2, 5))]
    system = System.feedforward(weights, [np.full(5, 50.0), None])
    local = np.linalg.norm(weights[1] @ weights[0], 2) * (1 + 1e-9)
    claim = replace(lipschitz(system), bound=local, optimum=None, lower=None)
    region = Region.ball(np.zeros(3), 1.0)
    check(replace(claim, region=region), system)
    for wrong in (None, Region.ball(np.zeros(3), 1e3)):
        with pytest.raises(CertificationError, match="does not hold"):
            check(replace(claim, region=wrong), system)
    with pytest.raises(CertificationError, match="does not hold"):
        check(replace(claim, region=region, bound=local * (1 - 1e-8)), system)


def test_class_differences_are_subtracted_exactly():
    """0.1 + 2⁻⁵⁷ − 0.1 rounds to a multiple of 2⁻⁵⁶; the proof may not take that for the row."""
    top = np.nextafter(0.1, 1)
    system = System.linear([[top, 1.0], [0.1, 1.0]])
    exact = top - 0.1
    claim = replace(lipschitz(system), classes=(0, 1), lower=None, optimum=None)
    check(replace(claim, bound=exact * (1 + 1e-12)), system)
    with pytest.raises(CertificationError):
        check(replace(claim, bound=exact * (1 - 1e-12)), system)


@given(st.integers(0, 10**6), st.sampled_from([2, math.inf]))
@settings(max_examples=6)
def test_a_proven_bound_is_as_small_as_the_multipliers_allow(seed, norm):
    rng = np.random.default_rng(seed)
    system = System.feedforward([rng.normal(size=s) for s in ((5, 3), (4, 5), (2, 4))])
    certificate = lipschitz(system, norm, lower=False)
    multipliers = np.array(certificate.multipliers)
    low, high = certificate.bound / 2, certificate.bound
    for _ in range(45):
        middle = (low + high) / 2
        if holds(system, norm, middle, multipliers):
            high = middle
        else:
            low = middle
    found = prove(system, norm, high * (1 - 1e-13), multipliers)
    assert found is not None and holds(system, norm, found, multipliers)
    assert high <= found <= high * (1 + 1e-10)
    assert prove(system, norm, high / 2, multipliers) is None


def test_convolutions_are_checked_frequency_by_frequency(rng):
    kernels = [rng.normal(size=s) for s in ((2, 1, 3, 3), (2, 2, 3, 3))]
    conv = ConvSystem((Convolve(kernels[0]), Activate(), Convolve(kernels[1])), 1, (6, 6))
    found = lipschitz_conv(conv)
    claim = Certificate(
        bound=found.bound,
        norm=2.0,
        multipliers=tuple(np.asarray(found.multipliers).tolist()),
        proven=True,
        lower=None,
        optimum=found.optimum,
        norm_product=None,
        solver="frequency",
        seconds=0.0,
        inputs=conv.inputs,
        units=conv.units,
        outputs=conv.outputs,
        model=conv.digest(),
        version="0",
        kind=CONVOLUTION,
    )
    assert check(Certificate.from_json(claim.to_json()), conv) == claim
    for change in (
        {"bound": found.bound * 0.999},
        {"kind": "system"},
        {"norm": math.inf},
        {"classes": (0, 1)},
        {"multipliers": claim.multipliers[:-1]},
        {"units": conv.units + 1},
    ):
        with pytest.raises(CertificationError):
            check(replace(claim, **change), conv)
    with pytest.raises(CertificationError, match="kind"):
        system = conv.unroll()
        check(replace(claim, model=system.digest()), system)


@pytest.mark.parametrize("scales", [(1e150, 1e-150), (1e-150, 1e150), (1e-150, 1e-149), (1, 1e100)])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_extreme_scales_are_proven_as_others_are(scales, norm, rng):
    """Powers of two in the units change nothing: neither bound nor proof."""
    first, last = (2.0 ** round(math.log2(scale)) for scale in scales)
    weights = [rng.normal(size=(6, 4)), rng.normal(size=(3, 6))]
    plain = lipschitz(System.feedforward(weights), norm, lower=False)
    system = System.feedforward([weights[0] * first, weights[1] * last])
    # λ is per unit squared over output squared, η is per unit.
    factor = last * last if norm == 2 else first
    multipliers = np.array(plain.multipliers) * factor
    bound = plain.bound * first * last
    assert holds(system, norm, bound * (1 + 1e-11), multipliers)
    assert not holds(system, norm, bound * 0.99, multipliers)


@pytest.mark.parametrize("seed", [1, 24, 28, 29])
def test_a_tight_constant_is_proven_with_little_inflation(seed):
    """Six orthogonal layers: at the optimum, 1, the condition is singular in many directions."""
    rng = np.random.default_rng(seed)
    weights = [np.linalg.qr(rng.normal(size=(32, 32)))[0] for _ in range(6)]
    certificate = lipschitz(System.feedforward(weights), lower=False)
    assert 1 - 1e-12 <= certificate.bound <= 1 + 1e-8
    assert 0 <= certificate.inflation <= 1e-10


@pytest.mark.parametrize("change", [{"multipliers": (5e-324,) * 5}, {"bound": 5e-324}])
def test_what_overflows_is_not_proven_and_does_not_warn(rng, change):
    system = System.feedforward([rng.normal(size=(5, 3)), rng.normal(size=(2, 5))])
    certificate = replace(lipschitz(system), lower=None, **change)
    with pytest.raises(CertificationError):
        check(certificate, system)
