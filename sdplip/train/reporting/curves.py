"""Pictures of a published comparison's kind: attacks, tightness, ℓ∞ bounds, iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.row import Row
from .captions import bound_of, published_bound, published_errors, symbol
from .plots import COLOURS, OTHER, Name, blank, colour_of, has_place, named, ticked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = tuple(zip(("-", "--", "-.", ":") * 2, "osD^vPX*", strict=True))
"""Line and marker, which tell the models of one family apart."""
RANGE = ("median", "largest")

History = Sequence[Mapping[str, float]]


def tested(row: Row) -> bool:
    """Whether a row has a place in `tightness_figure`."""
    return row.norm == 2 and has_place(bound_of(row)) and has_place(row.sampled)


def tightness_figure(rows: Sequence[Row]) -> Figure:
    """The empirical constant, the largest Jacobian found, against the bound; on the line the bound
    is reached."""
    figure = blank(6.4, 4.6)
    axis = figure.subplots()
    ends, names = [], list[Name]()
    for row in filter(tested, rows):
        bound, found = bound_of(row) or 0.0, (row.sampled or 0.0) * row.scale
        colour = colour_of(row)
        axis.plot(bound, found, "o", color=colour, markersize=5)
        names.append((row.label, (bound, found), colour))
        ends += [bound, found]
        published = published_bound(row)
        if published is not None and "sampled" in row.published:
            axis.plot(published, row.published["sampled"], "x", color="#666666")
    axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#BBBBBB", linewidth=1)
    axis.set(xscale="log", yscale="log")
    ticked(axis.xaxis, ends)
    ticked(axis.yaxis, ends)
    named(axis, names)
    axis.set_xlabel("bound for the normalised input")
    axis.set_ylabel("largest constant found")
    axis.set_title("line: the bound is reached; crosses: published", loc="left", fontsize=9)
    return figure


def attack_figure(rows: Sequence[Row]) -> Figure:
    """Test error under attack against the radius, all models in one axis per norm and attack."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    attacks = ["attacked", *(["fgsm"] if any(row.fgsm for row in rows) else [])]
    figure = blank(2.2 + 3.4 * len(attacks), 0.4 + 2.9 * len(norms))
    axes = figure.subplots(len(norms), len(attacks), squeeze=False, sharex="row", sharey=True)
    styles = _styles(rows)
    for line, norm in zip(axes, norms, strict=True):
        for axis, attack in zip(line, attacks, strict=True):
            group = [row for row in rows if row.norm == norm and getattr(row, attack)]
            for row in group:
                _attack_curve(axis, row, getattr(row, attack), styles[row.layer, row.variant])
            if norm == 2 and attack == attacks[-1]:
                _published_errors(axis, group)
            name = "one step (FGSM)" if attack == "fgsm" else "many steps"
            axis.set_title(f"{symbol(norm)}, {name}", loc="left", fontsize=9)
            axis.set_xlabel(f"{symbol(norm)} radius, pixels in [0, 1]")
            axis.set_ylim(0, 102)
        line[0].set_ylabel("test error under attack (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _attack_curve(axis: Any, row: Row, accuracies: Sequence[float], style: tuple[str, str]) -> None:
    _, clean, _ = row.under_attack
    at = sorted(zip((0.0, *row.radii), (clean, *accuracies), strict=True))
    axis.plot(
        [radius for radius, _ in at], [100 * (1 - share) for _, share in at],
        color=colour_of(row), linestyle=style[0], marker=style[1], markersize=3.5,
        linewidth=1.1, label=row.name,
    )  # fmt: skip


def _published_errors(axis: Any, rows: Sequence[Row]) -> None:
    crosses = [(row, *point) for row in rows for point in published_errors(row)]
    for row, radius, error in crosses:
        axis.plot(radius, error, "x", color=colour_of(row), markersize=6)
    if crosses:
        text = "crosses: published, one step,\nother test images"
        axis.text(0.98, 0.03, text, transform=axis.transAxes, ha="right", fontsize=7)


def _styles(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[str, str]]:
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for key in dict.fromkeys((row.layer, row.variant) for row in rows):
        found[key] = STYLES[sum(layer == key[0] for layer, _ in found) % len(STYLES)]
    return found


def bound_histories(histories: Mapping[str, History]) -> dict[str, list[float]]:
    """The models' ℓ∞ bounds after every epoch, where training recorded them."""
    return {
        name: [entry["linf_bound"] for entry in history]
        for name, history in histories.items()
        if history and all("linf_bound" in entry for entry in history)
    }


def bound_history_figure(bounds: Mapping[str, Sequence[float]]) -> Figure:
    """The ℓ∞ bound for the normalised input after every epoch of training."""
    from matplotlib.ticker import MaxNLocator

    figure = blank(7.6, 3.2)
    axis = figure.subplots()
    for k, (name, values) in enumerate(bounds.items()):
        line, marker = STYLES[k % len(STYLES)]
        axis.plot(
            range(1, len(values) + 1), values, color=COLOURS.get(name.split()[0], OTHER),
            linestyle=line, marker=marker, markersize=3.5, label=name,
        )  # fmt: skip
    axis.set_yscale("log")
    ticked(axis.yaxis, [value for values in bounds.values() for value in values])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")
    axis.set_ylabel("ℓ∞ bound, normalised input")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    return figure


def methods_of(insights: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What every method of solving took, per model with one equilibrium layer."""
    found = {name: inside["equilibria"] for name, inside in insights.items()}
    return {k: v[0]["methods"] for k, v in found.items() if len(v) == 1 and "methods" in v[0]}


def iterations_figure(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Iterations to the same residual by every method: the median image, the worst one lighter."""
    figure = blank(7.6, 0.9 + 0.3 * len(models))
    axis = figure.subplots()
    colours = list(COLOURS.values())
    for place, found in enumerate(models.values()):
        for k, (method, took) in enumerate(found.items()):
            marker, label = STYLES[k % len(STYLES)][1], method if place == 0 else None
            style: dict[str, Any] = {"color": colours[k % len(colours)], "linestyle": "none"}
            style["marker"] = marker
            axis.plot(took["median"], place, markersize=6, label=label, **style)
            axis.plot(took["largest"], place, markersize=6, alpha=0.35, **style)
    axis.set_yticks(range(len(models)), list(models))
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.set_xscale("log")
    took = [t[name] for found in models.values() for t in found.values() for name in RANGE]
    ticked(axis.xaxis, took)
    axis.grid(axis="x", color="#E8E8E8", zorder=0)
    tol = next(iter(next(iter(models.values())).values()))["tol"]
    axis.set_xlabel(f"iterations to a relative residual of {tol:g}: median image, worst (pale)")
    figure.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=7)
    return figure
