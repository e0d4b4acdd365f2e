"""Training that one can leave alone: killed, interrupted, damaged, shared between processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import quick

from sdplip.errors import InvalidInput
from sdplip.train import build, train
from sdplip.train.checkpoint import STATES
from sdplip.train.manifest import checksum
from sdplip.train.runs import run
from sdplip.train.state import PREVIOUS_FILE, RESUME_FILE, Batches, KeepState

SMALL = {"layer": "sll", "width": 16, "depth": 1, "epochs": 4, "batch-size": 8, "threads": 1}
SMALL |= {"images": 40, "attack-images": 10}


def command(out, *more):
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    return [sys.executable, "-m", "sdplip", "train", *words, "--no-verify", f"--out={out}", *more]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    subprocess.run(command(out), check=True, capture_output=True)
    return load_file(out / "model.safetensors"), json.loads((out / "metrics.json").read_text())


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def finished_as(straight, out):
    weights, metrics = straight
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    after = json.loads((out / "metrics.json").read_text())
    assert after["history"] == metrics["history"]
    assert not [name for name in STATES if (out / name).exists()]


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_or_interrupted_it_ends_where_it_would_have(number, code, straight, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(out / RESUME_FILE, process)
    process.send_signal(number)
    assert process.wait(60) == code
    assert not (out / "metrics.json").exists()
    subprocess.run(command(out), check=True, capture_output=True)
    finished_as(straight, out)


def test_a_damaged_state_gives_way_to_the_one_before(splits, tmp_path):
    config = quick("aol", splits, epochs=4)
    whole = train(config, splits)

    def interrupt(epoch, metrics):
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, splits, resume_dir=tmp_path, on_epoch=interrupt)
    last = tmp_path / RESUME_FILE
    last.write_bytes(last.read_bytes()[:1000])
    before = tmp_path / PREVIOUS_FILE
    with pytest.warns(UserWarning, match="can be read"):
        run = torch.load(before, weights_only=True)["run"]
        assert KeepState(tmp_path).latest(run) == before
    with pytest.warns(UserWarning, match="can be read"):
        resumed = train(config, splits, resume_dir=tmp_path)
    assert resumed.history == whole.history


def test_two_processes_learn_what_one_does_from_the_joint_batch(straight, tmp_path):
    """The last batch, of an odd number of images, is shared unevenly."""
    out = tmp_path / "run"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sdplip"]
    words = [sys.executable, "-m", *launcher, *command(out)[3:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, capture_output=True, env=environment, timeout=200)
    weights, metrics = straight
    history = json.loads((out / "metrics.json").read_text())["history"]
    for together, alone in zip(history, metrics["history"], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=3e-3)
    found = load_file(out / "model.safetensors")
    # Adam divides by the size of a gradient, so that rounding counts where that is small.
    for key, value in weights.items():
        if value.is_floating_point():
            assert (found[key] - value).norm() <= 1e-2 * value.norm(), key


def test_the_shares_of_a_batch_are_the_batch():
    data = (torch.arange(13.0)[:, None], torch.arange(13))
    whole = list(Batches(data, 5, seed=3))
    parts = [list(Batches(data, 5, 3, 0, rank, 4)) for rank in range(4)]
    for step, (_, labels, _, share) in enumerate(whole):
        assert share == 1.0
        mean = sum(part[step][3] * part[step][1].double().mean() / 4 for part in parts)
        assert float(mean) == pytest.approx(float(labels.double().mean()))
    assert [b[1].tolist() for b in Batches(data, 5, 3, first=1)] == [
        b[1].tolist() for b in whole[1:]
    ]


def test_piling_up_two_batches_is_one_step_of_the_joint_one(splits):
    few = splits.first(128)
    joint = quick("orthogonal", splits, epochs=1, batch_size=128, schedule="constant")
    halves = quick("orthogonal", splits, epochs=1, batch_size=64, accumulate=2, schedule="constant")
    one, two = (train(c, few).model.state_dict() for c in (joint, halves))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_the_average_lies_between_start_and_end_and_resumes(splits, tmp_path):
    config = quick("aol", splits, epochs=2, ema=0.9)
    plain = quick("aol", splits, epochs=2)
    averaged, last = train(config, splits).model, train(plain, splits).model
    first = build(plain.model, seed=0)
    pairs = list(zip(first.parameters(), averaged.parameters(), last.parameters(), strict=True))
    assert all((m - z).norm() < (a - z).norm() for a, m, z in pairs)

    def interrupt(epoch, metrics):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, splits, resume_dir=tmp_path, on_epoch=interrupt)
    resumed = train(config, splits, resume_dir=tmp_path).model
    for p, q in zip(resumed.parameters(), averaged.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_cannot_be_written_is_known_before_training(splits, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"):
        run(quick("aol", splits), splits, tmp_path / "file" / "run")
    wide = quick("unconstrained", splits, width=2**20, depth=3)
    with pytest.raises(InvalidInput, match="MB left"):
        run(wide, splits, tmp_path / "run")


def test_the_manifest_names_data_machine_and_versions(splits, tmp_path):
    out = run(quick("aol", splits), splits, tmp_path / "aol", tensorboard=True).path
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data_sha256"] == checksum(splits) and len(metrics["data_sha256"]) == 64
    assert {"commit", "platform", "device"} <= metrics.keys()
    assert metrics["threads"] == metrics["processes"] == 1
    assert {"python", "sdplip", "torch", "pillow", "scikit-learn"} <= metrics["versions"].keys()
    for changed in range(4):
        parts = [tensor.clone() for tensor in (*splits.train, *splits.test)]
        entry = parts[changed].view(-1)[3:4]
        entry.copy_((entry + 1) % 10)
        other = replace(splits, train=tuple(parts[:2]), test=tuple(parts[2:]))
        assert checksum(other) != checksum(splits)
    assert list((out / "tensorboard").glob("events.*"))
