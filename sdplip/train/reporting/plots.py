"""Pictures, each answering one question; matplotlib is imported only here, with no display."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._arrays import write_atomically
from ..evaluation.row import Row
from .captions import bound_of, published_bound, scaled_down, symbol
from .tables import number

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
    "implicit": "#7A9A01",
    "sandwich": "#7B4F2C",
    "unconstrained": "#222222",
    "torch-spectral": "#888888",
}
OTHER = "#555555"
TICKS = 9
CROWD = 12
"""More models than this are not all drawn in grey behind each of them."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sdplip",
}


def plot(
    rows: Sequence[Row],
    folder: Path,
    histories: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    insights: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Write every picture that the rows have something for as PNG and SVG into `folder`; returns
    the PNGs. `histories` and `insights` are those of the models by label."""
    import matplotlib

    from . import curves

    draws = {"accuracy": accuracy_figure, "lipschitz": lipschitz_figure}
    if any(row.variant for row in rows):
        draws |= {"tradeoff": tradeoff_figure, "attack": curves.attack_figure}
        if any(map(curves.tested, rows)):
            draws["tightness"] = curves.tightness_figure
    drawn = {name: partial(draw, rows) for name, draw in draws.items()}
    if bounds := curves.bound_histories(histories or {}):
        drawn["linf-bound"] = partial(curves.bound_history_figure, bounds)
    if methods := curves.methods_of(insights or {}):
        drawn["iterations"] = partial(curves.iterations_figure, methods)
    pictures = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawn.items():
            figure = draw()
            if said := scaled_down(rows):
                figure.supxlabel(said, x=0.02, ha="left", fontsize=7, color="#444444")
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
        alike = [other for other in rows if other.norm == row.norm]
        _accuracy_panel(axis, row, alike if len(alike) <= CROWD else [])
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    title = "Certified and attacked accuracy against radius, pixels in [0, 1]"
    others = " (grey: the others)" if len(rows) > 1 else ""
    figure.suptitle(textwrap.fill(title + others, 32 * columns), x=0.02, ha="left")
    return figure


def _accuracy_panel(axis: Any, row: Row, background: Sequence[Row]) -> None:
    colour = colour_of(row)
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
    _, clean, _ = row.under_attack
    points = sorted(zip((0.0, *row.radii), (clean, *row.attacked), strict=True))
    at, attacked = [p[0] for p in points], [100 * p[1] for p in points]
    axis.plot(
        at, attacked, color=colour, linestyle="--", marker="o", markersize=3.5, linewidth=1,
        label="under attack", zorder=3,
    )  # fmt: skip
    # Both curves on all their points, up to the last radius that was attacked.
    inside = sorted({*at, *(r for r in radius if r < at[-1])})
    lower, upper = np.interp(inside, radius, certified), np.interp(inside, at, attacked)
    axis.fill_between(inside, lower, upper, color=colour, alpha=0.12, linewidth=0)
    axis.set_title(row.label, loc="left", color=colour, fontweight="bold", fontsize=9)
    axis.set_xlabel(f"{symbol(row.norm)} radius", labelpad=1)
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
    """Test error against the bound for the normalised input, published points beside."""
    figure = blank(7.6, 4.2)
    axis = figure.subplots()
    ends: list[float] = []
    names: list[Name] = []
    for row in rows:
        bound = bound_of(row)
        found = bound if row.sampled is None else row.sampled * row.scale
        if row.norm != 2 or found is None or not has_place(found):
            continue
        ends += [found, found if bound is None else bound]
        colour, error = colour_of(row), 100 * (1 - row.clean)
        if bound is not None:
            axis.plot([found, bound], [error] * 2, color=colour, alpha=0.35, linewidth=3)
            axis.plot(bound, error, "o", color=colour, markersize=5)
        axis.plot(found, error, "o", color=colour, markerfacecolor="white", markersize=4)
        names.append((row.label, (found if bound is None else bound, error), colour))
        published = published_bound(row)
        if published is not None and "error" in row.published:
            axis.plot(published, row.published["error"], "x", color="#666666")
    axis.set_xscale("log")
    ticked(axis.xaxis, ends)
    axis.set_ylim(bottom=0)
    named(axis, names)
    axis.set_xlabel("Lipschitz constant for the normalised input: bound (filled), found (open)")
    axis.set_ylabel("test error (%)")
    if any(row.published for row in rows):
        axis.set_title("crosses: published", loc="left", fontsize=9)
    return figure


Name = tuple[str, tuple[float, float], str]
"""What a point is called, where it lies, its colour."""


def named(axis: Any, names: Sequence[Name]) -> None:
    """Write the points' names beside the axis, in the order of heights, never on each other."""
    for place, (name, point, colour) in enumerate(sorted(names, key=lambda name: name[1][::-1])):
        axis.annotate(
            name, point, va="center", fontsize=7.5, color=colour,
            xytext=(1.04, (place + 0.5) / len(names)), textcoords=axis.transAxes,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "alpha": 0.35, "lw": 0.7, "relpos": (0, 0.5),
            },
        )  # fmt: skip


MARKS = {
    "promised": {"marker": "|", "markersize": 15},
    "product": {"marker": "x", "markersize": 6},
    "verified": {"marker": "s", "markersize": 8},
    "sampled": {"marker": "o", "markersize": 4.5, "markerfacecolor": "white"},
}


def _mark(name: str, colour: str) -> dict[str, Any]:
    return {"color": colour, "linestyle": "none", "markeredgewidth": 1.5, "zorder": 3} | MARKS[name]


def _constants(axis: Any, place: int, row: Row) -> None:
    colour = colour_of(row)
    values = {name: v for name in MARKS if has_place(v := getattr(row, name))}
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


def has_place(value: float | None) -> bool:
    """Whether a constant has a place on a logarithmic axis."""
    return value is not None and 0 < value < 1e300


def _decorate(axis: Any, group: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_yticks(range(len(group)), [row.label for row in group])
    axis.set_ylim(len(group) - 0.4, -0.6)
    axis.text(
        1.02, -0.85, "sampled  verified   product  promised", transform=axis.get_yaxis_transform(),
        va="bottom", fontsize=8, family="monospace", color="#444444",
    )  # fmt: skip
    axis.set_xscale("log")
    values = [v for row in group for name in MARKS if has_place(v := getattr(row, name))] or [1.0]
    first, last = (math.floor(math.log10(end(values))) for end in (min, max))
    mantissas = (1, 2, 5) if last - first < 3 else (1,)
    steps = [m * 10.0**k for k in range(first - 1, last + 2) for m in mantissas]
    low = max(s for s in steps if s <= 0.95 * min(values))
    high = min(s for s in steps if s >= 1.05 * max(values))
    axis.set_xlim(low, high)
    ticks = [s for s in steps if low <= s <= high]
    axis.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // TICKS)]))
    plain(axis.xaxis)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="x", color="#E8E8E8", zorder=0)
    axis.tick_params(axis="y", length=0)
    both = " → ".join([symbol(group[0].norm)] * 2)
    axis.set_xlabel(f"Lipschitz constant {both}, per raw pixel", labelpad=2)


def plain(axis: Any) -> None:
    """Numbers of a log axis without mathematical type, whose fonts may be missing."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def ticked(axis: Any, values: Sequence[float]) -> None:
    """`plain`, with more numbers where the values span little."""
    from matplotlib.ticker import LogLocator

    if values and max(values) < 30 * min(values):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain(axis)


def colour_of(row: Row) -> str:
    """The family's, in every picture and table."""
    return COLOURS.get(row.layer, OTHER)


def blank(width: float, height: float) -> Figure:
    # Figure without pyplot: no window system is ever asked for, and nothing global is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
