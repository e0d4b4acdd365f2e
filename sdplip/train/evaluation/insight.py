"""What a trained model looks like inside: singular values, and how its equilibria are found."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import EquilibriumLayer
from ...layers._equilibrium import Equilibrium
from .iterations import iterations
from .measure import exact_copy

LARGEST = 1 << 22
"""Entries of a Jacobian beyond which singular values are left out."""
CROPPED = 1 << 20
"""Entries beyond which they are those at the middle of an image; an eighth of it where every row
is an equilibrium."""
STEPS = (*range(1, 11), 12, 14, 17, 20, 24, 29, 35, 42, 50, 60)
"""Iterations after which residuals are looked at."""
REACHED = 1e-13
ON_IMAGES = 4, 24
"""As many images and iterations suffice for the equilibria of a convolution."""


def insight(model: nn.Sequential, x: Tensor) -> dict[str, Any]:
    """JSON values about a trained model at images x (N, ...) in [0, 1].

    `singular_values`: per layer with parameters, those of its Jacobian at the first image, or of a
    large convolution's at a middle part of it, falling; layers too large for that are named in
    `left_out`. `equilibria`: per equilibrium layer the median and the largest relative residual
    over the images after `at` iterations of Peaceman-Rachford, and what a solve to the layer's own
    tolerance takes; of dense ones also what `iterations` finds, as `methods`.
    """
    found: dict[str, Any] = {"singular_values": [], "left_out": [], "equilibria": []}
    point = x.double()
    exact = exact_copy(model)
    for index, (trained, layer) in enumerate(zip(model, exact, strict=True)):
        name = f"{index}: {type(layer).__name__}"
        with torch.no_grad():
            after = layer(point)
        if any(p.numel() for p in layer.parameters()):
            where, values = _singular_values(layer, point[:1])
            if values is None:
                found["left_out"].append(name)
            else:
                found["singular_values"].append({"layer": name + where, "values": values})
        if isinstance(layer, Equilibrium):
            found["equilibria"].append({"layer": name} | _equilibria(trained, layer, point))
        point = after
    return found


@torch.no_grad()
def _singular_values(layer: nn.Module, x: Tensor) -> tuple[str, list[float] | None]:
    """Of the Jacobian at one image (1, ...), and what part of it that is."""
    size, where = x.numel() * layer(x).numel(), ""
    cropped = CROPPED // 8 if isinstance(layer, Equilibrium) else CROPPED
    while size > (cropped if x.ndim == 4 else LARGEST):
        if x.ndim != 4 or min(x.shape[-2:]) < 4:
            return "", None
        h, w = x.shape[-2] // 4, x.shape[-1] // 4
        x = x[..., h : -h or None, w : -w or None]
        size = x.numel() * layer(x).numel()
        where = f" on {x.shape[-2]} × {x.shape[-1]} pixels"
    # One copy of the image per output: row i of the Jacobian is the gradient at copy i.
    y = layer(x)
    with torch.enable_grad():
        copies = x.expand(y.numel(), *x.shape[1:]).clone().requires_grad_()
        seed = torch.eye(y.numel(), dtype=y.dtype, device=y.device).reshape(-1, *y.shape[1:])
        (J,) = torch.autograd.grad(layer(copies), copies, seed)
    return where, [float(value) for value in torch.linalg.svdvals(J.flatten(1))]


def _equilibria(trained: Any, exact: Any, x: Tensor) -> dict[str, Any]:
    exact.method, exact.fallback, exact.tol = "peaceman_rachford", None, REACHED
    images, most = (len(x), STEPS[-1]) if isinstance(exact, EquilibriumLayer) else ON_IMAGES
    x = x[:images]
    at, median, largest = [], [], []
    for steps in (k for k in STEPS if k <= most):
        exact.max_steps = steps
        residual = exact.solve(x).residual
        at.append(steps)
        median.append(float(residual.median()))
        largest.append(float(residual.max()))
        if largest[-1] <= REACHED:
            break
    began = time.perf_counter()
    found = trained.solve(x.to(next(trained.parameters()).dtype))
    milliseconds = 1e3 * (time.perf_counter() - began) / max(len(x), 1)
    return {
        "at": at,
        "median": median,
        "largest": largest,
        "method": found.method,
        "steps": {"median": float(found.steps.median()), "largest": int(found.steps.max())},
        "error_bound": float(found.error_bound.max()),
        "milliseconds_per_image": milliseconds,
        "images": len(x),
    } | ({"methods": iterations(exact, x)} if isinstance(exact, EquilibriumLayer) else {})
