"""Train and measure one model in a directory, or several and compare them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._arrays import write_atomically
from .._engine import scatter
from ..errors import InvalidInput, NotConverged
from .checkpoint import MODEL_FILE, read_json, save_model, write_json
from .config import RunConfig
from .data import Splits, pixels
from .directory import (
    FORMAT,
    PROOFS,
    TENSORBOARD,
    claimed,
    clear,
    folder_name,
    make_room,
    prepare,
    read_rows,
    written,
)
from .evaluation.evaluate import evaluate
from .evaluation.insight import insight
from .evaluation.row import Row
from .manifest import manifest
from .models import DENSE
from .processes import launched, leads
from .reporting.tables import document

if TYPE_CHECKING:
    from .experiments.budget import Budget

INSIDE = 128
"""Test images on which a model's inside is looked at; of a convolutional one IMAGES_INSIDE."""
IMAGES_INSIDE = 8


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
        clear(out)
        return Finished([replace(row, **beside) for row in read_rows(out)], out, already=True)
    from .fit import pick_device, train
    from .state import KeepState

    make_room(config, out)
    with claimed(out):
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
        for folder in PROOFS:
            shutil.rmtree(out / folder, ignore_errors=True)
        for row in rows:
            for file, certificate in row.certificates.items():
                (out / file).parent.mkdir(exist_ok=True)
                certificate.save(out / file)
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
        # What means that a run is done comes last.
        for file, content in reversed(files.items()):
            if not (finished.path / file).is_file():
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
    return finished, {str(path.relative_to(out)): path.read_bytes() for path in written(out)}


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)
