"""`sdplip verify` and `sdplip check`: every kind of file, region and pair, as typed."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import sdplip
from sdplip.cli import app
from sdplip.convolutional import Activate, Convolve


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def net(tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(6, 4)), rng.normal(size=(5, 6)), rng.normal(size=(3, 5))]
    system = sdplip.System.feedforward(weights, [rng.normal(size=len(W)) for W in weights])
    system.save(tmp_path / "net.npz")
    return system


def document(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_region_gives_a_smaller_bound_that_checks(call, net):
    np.save("x.npy", np.zeros(4))
    everywhere = document(call("verify", "net.npz", "--json"))
    for shape in ([], ["--ball"]):
        words = ["verify", "net.npz", "--local", "x.npy", "--radius", "0.05", *shape]
        here = document(call(*words, "--certificate", "local.json", "--json"))
        assert here["bound"] < everywhere["bound"] and here["lower"] <= here["bound"]
        assert "region" in call("check", "local.json", "net.npz").stdout
        other = json.loads((call("check", "local.json", "net.npz", "--json")).stdout)
        assert other["holds"] and other["bound"] == here["bound"]
        kind = "ball of radius" if shape else "box of half-width"
        assert other["region"] == here["region"] == f"{kind} 0.05 around (0, 0, 0, …)"
        assert f"region       {here['region']}" in call(*words).stdout
    assert call("verify", "net.npz", "--radius", "1").exit_code == 2
    assert call("verify", "net.npz", "--local", "x.npy").exit_code == 2
    assert call("verify", "net.npz", "--local", "net.npz", "--radius", "1").exit_code == 2


def test_check_runs_the_independent_checker_on_whatever_is_read(call, net, monkeypatch):
    """Which may not be able to, and has a say of its own."""
    torch.save({f"{i}.weight": torch.rand(3, 3) - 0.5 for i in range(3)}, "net.pt")
    relu = ["--activation", "relu"]
    for name, more in {"net.npz": [], "net.pt": relu}.items():
        assert call("verify", name, *more, "--certificate", "c.json").exit_code == 0
        said = call("check", "c.json", name, *more)
        assert said.exit_code == 0 and "independent checker: proven: |f(x)" in said.stdout
    loop = sdplip.System.equilibrium(0.3 * np.eye(2), np.eye(2), np.eye(2))
    loop.save("loop.npz")
    np.save("x.npy", np.zeros(2))
    local = ["--local", "x.npy", "--radius", "0.1"]
    assert call("verify", "loop.npz", *local, "--certificate", "c.json").exit_code == 0
    found = document(call("check", "c.json", "loop.npz", "--json"))
    assert found["holds"] and found["independent"] is None
    assert "not supported" in call("check", "c.json", "loop.npz").stdout
    monkeypatch.setattr("sdplip.cli._verify.CHECKED", 3)
    assert "not run" in call("check", "c.json", "loop.npz").stdout


def test_a_no_of_the_independent_checker_counts(call, net, monkeypatch):
    from sdplip import verify

    assert call("verify", "net.npz", "--certificate", "c.json").exit_code == 0
    half = sdplip.Certificate.load("c.json")
    replace(half, bound=half.bound / 2, lower=None).save("c.json")
    monkeypatch.setattr(verify, "check", lambda certificate, network: certificate)
    said = call("check", "c.json", "net.npz")
    assert said.exit_code == 1
    assert "independent checker says not proven: the condition is not shown" in said.stdout


def test_every_pair_of_classes_has_a_certificate(call, net, tmp_path):
    (tmp_path / "pairs").mkdir()
    words = ("verify", "net.npz", "--per-class", "--certificate", "pairs")
    found = document(call(*words, "--json"))
    assert [values["classes"] for values in found] == [[0, 1], [0, 2], [1, 2]]
    whole = sdplip.lipschitz(net).bound
    for values in found:
        assert values["bound"] <= whole * 2**0.5 * (1 + 1e-6)
        assert call("check", values["certificate"], "net.npz").exit_code == 0
    assert "0, 2" in call(*words).stdout


def test_several_networks_stand_in_one_table_and_the_worst_decides(call, net):
    net.save("second.npz")
    result = call("verify", "net.npz", "nowhere.npz", "second.npz", "--json")
    assert result.exit_code == 2 and "nowhere.npz" in result.stderr
    found = json.loads(result.stdout)
    assert [values["bound"] is None for values in found] == [False, True, False]
    assert found[0]["bound"] == found[2]["bound"]
    assert "failed" in call("verify", "net.npz", "nowhere.npz").stdout


def test_a_table_says_what_its_bounds_are_about(call, net):
    net.save("second.npz")
    np.save("x.npy", np.zeros(4))
    words = ["verify", "net.npz", "second.npz"]
    assert "in norm inf, everywhere" in call(*words, "--norm", "inf").stdout
    local = [*words, "--local", "x.npy", "--radius", "0.5", "--ball"]
    assert (
        "in norm 2, in the ball of radius 0.5 around (0, 0, 0, …): nothing" in call(*local).stdout
    )
    assert "in norm" not in call("verify", "nowhere.npz", "nor-here.npz").stdout


def test_no_certificate_overwrites_another(call, net, tmp_path):
    for folder in ("certs", "a"):
        (tmp_path / folder).mkdir()
    for path in ("a/b.npz", "a-b.npz"):
        net.save(path)
    result = call("verify", "a/b.npz", "a-b.npz", "--certificate", "certs")
    assert result.exit_code == 2 and "one by one" in result.stderr
    assert not any((tmp_path / "certs").iterdir())


def test_a_directory_is_no_certificate_and_a_seed_is_a_whole_number(call, net, tmp_path):
    result = call("verify", "net.npz", "--certificate", tmp_path)
    assert result.exit_code == 2 and "Name a file" in result.stderr and not result.stdout
    for seed in (-1, 2**64, 0.5):
        assert call("verify", "net.npz", "--seed", seed).exit_code == 2


def test_pipes_and_devices_are_refused_before_they_are_read(call, net, tmp_path):
    assert call("verify", "net.npz", "--no-lower", "--certificate", "c.json").exit_code == 0
    os.mkfifo("pipe")
    os.symlink("pipe", "pipe.npz")
    os.symlink("/dev/zero", "zero.npz")
    for words in (
        ("check", "pipe", "net.npz"),
        ("check", "/dev/zero", "net.npz"),
        ("check", "c.json", "pipe.npz"),
        ("check", "c.json", "zero.npz"),
        ("verify", "pipe.npz"),
        ("verify", "net.npz", "--local", "pipe", "--radius", "1"),
    ):
        result = call(*words)
        assert result.exit_code == 2 and "neither a file nor a directory" in result.stderr
        assert not result.stdout


def test_json_is_alone_on_stdout_whatever_is_found(call, net):
    rng = np.random.default_rng(1)
    other = sdplip.System.feedforward([rng.normal(size=(6, 4)), rng.normal(size=(3, 6))])
    other.save("other.npz")
    assert call("verify", "net.npz", "--certificate", "c.json").exit_code == 0
    os.symlink("net.npz", "link.npz")
    assert document(call("check", "c.json", "link.npz", "--json"))["holds"]
    wrong = call("check", "c.json", "other.npz", "--json")
    assert wrong.exit_code == 1 and not json.loads(wrong.stdout)["holds"]
    for words in (("c.json", "nowhere.npz"), ("c.json", "."), ("nowhere.json", "net.npz")):
        missing = call("check", *words, "--json")
        assert missing.exit_code == 2 and not missing.stdout and missing.stderr


def test_the_certificates_of_runs_keep_their_dots(call, tmp_path):
    for name in ("lr-0.1", "lr-0.2"):
        (tmp_path / name).mkdir()
    (tmp_path / "certs").mkdir()
    # Both are empty: what matters is that their names do not clash.
    result = call("verify", "lr-0.1", "lr-0.2", "--certificate", "certs")
    assert result.exit_code == 2 and "one by one" not in result.stderr


def test_a_method_that_is_none_is_named_as_it_was_typed(call, net):
    result = call("verify", "net.npz", "--method", "Magic")
    assert result.exit_code == 2 and "method = 'Magic' is not known" in result.stderr


@pytest.mark.parametrize("method", ["interior", "chain", "descent", "layerwise", "clarabel"])
def test_methods_by_name(call, net, method):
    found = document(call("verify", "net.npz", "--method", method, "--json", "--no-lower"))
    assert found["method"].lower() == method and found["proven"]
    assert found["bound"] >= sdplip.lipschitz(net).optimum * (1 - 1e-9)


def test_a_state_dict_is_read_with_a_warning_and_an_activation(call, net):
    levels = [torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)]
    model = torch.nn.Sequential(levels[0], torch.nn.ReLU(), levels[1])
    save_file(model.state_dict(), "model.safetensors")
    result = call("verify", "model.safetensors", "--activation", "relu", "--json")
    assert document(result)["bound"] == pytest.approx(sdplip.lipschitz(model).bound, rel=1e-8)
    assert result.stderr.startswith("warning:")
    scaled = call(
        "verify", "model.safetensors", "--activation", "relu", "--normalise", "0.3,0.5", "--json"
    )
    assert document(scaled)["bound"] == pytest.approx(2 * document(result)["bound"], rel=1e-7)
    assert call("verify", "model.safetensors", "--normalise", "a,b").exit_code == 2
    words = ["model.safetensors", "--activation", "relu", "--normalise", "0.3,0.5"]
    assert call("verify", *words, "--certificate", "scaled.json").exit_code == 0
    assert call("check", "scaled.json", *words).exit_code == 0
    assert call("check", "scaled.json", *words[:3]).exit_code == 1


def test_convolutions_are_verified_and_checked(call, tmp_path):
    rng = np.random.default_rng(1)
    stages = (
        Convolve(rng.normal(size=(3, 1, 3, 3))),
        Activate(),
        Convolve(rng.normal(size=(2, 3, 3, 3))),
    )
    sdplip.ConvSystem(stages, 1, (6, 6)).save(tmp_path / "conv.npz")
    words = ("verify", "conv.npz", "--certificate", "conv.json", "--json")
    coarse = document(call(*words, "--method", "frequency"))
    assert coarse["lower"] <= coarse["bound"] and coarse["method"] == "frequency"
    assert call("check", "conv.json", "conv.npz").exit_code == 0
    assert "is unknown" in call("verify", "conv.npz", "--method", "frequency").stdout
    content = (tmp_path / "conv.json").read_text()
    (tmp_path / "conv.json").write_text(content.replace('"units": 1', '"units": 2'))
    assert call("check", "conv.json", "conv.npz").exit_code == 1
    for more in ((), ("--norm", "inf")):
        found = document(call(*words, *more))
        assert found["method"].endswith(", unrolled") and found["lower"] <= found["bound"]
        assert more or found["bound"] < coarse["bound"]
        assert call("check", "conv.json", "conv.npz").exit_code == 0
    assert call("verify", "conv.npz", "--norm", "inf", "--method", "frequency").exit_code == 2


def test_pairs_share_the_time_limit_and_errors_name_their_file_once(call, net):
    found = document(call("verify", "net.npz", "--per-class", "--time-limit", "1e-3", "--json"))
    best = document(call("verify", "net.npz", "--per-class", "--json"))
    for early, late in zip(found, best, strict=True):
        assert early["classes"] == late["classes"] and early["bound"] >= late["bound"]
    np.savez("nan.npz", W0=[[np.nan]])
    said = call("verify", "nan.npz", "net.npz").stderr
    assert said.startswith("error: nan.npz: W0 contains nan")


@pytest.mark.slow
def test_a_cluster_gives_the_same_certificates(net, tmp_path):
    """Also where one network fails, and one cannot be read; the files lie only here."""
    pytest.importorskip("ray")
    net.save(tmp_path / "second.npz")
    n, turned = 3, np.array([[0.0, 5.0, 0.0], [-5.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    sdplip.System.equilibrium(turned, np.eye(n), np.eye(n)).save(tmp_path / "ill-posed.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK")
    models = ["second.npz", "ill-posed.npz", "torn.npz", "net.npz"]
    told = {}
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        words = ["verify", *models, "--json", "--engine", engine, "--certificate", engine]
        done = subprocess.run(
            [sys.executable, "-m", "sdplip", *words], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "ill-posed.npz: " in done.stderr and "torn.npz" in done.stderr
        told[engine] = json.loads(done.stdout)
    assert [values["model"] for values in told["ray"]] == models
    assert [values["bound"] is None for values in told["ray"]] == [False, True, True, False]
    varying = {"seconds", "certificate"}
    for here, there in zip(told["local"], told["ray"], strict=True):
        assert {k: v for k, v in here.items() if k not in varying} == {
            k: v for k, v in there.items() if k not in varying
        }
    for values in (told["ray"][0], told["ray"][3]):
        certificate = sdplip.Certificate.load(tmp_path / values["certificate"])
        sdplip.check(certificate, net)
