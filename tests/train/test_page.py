"""The report: complete, self-contained, escaped, and honest about what fails."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from small_runs import quick
from torch import nn
from typer.testing import CliRunner

from sdplip.cli import app
from sdplip.layers import AOLConv2d, LBENConv2d
from sdplip.train import load_model, pixels
from sdplip.train.evaluation.insight import insight
from sdplip.train.reporting.gathered import read_runs
from sdplip.train.reporting.page import report
from sdplip.train.runs import compare, run

HOSTILE = "<script>alert(1)</script>&\"'$x^{"


@pytest.fixture(scope="module")
def folder(splits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    compare([quick(layer, splits) for layer in ("sll", "lben", "unconstrained")], splits, out)
    return out


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of a run, its files changed by functions of what they hold."""

    def copied(name="sll", into="sll", metrics=None, config=None):
        shutil.copytree(folder / name, tmp_path / into)
        for file, change in (("metrics.json", metrics), ("config.json", config)):
            if change is not None:
                document = json.loads((tmp_path / into / file).read_text())
                change(document)
                (tmp_path / into / file).write_text(json.dumps(document))
        return tmp_path / into

    return copied


def parsed(text):
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>"))


def test_the_page_is_whole_and_needs_nothing_else(folder):
    text = report([folder])
    assert len(text.encode()) < 2_000_000
    root = parsed(text)
    assert len(root.findall(".//figure")) == len(root.findall(".//figure/details//table")) == 7
    assert all(caption.text for caption in root.findall(".//figcaption"))
    assert not root.findall(".//script")
    # Namespaces are names, not addresses that anything is fetched from.
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)|@import', text)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert {name for name in re.findall(r'(?:href="#|url\(#)([^")]+)', text)} <= set(names)
    formulas = root.findall(".//{http://www.w3.org/1998/Math/MathML}math")
    # Those of the two families, and the one that is solved.
    assert len(formulas) == 3


def test_every_number_of_the_rows_is_on_it(folder):
    text = report([folder])
    for finished in read_runs([folder])[0]:
        for row in finished.rows:
            assert f"{100 * row.clean:.2f}" in text and f"{row.verified:.5g}" in text
            for certified, attacked in zip(row.certified, row.attacked, strict=True):
                assert f"{100 * certified:.1f} / {100 * attacked:.1f}" in text


def test_two_runs_of_a_family_are_told_apart(folder, splits, tmp_path, changed):
    run(quick("sll", splits, seed=1), splits, tmp_path / "sll-seed1")
    labels = [r.label for r in read_runs([folder / "sll", tmp_path])[0]]
    assert labels == ["sll", "sll seed1"]
    for name in ("a/sll", "b/sll", "a/sll-seed1"):
        changed(into=name)
    labels = [r.label for r in read_runs([tmp_path])[0]]
    assert len(labels) == len(set(labels)) == 4 and "sll b/sll" in labels


def test_runs_stand_in_the_order_of_families_and_of_numbers(changed, tmp_path):
    for name in ("sll-50", "sll-8", "sll-0.15", "sll-0.2"):
        changed(into=name)
    changed("unconstrained", "a")
    changed("lben", "z")
    labels = [r.label for r in read_runs([tmp_path])[0]]
    assert labels == ["sll 0.15", "sll 0.2", "sll 8", "sll 50", "lben", "unconstrained"]


def test_each_data_set_has_its_own_tables_and_pictures(folder, changed):
    other = changed(config=lambda c: c["train"].update(data="mnist"))
    root = parsed(report([folder / "sll", other]))
    heads = [h.text for h in root.findall(".//h2")]
    assert heads[:2] == ["Accuracy and bounds on digits", "Accuracy and bounds on mnist"]
    assert len(root.findall(".//figure")) == 2 * 5


@pytest.mark.parametrize("where", ["folder", "variant", "note", "layer", "device", "data"])
def test_what_comes_from_outside_is_text_and_nothing_else(changed, where, tmp_path):
    def metrics(document):
        row = document["rows"][0]
        if where == "device":
            document["device"] = HOSTILE
        elif where == "layer":
            document["insight"]["singular_values"][0]["layer"] = row["layer"] = HOSTILE
        elif where in row:
            row[where] = HOSTILE

    def config(document):
        if where == "data":
            document["train"]["data"] = f"folder:{HOSTILE}"

    name = "sll-" + HOSTILE.replace("/", "") if where == "folder" else "sll"
    changed(into=name, metrics=metrics, config=config)
    changed("sll", "sll2")
    text = report([tmp_path])
    root = parsed(text)
    assert not root.findall(".//script") and "<script" not in text
    assert HOSTILE.replace("/", "" if where == "folder" else "/") in "".join(root.itertext())


def test_what_fails_is_said_at_the_top(folder, changed):
    def unsound(metrics):
        metrics["rows"][0]["attacked"][0] = 0.0
        metrics["rows"][0]["certified"][0] = 0.5

    assert 'class="broken"' in report([changed(metrics=unsound)])
    assert 'class="broken"' not in report([folder])


def test_a_family_that_is_not_known_here_is_reported_too(changed):
    path = changed(
        metrics=lambda m: m["rows"][0].update(layer="mine"),
        config=lambda c: c["model"].update(layer="mine"),
    )
    text = "".join(parsed(report([path])).itertext())
    assert "mine" in text and "sll" not in text


def test_unfinished_runs_are_named(changed, tmp_path):
    changed()
    (changed(into="sll-later") / "metrics.json").unlink()
    header = parsed(report([tmp_path])).find(".//header")
    assert "not finished: sll-later" in "".join(header.itertext())


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.clear(),
        lambda m: m.update(rows=[]),
        lambda m: m.pop("history"),
        lambda m: m.update(insight=[1]),
        lambda m: m["rows"][0].update(clean=None),
        lambda m: m["rows"][0].update(clean=math.nan),
        lambda m: m["rows"][0].update(verified=math.inf),
        lambda m: m["rows"][0].update(verified="1"),
        lambda m: m["rows"][0].update(curve={}),
        lambda m: m["rows"][0].update(radii=[]),
        lambda m: m["rows"][0].pop("certified"),
        lambda m: m["rows"][0].update(layer=7),
        lambda m: m["rows"][0].update(layer=["sll"]),
    ],
)
def test_damaged_runs_are_refused_with_their_name(changed, damage):
    path = changed(metrics=damage)
    result = CliRunner().invoke(app, ["report", str(path), "--out", str(path / "r.html")])
    assert result.exit_code == 2 and str(path / "metrics.json") in result.stderr
    assert not (path / "r.html").exists()


def test_what_never_was_is_shown_as_missing(changed):
    """NaN becomes null in JSON; an unknown time, loss or bound is no reason to refuse a run."""

    def gaps(metrics):
        metrics["rows"][0] |= {"step_ms": None, "train_seconds": None, "sampled": None}
        metrics["rows"][0] |= {"verified": None, "product": None, "promised": None, "proven": None}
        metrics["history"][0] |= {"loss": None, "accuracy": None}

    text = report([changed(metrics=gaps)])
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).lower()


def test_huge_and_tiny_constants_are_drawn(changed):
    def vast(metrics):
        metrics["rows"][0] |= {"sampled": 0.0, "verified": 3e15, "product": 1e300, "promised": 4e15}
        metrics["rows"][0] |= {"train_seconds": 1e9, "parameters": 10**12}

    text = report([changed(metrics=vast)])
    assert "1e+300" in text and len(parsed(text).findall(".//figure")) == 5


def test_local_certificates_and_published_figures_have_their_tables(changed):
    def more(metrics):
        row = metrics["rows"][0]
        shares = {"certified": 0.111, "local": 0.222, "attacked": 0.333}
        row["local"] = {name: [share] * len(row["radii"]) for name, share in shares.items()}
        row |= {"local_images": 7, "local_seconds": 3.5, "source": "Somebody (2020)"}
        row["published"] = {"error": 1.25}
        row["note"] = "scaled down: 2 of 9 epochs"

    text = report([changed(metrics=more)])
    assert "11.1 / 22.2 / 33.3" in text and "Somebody (2020)" in text and ">1.25<" in text
    captions = ["".join(c.itertext()) for c in parsed(text).iter("figcaption")]
    assert all("Scaled down: 2 of 9 epochs" in caption for caption in captions)


def test_certified_and_attacked_accuracy_are_of_the_same_images(changed):
    def few(metrics):
        row = metrics["rows"][0]
        row["attack_images"], row["attack_clean"] = 7, 1.0
        row["attack_certified"] = row["attacked"] = [0.1234] * len(row["radii"])

    text = report([changed(metrics=few)])
    assert "on the first 7)" in text and "12.3 / 12.3" in text


def test_where_there_is_nothing_to_report(tmp_path):
    def call(*words):
        return CliRunner().invoke(app, ["report", *map(str, words)])

    assert call().exit_code == 2
    empty = call(tmp_path)
    assert empty.exit_code == 2 and "no finished run" in empty.stderr
    missing = call(tmp_path / "nowhere")
    assert missing.exit_code == 2 and "nowhere" in missing.stderr


def test_the_page_is_written_where_asked(folder, tmp_path):
    def call(*words):
        return CliRunner().invoke(app, ["report", *map(str, words)])

    done = call(folder, "--out", tmp_path / "page.html", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found == {
        "report": str(tmp_path / "page.html"),
        "bytes": (tmp_path / "page.html").stat().st_size,
    }
    assert call(folder, "--out", tmp_path / "no" / "page.html").exit_code == 2
    assert call(folder, "--out", tmp_path).exit_code == 2


def test_runs_without_a_look_inside_are_shown_without_it(changed):
    path = changed("lben", metrics=lambda m: m.pop("insight"))
    assert report([path]).count("<figure>") == 4


def test_singular_values_are_those_of_the_jacobian(folder, splits):
    model, _ = load_model(folder / "sll")
    x = pixels(splits.test[0][:4], torch.float64)
    found = insight(model, x)
    exact = model.double()
    point = exact[:2](x[:1])
    for layer, entry in zip(exact[2:], found["singular_values"], strict=True):
        J = torch.autograd.functional.jacobian(lambda p, layer=layer: layer(p)[0], point)[:, 0]
        np.testing.assert_allclose(entry["values"], torch.linalg.svdvals(J), atol=1e-9)
        point = layer(point).detach()


def test_a_large_convolution_is_looked_at_in_the_middle_of_the_image():
    torch.manual_seed(0)
    conv = AOLConv2d(3, 16, 3)
    (found,) = insight(nn.Sequential(conv), torch.rand(2, 3, 32, 32))["singular_values"]
    assert found["layer"].endswith("on 8 × 8 pixels") and len(found["values"]) == 3 * 8 * 8
    exact, middle = conv.double(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(exact, middle).reshape(16 * 8 * 8, -1)
    # A convolution is affine: its Jacobian is the same at every image.
    np.testing.assert_allclose(found["values"], torch.linalg.svdvals(J), atol=1e-9)


def test_residuals_fall_to_rounding_and_the_worst_is_no_better_than_the_median(folder, splits):
    model, _ = load_model(folder / "lben")
    (found,) = insight(model, pixels(splits.test[0][:16]))["equilibria"]
    assert found["largest"][-1] < 1e-12 < found["largest"][0]
    assert all(m <= w for m, w in zip(found["median"], found["largest"], strict=True))
    assert found["steps"]["largest"] >= found["steps"]["median"] >= 1
    assert found["at"] == sorted(set(found["at"])) and len(found["at"]) == len(found["median"])


def test_equilibria_of_convolutions_are_followed_too():
    torch.manual_seed(0)
    layer = LBENConv2d(1, 4, 2, 3, gamma=1.0).eval()
    (found,) = insight(nn.Sequential(layer), torch.rand(6, 1, 8, 8))["equilibria"]
    assert found["images"] == 4 and found["largest"][-1] < 1e-6 < found["largest"][0]
