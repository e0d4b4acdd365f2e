"""Finished runs read back for a report: whole, told apart, and in the families' order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InvalidInput
from ..checkpoint import read_json
from ..config import RunConfig
from ..convnets import UNCONSTRAINED
from ..directory import FORMAT, read_rows
from ..evaluation.row import LOCAL, Row
from ..models import BASELINES, FAMILIES

MADE = ("device", "device_name", "threads", "commit", "data_sha256")
VERSIONS = ("sdplip", "torch", "python")


@dataclass(frozen=True)
class Run:
    """What a finished run left.

    `history` has what was recorded of every epoch, NaN where it was not finite; `inside` is what
    `insight` found, or None; `made` says with what.
    """

    folder: Path
    rows: list[Row]
    config: RunConfig
    history: list[dict[str, float]]
    inside: dict[str, Any] | None
    made: dict[str, str]

    @property
    def label(self) -> str:
        return self.rows[0].label


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs in these directories, runs themselves or directories of runs; and the
    directories of unfinished ones.

    Runs on the same data whose rows have the same names get their directories' as `variant`.

    Raises InvalidInput for a directory without a finished run, or with a damaged one.
    """
    finished: list[Path] = []
    unfinished: list[Path] = []
    for path in paths:
        files = [*path.rglob("metrics.json"), *path.rglob("config.json")]
        inside = sorted({file.parent.resolve() for file in files})
        done = [folder for folder in inside if (folder / "metrics.json").is_file()]
        if not done:
            raise InvalidInput(
                f"{path} holds no finished run. Give a directory that sdplip train or sdplip "
                "compare wrote."
            )
        finished += [folder for folder in done if folder not in finished]
        unfinished += [f for f in inside if f not in done and f not in unfinished]
    runs = _told_apart([_read(folder) for folder in finished])
    return sorted(runs, key=_place), unfinished


def _read(folder: Path) -> Run:
    file = folder / "metrics.json"
    metrics = read_json(file)
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        raise InvalidInput(f"{file} is not of the format {FORMAT!r}.")
    config = RunConfig.from_dict(_known(read_json(folder / "config.json")))
    rows = read_rows(folder)
    try:
        for row in rows:
            _check(row)
        if not rows:
            raise ValueError("no rows")
        history = [
            {name: math.nan if value is None else float(value) for name, value in epoch.items()}
            for epoch in metrics["history"]
        ]
        if not all({"loss", "accuracy"} <= epoch.keys() for epoch in history):
            raise ValueError("an epoch without loss and accuracy")
        inside = metrics.get("insight")
        if inside is not None:
            _check_inside(inside)
        made = {name: str(metrics.get(name) or "") for name in MADE}
        made |= {name: str(metrics.get("versions", {}).get(name, "")) for name in VERSIONS}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidInput(f"{file} is no run's metrics: {error!r}. Train again.") from error
    return Run(folder, rows, config, history, inside, made)


def _known(config: Any) -> Any:
    """The configuration as this process can read it: a family that was added by whoever trained it
    is known there only, and nothing but its name, which rows have, is looked at here."""
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or model.get("layer") in (*FAMILIES, *BASELINES):
        return config
    return config | {"model": model | {"layer": UNCONSTRAINED}}


def _check(row: Row) -> None:
    """Raise for what no measurement can have been."""
    shares = [row.clean, *row.certified, *row.attacked, *row.curve["certified"]]
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError("an accuracy outside [0, 1]")
    constants = (row.promised, row.verified, row.product, row.sampled, row.verify_seconds)
    sizes = [v for v in (*constants, *row.published.values()) if v is not None]
    sizes += [v for v in (row.step_ms, row.train_seconds, row.residual) if not math.isnan(v)]
    sizes += [*row.radii, *row.curve["radius"], row.scale, row.slack, row.images, row.parameters]
    _sizes(sizes)
    if row.local and row.local.keys() != set(LOCAL):
        raise ValueError("local certificates that are incomplete")
    for at_radii in (*row.local.values(), *([row.fgsm] if row.fgsm else [])):
        if len(at_radii) != len(row.radii) or not all(0 <= share <= 1 for share in at_radii):
            raise ValueError("accuracies that do not belong to the radii")
    if not len(row.radii) == len(row.certified) == len(row.attacked) > 0:
        raise ValueError("as many accuracies as radii are needed, and at least one")
    if not len(row.curve["radius"]) == len(row.curve["certified"]) > 0:
        raise ValueError("a curve of as many accuracies as radii is needed")
    if not all(isinstance(text, str) for text in (row.layer, row.variant, row.note, row.source)):
        raise TypeError("a name that is no text")


def _check_inside(inside: dict[str, Any]) -> None:
    """Likewise; an error bound may be missing, where it was infinite."""
    for layer in inside["singular_values"]:
        _sizes(layer["values"])
    for layer in inside["equilibria"]:
        _sizes([layer["milliseconds_per_image"], *layer["steps"].values()])
        _sizes(layer["median"])
        if not len(layer["median"]) == len(_sizes(layer["largest"])):
            raise ValueError("residuals that do not belong together")
        for found in layer.get("methods", {}).values():
            _sizes([found["median"], found["largest"], found["tol"]])


def _sizes(values: Sequence[float]) -> Sequence[float]:
    if not values or not all(0 <= value < math.inf for value in values):
        raise ValueError("a value that is missing, negative or not finite")
    return values


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    keys = [(run.config.train.data, run.label) for run in runs]
    named = []
    for run, key in zip(runs, keys, strict=True):
        alike = [other for other, its in zip(runs, keys, strict=True) if its == key]
        if len(alike) > 1:
            family, given = run.rows[0].layer, run.rows[0].variant
            tail = _distinct(run.folder, [other.folder for other in alike], family)
            rows = [replace(row, variant=f"{given} {tail}".strip()) for row in run.rows]
            run = replace(run, rows=rows)
        named.append(run)
    return named


def _distinct(folder: Path, folders: Sequence[Path], family: str) -> str:
    """The shortest end of this path that no other of these paths has, without the family."""

    def end(path: Path, count: int) -> str:
        return "/".join(path.parts[-count:]).removeprefix(family).lstrip("-_ ")

    counts = range(1, len(folder.parts))
    short = (k for k in counts if [end(f, k) for f in folders].count(end(folder, k)) == 1)
    return end(folder, next(short, len(folder.parts)))


def _place(run: Run) -> tuple[Any, ...]:
    """By family as in LAYERS, then by name, numbers by their values."""
    order = [*FAMILIES, *BASELINES]
    family = run.rows[0].layer
    parts = re.split(r"(\d+(?:\.\d+)?)", run.label)
    name = [(float(part) if k % 2 else 0.0, part) for k, part in enumerate(parts)]
    return order.index(family) if family in order else len(order), family, name
