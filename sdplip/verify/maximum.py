"""ℓ∞ → ℓ∞: weights η by one M-matrix solve, or by a linear program as the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arrays import Array
from ..errors import CertificationError, NotWellPosed
from ..system import System
from . import convex
from .euclidean import Proposal


def maximum(system: System, method: str, shown: Callable[[float, Array], bool]) -> Proposal:
    """The best bound for ℓ∞ that `shown` takes with its η."""

    def top(eta: Array) -> float:
        return float((abs(system.C) @ eta + abs(system.D).sum(axis=1)).max())

    least = _eta(system, 0.0)
    if method in ("auto", "closed form"):
        method, eta = "closed form", least
    else:
        eta = _eta_cvxpy(system, method)
    scale = eta.max() or 1.0
    # Forwards, entries are right relative to themselves; otherwise, to the largest.
    least_scale = 0.0 if system.levels is not None else scale
    for inflation in 10.0 ** np.arange(-13, -3):
        slack = inflation * np.maximum(eta, 1e-3 * inflation * least_scale)
        if method != "closed form":
            slack = slack + inflation * scale
        wider = eta + (_eta(system, slack) - least)
        bound = max(top(wider) * (1 + 10 * inflation), 1e-300)
        if shown(bound, wider):
            return Proposal(method, wider, bound, top(eta), top(least))
    raise CertificationError(
        "A weight vector η was found, but the ℓ∞ bound could not be proven with it in float64."
    )


def _eta(system: System, slack: Array | float) -> Array:
    """The least η ≥ 0 with (I − ⌈jA⌉)η ≥ |jB|1 + slack for j at both ends of the slopes.

    It is the optimum of the linear program at once for every output row.

    Raises:
        NotWellPosed: there is none.
    """
    loop, n = system.A.diagonal(), system.units
    gain = np.zeros(n)
    for j in (system.alpha, system.beta):
        room = 1 - j * loop
        if (room <= 0).any():
            i = int(np.argmin(room))
            raise NotWellPosed(
                f"Unit {i} feeds back {loop[i]:g} into itself at slope {j[i]:g}: the network may "
                "have no equilibrium, or several; it has no ℓ∞ bound."
            )
        gain = np.maximum(gain, abs(j) / room)
    coupling = gain[:, None] * (abs(system.A) - np.diag(abs(loop)))
    reach = gain * abs(system.B).sum(axis=1) + slack
    if system.levels is not None:
        # Forwards every entry is right to rounding; a general solver's errors grow with the depth.
        eta = np.zeros(n)
        for level in system.levels:
            eta[level] = coupling[level] @ eta + reach[level]
        return eta
    try:
        eta = np.linalg.solve(np.eye(n) - coupling, reach)
        positive = np.linalg.solve(np.eye(n) - coupling, np.ones(n))
    except np.linalg.LinAlgError:
        positive = -np.ones(n)
    if not ((positive >= 0.5).all() and np.isfinite(eta).all()):
        radius = abs(np.linalg.eigvals(coupling)).max()
        raise NotWellPosed(
            f"No weights η > 0 make the ℓ∞ matrix measure less than 1 (Perron root of the slope-"
            f"weighted coupling: {radius:.4g}, needed < 1): no ℓ∞ bound."
        )
    return np.maximum(eta, 0.0)


def _eta_cvxpy(system: System, solver: str) -> Array:
    import cvxpy as cp

    from .. import conditions

    convex.require(solver, "auto, closed form")
    eta, gamma = cp.Variable(system.units, nonneg=True), cp.Variable()
    arrays = {k: getattr(system, k) for k in ("A", "B", "C", "D", "alpha", "beta")}
    rows = conditions.linf(**arrays, eta=eta, gamma=gamma, c=1.0)
    task = cp.Problem(cp.Minimize(gamma), [rows >= 0])
    try:
        task.solve(solver=solver)
    except cp.SolverError as error:
        raise CertificationError(f"{solver} failed: {error} Try method='auto'.") from error
    if eta.value is None:
        if task.status == "infeasible":
            raise NotWellPosed("No weights η > 0 satisfy the ℓ∞ condition: no ℓ∞ bound.")
        raise CertificationError(f"{solver} stopped at {task.status!r}. Try method='auto'.")
    return np.maximum(np.asarray(eta.value), 0.0)
