"""Two pictures, each answering one question; matplotlib is imported only here, with no display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import write_atomically
from .report import number
from .row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, readable with every common colour blindness; its yellow is darkened,
# because it vanishes on white. One colour per family, in every picture.
COLOURS = {
    "orthogonal": "#0072B2",
    "spectral": "#56B4E9",
    "aol": "#009E73",
    "cpl": "#B8A000",
    "sll": "#D55E00",
    "lben": "#CC79A7",
    "nemon": "#E69F00",
    "mon": "#3B3B98",
    "sandwich": "#7B4F2C",
    "unconstrained": "#222222",
    "torch-spectral": "#888888",
}
OTHER = "#555555"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sdplip",
}


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write accuracy and lipschitz, and tradeoff where rows share a family, as PNG and SVG into
    `folder`; returns the PNGs."""
    import matplotlib

    draws = {"accuracy": accuracy_figure, "lipschitz": lipschitz_figure}
    if any(row.variant for row in rows):
        draws["tradeoff"] = tradeoff_figure
    pictures = []
    with matplotlib.rc_context(STYLE):
        for name, draw in draws.items():
            figure = draw(rows)
            for suffix in ("png", "svg"):
                # A date in the file would make every run differ.
                metadata = {"Date": None} if suffix == "svg" else {"Software": None}
                save = partial(figure.savefig, format=suffix, dpi=160, metadata=metadata)
                write_atomically(folder / f"{name}.{suffix}", save)
            pictures.append(folder / f"{name}.png")
    return pictures


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """How tight is each guarantee? Certified below, attacked above, the gap shaded."""
    columns = min(3, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = blank(2.9 * columns, 0.7 + 2.25 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    ordered = sorted(rows, key=lambda row: row.norm)
    for axis, row in zip(axes.flat, ordered, strict=False):
        _accuracy_panel(axis, row, [other for other in rows if other.norm == row.norm])
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    figure.suptitle(
        "Certified and attacked accuracy against radius, pixels in [0, 1] (grey: the others)",
        x=0.02,
        ha="left",
    )
    return figure


def _accuracy_panel(axis: Any, row: Row, background: Sequence[Row]) -> None:
    colour = COLOURS.get(row.layer, OTHER)
    for other in background:
        axis.plot(
            other.curve["radius"],
            [100 * a for a in other.curve["certified"]],
            color="#DDDDDD",
            linewidth=0.8,
            zorder=1,
        )
    radius = row.curve["radius"]
    certified = [100 * a for a in row.curve["certified"]]
    axis.plot(radius, certified, color=colour, linewidth=1.8, label="certified", zorder=3)
    points = sorted(zip((0.0, *row.radii), (row.clean, *row.attacked), strict=True))
    at, attacked = [p[0] for p in points], [100 * p[1] for p in points]
    axis.plot(
        at, attacked, color=colour, linestyle="--", marker="o", markersize=3.5, linewidth=1,
        label="under attack", zorder=3,
    )  # fmt: skip
    # Both curves on all their points, up to the last radius that was attacked.
    inside = sorted({*at, *(r for r in radius if r < at[-1])})
    lower, upper = np.interp(inside, radius, certified), np.interp(inside, at, attacked)
    axis.fill_between(inside, lower, upper, color=colour, alpha=0.12, linewidth=0)
    symbol = "ℓ₂" if row.norm == 2 else "ℓ∞"
    axis.set_title(row.label, loc="left", color=colour, fontweight="bold", fontsize=9)
    axis.set_xlabel(f"{symbol} radius", labelpad=1)
    axis.set_xlim(0, 1.08 * at[-1])
    axis.set_ylim(0, 102)
    axis.legend(frameon=False, fontsize=7, loc="upper right", handlelength=1.8)


def lipschitz_figure(rows: Sequence[Row]) -> Figure:
    """How close is each promise to what the network really does? One log axis per norm."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    groups = [[row for row in rows if row.norm == norm] for norm in norms]
    figure = blank(7.6, 0.8 + sum(0.3 * len(group) + 0.75 for group in groups))
    heights = [len(group) + 0.6 for group in groups]
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, group in zip(axes, groups, strict=True):
        for place, row in enumerate(group):
            _constants(axis, place, row)
        _decorate(axis, group)
    handles = [axes[0].plot([], [], **_mark(name, "#444444"))[0] for name in MARKS]
    labels = ["promised", "product of norms", "verified (upper bound)", "sampled (lower bound)"]
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    return figure


def tradeoff_figure(rows: Sequence[Row]) -> Figure:
    """Test error against the verified bound for the normalised input, published points beside."""
    figure = blank(7.6, 4.2)
    axis = figure.subplots()
    shown = [row for row in rows if row.norm == 2 and row.verified is not None]
    for layer in dict.fromkeys(row.layer for row in shown):
        group = sorted((r for r in shown if r.layer == layer), key=lambda r: r.verified or 0.0)
        colour = COLOURS.get(layer, OTHER)
        for row in group:
            error, bound = 100 * (1 - row.clean), (row.verified or 0.0) * row.scale
            sampled = bound if row.sampled is None else row.sampled * row.scale
            axis.plot([sampled, bound], [error] * 2, color=colour, alpha=0.35, linewidth=3)
            axis.plot(sampled, error, "o", color=colour, markerfacecolor="white", markersize=4)
            axis.plot(bound, error, "o", color=colour, markersize=5)
            axis.annotate(
                row.variant or row.layer, (bound, error), xytext=(5, 4), fontsize=7, color=colour,
                textcoords="offset points",
            )  # fmt: skip
            if {"error", "verified"} <= row.published.keys():
                axis.plot(row.published["verified"], row.published["error"], "x", color="#666666")
    axis.set_xscale("log")
    plain(axis.xaxis)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("Lipschitz constant for the normalised input: verified (filled), found (open)")
    axis.set_ylabel("test error (%)")
    axis.set_title("crosses: published models, measured anew", loc="left", fontsize=9)
    return figure


MARKS = {
    "promised": {"marker": "|", "markersize": 15},
    "product": {"marker": "x", "markersize": 6},
    "verified": {"marker": "s", "markersize": 8},
    "sampled": {"marker": "o", "markersize": 4.5, "markerfacecolor": "white"},
}


def _mark(name: str, colour: str) -> dict[str, Any]:
    return {"color": colour, "linestyle": "none", "markeredgewidth": 1.5, "zorder": 3} | MARKS[name]


def _constants(axis: Any, place: int, row: Row) -> None:
    colour = COLOURS.get(row.layer, OTHER)
    values = {name: getattr(row, name) for name in MARKS if getattr(row, name)}
    if values:
        ends = [min(values.values()), max(values.values())]
        axis.plot(ends, [place, place], color=colour, alpha=0.3, linewidth=4, zorder=2)
    for name, value in values.items():
        axis.plot(value, place, **_mark(name, colour))
    text = "   ".join(f"{number(getattr(row, name)):>7}" for name in reversed(MARKS))
    axis.text(
        1.02, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8,
        family="monospace", color="#444444",
    )  # fmt: skip


def _decorate(axis: Any, group: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_yticks(range(len(group)), [row.label for row in group])
    axis.set_ylim(len(group) - 0.4, -0.6)
    axis.text(
        1.02, -0.85, "sampled  verified   product  promised", transform=axis.get_yaxis_transform(),
        va="bottom", fontsize=8, family="monospace", color="#444444",
    )  # fmt: skip
    axis.set_xscale("log")
    values = [v for row in group for name in MARKS if (v := getattr(row, name))] or [1.0]
    steps = [m * 10.0**k for k in range(-9, 10) for m in (1, 2, 5)]
    low = max((s for s in steps if s <= 0.95 * min(values)), default=steps[0])
    high = min((s for s in steps if s >= 1.05 * max(values)), default=steps[-1])
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator([s for s in steps if low <= s <= high]))
    plain(axis.xaxis)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="x", color="#E8E8E8", zorder=0)
    axis.tick_params(axis="y", length=0)
    symbol = "ℓ₂ → ℓ₂" if group[0].norm == 2 else "ℓ∞ → ℓ∞"
    axis.set_xlabel(f"Lipschitz constant {symbol}, per raw pixel", labelpad=2)


def plain(axis: Any) -> None:
    """Numbers of a log axis without mathematical type, whose fonts may be missing."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def blank(width: float, height: float) -> Figure:
    # Figure without pyplot: no window system is ever asked for, and nothing global is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
