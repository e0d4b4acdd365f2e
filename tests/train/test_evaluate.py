"""Rows: consistent for sound networks, and loud when a certificate is not."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from sdplip.errors import CertificationError
from sdplip.layers import LAYERS, AOLLinear, EquilibriumLayer
from sdplip.train import (
    Row,
    build,
    certified_accuracy,
    certified_radii,
    evaluate,
    global_pairs,
    override,
    preset,
    train,
)
from sdplip.train.evaluation.attack import correctly
from sdplip.train.evaluation.measure import Subject, exact_copy
from sdplip.train.evaluation.row import LOCAL
from sdplip.train.models import families
from sdplip.train.reporting.plots import plot
from sdplip.train.reporting.tables import document, notes, tables, violations


def quick(layer, splits, **changes):
    small = {"width": 8, "depth": 1, "images": 40, "steps": 5, "restarts": 1, "pair_units": 0}
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


def test_every_pair_of_classes_has_its_own_bound(splits):
    model, config = trained("unconstrained", splits)
    alone = {
        units: evaluate(model, override(config, pair_units=units), splits)[0] for units in (0, 8)
    }
    # For comparison: √2 times the bound of the whole.
    exact = exact_copy(model)
    subject, (x, labels) = Subject(exact), splits.test
    x, labels = x[:40], labels[:40]
    pairs = global_pairs(alone[0].verified, 10)
    whole = [
        certified_accuracy(certified_radii(subject.logits(x), labels, pairs), r)
        for r in alone[0].radii
    ]
    by_row, by_pair = alone[0].certified, alone[8].certified
    assert all(a <= b <= c for a, b, c in zip(whole, by_row, by_pair, strict=True))
    assert sum(whole) < sum(by_row) < sum(by_pair)
    assert not alone[0].violations() and not alone[8].violations()


def test_verification_ends_in_time_and_says_so(splits):
    model, config = trained("unconstrained", splits)
    config = override(config, pair_units=8)
    rows = [
        evaluate(model, override(config, time_limit=limit), splits)[0]
        for limit in (None, 1e3, 1e-4)
    ]
    free, ample, short = rows
    assert ample.certified == free.certified and "time" not in ample.note
    assert ample.verified == free.verified <= short.verified and short.proven
    assert all(a <= b for a, b in zip(short.certified, free.certified, strict=True))
    assert "pairs/2-0-1.json" in ample.certificates and len(short.certificates) == 1
    for said in (
        "no time to bound pairs of classes",
        "the search for the bound ended after 0.0001",
    ):
        assert said in short.note and any(said in line for line in notes([short]))
    assert short.violations() == []


@pytest.mark.parametrize("layer", ["unconstrained", "nemon"])
def test_local_certificates_stand_beside_global_ones(layer, splits):
    model, config = trained(layer, splits)
    config = override(config, local_images=12, linf=True, attack="apgd", attack_images=30)
    rows = evaluate(model, config, splits, step_ms=1.0, train_seconds=2.0)
    gained = 0.0
    for row in rows:
        assert row.violations() == [] and row.local_images == 12 and row.attack == "apgd"
        assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row
        gained += sum(row.local["local"]) - sum(row.local["certified"])
        swapped = {name: row.local[other] for name, other in zip(LOCAL, LOCAL[::-1], strict=True)}
        if row.local["certified"] != row.local["attacked"]:
            assert "of the first 12 images" in replace(row, local=swapped).violations()[0]
    assert gained > 0
    text = shown(tables(rows))
    assert text.count("by local ones") == 2
    cells = "/".join(f"{100 * rows[0].local[name][0]:.1f}" for name in LOCAL)
    assert cells in text
    assert any("under attack: APGD" in line for line in notes(rows))


def test_why_there_are_no_local_certificates_is_said(splits):
    config = quick("unconstrained", splits, verify_units=4, local_images=3)
    row = evaluate(build(config.model, seed=0), config, splits)[0]
    assert row.local == {} and "no local certificates: 8 units" in row.note


def test_an_attack_that_meets_an_unsolved_equilibrium_goes_on(splits):
    model, config = trained("lben", splits)
    for layer in model:
        if isinstance(layer, EquilibriumLayer):
            # Enough for Newton's method, which measures; not for the splitting that attacks.
            layer.max_steps, layer.fallback = 12, None
    row = evaluate(model, config, splits)[0]
    assert row.violations() == []


def test_what_a_solver_left_open_breaks_no_image(splits):
    model, config = trained("lben", splits)
    x, labels = (t[:40] for t in splits.test)
    exact = exact_copy(model)
    correct = correctly(Subject(exact).logits(x), labels)
    arguments = (x, labels, correct, (0.5,), 2.0, config.evaluate, 0)
    assert Subject(exact).standing(*arguments).sum() < correct.sum()
    crude = exact_copy(model, "forward_backward", 1e-2, "ignore")
    for layer in crude:
        if isinstance(layer, EquilibriumLayer):
            layer.max_steps, layer.fallback = 1, None
    logits, error = Subject(crude).outputs(x)
    assert error.min() > logits.std()
    assert torch.equal(Subject(crude).standing(*arguments)[:, 0], correct)


def shown(tables):
    console = Console(width=160, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


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
    other = replace(row, layer="nemon", norm=math.inf, radii=(0.01, 0.1), verified=None)
    other = replace(other, certified=(0.5, 0.1), attacked=(0.6, 0.2))
    text = shown(tables([row, other]))
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
