"""`sdplip report`: runs as one page that needs neither network nor script."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import conditions
from .._page import page
from ..lmi import LMI
from .captions import published_table
from .figures import (
    compared_radius,
    cost_figure,
    equilibrium_figure,
    history_figure,
    spectra_figure,
)
from .gathered import Run, read_runs
from .markup import STYLES, figure, table
from .models import FAMILIES
from .plots import STYLE, accuracy_figure, lipschitz_figure, tradeoff_figure
from .report import DASH, notes, number, violations
from .row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(paths: Sequence[Path]) -> str:
    """The page; raises as `read_runs`."""
    import matplotlib

    runs, unfinished = read_runs(paths)
    names = list(dict.fromkeys(run.config.train.data for run in runs))
    # Names of runs are no formulas, and may have letters that matplotlib's font lacks; numbers may
    # be so large that the margin beside them is not.
    style = {**STYLE, "text.parse_math": False}
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
        _notes(rows),
        _figure(
            accuracy_figure,
            rows,
            "Certified (line) and attacked (dashed) accuracy against the radius, per raw pixel in "
            "[0, 1]. The shaded gap holds the true robust accuracy. Grey: the others.",
            _curves(rows),
        ),
        _figure(
            lipschitz_figure,
            rows,
            "How tight the bounds are: the constant lies between the largest Jacobian found "
            "(sampled) and the verified bound; product of norms and promise for comparison.",
            _bounds(rows),
        ),
        *_tradeoff(rows),
        _figure(
            cost_figure,
            rows,
            "What accuracy, certificates and time cost each other: up is accurate, right is "
            "certified, and the area is the time of training, which stands beside the name.",
            _costs(rows),
        ),
        _figure(
            history_figure,
            [(run.rows[0], run.history) for run in runs],
            "Accuracy on the training batches after each epoch.",
            table(
                ("model", "epoch", "loss", "accuracy (%)"),
                [
                    (run.label, k, _fixed(loss, 4), _fixed(100 * accuracy))
                    for run in runs
                    for k, (loss, accuracy) in enumerate(run.history, 1)
                ],
            ),
        ),
        *_spectra(runs),
        *_equilibria(runs),
    ]


def _figure(draw: Callable[[Any], Figure], of: Sequence[Any], caption: str, numbers: str) -> str:
    return figure(draw(of), caption, numbers)


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
    symbol = "ℓ₂" if norm == 2 else "ℓ∞"
    radii = sorted({radius for row in rows for radius in row.radii})
    bounds = ("sampled ≤", "verified ≤", "promised")
    head = ("model", "clean (%)", *map(_radius, radii), *bounds, "training")
    body = []
    for row in rows:
        cells = dict(zip(row.radii, zip(row.certified, row.attacked, strict=True), strict=True))
        shares = [
            f"{100 * cells[r][0]:.1f} / {100 * cells[r][1]:.1f}" if r in cells else DASH
            for r in radii
        ]
        constants = (number(row.sampled), number(row.verified), number(row.promised))
        time = f"{row.train_seconds:.1f} s" if math.isfinite(row.train_seconds) else DASH
        body.append((row, f"{100 * row.clean:.2f}", *shares, *constants, time))
    images = " or ".join(dict.fromkeys(f"{row.images:,}" for row in rows))
    return (
        f"<p>Certified / attacked accuracy in % at each {symbol} radius, on {images} test images; "
        "constants per raw pixel; the best of a column in bold.</p>"
    ) + table(head, body, best=range(1, 2 + len(radii)))


def _radius(radius: float) -> str:
    """36/255 rather than 0.141, where it is that."""
    levels = 255 * radius
    short = float(f"{radius:.3g}") == radius
    return f"{radius:.3g}" if short or abs(levels - round(levels)) > 1e-9 else f"{levels:.0f}/255"


def _bounds(rows: Sequence[Row]) -> str:
    names = ("sampled", "verified", "product", "promised")
    return table(
        ("model", *names, "proven", "seconds to verify"),
        [
            (
                row,
                *(number(getattr(row, name)) for name in names),
                {None: DASH, True: "yes", False: "no"}[row.proven],
                number(row.verify_seconds),
            )
            for row in rows
        ],
    )


def _tradeoff(rows: Sequence[Row]) -> list[str]:
    if not any(row.variant and row.norm == 2 and row.verified is not None for row in rows):
        return []
    caption = (
        "Test error against the Lipschitz constant for the normalised input: what a bound costs. "
        "Crosses are published models, measured anew."
    )
    head, cells = published_table(rows)
    body = [(row, *map(number, figures)) for row, figures in cells]
    return [_figure(tradeoff_figure, rows, caption, table(("model", *head), body))]


def _costs(rows: Sequence[Row]) -> str:
    return table(
        ("model", "parameters", "ms per step", "seconds of training", "clean (%)", "radius",
         "certified (%)"),
        [
            (
                row, f"{row.parameters:,}", _fixed(row.step_ms), _fixed(row.train_seconds),
                f"{100 * row.clean:.2f}", f"{row.radii[k]:.4g}", f"{100 * row.certified[k]:.2f}",
            )
            for row in rows
            for k in [compared_radius(row)]
        ],
    )  # fmt: skip


def _fixed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _curves(rows: Sequence[Row]) -> str:
    """Certified at every radius drawn, and under attack at those attacked."""
    return table(
        ("model", "radius", "certified (%)", "attacked (%)"),
        [
            (row, f"{radius:.4g}", certified, attacked)
            for row in rows
            for radius, certified, attacked in sorted(
                [
                    *((r, f"{100 * s:.2f}", DASH) for r, s in zip(*_curve(row), strict=True)),
                    *(
                        (r, f"{100 * c:.2f}", f"{100 * a:.2f}")
                        for r, c, a in zip(row.radii, row.certified, row.attacked, strict=True)
                    ),
                ]
            )
        ],
    )


def _curve(row: Row) -> tuple[list[float], list[float]]:
    return row.curve["radius"], row.curve["certified"]


def _spectra(runs: Sequence[Run]) -> list[str]:
    models = [(r.rows[0], r.inside) for r in runs if r.inside and r.inside["singular_values"]]
    if not models:
        return []
    left_out = [f"{row.label} {k}" for row, found in models for k in found["left_out"]]
    missing = f" Too large for it: {', '.join(left_out)}." if left_out else ""
    caption = (
        "Singular values of every layer's Jacobian at one test image. A layer that attenuates some "
        f"directions loses what lies there.{missing}"
    )
    numbers = table(
        ("model", "layer", "values", "largest", "median", "least"),
        [
            (row, layer["layer"], len(v), f"{v[0]:.5f}", f"{v[len(v) // 2]:.5f}", f"{v[-1]:.5f}")
            for row, found in models
            for layer in found["singular_values"]
            for v in [layer["values"]]
        ],
    )
    return [_figure(spectra_figure, models, caption, numbers)]


def _equilibria(runs: Sequence[Run]) -> list[str]:
    models = [(r.rows[0], r.inside) for r in runs if r.inside and r.inside["equilibria"]]
    if not models:
        return []
    caption = (
        "Equilibria: relative residual after each iteration, of the median test image and dashed "
        "of the worst one; below, a whole solve to the layer's own tolerance, and its time."
    )
    numbers = table(
        ("model", "layer", "method", "iterations, median", "worst", "ms per image",
         "largest error bound"),
        [
            (row, e["layer"], e["method"], f"{e['steps']['median']:g}", e["steps"]["largest"],
             f"{e['milliseconds_per_image']:.3f}", number(e["error_bound"]))
            for row, found in models
            for e in found["equilibria"]
        ],
    )  # fmt: skip
    return [_figure(equilibrium_figure, models, caption, numbers)]


def _conditions(rows: Sequence[Row]) -> list[str]:
    """The condition that each family satisfies by construction, and those that verify solves."""
    from ..derive.html import displayed, prose
    from ..derive.tex import tex

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
