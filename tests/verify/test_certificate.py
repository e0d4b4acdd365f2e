"""Certificates stand alone: written exactly, tied to one model, refused when touched."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdplip import Certificate, CertificationError, InvalidInput, System, check, lipschitz
from sdplip.verify.certificate import _digest


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
    [("lower", "abc"), ("model", None), ("bound", 10**400), ("units", 2.5), ("multipliers", [1])],
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


def test_modules_can_be_checked_and_the_certificate_comes_back():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    certificate = lipschitz(net)
    assert check(certificate, net) is certificate
