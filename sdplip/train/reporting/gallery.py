"""Every picture of a report with its caption and its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.row import Row
from .captions import bound_of
from .curves import (
    attack_figure,
    bound_histories,
    bound_history_figure,
    iterations_figure,
    methods_of,
    tightness_figure,
)
from .figures import (
    compared_radius,
    cost_figure,
    equilibrium_figure,
    history_figure,
    spectra_figure,
)
from .gathered import Run
from .markup import table
from .plots import accuracy_figure, lipschitz_figure, tradeoff_figure
from .tables import DASH, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[Callable[[Any], "Figure"], Any, str, str]
"""What draws it, of what, its caption, and the table of its numbers."""


def gallery(runs: Sequence[Run]) -> list[Picture]:
    """The pictures of runs on one data set."""
    rows = [row for run in runs for row in run.rows]
    return [
        *_accuracies(rows), *_constants(rows), *_costs(rows), *_training(runs), *_spectra(runs),
        *_equilibria(runs),
    ]  # fmt: skip


def _accuracies(rows: Sequence[Row]) -> list[Picture]:
    caption = (
        "Certified (line) and attacked (dashed) accuracy against the radius, per raw pixel in "
        "[0, 1]. The shaded gap holds the true robust accuracy. Grey: the others."
    )
    found: list[Picture] = [(accuracy_figure, rows, caption, _curves(rows))]
    if any(row.variant for row in rows):
        caption = "Test error under attack against the radius; crosses are published."
        found.append((attack_figure, rows, caption, _attacks(rows)))
    return found


def _curves(rows: Sequence[Row]) -> str:
    """Certified at every radius drawn, and under attack at those attacked."""
    body = []
    for row in rows:
        found = {}
        for radius, certified in zip(row.curve["radius"], row.curve["certified"], strict=True):
            found[f"{radius:.4g}"] = f"{100 * certified:.2f}", DASH
        _, _, proved = row.under_attack
        for radius, certified, attacked in zip(row.radii, proved, row.attacked, strict=True):
            found[f"{radius:.4g}"] = f"{100 * certified:.2f}", f"{100 * attacked:.2f}"
        body += [(row, radius, *found[radius]) for radius in sorted(found, key=float)]
    return table(("model", "radius", "certified (%)", "attacked (%)"), body)


def _attacks(rows: Sequence[Row]) -> str:
    """Of the images that were attacked."""
    return table(
        ("model", "radius", "images", "attacked (%)", "one step (%)"),
        [
            (
                row, f"{radius:.4g}", row.attack_images or row.images, f"{100 * share:.2f}",
                f"{100 * row.fgsm[k]:.2f}" if row.fgsm else DASH,
            )
            for row in rows
            for k, (radius, share) in enumerate(zip(row.radii, row.attacked, strict=True))
        ],
    )  # fmt: skip


def _constants(rows: Sequence[Row]) -> list[Picture]:
    caption = (
        "How tight the bounds are: the constant lies between the largest Jacobian found (sampled) "
        "and the verified bound; product of norms and promise for comparison."
    )
    found: list[Picture] = [(lipschitz_figure, rows, caption, _bounds(rows))]
    bounded = [row for row in rows if row.norm == 2 and bound_of(row)]
    if not any(row.variant for row in bounded):
        return found
    numbers = table(
        ("model", "test error (%)", "bound", "found"),
        [
            (row, f"{100 * (1 - row.clean):.2f}", number(bound_of(row)), number(sampled))
            for row in bounded
            for sampled in [None if row.sampled is None else row.sampled * row.scale]
        ],
    )
    caption = (
        "Test error against the Lipschitz constant for the normalised input: what a bound costs. "
        "Crosses are published models."
    )
    found.append((tradeoff_figure, bounded, caption, numbers))
    if any(row.sampled for row in bounded):
        caption = (
            "The largest constant found against the bound, both for the normalised input; on the "
            "line the bound is reached. Crosses are published models."
        )
        found.append((tightness_figure, bounded, caption, numbers))
    return found


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


def _costs(rows: Sequence[Row]) -> list[Picture]:
    numbers = table(
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
    caption = (
        "What accuracy, certificates and time cost each other: up is accurate, right is certified, "
        "and the area is the time of training, which stands beside the name."
    )
    return [(cost_figure, rows, caption, numbers)]


def _fixed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _training(runs: Sequence[Run]) -> list[Picture]:
    numbers = table(
        ("model", "epoch", "loss", "accuracy (%)", "ℓ∞ bound"),
        [
            (
                run.rows[0], k, _fixed(epoch["loss"], 4), _fixed(100 * epoch["accuracy"]),
                number(epoch.get("linf_bound")),
            )
            for run in runs
            for k, epoch in enumerate(run.history, 1)
        ],
    )  # fmt: skip
    histories = [(run.rows[0], run.history) for run in runs]
    caption = "Accuracy on the training batches after each epoch."
    found: list[Picture] = [(history_figure, histories, caption, numbers)]
    if bounds := bound_histories({run.label: run.history for run in runs}):
        caption = "The ℓ∞ bound for the normalised input after each epoch."
        found.append((bound_history_figure, bounds, caption, numbers))
    return found


def _spectra(runs: Sequence[Run]) -> list[Picture]:
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
    return [(spectra_figure, models, caption, numbers)]


def _equilibria(runs: Sequence[Run]) -> list[Picture]:
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
    pictures: list[Picture] = [(equilibrium_figure, models, caption, numbers)]
    if methods := methods_of({row.label: found for row, found in models}):
        caption = "Iterations of every method until the same residual, each with its best step."
        numbers = table(
            ("model", "method", "iterations, median", "worst", "residual", "all converged"),
            [
                (
                    name, method, number(took["median"]), took["largest"], f"{took['tol']:g}",
                    "yes" if took["converged"] else "no",
                )
                for name, found in methods.items()
                for method, took in found.items()
            ],
        )  # fmt: skip
        pictures.append((iterations_figure, methods, caption, numbers))
    return pictures
