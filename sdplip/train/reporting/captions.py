"""What stands beside results: published figures, and how much shorter runs were than published."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ..evaluation.row import SHORTER, Row

CERTIFIED, ATTACKED = "certified ", "attacked "
"""Published accuracies at a radius are named by it, as in "certified 36/255"; what follows in
brackets tells settings apart, as in "certified 36/255 (2 h)". "attacked 0.39" is an error, at a
radius for the input as normalised."""
WORDS = {"error": "error (%)", "clean": "clean (%)"}


def own(row: Row, figure: str) -> float | None:
    """The row's own value of what was published as `figure`, for the input as normalised; None
    where it has none."""
    name = figure.split(" (")[0]
    if name in ("error", "clean"):
        return 100 * (row.clean if name == "clean" else 1 - row.clean)
    if name.startswith(CERTIFIED):
        shares = zip(row.radii, row.certified, strict=True)
        at = float(Fraction(name.removeprefix(CERTIFIED)))
        return next((100 * share for r, share in shares if abs(r - at) <= 1e-3 * at), None)
    value = getattr(row, name)
    return None if value is None else value * row.scale


def published_table(
    rows: Sequence[Row],
) -> tuple[list[str], list[tuple[Row, list[float | None]]]]:
    """Column names, and for every ℓ₂ row its own figures, after each those published for it.

    Errors under attack are left out: they belong to other attacks.
    """
    shown = [row for row in rows if row.norm == 2]
    names: dict[str, list[str]] = {}
    for figure in dict.fromkeys(name for row in shown for name in row.published):
        if not figure.startswith(ATTACKED):
            names.setdefault(figure.split(" (")[0], []).append(figure)
    head, figures = [], list[tuple[str, bool]]()
    for name, settings in names.items():
        head += [WORDS.get(name, name), *(f"published{s.removeprefix(name)}" for s in settings)]
        figures += [(name, True), *((figure, False) for figure in settings)]
    cells = [
        (row, [own(row, name) if mine else row.published.get(name) for name, mine in figures])
        for row in shown
    ]
    return head, cells


def sources(rows: Sequence[Row]) -> str:
    """Where the published figures come from."""
    return "; ".join(dict.fromkeys(row.source for row in rows if row.published and row.source))


def scaled_down(rows: Sequence[Row]) -> str:
    """That runs were shorter than their recipes, for a caption; else ""."""
    remarks = [r for row in rows for r in row.note.split("; ") if r.startswith(SHORTER)]
    different = list(dict.fromkeys(r.removeprefix(f"{SHORTER}: ") for r in remarks))
    if len(different) > 3:
        different = [different[0], "…", different[-1]]
    return f"{SHORTER}: {', '.join(different)}" if different else ""


def bound_of(row: Row) -> float | None:
    """The verified bound where there is one, else the promised one, for the normalised input."""
    best = row.promised if row.verified is None else row.verified
    return None if best is None else best * row.scale


def published_bound(row: Row) -> float | None:
    """The published counterpart of `bound_of`."""
    return row.published.get("verified", row.published.get("promised"))


def published_errors(row: Row) -> list[tuple[float, float]]:
    """Published test errors in % under attack, each with its radius per raw pixel."""
    return [
        (row.scale * float(name.removeprefix(ATTACKED)), value)
        for name, value in row.published.items()
        if name.startswith(ATTACKED)
    ]


def symbol(norm: float) -> str:
    return "ℓ₂" if norm == 2 else "ℓ∞"


def radius_text(radius: float) -> str:
    """The radius in three digits, or as 36/255 where it is that."""
    levels = 255 * radius
    short = float(f"{radius:.3g}") == radius
    return f"{radius:.3g}" if short or abs(levels - round(levels)) > 1e-9 else f"{levels:.0f}/255"
