"""`sdplip report`: runs as one page that needs neither network nor script."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ... import conditions
from ..._page import page
from ...lmi import LMI
from ..evaluation.row import LOCAL, Row
from ..models import FAMILIES
from .captions import published_table, radius_text, scaled_down, sources, symbol
from .gallery import gallery
from .gathered import Run, read_runs
from .markup import STYLES, figure, table
from .plots import STYLE
from .tables import DASH, notes, number, violations


def report(paths: Sequence[Path]) -> str:
    """The page; raises as `read_runs`."""
    import matplotlib

    runs, unfinished = read_runs(paths)
    names = list(dict.fromkeys(run.config.train.data for run in runs))
    # Names of runs are no formulas, and may have letters that matplotlib's font lacks; numbers may
    # be so large that the margin beside them is not.
    fonts = {"font.sans-serif": ["DejaVu Sans"], "font.monospace": ["DejaVu Sans Mono"]}
    style = {**STYLE, **fonts, "text.parse_math": False}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("ignore", kind)
        sections = [
            part
            for name in names
            for part in _section(name, [run for run in runs if run.config.train.data == name])
        ]
    rows = [row for run in runs for row in run.rows]
    title = f"Lipschitz networks on {', '.join(names)}"
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>{_verdict(rows)}{_left_out(unfinished)}</header>",
            *sections,
            "<h2>The conditions behind the bounds</h2>",
            *_conditions(rows),
            "<h2>How this was made</h2>",
            _settings(runs),
        ]
    )
    return page(title, [f"<article>\n{body}\n</article>"], STYLES)


def _section(name: str, runs: Sequence[Run]) -> list[str]:
    """What was found on one data set."""
    rows = [row for run in runs for row in run.rows]
    return [
        f"<h2>Accuracy and bounds on {escape(name)}</h2>",
        *(
            _results(norm, [row for row in rows if row.norm == norm])
            for norm in dict.fromkeys(row.norm for row in rows)
        ),
        *(
            _locally(norm, chosen)
            for norm in dict.fromkeys(row.norm for row in rows)
            if (chosen := [row for row in rows if row.norm == norm and row.local])
        ),
        *_published(rows),
        _notes(rows),
        *(
            figure(draw(of), _remarked(caption, rows), numbers)
            for draw, of, caption, numbers in gallery(runs)
        ),
    ]


def _verdict(rows: Sequence[Row]) -> str:
    broken = violations(rows)
    if not broken:
        return "<p>In every row certified ≤ attacked ≤ clean and sampled ≤ verified ≤ promised.</p>"
    return "".join(f'<p class="broken">{escape(text)}</p>' for text in broken)


def _left_out(unfinished: Sequence[Path]) -> str:
    if not unfinished:
        return ""
    names = ", ".join(folder.name for folder in unfinished)
    return f'<p class="broken">Left out, because not finished: {escape(names)}.</p>'


def _notes(rows: Sequence[Row]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in notes(rows))
    summary = "<summary>what the tables do not say</summary>"
    return f'<details open="open">{summary}<ul>{lines}</ul></details>'


def _results(norm: float, rows: Sequence[Row]) -> str:
    """Accuracies and constants of every model, the answer of the page."""
    radii = sorted({radius for row in rows for radius in row.radii})
    bounds = ("sampled ≤", "verified ≤", "promised")
    head = ("model", "clean (%)", *map(radius_text, radii), *bounds, "training")
    body = []
    for row in rows:
        _, _, proved = row.under_attack
        cells = dict(zip(row.radii, zip(proved, row.attacked, strict=True), strict=True))
        shares = [
            f"{100 * cells[r][0]:.1f} / {100 * cells[r][1]:.1f}" if r in cells else DASH
            for r in radii
        ]
        constants = (number(row.sampled), number(row.verified), number(row.promised))
        time = f"{row.train_seconds:.1f} s" if math.isfinite(row.train_seconds) else DASH
        body.append((row, f"{100 * row.clean:.2f}", *shares, *constants, time))
    images = " or ".join(dict.fromkeys(f"{row.images:,}" for row in rows))
    attacked = " or ".join(dict.fromkeys(f"{row.under_attack[0]:,}" for row in rows))
    some = "" if attacked == images else f" (at radii on the first {attacked})"
    said = (
        f"Certified / attacked accuracy in % at each {symbol(norm)} radius, on {images} test images"
        f"{some}; constants per raw pixel; the best of a column in bold."
    )
    return _paragraph(said, rows) + table(head, body, best=range(1, 2 + len(radii)))


def _locally(norm: float, rows: Sequence[Row]) -> str:
    """What bounds of the surroundings of images add."""
    radii = sorted({radius for row in rows for radius in row.radii})
    body = []
    for row in rows:
        shares = zip(*(row.local[name] for name in LOCAL), strict=True)
        cells = dict(zip(row.radii, shares, strict=True))
        found = [
            " / ".join(f"{100 * s:.1f}" for s in cells[r]) if r in cells else DASH for r in radii
        ]
        body.append((row, row.local_images, *found, number(row.local_seconds_per_image)))
    said = (
        "Certified by global bounds / by local ones, too / attacked, in % at each "
        f"{symbol(norm)} radius."
    )
    head = ("model", "images", *map(radius_text, radii), "seconds per image")
    return _paragraph(said, rows) + table(head, body)


def _paragraph(said: str, rows: Sequence[Row]) -> str:
    return f"<p>{escape(_remarked(said, rows))}</p>"


def _remarked(said: str, rows: Sequence[Row]) -> str:
    """What is said of runs, and how much shorter than meant they were."""
    remark = scaled_down(rows)
    return f"{said} {remark[0].upper()}{remark[1:]}." if remark else said


def _published(rows: Sequence[Row]) -> list[str]:
    head, cells = published_table(rows)
    if not head:
        return []
    body = [(row, *map(number, figures)) for row, figures in cells]
    said = f"Beside what was published, constants for the normalised input. {sources(rows)}"
    return [_paragraph(said.strip(), rows), table(("model", *head), body)]


def _conditions(rows: Sequence[Row]) -> list[str]:
    """The condition that each family satisfies by construction, and those that verify solves."""
    from ...derive.html import displayed, prose
    from ...derive.tex import tex

    families: dict[str, list[str]] = {}
    for layer in dict.fromkeys(row.layer for row in rows):
        if name := getattr(FAMILIES.get(layer), "condition", None):
            families.setdefault(name, []).append(layer)
    users = {name: f"holds by construction: {', '.join(by)}" for name, by in families.items()}
    for row in rows:
        if row.verified is not None:
            users["lipschitz" if row.norm == 2 else "linf"] = "solved for the verified bounds"
    parts = []
    for name, use in users.items():
        condition: LMI = getattr(conditions, name)
        parts += [
            f"<p><b>{escape(name)}</b> ({escape(use)}). {prose(condition.claim)} "
            f'<span class="soft">{prose(condition.source)}.</span></p>',
            displayed(f"M = {tex(condition.matrix)}"),
        ]
    return parts


def _settings(runs: Sequence[Run]) -> str:
    """What all runs have in common in one line, the rest in a table."""
    columns: dict[str, list[Any]] = {}
    for run in runs:
        model, train, made = run.config.model, run.config.train, run.made
        limit = "all" if train.train_images is None else f"{train.train_images:,}"
        values = {
            "data": train.data, "architecture": model.architecture,
            "width × depth": f"{model.width} × {model.depth}", "epochs": train.epochs,
            "training images": limit, "batch": train.batch_size, "optimiser": train.optimizer,
            "rate": f"{train.lr:g}", "schedule": train.schedule, "loss": train.loss,
            "augmentation": train.augment, "precision": train.precision, "seed": train.seed,
            "device": made["device_name"] or made["device"], "threads": made["threads"],
            "sdplip": made["sdplip"], "torch": made["torch"], "Python": made["python"],
            "commit": made["commit"][:12], "SHA-256 of the data": made["data_sha256"][:12],
        }  # fmt: skip
        for name, value in values.items():
            columns.setdefault(name, []).append(value if value != "" else DASH)
    shared = {name: values[0] for name, values in columns.items() if len(set(values)) == 1}
    same = "; ".join(f"{name} {value}" for name, value in shared.items() if value != DASH)
    said = f'<p class="soft">{"In all runs" if len(runs) > 1 else "The run"}: {escape(same)}.</p>'
    differing = {name: values for name, values in columns.items() if name not in shared}
    if not differing:
        return said
    body = [(run.rows[0], *values) for run, *values in zip(runs, *differing.values(), strict=True)]
    return said + table(("model", *differing), body)
