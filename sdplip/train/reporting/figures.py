"""The further pictures of a report: accuracy against cost, and the inside of the models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.row import Row
from .captions import symbol
from .markup import tones
from .plots import blank, colour_of, named, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Insights = Sequence[tuple[Row, Mapping[str, Any]]]
"""Models and what `insight` found in them."""
POINTS, NAMED = 65, 6
"""Of a curve of singular values, and of layers in one legend."""
LEAST = 1e-17
"""Residuals are drawn from here on: zero has no place on a logarithmic axis."""


def compared_radius(row: Row) -> int:
    """The place of the radius at which models are compared in one point: the middle one."""
    return (len(row.radii) - 1) // 2


def cost_figure(rows: Sequence[Row]) -> Figure:
    """Clean against certified accuracy, one point per model, its area the time of training."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    height = sum(max(2.6, 0.6 + 0.17 * len([r for r in rows if r.norm == n])) for n in norms)
    figure = blank(7.6, height)
    axes = figure.subplots(len(norms), 1, squeeze=False)[:, 0]
    longest = max((row.train_seconds for row in rows if row.train_seconds > 0), default=1.0)
    for axis, norm in zip(axes, norms, strict=True):
        group = [row for row in rows if row.norm == norm]
        points = [(100 * r.certified[compared_radius(r)], 100 * r.clean) for r in group]
        for row, (x, y) in zip(group, points, strict=True):
            share = row.train_seconds / longest if math.isfinite(row.train_seconds) else 0.0
            axis.scatter(x, y, s=18 + 260 * share, color=colour_of(row), alpha=0.4, linewidth=0)
            axis.plot(x, y, ".", color=colour_of(row), markersize=3)
        axis.margins(0.1)
        axis.autoscale_view()
        axis.set(xlim=within(*axis.get_xlim()), ylim=within(*axis.get_ylim()))
        called = [f"{row.label}, {seconds(row.train_seconds)}" for row in group]
        named(axis, list(zip(called, points, map(colour_of, group), strict=True)))
        radii = [r.radii[compared_radius(r)] for r in group]
        at = ", ".join(f"{radius:.3g}" for radius in dict.fromkeys(radii))
        axis.set_xlabel(f"certified accuracy at the {symbol(norm)} radius {at} (%)")
        axis.set_ylabel("clean accuracy (%)")
    return figure


def within(low: float, high: float) -> tuple[float, float]:
    """The limits of an axis of accuracies: two percent at least, and no more than 0 to 100, but for
    half a point's width."""
    middle = (low + high) / 2
    return max(min(low, middle - 1), -4.0), min(max(high, middle + 1), 101.5)


def seconds(value: float) -> str:
    """A time in seconds, minutes or hours, as short as two digits allow."""
    if not math.isfinite(value):
        return "time unknown"
    for unit, size in (("s", 1), ("min", 60)):
        if value < 100 * size:
            return f"{value / size:.2g} {unit}"
    return f"{value / 3600:.2g} h"


def spectra_figure(models: Insights) -> Figure:
    """Every layer's singular values, from the largest to the smallest, one panel per model."""
    columns = min(3, len(models))
    lines = math.ceil(len(models) / columns)
    figure = blank(2.7 * columns, 0.4 + 2.0 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, (row, found) in zip(axes.flat, models, strict=False):
        count = len(found["singular_values"])
        named = range(count) if count <= NAMED else (0, count // 2, count - 1)
        for k, layer in enumerate(found["singular_values"]):
            values = np.asarray(layer["values"])
            shown = np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(int)
            values = values[shown]
            place = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
            style = ("-", "--", "-.", ":")[k % 4]
            mark = "." if len(values) == 1 else ""
            axis.plot(
                place, values, linestyle=style, marker=mark, color=colour_of(row),
                alpha=1 - 0.6 * k / count, label=layer["layer"] if k in named else None,
            )  # fmt: skip
        axis.set_ylim(bottom=0)
        axis.set_title(row.label, loc="left", color=colour_of(row), fontweight="bold", fontsize=9)
        axis.set_xlabel("share of the singular values", labelpad=1)
        axis.legend(frameon=False, fontsize=6.5, handlelength=2.2)
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("singular value")
    return figure


def equilibrium_figure(models: Insights) -> Figure:
    """Residuals after each iteration, then iterations and milliseconds of a whole solve."""
    layers = [(row, layer) for row, found in models for layer in found["equilibria"]]
    figure = blank(7.6, 3.0 + 0.26 * len(layers))
    upper, lower = figure.subplots(2, 1, height_ratios=[2.4, 0.6 + 0.26 * len(layers)])
    colours = tones([row for row, _ in layers])
    for tone, (_, layer) in zip(colours, layers, strict=True):
        steps = layer.get("at") or range(1, len(layer["median"]) + 1)
        for name, style in (("median", "-"), ("largest", "--")):
            values = [max(value, LEAST) for value in layer[name]]
            upper.plot(steps, values, style, color=tone, linewidth=1.4 if style == "-" else 1)
    upper.set_yscale("log")
    plain(upper.yaxis)
    upper.set_xlabel("iteration of Peaceman-Rachford", labelpad=1)
    upper.set_ylabel("relative residual")
    for place, (tone, (_, layer)) in enumerate(zip(colours, layers, strict=True)):
        median, most = layer["steps"]["median"], layer["steps"]["largest"]
        lower.plot([median, most], [place] * 2, color=tone, alpha=0.5, linewidth=4)
        lower.plot(median, place, "o", color=tone)
        lower.text(
            1.02, place, f"{layer['milliseconds_per_image']:.3g} ms per image",
            transform=lower.get_yaxis_transform(), va="center", fontsize=8, color="#444444",
        )  # fmt: skip
    lower.set_yticks(range(len(layers)), [row.label for row, _ in layers])
    lower.set_ylim(len(layers) - 0.4, -0.6)
    lower.set_xlim(left=0)
    lower.set_xlabel("iterations to the layer's own tolerance: median to worst", labelpad=1)
    return figure


def history_figure(histories: Sequence[tuple[Row, Sequence[Mapping[str, float]]]]) -> Figure:
    """Accuracy on the training batches after each epoch."""
    figure = blank(7.6, 3.0)
    axis = figure.subplots()
    for tone, (row, history) in zip(tones([row for row, _ in histories]), histories, strict=True):
        accuracy = [100 * epoch["accuracy"] for epoch in history]
        mark = "." if len(accuracy) == 1 else ""
        axis.plot(range(1, len(accuracy) + 1), accuracy, marker=mark, color=tone, label=row.label)
    axis.set_xlabel("epoch")
    axis.set_ylabel("accuracy in training (%)")
    figure.legend(frameon=False, fontsize=7, loc="outside right upper")
    return figure
