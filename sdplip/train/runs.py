"""Run directories: one per trained model, and one that compares several.

RUN/<layer>/config.json        what was asked for, written first
RUN/<layer>/model.safetensors  the trained model
RUN/<layer>/certificate-2.json  what proves the verified bound, for `sdplip check` (also -inf)
RUN/<layer>/metrics.json       rows, history, versions; written last: its presence means done
RUN/compare.json, *.png, *.svg
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from .._arrays import write_atomically
from .._engine import scatter
from ..errors import InvalidInput, NotConverged
from .checkpoint import MODEL_FILE, STATES, read_json, save_model, write_json
from .config import RunConfig
from .data import Splits, pixels
from .evaluation.evaluate import evaluate
from .evaluation.insight import insight
from .evaluation.row import Row
from .manifest import manifest
from .models import DENSE, parameters
from .processes import launched, leads
from .reporting.tables import document

if TYPE_CHECKING:
    from .experiments.budget import Budget

FORMAT = "sdplip-run-1"
LOCK, GUARD = ".lock", ".guard"
"""Who holds a directory, and the file that the system locks for it."""
CERTIFICATES = {2.0: "certificate-2.json", math.inf: "certificate-inf.json"}
LEAST = 2 << 20
"""Bytes that even the smallest run may need."""
INSIDE = 128
"""Test images on which a model's inside is looked at; of a convolutional one IMAGES_INSIDE."""
IMAGES_INSIDE = 8
TENSORBOARD = "tensorboard"
RUN_FILES = ("metrics.json", MODEL_FILE, *CERTIFICATES.values(), *STATES, "config.json")


@dataclass(frozen=True)
class Finished:
    """A finished run: its rows, where it lies, and whether it was there before.

    One that `compare` goes on without has no rows, but `failed` says why.
    """

    rows: list[Row]
    path: Path
    already: bool
    failed: str = ""


OnEpoch = Callable[[str, RunConfig, int, dict[str, float]], None]
"""Told a run's name, its configuration, the epoch that has ended, and how it went."""


def run(
    config: RunConfig,
    splits: Splits,
    out: Path,
    *,
    device: str = "auto",
    force: bool = False,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
    variant: str = "",
    published: dict[str, float] | None = None,
    source: str = "",
    tensorboard: bool = False,
) -> Finished:
    """Train and evaluate one model in the directory `out`.

    A finished run of the same configuration is read back; an interrupted one continues, to the
    result it would have had. Its rows are named by `variant`, and carry what was `published` in
    `source` for the same model. `force` starts over. Raises InvalidInput when the directory holds a
    run of another configuration, is in use by another process, or is interrupted and `resume` is
    False, and when there are fewer training images than asked for.
    """
    splits = splits.first(config.train.train_images)
    if not leads():
        # Under torchrun one process measures and writes, and looks at the directory.
        if force or not (out / "metrics.json").is_file():
            from .fit import train

            train(config, splits, device=device, resume_dir=out)
        return Finished([], out, already=False)
    prepare(config, out, force=force, resume=resume)
    name = f"{config.model.layer} {variant}".rstrip()
    beside: dict[str, Any] = {
        "variant": variant, "published": published or {}, "source": source if published else ""
    }  # fmt: skip
    if (out / "metrics.json").is_file():
        _clear(out)
        return Finished([replace(row, **beside) for row in read_rows(out)], out, already=True)
    from .fit import pick_device, train
    from .state import KeepState

    _make_room(config, out)
    with _claimed(out):
        write_json(out / "config.json", config.to_dict())
        result = train(
            config,
            splits,
            device=device,
            resume_dir=out,
            on_epoch=None if on_epoch is None else partial(on_epoch, name, config),
            tensorboard=out / TENSORBOARD if tensorboard else None,
        )
        save_model(out / MODEL_FILE, result.model, config.model)
        rows = evaluate(
            result.model,
            config,
            splits,
            device=pick_device(device),
            step_ms=result.step_ms,
            train_seconds=result.seconds,
        )
        rows = [replace(row, **beside) for row in rows]
        for row in rows:
            if row.certificate is not None:
                row.certificate.save(out / CERTIFICATES[row.norm])
        inside = INSIDE if config.model.architecture == DENSE else IMAGES_INSIDE
        metrics = {
            "format": FORMAT,
            "rows": [row.to_dict() for row in rows],
            "history": result.history,
            "insight": insight(result.model, pixels(splits.test[0][:inside])),
            **manifest(splits, result.device),
        }
        write_json(out / "metrics.json", metrics)
        KeepState(out).clear()
    return Finished(rows, out, already=False)


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
        with _claimed(out):
            for path in [*(out / name for name in RUN_FILES), *filter(_cut_short, out.iterdir())]:
                path.unlink(missing_ok=True)
            shutil.rmtree(out / TENSORBOARD, ignore_errors=True)
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


def compare(
    configs: Sequence[RunConfig] | Mapping[str, RunConfig],
    splits: Splits,
    out: Path,
    *,
    device: str = "auto",
    force: bool = False,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
    on_finished: Callable[[Finished], None] | None = None,
    published: Mapping[str, dict[str, float]] | None = None,
    sources: Mapping[str, str] | None = None,
    engine: str = "local",
    address: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Run every configuration under `out`, draw the pictures, write and return compare.json.

    Where configurations have names, these tell apart runs of one family; `published` has figures
    by the same names, `sources` where they are from. With the engine "ray" the runs are tasks of a
    cluster, see `_engine.scatter`; a run whose worker is lost goes on from its last state, on the
    same machine. Here, one after another, each is as long as the `budget` has it when it begins.
    Runs that do not converge are named under `failed`, and the others go on; NotConverged is raised
    where none is left.
    """
    from .reporting.plots import plot

    if launched():
        raise InvalidInput(
            "compare shares no run among processes. Start it without torchrun, or use --engine ray."
        )
    started = time.perf_counter()
    if not isinstance(configs, Mapping):
        configs = {config.model.layer: config for config in configs}
    for config in configs.values():
        splits.first(config.train.train_images)
    for name, config in configs.items():
        prepare(config, out / folder_name(name), force=force, resume=resume)
    local = engine == "local"
    budget = budget if local else None
    tasks = (
        (
            config if budget is None else budget.begin(name),
            (out / folder_name(name)).resolve(), device, resume,
            name.removeprefix(config.model.layer).strip(), (published or {}).get(name),
            (sources or {}).get(name, ""),
        )
        for name, config in configs.items()
    )  # fmt: skip
    work = partial(_task, on_epoch=on_epoch) if local else partial(_gathered, threads=int(cpus))
    found: dict[int, Finished] = {}
    for k, (finished, files) in scatter(
        work, tasks, shared=splits, engine=engine, address=address, cpus=cpus, gpus=gpus
    ):
        for file, content in files.items():
            if not (finished.path / file).is_file():
                finished.path.mkdir(parents=True, exist_ok=True)
                write_atomically(finished.path / file, partial(_put, content))
        found[k] = finished
        if budget is not None:
            seconds = finished.rows[0].train_seconds if finished.rows else None
            budget.end(seconds, finished.already)
        if on_finished is not None:
            on_finished(finished)
    runs = [found[k] for k in range(len(configs))]
    rows = [row for finished in runs for row in finished.rows]
    failed = {k: run.failed for k, run in zip(configs, runs, strict=True) if run.failed}
    if failed and not rows:
        raise NotConverged("; ".join(f"{name}: {why}" for name, why in failed.items()))
    metrics = {f.rows[0].label: read_json(f.path / "metrics.json") for f in runs if f.rows}
    histories = {name: values["history"] for name, values in metrics.items()}
    insights = {k: values["insight"] for k, values in metrics.items() if values.get("insight")}
    pictures = [str(path) for path in plot(rows, out, histories, insights)]
    result = document(rows, splits.name, pictures, time.perf_counter() - started, failed)
    write_json(out / "compare.json", result)
    return result


def _task(
    splits: Splits,
    config: RunConfig,
    out: Path,
    device: str,
    resume: bool,
    variant: str,
    published: dict[str, float] | None,
    source: str,
    on_epoch: OnEpoch | None = None,
) -> tuple[Finished, dict[str, bytes]]:
    try:
        finished = run(
            config, splits, out, device=device, resume=resume, on_epoch=on_epoch, variant=variant,
            published=published, source=source,
        )  # fmt: skip
    except NotConverged as error:
        finished = Finished([], out, already=False, failed=str(error))
    return finished, {}


def _gathered(
    splits: Splits, config: RunConfig, out: Path, *rest: Any, threads: int
) -> tuple[Finished, dict[str, bytes]]:
    """A run on some machine, and its files for the one that asked."""
    torch.set_num_threads(max(1, threads))
    finished, _ = _task(splits, config, out, *rest)
    files = {name: (out / name).read_bytes() for name in RUN_FILES if (out / name).is_file()}
    return finished, files


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def folder_name(name: str) -> str:
    """A run's name as that of a directory: letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.]+", "-", name.replace("γ=", "gamma-")).strip("-")


def read_rows(out: Path) -> list[Row]:
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


def _make_room(config: RunConfig, out: Path) -> None:
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


def _clear(out: Path) -> None:
    """Remove the training states of a finished run, which one killed at its end has left."""
    if any((out / name).exists() for name in STATES):
        with suppress(InvalidInput), _claimed(out):
            for name in STATES:
                (out / name).unlink(missing_ok=True)


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
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
