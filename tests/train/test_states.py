"""Training states on disk: where they lie, what is in them, and when training stops."""

import os
import random
import resource
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from small_runs import quick

from sdplip.errors import InvalidInput
from sdplip.train import load, train
from sdplip.train.checkpoint import STATES
from sdplip.train.state import PREVIOUS_FILE, RESUME_FILE, Recorder


@pytest.fixture(scope="module")
def splits():
    return load("digits").first(100)


def few(splits, layer="aol", **changes):
    return quick(layer, splits, **{"epochs": 3, "batch_size": 32} | changes)


def after(epoch, do):
    return lambda done, metrics: do() if done == epoch else None


def stop():
    raise KeyboardInterrupt


def send(number):
    return lambda: os.kill(os.getpid(), number)


def begun(config, splits, folder, do=stop, epoch=2, **more):
    """A training that stops as the epoch ends, and its state."""
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, resume_dir=folder, on_epoch=after(epoch, do), **more)
    return torch.load(folder / RESUME_FILE, weights_only=True)


def same(one, other):
    weights = other.model.state_dict()
    different = [k for k, v in one.model.state_dict().items() if not torch.equal(v, weights[k])]
    return one.history == other.history and not different


# --- where they lie ---


@pytest.mark.parametrize("name", ["ü ℓ₂ 日本", "a::b", "http", "file:x"])
def test_any_folder_will_do(name, splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, config = Path(name), few(splits)
    folder.mkdir()
    begun(config, splits, folder, tensorboard=folder / "tensorboard")
    assert same(train(config, splits, resume_dir=folder), train(config, splits))
    assert list((folder / "tensorboard").glob("events.*"))


def test_states_take_no_room_elsewhere(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    begun(few(splits), splits, tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(splits, tmp_path):
    for name in STATES:
        (tmp_path / f".{name}.123.tmp.ckpt").write_bytes(b"half")
    train(few(splits, epochs=2), splits, resume_dir=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {RESUME_FILE, PREVIOUS_FILE}


def test_a_full_disk_is_said_and_leaves_the_state_before(splits, tmp_path):
    config = few(splits)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))

    try:
        with pytest.raises(InvalidInput, match=r"cannot be written.*File too large.*Make room"):
            train(config, splits, resume_dir=tmp_path, on_epoch=after(2, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [RESUME_FILE]
    assert same(train(config, splits, resume_dir=tmp_path), train(config, splits))


# --- what is in them ---


@pytest.mark.parametrize("changes", [{"lr": 0.1}, {"width": 9}, {"seed": 1}])
def test_the_state_of_another_run_is_refused(changes, splits, tmp_path):
    begun(few(splits), splits, tmp_path)
    with pytest.raises(InvalidInput, match="state of another run"):
        train(few(splits, **changes), splits, resume_dir=tmp_path)


def test_other_images_are_another_run(splits, tmp_path):
    begun(few(splits), splits, tmp_path)
    with pytest.raises(InvalidInput, match="number of images"):
        train(few(splits), splits.first(90), resume_dir=tmp_path)


class Bomb:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place / "exploded",))


@pytest.mark.parametrize("content", ["empty", "noise", "torn", "list", "code"])
def test_what_is_no_state_starts_anew(content, splits, tmp_path):
    config = few(splits)
    begun(config, splits, tmp_path)
    last, previous = tmp_path / RESUME_FILE, tmp_path / PREVIOUS_FILE
    previous.unlink(missing_ok=True)
    if content == "list":
        torch.save([1, 2], last)
    elif content == "code":
        torch.save({"run": Bomb(tmp_path)}, last)
    else:
        whole = last.read_bytes()
        noise = random.Random(0).randbytes(len(whole))
        last.write_bytes({"empty": b"", "noise": noise, "torn": whole[:-300]}[content])
    seen = []
    with pytest.warns(UserWarning, match="no training state that can be read"):
        train(config, splits, resume_dir=tmp_path, on_epoch=lambda k, metrics: seen.append(k))
    assert seen == [1, 2, 3] and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("epoch_so_far"),
        lambda state: state.pop("state_dict"),
        lambda state: state["state_dict"].popitem(),
        lambda state: state.update(loops=3),
    ],
)
def test_a_state_with_parts_missing_is_named(damage, splits, tmp_path):
    config = few(splits)
    state = begun(config, splits, tmp_path)
    damage(state)
    torch.save(state, tmp_path / RESUME_FILE)
    with pytest.raises(InvalidInput, match=r"last\.ckpt is no state of this run"):
        train(config, splits, resume_dir=tmp_path)


# --- when training stops ---


@pytest.mark.parametrize(
    "layer, changes",
    [
        ("lben", {"ema": 0.9, "precision": "bf16-mixed"}),
        ("nemon", {"accumulate": 3, "schedule": "step"}),
        ("mon", {"gamma": 2.0, "schedule": "onecycle"}),
        ("cpl", {"augment": "crop", "ema": 0.9, "accumulate": 2}),
        ("sandwich", {"optimizer": "sgd", "nesterov": True}),
    ],
)
def test_stopped_within_epochs_it_ends_the_same(layer, changes, splits, tmp_path, monkeypatch):
    config, start = few(splits, layer, **changes), Recorder.on_train_batch_start
    batches = []

    def counted(*given):
        batches.append(given)
        # Of four in an epoch: the first, the one before the last, and the very last.
        if len(batches) in (1, 7, 12):
            os.kill(os.getpid(), signal.SIGINT)
        start(*given)

    whole = train(config, splits)
    monkeypatch.setattr(Recorder, "on_train_batch_start", counted)
    seen = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(config, splits, resume_dir=tmp_path)
        state = torch.load(tmp_path / RESUME_FILE, weights_only=True)
        seen.append(state["epoch_so_far"]["seen"])
    # Gradients that pile up are not in a state; an epoch's last batch always ends a step.
    piled = config.train.accumulate
    assert seen == [{1: 1, 2: 2, 3: 3}[piled], {1: 3, 2: 0, 3: 3}[piled], 0]
    assert same(train(config, splits, resume_dir=tmp_path), whole) and len(batches) == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_before_the_next_batch_and_after_the_last(number, splits, tmp_path):
    config = few(splits)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    begun(config, splits, tmp_path, send(number), epoch=2)
    begun(config, splits, tmp_path, send(number), epoch=3)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    seen = []
    ended = train(config, splits, resume_dir=tmp_path, on_epoch=lambda k, m: seen.append(k))
    assert seen == [] and same(ended, train(config, splits))


def test_piling_up_more_batches_than_there_are_still_hears_a_signal(splits, tmp_path):
    config = few(splits, accumulate=1000)
    state = begun(config, splits, tmp_path, send(signal.SIGINT), epoch=1)
    assert len(state["callbacks"]["Recorder"]["history"]) == 1
    assert same(train(config, splits, resume_dir=tmp_path), train(config, splits))
