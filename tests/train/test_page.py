"""The report: complete, self-contained, escaped, and honest about what fails."""

import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from small_runs import quick

from sdplip.errors import InvalidInput
from sdplip.train import load, load_model, pixels
from sdplip.train.insight import insight
from sdplip.train.page import read_runs, report
from sdplip.train.runs import compare, run


@pytest.fixture(scope="module")
def splits():
    return load("digits")


@pytest.fixture(scope="module")
def folder(splits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    compare([quick(layer, splits) for layer in ("sll", "lben", "unconstrained")], splits, out)
    return out


def test_the_page_is_whole_and_needs_nothing_else(folder):
    text = report([folder])
    assert len(text.encode()) < 2_000_000
    root = ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert len(root.findall(".//figure")) == len(root.findall(".//figure/details")) == 6
    assert all(caption.text for caption in root.findall(".//figcaption"))
    assert not root.findall(".//script")
    # Namespaces are names, not addresses that anything is fetched from.
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)|@import', text)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert {name for name in re.findall(r'(?:href="#|url\(#)([^")]+)', text)} <= set(names)


def test_every_number_of_the_rows_is_on_it(folder):
    text = report([folder])
    for finished in read_runs([folder]):
        for row in finished.rows:
            assert f"{100 * row.clean:.2f}" in text and f"{row.verified:.5g}" in text
            for certified, attacked in zip(row.certified, row.attacked, strict=True):
                assert f"{100 * certified:.1f} / {100 * attacked:.1f}" in text


def test_two_runs_of_a_family_are_told_apart(folder, splits, tmp_path):
    run(quick("sll", splits, seed=1), splits, tmp_path / "sll-seed1")
    labels = [r.rows[0].label for r in read_runs([folder / "sll", tmp_path])]
    assert labels == ["sll", "sll seed1"]


def test_names_from_outside_are_escaped(folder, tmp_path):
    for name in ("lben", "lben<img src=x onerror=alert(1)>&"):
        shutil.copytree(folder / "lben", tmp_path / name)
    text = report([tmp_path])
    assert "<img" not in text and "&lt;img src=x" in text
    ET.fromstring(text.removeprefix("<!DOCTYPE html>"))


def test_what_fails_is_said_at_the_top(folder, tmp_path):
    shutil.copytree(folder / "sll", tmp_path / "sll")
    file = tmp_path / "sll" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["rows"][0]["attacked"][0] = 0.0
    metrics["rows"][0]["certified"][0] = 0.5
    file.write_text(json.dumps(metrics))
    assert 'class="broken"' in report([tmp_path]) and 'class="broken"' not in report([folder])


def test_folders_without_runs_are_refused(folder, tmp_path):
    with pytest.raises(InvalidInput, match="no finished run"):
        report([tmp_path])
    shutil.copytree(folder / "sll", tmp_path / "sll")
    (tmp_path / "sll" / "metrics.json").write_text("{}")
    with pytest.raises(InvalidInput, match="format"):
        report([tmp_path])


def test_runs_without_a_look_inside_are_shown_without_it(folder, tmp_path):
    shutil.copytree(folder / "lben", tmp_path / "lben")
    file = tmp_path / "lben" / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["insight"]
    file.write_text(json.dumps(metrics))
    assert report([tmp_path]).count("<figure>") == 4


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


def test_residuals_fall_to_rounding_and_the_worst_is_no_better_than_the_median(folder, splits):
    model, _ = load_model(folder / "lben")
    (found,) = insight(model, pixels(splits.test[0][:16]))["equilibria"]
    assert found["largest"][-1] < 1e-12 < found["largest"][0]
    assert all(m <= w for m, w in zip(found["median"], found["largest"], strict=True))
    assert found["steps"]["largest"] >= found["steps"]["median"] >= 1
