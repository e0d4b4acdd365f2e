"""Several processes that share a training: they stop together, and leave nothing behind."""

import json
import os
import subprocess
import sys

import pytest
from small_runs import quick

from sdplip.train import load, train
from sdplip.train.processes import launched, leads, together

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from small_runs import quick
from sdplip.train import load
from sdplip.train import train

out, rank = Path(sys.argv[1]), os.environ["RANK"]
torch.set_num_threads(1)
(out / f"{rank}.pid").write_text(str(os.getpid()))
splits = load("digits").first(100)
config = quick("aol", splits, epochs=3, batch_size=32)
said = {}

def attempt(name, **more):
    try:
        said[name] = train(config, splits, **more).history
    except (KeyboardInterrupt, ArithmeticError) as error:
        said[name] = type(error).__name__
    threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    assert not [thread for thread in threads if "gloo" in thread], threads
    assert not torch.distributed.is_initialized()

def interrupt_the_other(epoch, metrics):
    os.kill(int((out / "1.pid").read_text()), signal.SIGINT)

def fail(epoch, metrics):
    if epoch == 3:
        raise ArithmeticError

attempt("interrupted", resume_dir=out, on_epoch=interrupt_the_other)
attempt("resumed", resume_dir=out)
attempt("failed", on_epoch=fail)
(out / f"{rank}.json").write_text(json.dumps(said))
"""


def test_they_stop_together_and_no_thread_outlives_the_training(tmp_path):
    """Threads of a group that is left to the interpreter's end abort the process now and then."""
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "script.py"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01")
    assert first["interrupted"] == second["interrupted"] == "KeyboardInterrupt"
    assert first["resumed"] == second["resumed"] and first["failed"] == "ArithmeticError"
    splits = load("digits").first(100)
    alone = train(quick("aol", splits, epochs=3, batch_size=32), splits).history
    for entry, expected in zip(first["resumed"], alone, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_only_torchrun_shares_a_training(monkeypatch):
    """Clusters set some of these variables for processes that know nothing of each other."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not launched() and together() == (1, 1) and leads()
    splits = load("digits").first(40)
    assert len(train(quick("aol", splits, epochs=1), splits).history) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert launched() and together() == (3, 2) and not leads()
