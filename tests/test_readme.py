"""What the README shows: its table, its code, its links, and how to cite."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import sdplip
from sdplip.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_layers_is_the_generated_one():
    """Renew it with `sdplip layers --markdown`."""
    block = README.split("<!-- layers -->\n")[1].split("<!-- /layers -->")[0]
    assert block == CliRunner().invoke(app, ["layers", "--markdown"]).stdout
    for cls in (*sdplip.LAYERS.values(), *sdplip.CONVOLUTIONS.values()):
        assert f"| `{cls.__name__}` |" in block


def test_every_block_of_its_code_runs_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), own := {})
        names |= own
    assert names["certificate"].lower <= names["certificate"].bound
    assert names["np"].linalg.eigvalsh(names["M"]).min() > -1e-12
    assert (names["error"] >= 0).all() and names["bound"] == 1
    assert "class SLL(" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "docs/certificate.md"])
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / file).parent / target).exists(), target
    for name in re.findall(r"`((?:examples|benchmarks|docs|derivations)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


def test_a_certificate_can_be_checked_by_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    system = sdplip.System.feedforward([rng.normal(size=(6, 4)), rng.normal(size=(2, 6))])
    system.save("net.npz")
    sdplip.lipschitz(system).save("net.cert.json")
    text = (ROOT / "docs/certificate.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "certificate.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 1e-6


def test_every_file_of_the_independent_checker_is_named_and_short():
    text = (ROOT / "docs/certificate.md").read_text(encoding="utf-8")
    files = {path.name: path for path in ROOT.glob("sdplip/verify/checker*.py")}
    assert set(re.findall(r"^\| `(checker\w*\.py)`", text, re.MULTILINE)) == set(files)
    for path in files.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 300, path


def test_its_picture_is_small():
    assert (ROOT / "docs/lipschitz.png").stat().st_size < 100_000


def test_what_to_cite_is_this_version():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {sdplip.__version__}\n" in cited
    assert f"version = {{{sdplip.__version__}}}" in README
