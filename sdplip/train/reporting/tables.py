"""What a comparison shows: aligned tables and one JSON document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.row import LOCAL, Row
from .captions import published_table, radius_text, scaled_down, sources, symbol

if TYPE_CHECKING:
    from rich.table import Table

DASH = "–"


def document(
    rows: Sequence[Row],
    data: str,
    pictures: Sequence[str],
    seconds: float,
    failed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON document of a comparison: the rows, what they violate, where the pictures lie, and
    by name why there is no row."""
    return {
        "format": "sdplip-compare-1",
        "data": data,
        "rows": [row.to_dict() for row in rows],
        "violations": violations(rows),
        "failed": dict(failed or {}),
        "pictures": list(pictures),
        "seconds": seconds,
    }


def violations(rows: Sequence[Row]) -> list[str]:
    """Every invariant that fails in some row."""
    return [text for row in rows for text in row.violations()]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Accuracies per norm, then the Lipschitz constants of all rows."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    accuracies = [
        table for norm in norms for table in _accuracies([r for r in rows if r.norm == norm])
    ]
    local = [
        _local_table(chosen)
        for norm in norms
        if (chosen := [row for row in rows if row.norm == norm and row.local])
    ]
    published = [_published_table(rows)] if any(row.published for row in rows) else []
    return [*accuracies, *local, *published, _constants_table(rows)]


def _accuracies(rows: Sequence[Row]) -> list[Table]:
    """Certified accuracies of all images where not all were attacked, and both of those that were,
    so that the figures of a table are about the same images."""
    attacked = [(*row.under_attack, row.attacked) for row in rows]
    tables = [_accuracy_table(rows, "certified/attacked", attacked)]
    if any(row.attack_images is not None for row in rows):
        every = [(row.images, row.clean, row.certified) for row in rows]
        tables.insert(0, _accuracy_table(rows, "certified", every))
    return tables


def _accuracy_table(rows: Sequence[Row], what: str, figures: Sequence[tuple[Any, ...]]) -> Table:
    """Of every row: the number of images, their clean accuracy, and those at the radii."""
    title = f"Accuracy in %: {what} at each {symbol(rows[0].norm)} radius"
    table = _table("; ".join(filter(None, (title, scaled_down(rows)))))
    for name in ("layer", "images", "clean", *map(radius_text, rows[0].radii)):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row, (images, clean, *shares) in zip(rows, figures, strict=True):
        cells = ["/".join(f"{100 * v:.1f}" for v in cell) for cell in zip(*shares, strict=True)]
        accuracy = f"{100 * clean:.{1 if images < 2000 else 2}f}"
        table.add_row(row.name, str(images), accuracy, *cells)
    return table


def _local_table(rows: Sequence[Row]) -> Table:
    what = (
        "Accuracy in %: certified by global bounds/by local ones, too/attacked at each "
        f"{symbol(rows[0].norm)} radius"
    )
    table = _table("; ".join(filter(None, (what, scaled_down(rows)))))
    for name in ("layer", "images", *map(radius_text, rows[0].radii), "s/image"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row in rows:
        three = zip(*(row.local[name] for name in LOCAL), strict=True)
        table.add_row(
            row.name,
            str(row.local_images),
            *("/".join(f"{100 * share:.1f}" for share in shares) for shares in three),
            number(row.local_seconds_per_image),
        )
    return table


def _published_table(rows: Sequence[Row]) -> Table:
    said = filter(None, (f"Beside what was published: {sources(rows)}", scaled_down(rows)))
    table = _table("; ".join(said))
    table.add_column("layer")
    head, cells = published_table(rows)
    for name in head:
        table.add_column(name, justify="right")
    for row, figures in cells:
        table.add_row(row.label, *map(number, figures))
    return table


def _constants_table(rows: Sequence[Row]) -> Table:
    said = filter(None, ("Lipschitz constants per raw pixel, cost", scaled_down(rows)))
    table = _table("; ".join(said))
    table.add_column("layer")
    for name in ("sampled ≤", "verified ≤", "promised", "ms/step", "parameters"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.label,
            number(row.sampled),
            number(row.verified),
            number(row.promised),
            f"{row.step_ms:.2f}" if math.isfinite(row.step_ms) else DASH,
            str(row.parameters),
        )
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        min_width=len(title),
    )


def number(value: float | None) -> str:
    """Five significant digits; a dash for what is not there."""
    return DASH if value is None else f"{value:.5g}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the tables do not say by themselves, one line each."""
    lines = [
        "certified: proved by the smaller of promise and verified bound of every two classes, "
        f"margins less {max(row.slack for row in rows):.2g} of the largest logit; under attack: "
        f"{' or '.join(dict.fromkeys(row.attack.upper() for row in rows))}, pixels in [0, 1]; the "
        "figures of a table are about the same images, the first ones of the test set.",
        "sampled ≤ true constant ≤ verified: a Jacobian found, and the SDP's bound; figures are "
        "rounded here, --json and the run directory have every digit.",
    ]
    said: dict[str, list[str]] = {}
    for row in rows:
        for remark in filter(None, row.note.split("; ")):
            said.setdefault(remark, []).append(row.label)
    lines += [f"{', '.join(labels)}: {remark}" for remark, labels in said.items()]
    for row in rows:
        if row.scale != 1 and not row.published:
            inner = (None if v is None else v * row.scale for v in (row.promised, row.verified))
            promised, verified = map(number, inner)
            lines.append(
                f"{row.label}: for the input as normalised (divided by {row.scale:g}) promised "
                f"{promised}, verified {verified}."
            )
    residual = max((row.residual for row in rows), default=0.0)
    if residual > 0:
        lines.append(
            f"Equilibria: Newton's method in float64, largest relative residual {residual:.1g}."
        )
    if not violations(rows):
        lines.append("In every row: certified ≤ attacked ≤ clean, sampled ≤ verified ≤ promised.")
    return lines
