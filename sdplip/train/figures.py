"""The further pictures of a report: accuracy against cost, and the inside of the models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .plots import COLOURS, OTHER, blank, plain
from .row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_figure(rows: Sequence[Row]) -> Figure:
    """Clean (open) and certified (filled) accuracy against seconds of training."""
    shown = [row for row in rows if math.isfinite(row.train_seconds)]
    norms = list(dict.fromkeys(row.norm for row in shown))
    figure = blank(7.6, 2.9 * max(len(norms), 1))
    axes = figure.subplots(max(len(norms), 1), 1, squeeze=False)[:, 0]
    for axis, norm in zip(axes, norms, strict=False):
        group = [row for row in shown if row.norm == norm]
        for row in group:
            colour, x = COLOURS.get(row.layer, OTHER), row.train_seconds
            low, high = 100 * row.certified[0], 100 * row.clean
            axis.plot([x, x], [low, high], color=colour, alpha=0.35, linewidth=2)
            axis.plot(x, high, "o", color=colour, markerfacecolor="white", zorder=3)
            axis.plot(x, low, "o", color=colour, zorder=3)
            axis.annotate(
                row.label, (x, high), xytext=(0, 6), textcoords="offset points", fontsize=8,
                color=colour, ha="center",
            )  # fmt: skip
        symbol = "ℓ₂" if norm == 2 else "ℓ∞"
        axis.set_title(
            f"open: clean; filled: certified at the {symbol} radius {group[0].radii[0]:.3g}",
            loc="left", fontsize=9,
        )  # fmt: skip
        axis.set_xscale("log")
        plain(axis.xaxis)
        axis.margins(x=0.12, y=0.15)
        axis.set_xlabel("seconds of training")
        axis.set_ylabel("accuracy (%)")
    return figure


def spectra_figure(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every layer's singular values, from the largest to the smallest, one panel per model."""
    shown = {k: v["singular_values"] for k, v in models.items() if v["singular_values"]}
    columns = min(3, max(len(shown), 1))
    lines = math.ceil(len(shown) / columns) or 1
    figure = blank(2.7 * columns, 0.4 + 2.0 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, (name, layers) in zip(axes.flat, shown.items(), strict=False):
        colour = COLOURS.get(name.split()[0], OTHER)
        for k, layer in enumerate(layers):
            values = np.asarray(layer["values"])
            place = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
            style = ("-", "--", "-.", ":")[k % 4]
            axis.plot(place, values, linestyle=style, color=colour, label=layer["layer"])
        axis.set_title(name, loc="left", color=colour, fontweight="bold", fontsize=9)
        axis.set_xlabel("share of the singular values", labelpad=1)
        axis.legend(frameon=False, fontsize=6.5, handlelength=2.2)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("singular value")
    return figure


def residual_figure(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Relative residual after each iteration: the median image, and the worst one dashed."""
    figure = blank(7.6, 3.0)
    axis = figure.subplots()
    for name, found in models.items():
        for layer in found["equilibria"]:
            steps = range(1, len(layer["median"]) + 1)
            colour = COLOURS.get(name.split()[0], OTHER)
            axis.plot(steps, layer["median"], color=colour, label=name)
            axis.plot(steps, layer["largest"], color=colour, linestyle="--", linewidth=1)
    axis.set_yscale("log")
    plain(axis.yaxis)
    axis.set_xlabel("iteration of Peaceman-Rachford")
    axis.set_ylabel("relative residual")
    axis.legend(frameon=False, fontsize=8)
    return figure


def history_figure(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Accuracy on the training batches after each epoch."""
    figure = blank(7.6, 3.0)
    axis = figure.subplots()
    for name, history in histories.items():
        accuracy = [100 * entry["accuracy"] for entry in history]
        axis.plot(
            range(1, len(accuracy) + 1),
            accuracy,
            color=COLOURS.get(name.split()[0], OTHER),
            label=name,
        )
    axis.set_xlabel("epoch")
    axis.set_ylabel("accuracy in training (%)")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    return figure
