"""The command line as a user meets it: exit codes, one JSON document, stdout apart from stderr."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sdplip
from sdplip.cli import app
from sdplip.layers import CONVOLUTIONS

SMALL = ["--width", "8", "--depth", "1", "--epochs", "2", "--images", "30", "--radii", "0.1,0.5"]


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs a command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SDPLIP_DATA", raising=False)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def net(tmp_path):
    """A small network in a file, and its system."""
    rng = np.random.default_rng(0)
    system = sdplip.System.feedforward([rng.normal(size=(6, 4)), rng.normal(size=(2, 6))])
    system.save(tmp_path / "net.npz")
    return tmp_path / "net.npz", system


def one_document(result):
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", ["verify", "check", "train", "compare"])
def test_help_shows_defaults(cli, command):
    assert command in cli("--help").stdout
    result = cli(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout
    assert ("default" in result.stdout) == (command != "check")


def test_help_cuts_nothing_off(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli("--help").stdout
    commands = re.findall(r"^  (\w+)  +(\S.*)$", shown.split("Commands:")[1], re.MULTILINE)
    assert len(commands) == 8 and all(said[-1] == "." and said[-2] != "." for _, said in commands)
    for command, _ in commands:
        assert "…" not in cli(command, "--help").stdout


@pytest.mark.parametrize("arguments", [["layers"], ["layers", "--json"], ["derive", "aol"]])
def test_a_reader_that_leaves_early_is_neither_error_nor_outcome(arguments):
    """As in `sdplip layers | head`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sdplip", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, text=True)
    os.close(write)
    assert done.returncode == 141
    assert "rror" not in done.stderr and "Traceback" not in done.stderr


def test_version_names_what_matters(cli):
    result = cli("--version")
    assert result.exit_code == 0
    for name in (sdplip.__version__, "torch", "cvxpy"):
        assert name in result.stdout


def test_an_address_where_no_cluster_answers_is_refused_at_once(cli):
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", ""):
        result = cli("verify", "nowhere.npz", "--engine", "ray", "--address", address)
        assert result.exit_code == 2 and "no Ray cluster answers" in result.stderr


def test_layers_and_conditions_are_listed(cli):
    listed = one_document(cli("layers", "--json"))
    every = [cls.__name__ for table in (sdplip.LAYERS, CONVOLUTIONS) for cls in table.values()]
    assert [entry["class"] for entry in listed] == every
    assert all(entry["claim"] for entry in listed)
    names = {entry["condition"] for entry in one_document(cli("conditions", "--json"))}
    assert {entry["condition"] for entry in listed} <= names
    said = cli("conditions").stdout
    assert "sll" in cli("layers").stdout and all(name in said for name in names)
    table, named = said.split("Sources: ")
    keys = set(re.findall(r"\[[A-Z]{3,}\]", table))
    assert keys and keys == set(re.findall(r"\[[A-Z]{3,}\]", named))


def test_verify_then_check(cli, net):
    path, _ = net
    result = cli("verify", path, "--out", "cert.json", "--json")
    assert result.exit_code == 0
    found = one_document(result)
    assert found["lower"] <= found["bound"] <= found["norm_product"] and found["proven"]
    checked = cli("check", "cert.json", path, "--json")
    assert checked.exit_code == 0
    scope = {"norm": "2", "classes": None, "region": None}
    assert one_document(checked) == {
        "holds": True, "bound": found["bound"], **scope, "independent": True, "reason": None,
    }  # fmt: skip
    assert cli("check", "cert.json", path).stdout.startswith("holds")


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_verify_as_text(cli, net, norm):
    result = cli("verify", net[0], "--norm", norm)
    assert result.exit_code == 0
    words = [line.split()[0] for line in result.stdout.splitlines()]
    assert words[:2] == ["bound", "lower"] and "method" in words


def test_check_refuses_another_model_and_an_edited_certificate(cli, net, tmp_path):
    path, system = net
    assert cli("verify", path, "--out", "cert.json").exit_code == 0
    A = {k: getattr(system, k).copy() for k in ("A", "B", "C", "D", "b", "c", "alpha", "beta")}
    A["B"][0, 0] = np.nextafter(A["B"][0, 0], np.inf)
    np.savez(tmp_path / "other.npz", **A)
    other = cli("check", "cert.json", tmp_path / "other.npz", "--json")
    assert other.exit_code == 1 and one_document(other)["holds"] is False
    text = (tmp_path / "cert.json").read_text()
    bound = json.loads(text)["bound"]
    (tmp_path / "cert.json").write_text(text.replace(repr(bound), repr(bound / 2)))
    edited = cli("check", "cert.json", path)
    assert edited.exit_code == 1 and edited.stdout.startswith("does not hold")


def test_a_network_without_an_equilibrium_has_no_bound(cli, tmp_path):
    sdplip.System.equilibrium([[2.0]], [[1.0]], [[1.0]]).save(tmp_path / "loop.npz")
    result = cli("verify", tmp_path / "loop.npz", "--json")
    assert result.exit_code == 1 and result.stdout == "" and "error:" in result.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["verify", "nowhere.npz"], "nowhere.npz"),
        (["verify", "nowhere"], "does not exist"),
        (["check", "nowhere.json", "nowhere.npz"], "nowhere.json does not exist"),
        (["check", ".", "nowhere.npz"], "is a directory"),
        (["verify", "nowhere.npz", "--normalise", "0.5"], "MEAN,STD"),
        (["verify", "nowhere.npz", "--normalise", "0.5,0"], "STD > 0"),
        (["verify", "nowhere.npz", "--input-shape", "8,x"], "as in 1,28,28"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", ".", "--out", "page.pdf"], "ends in .html"),
        (["layers", "--json", "--markdown"], "only one"),
        (["verify", "nowhere.npz", "--norm", "1"], "--norm"),
        (["train", "--layer", "resnet"], "resnet"),
        (["compare", "--layers", "sll,resnet"], "resnet"),
        (["train", "--data", "imagenet"], "imagenet"),
        (["train", "--layer", "lben", "--gamma", "0"], "gamma"),
        (["train", "--layer", "lben", "--gamma", "-1"], "gamma"),
        (["train", "--layer", "lben", "--gamma", "nan"], "gamma"),
        (["train", "--gamma", "2"], "--gamma does nothing for sll"),
        (["train", "--layer", "cpl", "--products", "bfloat16"], "--products does nothing for cpl"),
        (["train", "--layer", "lben", "--linf-penalty", "1"], "only for nemon"),
        (["train", "--epochs", "0"], "epochs"),
        (["train", "--lr", "-1"], "lr"),
        (["train", "--radii", "0.1;0.2"], "0.1;0.2"),
        (["train", "--radii", "-1"], "radii"),
        (["train", "--device", "abacus"], "abacus"),
        (["train", "--activation", "__import__('os')"], "__import__"),
        (["train", "--data", "mnist", "--data-root", "empty"], "train-images-idx3-ubyte"),
        (["train", "--data", "cifar10", "--data-root", "empty"], "data_batch_1"),
        (["train", "--data", "folder:nowhere"], "no train folder"),
        (["train", "--preset", "resnet50"], "sll-small"),
        (["train", "--preset", "convnet-xs"], "needs a family"),
        (["train", "--preset", "convnet-xs-aol"], "multiples of 32"),
        (["compare", "--preset", "convnet-xs", "--layers", "aol,lben"], "lben"),
        (["train", "--augment", "mixup"], "mixup"),
        (["train", "--augment", "colour"], "3 colour channels"),
        (["train", "--optimizer", "lion"], "lion"),
        (["train", "--weight-decay", "-1"], "weight_decay"),
        (["train", "--precision", "16"], "precision"),
        (["train", "--train-images", "9999"], "train_images = 9999"),
        (["train", "--attack-images", "0"], "attack_images"),
    ],
)
def test_bad_input_is_exit_code_2_and_leaves_nothing_behind(cli, tmp_path, arguments, said):
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["train", "--width", "many"], ["fly"], ["verify"]])
def test_usage_errors_are_exit_code_2(cli, arguments):
    assert cli(*arguments).exit_code == 2


def test_missing_data_names_the_command_that_fetches_it(cli):
    said = cli("train", "--data", "fashionmnist", "--data-root", "here").stderr
    assert "sdplip train --data fashionmnist --data-root here --download" in said


def test_arguments_of_the_library_are_named_as_options(cli, tmp_path):
    save_file({"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}, tmp_path / "net.safetensors")
    assert "--activation" in cli("verify", "net.safetensors").stderr
    told = cli("verify", "net.safetensors", "--activation", "relu").stderr
    assert "sample=" in told and "sdplip.load(FILE, ...)" in told
    assert "sdplip.load" not in cli("verify", "nowhere.npz").stderr


@pytest.mark.parametrize("content", ["objects", "nan", "slopes", "shapes", "text"])
def test_bad_system_files_are_exit_code_2(cli, tmp_path, content):
    path, good = tmp_path / "bad.npz", np.ones((3, 2))
    if content == "objects":
        np.savez(path, W0=np.array([{"a": 1}], dtype=object))
    elif content == "nan":
        np.savez(path, W0=np.full((3, 2), np.nan), W1=np.ones((1, 3)))
    elif content == "slopes":
        np.savez(path, W0=good, W1=np.ones((1, 3)), alpha=1.0, beta=0.0)
    elif content == "shapes":
        np.savez(path, W0=good, W1=np.ones((1, 4)))
    else:
        path.write_text("not an archive")
    result = cli("verify", path, "--json")
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.startswith("error:")


def test_train_verify_check_a_run(cli, tmp_path):
    result = cli("train", "--layer", "sll", *SMALL, "--out", "run", "--json")
    assert result.exit_code == 0, result.stderr
    row = one_document(result)["rows"][0]
    assert row["layer"] == "sll" and row["radii"] == [0.1, 0.5] and row["images"] == 30
    assert "sll" in result.stderr
    again = cli("train", "--layer", "sll", *SMALL, "--out", "run", "--json")
    assert again.exit_code == 0 and one_document(again)["rows"] == [row]
    assert "--force" in again.stderr
    assert cli("train", "--layer", "aol", *SMALL, "--out", "run").exit_code == 2
    verified = cli("verify", "run", "--out", "cert.json", "--json")
    assert verified.exit_code == 0
    assert one_document(verified)["bound"] == pytest.approx(row["verified"], rel=1e-9)
    assert cli("check", "cert.json", "run/model.safetensors").exit_code == 0


def test_compare_prints_a_table_and_where_the_pictures_lie(cli, tmp_path):
    result = cli("compare", "--layers", "aol,unconstrained", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert "certified" in result.stdout and "unconstrained" in result.stdout
    assert os.path.join("runs", "digits-compare", "accuracy.png") in result.stdout
    assert (tmp_path / "runs" / "digits-compare" / "accuracy.png").is_file()
    as_json = cli("compare", "--layers", "aol,unconstrained", *SMALL, "--json")
    assert one_document(as_json)["violations"] == []
    assert "\x1b" not in result.stdout + as_json.stderr


def test_a_violated_invariant_is_exit_code_1(cli, tmp_path):
    assert cli("train", "--layer", "aol", *SMALL, "--out", "run").exit_code == 0
    path = tmp_path / "run" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["rows"][0]["certified"] = [1.0, 1.0]
    metrics["rows"][0]["attacked"] = [0.0, 0.0]
    path.write_text(json.dumps(metrics))
    result = cli("train", "--layer", "aol", *SMALL, "--out", "run", "--json")
    assert result.exit_code == 1 and "aol: at radius 0.1" in result.stderr
    assert len(one_document(result)["violations"]) == 2


def test_a_tampered_model_is_refused(cli, tmp_path):
    assert cli("train", "--layer", "aol", *SMALL, "--out", "run").exit_code == 0
    path = tmp_path / "run" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    weight = next(key for key in tensors if key.endswith("weight"))
    tensors[weight][0, 0] = float("nan")
    save_file(tensors, path, metadata)
    result = cli("verify", "run")
    assert result.exit_code == 2 and "not finite" in result.stderr
    path.write_bytes(path.read_bytes()[:-4])
    result = cli("verify", "run")
    assert result.exit_code == 2 and str(path.name) in result.stderr


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of noise, of 32x32 pixels and two classes, brighter and darker."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for level, name in ((0, "dark"), (150, "light")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(6):
                pixels = (rng.integers(0, 100, (32, 32, 3)) + level).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index}.png")
    return ["--data", "folder:images", "--epochs", "1", "--depth", "1", "--batch-size", "4"]


def test_a_preset_on_a_folder_of_images(cli, images, tmp_path):
    options = [*images, "--attack-images", "4", "--train-images", "8", "--lr", "0.01", "--json"]
    result = cli("train", "--preset", "convnet-xs-sll", *options)
    assert result.exit_code == 0, result.stderr
    document = one_document(result)
    row = document["rows"][0]
    assert row["layer"] == "sll" and row["images"] == 12 and row["attack_images"] == 4
    assert row["radii"][0] == 36 / 255 and "not verified" in row["note"]
    assert "decoding images" in result.stderr
    assert Path(document["run"]) == Path("runs", "images", "convnet-xs-sll")
    config = json.loads((tmp_path / document["run"] / "config.json").read_text())
    assert config["train"]["train_images"] == 8 and config["train"]["lr"] == 0.01
    assert config["train"]["optimizer"] == "sgd" and config["train"]["augment"] == "crop"
    again = cli(
        "train", "--preset", "convnet-xs", "--layer", "sll", *options, "--out", document["run"]
    )
    assert again.exit_code == 0 and one_document(again)["rows"] == [row]
    refused = cli("verify", document["run"])
    assert refused.exit_code == 2 and "convolutional" in refused.stderr


def test_compare_over_a_preset(cli, images, tmp_path):
    options = [*images, "--attack-images", "2", "--images", "4", "--radii", "0.1"]
    result = cli("compare", "--preset", "convnet-xs", "--layers", "aol,cpl", *options)
    assert result.exit_code == 0, result.stderr
    counts = re.findall(r"^ (?:aol|cpl) +(\d+) ", result.stdout, re.MULTILINE)
    assert counts[:4] == ["4", "4", "2", "2"]
    assert (tmp_path / "runs" / "images-convnet-xs" / "cpl" / "metrics.json").is_file()


def test_presets_are_listed(cli, tmp_path):
    listed = {p["preset"]: p for p in one_document(cli("train", "--list-presets", "--json"))}
    assert listed["sll-small"]["parameters"] == "41,385,862"
    assert "onecycle" in listed["convnet-xs-aol"]["recipe"] and listed["aol-large"]["source"]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_is_130_and_the_run_can_be_continued(tmp_path):
    command = [sys.executable, "-m", "sdplip", "train", "--layer", "aol", "--width", "8"]
    command += ["--depth", "1", "--out", "run", "--images", "30"]
    environment = os.environ | {"PYTHONWARNINGS": "default"}
    process = subprocess.Popen(
        [*command, "--epochs", "100000"], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell starts what it runs in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    state = tmp_path / "run" / "last.ckpt"
    deadline = time.monotonic() + 60
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and "interrupted" in err and "Traceback" not in err
    assert state.is_file() and not (tmp_path / "run" / ".lock").exists()


def test_the_module_runs_and_help_needs_no_heavy_import():
    code = (
        "import sys\nfrom sdplip.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'torch', 'lightning', 'cvxpy', 'sympy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_solver_that_gives_up_exits_with_3(cli, net):
    """A solver of linear programs cannot take the semidefinite one."""
    result = cli("verify", net[0], "--method", "HIGHS")
    assert result.exit_code == 3
    assert "method='interior'" in result.stderr


def test_an_edited_certificate_is_refused_in_json_too(cli, net, tmp_path):
    certificate = tmp_path / "net.cert.json"
    assert cli("verify", net[0], "--out", certificate).exit_code == 0
    certificate.write_text(certificate.read_text().replace('"units": 6', '"units": 7'))
    result = cli("check", certificate, net[0], "--json")
    assert result.exit_code == 1
    answer = one_document(result)
    assert answer["holds"] is False and "edited" in answer["reason"]


def test_verify_prints_every_digit_and_refuses_a_missing_folder_first(cli, net, tmp_path):
    bound = sdplip.lipschitz(net[1]).bound
    assert repr(bound) in cli("verify", net[0]).stdout
    result = cli("verify", net[0], "--out", tmp_path / "none" / "c.json")
    assert result.exit_code == 2 and "no directory" in result.stderr


def test_a_trained_run_can_be_checked_from_its_files(cli, tmp_path):
    assert cli("train", "--layer", "aol", *SMALL, "--out", tmp_path / "run").exit_code == 0
    certificate = tmp_path / "run" / "certificate-2.json"
    assert cli("check", certificate, tmp_path / "run").exit_code == 0
    assert (
        cli("train", "--layer", "aol", *SMALL, "--seed", 1, "--out", tmp_path / "2").exit_code == 0
    )
    assert cli("check", certificate, tmp_path / "2").exit_code == 1
