"""`sdplip report`: runs as one page that needs neither network nor script."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._page import page
from ..errors import InvalidInput
from .checkpoint import read_json
from .config import RunConfig
from .figures import cost_figure, history_figure, residual_figure, spectra_figure
from .plots import COLOURS, OTHER, STYLE, accuracy_figure, lipschitz_figure, tradeoff_figure
from .report import DASH, PUBLISHED, notes, number, published_cells, violations
from .row import Row
from .runs import FORMAT, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = """
article{max-width:62rem}
figure{margin:1.4rem 0 2rem}
figure>svg{display:block;width:100%;height:auto;background:#fff;border-radius:.3rem}
figcaption{color:var(--soft);font-size:.9rem;line-height:1.5;margin-top:.5rem}
details ul{font-size:.88rem;line-height:1.45;color:var(--soft);padding-left:1.1rem}
summary{cursor:pointer;color:var(--soft);font-size:.85rem}
td,th{padding:.3rem .55rem .3rem 0;white-space:nowrap}
td.right,th.right{text-align:right;font-variant-numeric:tabular-nums}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
.broken{color:var(--bad)}
"""


@dataclass(frozen=True)
class Run:
    """What a finished run left: its name, rows, configuration and metrics.json."""

    name: str
    rows: list[Row]
    config: RunConfig
    metrics: dict[str, Any]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The finished runs in these directories: runs themselves, or directories of runs.

    Runs of one family get the directory's name as their rows' `variant`.

    Raises InvalidInput for a directory without a finished run, or with a damaged one.
    """
    folders: list[Path] = []
    for path in paths:
        inside = [path] if (path / "metrics.json").is_file() else []
        inside = inside or sorted(file.parent for file in path.rglob("metrics.json"))
        if not inside:
            raise InvalidInput(
                f"{path} holds no finished run. Give a directory that sdplip train or sdplip "
                "compare wrote."
            )
        folders += [folder for folder in inside if folder not in folders]
    runs = [_read(folder) for folder in folders]
    families = [run.config.model.layer for run in runs]
    named = []
    for run, family in zip(runs, families, strict=True):
        if families.count(family) > 1 and run.name != family:
            variant = run.name.removeprefix(family).lstrip("-_ ")
            rows = [replace(row, variant=row.variant or variant) for row in run.rows]
            run = replace(run, rows=rows)
        named.append(run)
    return named


def _read(folder: Path) -> Run:
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        raise InvalidInput(f"{folder / 'metrics.json'} is not of the format {FORMAT!r}.")
    config = RunConfig.from_dict(read_json(folder / "config.json"))
    return Run(folder.name, read_rows(folder), config, metrics)


def report(paths: Sequence[Path]) -> str:
    """The page; raises as `read_runs`."""
    import matplotlib

    runs = read_runs(paths)
    rows = [row for run in runs for row in run.rows]
    inside = {
        run.rows[0].label: run.metrics["insight"] for run in runs if run.metrics.get("insight")
    }
    histories = {run.rows[0].label: run.metrics["history"] for run in runs}
    data = ", ".join(dict.fromkeys(run.config.train.data for run in runs))
    with matplotlib.rc_context(STYLE):
        parts = [
            f"<header><h1>Lipschitz networks on {escape(data)}</h1>{_verdict(rows)}</header>",
            "<h2>Accuracy and bounds</h2>",
            *(
                _accuracy(norm, [row for row in rows if row.norm == norm])
                for norm in dict.fromkeys(row.norm for row in rows)
            ),
            _notes(rows),
            _figure(
                lambda: accuracy_figure(rows),
                "Certified (line) and attacked (dashed) accuracy against the radius, per raw pixel "
                "in [0, 1]. The shaded gap holds the true robust accuracy. Grey: the others.",
                _curves(rows),
            ),
            _figure(
                lambda: lipschitz_figure(rows),
                "How tight the bounds are: the constant lies between the largest Jacobian found "
                "(sampled) and the verified bound; product of norms and promise for comparison.",
                _bounds(rows),
            ),
            *(
                [
                    _figure(
                        lambda: tradeoff_figure(rows),
                        "Test error against the Lipschitz constant for the normalised input: what "
                        "a bound costs. Crosses are published models, measured anew.",
                        _published(rows),
                    )
                ]
                if any(row.variant for row in rows)
                else []
            ),
            _figure(
                lambda: cost_figure(rows),
                "What training time buys: one point pair per model.",
                _costs(rows),
            ),
            _figure(
                lambda: history_figure(histories),
                "Accuracy on the training batches after each epoch.",
                _table(
                    ("model", "epoch", "loss", "accuracy (%)"),
                    [
                        (name, k + 1, f"{e['loss']:.4f}", f"{100 * e['accuracy']:.2f}")
                        for name, history in histories.items()
                        for k, e in enumerate(history)
                    ],
                ),
            ),
            *_inside(inside),
            "<h2>How this was made</h2>",
            _settings(runs),
        ]
    body = "\n".join(parts)
    return page(f"Lipschitz networks on {data}", [f"<article>\n{body}\n</article>"], STYLES)


def _verdict(rows: Sequence[Row]) -> str:
    broken = violations(rows)
    if not broken:
        return "<p>In every row certified ≤ attacked ≤ clean and sampled ≤ verified ≤ promised.</p>"
    return "".join(f'<p class="broken">{escape(text)}</p>' for text in broken)


def _notes(rows: Sequence[Row]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in notes(rows))
    summary = "<summary>what the tables do not say</summary>"
    return f'<details open="open">{summary}<ul>{lines}</ul></details>'


def _accuracy(norm: float, rows: Sequence[Row]) -> str:
    symbol = "ℓ₂" if norm == 2 else "ℓ∞"
    radii = list(dict.fromkeys(radius for row in rows for radius in row.radii))
    head = ("model", "clean (%)", *(f"{symbol} {radius:.3g}" for radius in radii), "images")
    body = []
    for row in rows:
        cells = dict(zip(row.radii, zip(row.certified, row.attacked, strict=True), strict=True))
        shares = [
            f"{100 * cells[r][0]:.1f} / {100 * cells[r][1]:.1f}" if r in cells else DASH
            for r in radii
        ]
        body.append((row, f"{100 * row.clean:.2f}", *shares, row.images))
    return f"<p>Certified / attacked accuracy at each {symbol} radius.</p>" + _table(head, body)


def _bounds(rows: Sequence[Row]) -> str:
    names = ("sampled", "verified", "product", "promised")
    return _table(
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


def _published(rows: Sequence[Row]) -> str:
    """Beside every result what was published, for the normalised input."""
    body = [(row, *published_cells(row)) for row in rows if row.norm == 2]
    return _table(("model", *PUBLISHED), body)


def _costs(rows: Sequence[Row]) -> str:
    return _table(
        ("model", "parameters", "ms per step", "seconds of training", "clean (%)"),
        [
            (
                row, f"{row.parameters:,}", _finite(row.step_ms), _finite(row.train_seconds),
                f"{100 * row.clean:.2f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def _finite(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else DASH


def _curves(rows: Sequence[Row]) -> str:
    return _table(
        ("model", "radius", "certified (%)"),
        [
            (row, f"{radius:.4g}", f"{100 * share:.2f}")
            for row in rows
            for radius, share in zip(row.curve["radius"], row.curve["certified"], strict=True)
        ],
    )


def _inside(models: dict[str, dict[str, Any]]) -> list[str]:
    """Singular values and equilibria, where a run has them."""
    parts = []
    if any(found["singular_values"] for found in models.values()):
        left_out = [f"{name} {k}" for name, v in models.items() for k in v["left_out"]]
        missing = f" Too large for it: {', '.join(left_out)}." if left_out else ""
        parts.append(
            _figure(
                lambda: spectra_figure(models),
                "Singular values of every layer's Jacobian at one test image. A layer that "
                f"attenuates some directions loses what lies there.{missing}",
                _table(
                    ("model", "layer", "values", "largest", "median", "least"),
                    [
                        (name, layer["layer"], len(v), f"{v[0]:.5f}", f"{v[len(v) // 2]:.5f}",
                         f"{v[-1]:.5f}")
                        for name, found in models.items()
                        for layer in found["singular_values"]
                        if (v := layer["values"])
                    ],
                ),
            )
        )  # fmt: skip
    solved = {name: found for name, found in models.items() if found["equilibria"]}
    if solved:
        parts.append(
            _figure(
                lambda: residual_figure(solved),
                "Relative residual of the equilibria after each iteration: the median test image, "
                "and the worst one dashed. The table has a solve to the layer's own tolerance.",
                _table(
                    ("model", "method", "iterations, median", "worst", "ms per image",
                     "largest error bound"),
                    [
                        (name, e["method"], f"{e['steps']['median']:g}", e["steps"]["largest"],
                         f"{e['milliseconds_per_image']:.3f}", f"{e['error_bound']:.2g}")
                        for name, found in solved.items()
                        for e in found["equilibria"]
                    ],
                ),
            )
        )  # fmt: skip
    return parts


def _settings(runs: Sequence[Run]) -> str:
    body = []
    for run in runs:
        model, train = run.config.model, run.config.train
        limit = DASH if train.train_images is None else f"{train.train_images:,}"
        versions = run.metrics.get("versions", {})
        body.append(
            (
                run.rows[0], model.architecture, f"{model.width} × {model.depth}", train.epochs,
                limit, train.batch_size, f"{train.lr:g}", train.loss, train.seed,
                run.metrics.get("device", DASH), run.metrics.get("threads", DASH),
                f"sdplip {versions.get('sdplip', '?')}, torch {versions.get('torch', '?')}",
            )
        )  # fmt: skip
    head = (
        "model", "architecture", "width × depth", "epochs", "images limited to", "batch", "rate",
        "loss", "seed", "device", "threads", "versions",
    )  # fmt: skip
    return _table(head, body)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A row's first cell may be a `Row`, which is named in its colour; numbers stand right."""

    def cell(value: Any) -> str:
        if isinstance(value, Row):
            colour = COLOURS.get(value.layer, OTHER)
            dot = f'<span class="swatch" style="background:{colour}"></span>'
            return f"<td>{dot}{escape(value.label)}</td>"
        text = str(value)
        kind = ' class="right"' if re.match(r"[-+]?\d|–$", text) else ""
        return f"<td{kind}>{escape(text)}</td>"

    first, *others = map(escape, head)
    top = f"<th>{first}</th>" + "".join(f'<th class="right">{text}</th>' for text in others)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(draw: Callable[[], Figure], caption: str, numbers: str) -> str:
    """An inline picture with its caption, and the numbers behind it on demand."""
    file = io.StringIO()
    draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # Matplotlib numbers the parts of every picture alike; on one page names must differ.
    prefix = f"f{zlib.crc32(svg.encode())}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return (
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption>"
        f"<details><summary>the numbers</summary>{numbers}</details></figure>"
    )
