"""Sweeps: the same table from one process and from a Ray cluster that loses a worker."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sdplip._engine import scatter
from sdplip.errors import InvalidInput

WORDS = "--layers sll,aol,cpl,orthogonal,spectral,sandwich,unconstrained,torch-spectral"
RUNS = 8


def sweep(out, *more):
    options = f"--width 8 --depth 1 --epochs 6 --images 40 --attack-images 20 {WORDS}".split()
    command = [sys.executable, "-m", "sdplip", "compare", *options, "--no-verify", "--out", out]
    return subprocess.Popen([*map(str, command), *more], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def finished(process):
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said


def rows(folder):
    found = json.loads((folder / "compare.json").read_text())["rows"]
    assert len(found) == len({row["layer"] for row in found}) == RUNS
    return {row["layer"]: (row["clean"], row["certified"], row["attacked"]) for row in found}


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_same_table(tmp_path):
    pytest.importorskip("ray")
    alone = sweep(tmp_path / "alone", "--threads", "1")
    finished(alone)
    process = sweep(tmp_path / "ray", "--engine", "ray")
    killed, deadline = None, time.monotonic() + 200
    while killed is None and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for lock in (tmp_path / "ray").glob("*/.lock"):
            text = lock.read_text() if lock.exists() else ""
            # A worker in the middle of its run, not the process that was started above.
            if text.isdigit() and int(text) != process.pid and (lock.parent / "last.ckpt").exists():
                killed = int(text)
                os.kill(killed, signal.SIGKILL)
                break
        time.sleep(0.01)
    assert killed is not None
    finished(process)
    assert rows(tmp_path / "ray") == rows(tmp_path / "alone")


def test_local_tasks_run_in_order_and_engines_are_known():
    assert list(scatter(divmod, [(2,), (3,)], shared=7)) == [(0, (3, 1)), (1, (2, 1))]
    with pytest.raises(InvalidInput, match="'slurm'"):
        list(scatter(divmod, [], engine="slurm"))
    with pytest.raises(InvalidInput, match="address"):
        list(scatter(divmod, [], address="auto"))
