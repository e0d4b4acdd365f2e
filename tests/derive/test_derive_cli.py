"""`sdplip derive` and `sdplip check` as a user meets them: exit codes, files, one JSON document."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

import sdplip
from sdplip.cli import app
from sdplip.derive import library
from sdplip.derive.proof import digest

HEAD = """
import sys

from sympy import Identity, MatrixSymbol, Rational

from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, lemmas, main

print("a line that does not belong on stdout")
W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
dominance = lemmas.diagonal_dominance("T", W.T * W, q)
T = dominance.symbol


def layer(name, factor, argument):
    return Derivation(
        name=name,
        title=f"Step {factor}",
        claim="1-Lipschitz",
        source="a test",
        condition=conditions.residual,
        free=[Free(W), Free(q, "ratios")],
        definitions=[dominance],
        ansatz={"H": Identity(m), "G": factor * W * T.I, "Lam": 2 * T.I, "rho": 1},
        argument=argument,
        controls={"plus": {"G": 2 * W * T.I}},
    )


def good(s):
    return s.simplify().drop_zeros().congruence(T / 2).conclude()


def short(s):
    return s.simplify().conclude()


"""
FOOT = '\n\nif __name__ == "__main__":\n    sys.exit(main(derivation))\n'
FILES = {
    "proved": 'derivation = layer("right", -2, good)',
    "refuted": 'derivation = layer("long", Rational(-5, 2), good)',
    "undecided": 'derivation = layer("lazy", -2, short)',
    "both": 'derivations = [layer("right", -2, good), layer("long", Rational(-5, 2), good)]',
    "unsure": 'derivations = [layer("right", -2, good), layer("lazy", -2, short)]',
}
CODES = {"proved": 0, "refuted": 1, "undecided": 3, "both": 1, "unsure": 3}


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs a command in a directory with these derivations in files."""
    monkeypatch.chdir(tmp_path)
    for name, body in FILES.items():
        Path(f"{name}.py").write_text(HEAD + body + FOOT)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def written(tmp_path):
    return {p.name for p in tmp_path.iterdir() if p.suffix != ".py" and p.is_file()}


# --- derive ---


@pytest.mark.parametrize("name", FILES)
def test_the_exit_code_is_the_verdict(cli, tmp_path, name):
    result = cli("derive", f"{name}.py", "--json")
    assert result.exit_code == CODES[name], result.stderr
    answer = json.loads(result.stdout)
    statuses = {d["status"] for d in answer["derivations"]}
    assert answer["proved"] is (statuses == {"proved"}) is (CODES[name] == 0)
    assert "a line that does not belong on stdout" in result.stderr
    for document in answer["derivations"]:
        assert f"{document['name']}: {document['status']}" in result.stderr
        assert digest(document) == document["sha256"]
    assert not written(tmp_path)


def test_a_report_on_stdout_is_plain(cli):
    result = cli("derive", "refuted.py")
    assert result.exit_code == 1
    assert result.stdout.startswith("Step -5/2: refuted\n") and "\x1b" not in result.stdout
    assert "> 1" in result.stdout and "proved" not in result.stdout


def test_every_derivation_of_the_package_is_listed_and_found(cli):
    listed = json.loads(cli("derive", "--list", "--json").stdout)
    names = [entry["derivation"] for entry in listed]
    assert {"sll", "lben", "nemon", "aol", "cpl", "orthogonal", "spectral"} <= set(names)
    assert len(set(names)) == len(names)
    assert {entry["file"] for entry in listed} == set(library.files())
    text = cli("derive", "--list").stdout
    assert all(entry["derivation"] in text for entry in listed)
    for entry in listed:
        _, found = library.find(entry["derivation"])
        assert entry["derivation"] in {d.name for d in found}


def test_one_of_a_file_by_its_own_name(cli):
    several = [e for e in json.loads(cli("derive", "--list", "--json").stdout)]
    entry = next(e for e in several if e["derivation"] != e["file"])
    answer = json.loads(cli("derive", entry["derivation"], "--json").stdout)
    assert [d["name"] for d in answer["derivations"]] == [entry["derivation"]]


def test_reports_are_written(cli, tmp_path):
    assert cli("derive", "both.py", "--report", "both.html").exit_code == 1
    badges = [
        node.text
        for node in ElementTree.fromstring(Path("both.html").read_text()).iter("span")
        if node.get("class") == "badge"
    ]
    assert badges == ["proved", "refuted"]
    result = cli("derive", "proved.py", "--report", "proof.md", "--json")
    assert json.loads(result.stdout)["written"] == ["proof.md"]
    assert "**PROVED.**" in Path("proof.md").read_text()
    assert written(tmp_path) == {"both.html", "proof.md"}


@pytest.mark.parametrize("class_name", [None, "Damped"])
def test_the_emitted_layer_runs_and_keeps_its_promise(cli, class_name):
    options = ["--class", class_name] if class_name else []
    assert cli("derive", "proved.py", "--emit", "emitted.py", *options).exit_code == 0
    spec = importlib.util.spec_from_file_location("emitted", "emitted.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    layer = getattr(module, class_name or "RightLayer")(5, 7, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert layer(x).shape == (3, 5)
    certificate = sdplip.lipschitz(layer)
    assert certificate.lower <= 1 + 1e-9 and layer.lipschitz == 1


def test_no_layer_comes_of_what_is_not_proved(cli, tmp_path):
    result = cli("derive", "refuted.py", "--emit", "layer.py")
    assert result.exit_code == 1 and "not proved" in result.stderr
    assert not Path("layer.py").exists()
    assert cli("derive", "both.py", "--only", "right", "--emit", "layer.py").exit_code == 0
    assert "class RightLayer" in Path("layer.py").read_text()


def test_scripts_take_the_same_options(cli, tmp_path):
    def run(name, *options):
        return subprocess.run(
            [sys.executable, f"{name}.py", *options], capture_output=True, text=True, timeout=120
        )

    refuted = run("refuted", "--json", "--out", "p.json", "--counterexample", "c.json")
    assert refuted.returncode == 1
    # A script's own prints are its own affair; the document follows them.
    document = json.loads(refuted.stdout.partition("\n")[2])
    assert document["derivations"] == [json.loads(Path("p.json").read_text())]
    assert cli("check", "c.json").exit_code == 0
    wrong = run("refuted", "--report", "report.pdf")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --report is report.pdf")
    assert run("refuted", "--fly").returncode == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--list"),
        (["nothing"], "sll"),
        (["./nothing.py"], "no file"),
        (["sub/sll"], "no file"),
        (["proved.py", "--report", "r.pdf"], ".html or .md"),
        (["proved.py", "--emit", "layer.txt"], ".py"),
        (["proved.py", "--out", "none/p.json"], "no directory"),
        (["proved.py", "--emit", "x.py", "--class", "1st"], "1st"),
        (["proved.py", "--emit", "x.py", "--class", "class"], "'class'"),
        (["proved.py", "--class", "X"], "--emit"),
        (["proved.py", "--convolution"], "--convolution is about the layer that --emit writes"),
        (["proved.py", "--list"], "--list shows all derivations"),
        (["--list", "--emit", "x.py"], "--list shows all derivations"),
        (["proved.py", "--only", "other"], "right"),
        (["both.py", "--out", "p.json"], "--only"),
        (["both.py", "--counterexample", "c.json"], "--only"),
        (["general", "--emit", "layer.py"], "theorem"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cli, tmp_path, arguments, said):
    result = cli("derive", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not written(tmp_path) and not Path("layer.py").exists()


@pytest.mark.parametrize(
    "source, said",
    [
        ("x = (", "line 1"),
        ("x = 1", "derivation = Derivation(...)"),
        ("derivation = 3", "derivation = Derivation(...)"),
        ("derivations = []", "derivation = Derivation(...)"),
        ("\nimport nothing_of_this_name", "line 2: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)", "__name__"),
        ("\n\n1 / 0", "line 3: ZeroDivisionError"),
        (HEAD + 'derivation = layer("x", -2, lambda s: s.simplfy())', "simplfy"),
        (HEAD + 'derivation = layer("x", MatrixSymbol("Z", n, n), good)', "error: "),
        (b"\x00\xff\xfe", "bad.py"),
    ],
)
def test_a_file_that_cannot_be_used_is_blamed_in_one_line(cli, source, said):
    Path("bad.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    result = cli("derive", "bad.py", "--json")
    assert result.exit_code == 2, result.output
    error = result.stderr.splitlines()[-1]
    assert result.stdout == "" and error.startswith("error: ") and said in error


# --- check ---


@pytest.fixture
def proof(cli):
    assert cli("derive", "proved.py", "--out", "proof.json").exit_code == 0
    return Path("proof.json")


@pytest.fixture
def refutation(cli):
    made = cli("derive", "refuted.py", "--out", "refuted.json", "--counterexample", "counter.json")
    assert made.exit_code == 1
    return Path("refuted.json"), Path("counter.json")


def test_a_proof_file_is_replayed(cli, proof):
    assert cli("check", proof).stdout.startswith("holds: right satisfies residual")
    answer = json.loads(cli("check", proof, "--json").stdout)
    assert answer == {
        "holds": True,
        "kind": "sdplip.derivation",
        "name": "right",
        "reason": None,
    }


@pytest.mark.parametrize("rehash", [False, True])
@pytest.mark.parametrize("edit", ["weight", "ansatz", "status"])
def test_a_tampered_proof_does_not_hold(cli, proof, edit, rehash):
    document = json.loads(proof.read_text())
    if edit == "weight":
        document["goals"][0]["squares"][0]["weight"] = ["sym", "T"]
    elif edit == "ansatz":
        document["ansatz"]["G"] = ["mul", ["num", "-3"], ["sym", "W"], ["inv", ["sym", "T"]]]
    else:
        document["status"] = "refuted"
    if rehash:
        document["sha256"] = digest(document)
    proof.write_text(json.dumps(document))
    result = cli("check", proof, "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["holds"] is False and answer["reason"]
    assert cli("check", proof).stdout.startswith("does not hold: ")


def test_a_refuted_proof_is_none_and_its_counterexample_holds(cli, refutation):
    document, counterexample = refutation
    result = cli("check", document)
    assert result.exit_code == 1 and "refuted" in result.stdout
    result = cli("check", counterexample)
    assert result.exit_code == 0 and result.stdout.startswith("holds: long is refuted")
    assert json.loads(document.read_text())["counterexample"] == json.loads(
        counterexample.read_text()
    )


@pytest.mark.parametrize("edit", [("claim", "100"), ("z", [["7"], ["7"]]), ("x", [["0"], ["0"]])])
def test_an_edited_counterexample_does_not_hold(cli, refutation, edit):
    path = refutation[1]
    content = json.loads(path.read_text())
    assert len(content["x"][0]) == 1 and len(content["z"][0]) == 1
    path.write_text(json.dumps(content | dict([edit])))
    result = cli("check", path, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["holds"] is False


HOSTILE = {
    "empty": "",
    "text": "not JSON",
    "list": "[1, 2]",
    "deep": "[" * 100_000,
    "digits": "1" * 10_000,
    "bare proof": '{"kind": "sdplip.derivation", "status": "proved"}',
    "bare counterexample": '{"kind": "sdplip.counterexample"}',
    "goals": '{"kind": "sdplip.derivation", "status": "proved", "goals": 5}',
    "odd goals": '{"kind": "sdplip.derivation", "status": "proved", "goals": [{"kind": []}]}',
    "huge number": '{"kind": "sdplip.counterexample", "A": [["1e999999999"]]}',
    "huge exponent": '{"kind": "sdplip.derivation", "free": ["num", " -1.5E+99999999 "]}',
    "another kind": '{"kind": ["sdplip.derivation"]}',
    "certificate": '{"format": "sdplip certificate 1"}',
    "binary": b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_garbage_is_exit_code_2_and_one_line(cli, content):
    Path("file.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    result = cli("check", "file.json", "--json")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_large_files_are_not_read(cli):
    with Path("file.json").open("wb") as file:
        file.truncate(1 << 30)
    result = cli("check", "file.json")
    assert result.exit_code == 2 and "MiB" in result.stderr


@pytest.mark.parametrize("number", ["Infinity", "NaN", "[]", '"1/0"', "{}", '"x"'])
def test_numbers_of_a_counterexample_are_checked(cli, refutation, number):
    path = refutation[1]
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"claim": "here"}).replace('"here"', number))
    result = cli("check", path)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_nothing_that_moves_the_cursor_is_printed(cli, refutation):
    path = refutation[1]
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"name": "\x1b[2J\rholds"}))
    result = cli("check", path)
    assert result.exit_code == 0 and "\x1b" not in result.stdout and "\r" not in result.stdout


def test_a_certificate_needs_its_network_and_a_proof_has_none(cli, proof):
    Path("cert.json").write_text('{"format": "sdplip certificate 1"}')
    result = cli("check", "cert.json")
    assert result.exit_code == 2 and "sdplip check cert.json NETWORK" in result.stderr
    result = cli("check", proof, "net.npz")
    assert result.exit_code == 2 and "net.npz" in result.stderr


def test_the_record_of_a_theorem_names_the_command_that_proves_it(cli):
    assert cli("derive", "general", "--out", "general.json").exit_code == 0
    result = cli("check", "general.json")
    assert result.exit_code == 2 and "sdplip derive general" in result.stderr


# --- the package ---


def test_an_installed_package_brings_its_derivations(tmp_path):
    """Laid out as in the wheel: derivations inside the package, no checkout around it."""
    source = Path(sdplip.__file__).parent
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, site / "sdplip", ignore=ignored)
    shutil.copytree(library.folder(), site / "sdplip" / "derivations", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-c", "from sdplip.derive.library import *; print(folder()); find('sll')"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == (site / "sdplip" / "derivations").resolve()


def test_a_convolution_is_emitted_on_request(tmp_path):
    wish = ["--emit", str(tmp_path / "layer.py"), "--convolution"]
    done = CliRunner().invoke(app, ["derive", "sll", *wish])
    assert done.exit_code == 0
    assert "class SllLayer(ClosedFormResidualConv2d)" in (tmp_path / "layer.py").read_text()
    done = CliRunner().invoke(app, ["derive", "cpl", *wish])
    assert done.exit_code == 2
    assert "no convolutional form" in done.output
