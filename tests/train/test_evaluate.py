"""Rows: consistent for sound networks, and loud when a certificate is not."""

import math
from dataclasses import replace

import pytest

from sdplip.errors import CertificationError
from sdplip.layers import LAYERS, AOLLinear
from sdplip.train import Row, build, evaluate, load, override, preset, train
from sdplip.train.models import families
from sdplip.train.plots import plot
from sdplip.train.report import document, notes, tables, violations


@pytest.fixture(scope="module")
def splits():
    return load("digits")


def quick(layer, splits, **changes):
    small = {"width": 8, "depth": 1, "images": 40, "steps": 5, "restarts": 1}
    return override(preset(layer, splits), **small | changes)


def trained(layer, splits):
    """Two epochs: enough for decisions that an attack can change."""
    config = quick(layer, splits, epochs=2, lr=2e-2)
    return train(config, splits).model, config


@pytest.mark.parametrize("layer", families())
def test_every_family_gives_consistent_rows(layer, splits):
    model, config = trained(layer, splits)
    rows = evaluate(model, config, splits, step_ms=1.0)
    assert [row.violations() for row in rows] == [[] for _ in rows]
    assert [row.norm for row in rows] == ([2, math.inf] if layer == "nemon" else [2])
    for row in rows:
        assert row.images == 40 and row.proven and row.sampled > 0
        assert (row.promised is None) == (layer not in LAYERS or (row.norm != LAYERS[layer].norm))
        assert list(row.curve["certified"]) == sorted(row.curve["certified"], reverse=True)
        assert Row.from_dict(row.to_dict()) == row
        assert (row.residual > 0) == (layer in ("lben", "nemon"))


class Boastful(AOLLinear):
    """Promises a tenth of what it does."""

    lipschitz = 0.1


def test_a_broken_promise_is_seen(splits):
    model, config = trained("aol", splits)
    config = override(config, images=200, restarts=2, steps=20, radii=(0.5,), verify=False)
    assert not evaluate(model, config, splits)[0].violations()
    model[2].__class__ = Boastful
    row = evaluate(model, config, splits)[0]
    assert row.promised == pytest.approx(0.1) and row.unsound > 0
    assert any("inside their certified radius" in text for text in row.violations())
    assert any("not in this order" in text for text in row.violations())
    verified = evaluate(model, override(config, verify=True), splits)[0]
    assert any("exceeds promised" in text for text in verified.violations())


class Deceptive(AOLLinear):
    """Describes another map than it computes."""

    def _system(self):
        honest = super()._system()
        return replace(honest, c=honest.c + 1e-3)


def test_a_layer_that_describes_another_map_is_refused(splits):
    model = build(quick("aol", splits).model, seed=0)
    model[-1].__class__ = Deceptive
    with pytest.raises((CertificationError, ValueError), match="does not describe"):
        evaluate(model, quick("aol", splits), splits)


@pytest.fixture
def row(splits):
    model = build(quick("aol", splits).model, seed=0)
    return evaluate(model, quick("aol", splits), splits)[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clean": 0.0, "certified": (0.5,) * 4, "attacked": (0.5,) * 4}, "not in this order"),
        ({"certified": (0.9,) * 4, "attacked": (0.1,) * 4, "clean": 1.0}, "not in this order"),
        ({"sampled": 2.0, "verified": 1.0, "promised": None}, "sampled bound 2.0 exceeds"),
        ({"sampled": None, "verified": 1.1, "promised": 1.0}, "verified bound 1.1 exceeds"),
        ({"sampled": 1.1, "verified": None, "promised": 1.0}, "sampled bound 1.1 exceeds"),
        ({"unsound": 3}, "3 images"),
    ],
)
def test_violations_are_named(row, changes, message):
    bad = replace(row, **changes)
    assert any(message in text for text in bad.violations())
    assert violations([row, bad]) == bad.violations()


def test_large_networks_are_left_out_of_verification_and_say_so(splits):
    config = quick("unconstrained", splits, verify_units=4)
    row = evaluate(build(config.model, seed=0), config, splits)[0]
    assert row.verified is None and "8 units" in row.note
    assert max(row.certified) == 0
    assert any("8 units" in line for line in notes([row]))


def test_tables_and_pictures(row, tmp_path):
    from rich.console import Console

    other = replace(row, layer="nemon", norm=math.inf, radii=(0.01, 0.1), verified=None)
    other = replace(other, certified=(0.5, 0.1), attacked=(0.6, 0.2))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for table in tables([row, other]):
            console.print(table)
    text = console.export_text()
    assert "50.0/60.0" in text and "nemon (ℓ∞)" in text and "–" in text
    pictures = plot([row, other], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "accuracy.png",
        "accuracy.svg",
        "lipschitz.png",
        "lipschitz.svg",
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    first = (tmp_path / "accuracy.svg").read_bytes()
    plot([row, other], tmp_path)
    assert (tmp_path / "accuracy.svg").read_bytes() == first
    result = document([row], "digits", ["a.png"], 1.0)
    assert result["violations"] == [] and result["rows"][0]["norm"] == 2
