"""What every method of solving an equilibrium takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...equilibrium.solve import SPLITTINGS
from ...layers import EquilibriumLayer

TOL = 1e-4
METHODS = (*SPLITTINGS, "average+anderson")
LIMIT = 2000


def iterations(layer: EquilibriumLayer, x: Tensor) -> dict[str, dict[str, Any]]:
    """Iterations of every method, each with its own best step, until a residual of TOL, over the
    samples x (N, ...): `median`, `largest`, and whether all `converged` within LIMIT. Residuals are
    looked at every few iterations only, so that counts are multiples of these.

    Average iteration is [NEMON]'s; forward-backward and Peaceman-Rachford are [MON]'s.
    """
    before = layer.method, layer.fallback, layer.tol, layer.max_steps
    layer.fallback, layer.tol, layer.max_steps = None, TOL, LIMIT
    found: dict[str, dict[str, Any]] = {}
    try:
        for method in METHODS:
            layer.method = method
            solved = layer.solve(x)
            found[method] = {
                "median": float(solved.steps.double().median()),
                "largest": int(solved.steps.max()),
                "converged": bool(solved.converged.all()),
                "tol": TOL,
            }
    finally:
        layer.method, layer.fallback, layer.tol, layer.max_steps = before
    return found
