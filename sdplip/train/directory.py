"""The directory of a run, and of several: what lies in it, who holds it, what it can take.

RUN/<layer>/config.json        what was asked for, written first
RUN/<layer>/model.safetensors  the trained model
RUN/<layer>/certificate-2.json  what proves the verified bound, for `sdplip check` (also -inf)
RUN/<layer>/pairs/2-0-1.json   that of the classes 0 and 1, where pairs are bounded one by one
RUN/<layer>/local/2-7-0-1.json  around test image 7, on the largest ball on which it is needed
RUN/<layer>/metrics.json       rows, history, versions; written last: its presence means done
RUN/compare.json, *.png, *.svg
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InvalidInput
from .checkpoint import MODEL_FILE, STATES, read_json
from .config import RunConfig
from .evaluation.row import Row
from .evaluation.verified import AROUND, CERTIFICATES, PAIRS
from .models import parameters

FORMAT = "sdplip-run-1"
LOCK, GUARD = ".lock", ".guard"
"""Who holds a directory, and the file that the system locks for it."""
LEAST = 2 << 20
"""Bytes that even the smallest run may need."""
TENSORBOARD = "tensorboard"
PROOFS = (PAIRS, AROUND)
"""Folders of certificates."""
RUN_FILES = ("metrics.json", MODEL_FILE, *CERTIFICATES.values(), *STATES, "config.json")


def prepare(config: RunConfig, out: Path, *, force: bool = False, resume: bool = True) -> None:
    """Make sure `out` can take a run of `config`; with `force`, by removing what is there.

    Raises InvalidInput before anything is trained, showing how the configurations differ.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InvalidInput(f"{out} is a file. Give --out a directory.")
    if not (out / "config.json").is_file():
        if any(p.name not in (LOCK, GUARD) and not _cut_short(p) for p in out.iterdir()):
            raise InvalidInput(
                f"{out} is not empty and holds no run. Give --out another directory."
            )
        return
    stored = read_json(out / "config.json")
    if not isinstance(stored, dict) or not {"model", "train"} <= stored.keys():
        raise InvalidInput(
            f"{out / 'config.json'} is not that of a run. Give --out another directory."
        )
    if force:
        with claimed(out):
            for path in [*(out / name for name in RUN_FILES), *filter(_cut_short, out.iterdir())]:
                path.unlink(missing_ok=True)
            for folder in (TENSORBOARD, *PROOFS):
                shutil.rmtree(out / folder, ignore_errors=True)
        return
    if different := _differences(_completed(stored), config.to_dict()):
        raise InvalidInput(
            f"{out} holds a run of another configuration ({different}). "
            "Give --out another directory, or --force to start over."
        )
    if not resume and not (out / "metrics.json").is_file():
        raise InvalidInput(
            f"{out} holds an interrupted run. "
            "Add --resume to continue it, or --force to start over."
        )


def written(out: Path) -> Iterator[Path]:
    """The files of a run."""
    for pattern in (*RUN_FILES, *(f"{folder}/*.json" for folder in PROOFS)):
        yield from out.glob(pattern)


def folder_name(name: str) -> str:
    """A run's name as that of a directory: letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.]+", "-", name.replace("γ=", "gamma-")).strip("-")


def read_rows(out: Path) -> list[Row]:
    """Of a finished run; InvalidInput where its metrics are not such."""
    metrics = read_json(out / "metrics.json")
    try:
        if metrics["format"] != FORMAT:
            raise InvalidInput(
                f"{out} has format {metrics['format']!r}, not {FORMAT!r}. "
                "Add --force to start over."
            )
        return [Row.from_dict(row) for row in metrics["rows"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(
            f"{out / 'metrics.json'} is no run's metrics: {error!r}. Add --force to start over."
        ) from error


def _completed(stored: Any) -> Any:
    """A stored configuration with the entries that came later, whose defaults are what was done."""
    try:
        return RunConfig.from_dict(stored).to_dict()
    except InvalidInput:
        return stored


def make_room(config: RunConfig, out: Path) -> None:
    """Create `out`; InvalidInput where nothing can be written, or too little fits."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InvalidInput(
            f"{out} cannot be written to ({error.strerror}). Give --out another directory."
        ) from error
    # The model, and three training states with weights, up to two moments and an average each.
    numbers = 13 if config.train.ema else 10
    needed = max(4 * numbers * parameters(config.model), LEAST)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise InvalidInput(
            f"{out} has {free / 1e6:.0f} MB left, but the run may need {needed / 1e6:.0f} MB. "
            "Make room, or give --out another directory."
        )


def _differences(stored: Any, wanted: Any, path: str = "") -> str:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*wanted, *stored])
        parts = [
            _differences(stored.get(k, "absent"), wanted.get(k, "absent"), f"{path}.{k}")
            for k in keys
        ]
        return "; ".join(part for part in parts if part)
    return "" if stored == wanted else f"{path.lstrip('.')}: {stored} there, {wanted} asked"


def _cut_short(path: Path) -> bool:
    """Whether this is a file that a process was writing when it was killed."""
    return re.match(r"\..*\.tmp", path.name) is not None


def clear(out: Path) -> None:
    """Remove the training states of a finished run, which one killed at its end has left."""
    if any((out / name).exists() for name in STATES):
        with suppress(InvalidInput), claimed(out):
            for name in STATES:
                (out / name).unlink(missing_ok=True)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the directory; the system lets go of it when the process ends, however it does."""
    guard, lock = FileLock(out / GUARD, timeout=0), out / LOCK
    try:
        guard.acquire()
    except Timeout:
        owner = lock.read_text(encoding="utf-8").strip() if lock.is_file() else "another"
        raise InvalidInput(
            f"{out} is in use by process {owner}. Wait for it, or give --out another directory."
        ) from None
    try:
        lock.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.unlink(missing_ok=True)
        guard.release()
