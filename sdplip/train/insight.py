"""What a trained model looks like inside: singular values, and how its equilibria are found."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import EquilibriumLayer
from .measure import exact_copy

LARGEST = 1 << 22
"""Entries of a Jacobian beyond which singular values are left out."""
ITERATIONS = 60
REACHED = 1e-13


def insight(model: nn.Sequential, x: Tensor) -> dict[str, Any]:
    """JSON values about a trained model at images x (N, ...) in [0, 1].

    `singular_values`: per layer with parameters, those of its Jacobian at the first image, falling;
    layers too large for that are named in `left_out`. `equilibria`: per dense equilibrium layer the
    median and the largest relative residual over the images after every iteration of
    Peaceman-Rachford, and what a solve to the layer's own tolerance takes.
    """
    found: dict[str, Any] = {"singular_values": [], "left_out": [], "equilibria": []}
    point = x.double()
    exact = exact_copy(model)
    for index, (trained, layer) in enumerate(zip(model, exact, strict=True)):
        name = f"{index}: {type(layer).__name__}"
        with torch.no_grad():
            after = layer(point)
        if any(p.numel() for p in layer.parameters()):
            values = _singular_values(layer, point[0], after[0])
            if values is None:
                found["left_out"].append(name)
            else:
                found["singular_values"].append({"layer": name, "values": values})
        if isinstance(layer, EquilibriumLayer):
            found["equilibria"].append({"layer": name} | _equilibria(trained, layer, point))
        point = after
    return found


def _singular_values(layer: nn.Module, x: Tensor, y: Tensor) -> list[float] | None:
    if x.numel() * y.numel() > LARGEST:
        return None
    # One copy of the image per output: row i of the Jacobian is the gradient at copy i.
    copies = x.expand(y.numel(), *x.shape).clone().requires_grad_()
    seed = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    (J,) = torch.autograd.grad(layer(copies), copies, seed)
    return [float(value) for value in torch.linalg.svdvals(J.flatten(1))]


def _equilibria(trained: nn.Module, exact: EquilibriumLayer, x: Tensor) -> dict[str, Any]:
    exact.method, exact.fallback, exact.tol = "peaceman_rachford", None, REACHED
    median, largest = [], []
    for steps in range(1, ITERATIONS + 1):
        exact.max_steps = steps
        residual = exact.solve(x).residual
        median.append(float(residual.median()))
        largest.append(float(residual.max()))
        if largest[-1] <= REACHED:
            break
    began = time.perf_counter()
    found = trained.solve(x.to(next(trained.parameters()).dtype))  # type: ignore[operator]
    milliseconds = 1e3 * (time.perf_counter() - began) / max(len(x), 1)
    return {
        "median": median,
        "largest": largest,
        "method": found.method,
        "steps": {"median": float(found.steps.median()), "largest": int(found.steps.max())},
        "error_bound": float(found.error_bound.max()),
        "milliseconds_per_image": milliseconds,
        "images": len(x),
    }
