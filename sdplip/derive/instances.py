"""Checks of a derivation in floating point: the emitted layer, and a solver for the optimum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..activations import leaky_relu
from ..errors import ShapeError

if TYPE_CHECKING:
    from ..layers import Layer
    from .derivation import Derivation

TOLERANCE = 1e-9
"""Relative to the largest entry of the condition, for witnesses in float64."""

SHAPES = ((5, 7, 3), (6, 3, 6), (3, 2, 7))


def numeric(derivation: Derivation) -> tuple[bool, str]:
    """The emitted layer's witness and its worst slopes, on random and adversarial parameters."""
    import torch

    cls = derivation.layer()
    worst, count, tightest = 0.0, 0, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, layer in _layers(derivation, cls):
            margin = relative_margin(derivation, layer)
            if margin < -TOLERANCE:
                return False, f"relative margin {margin:.1e} for {name} weights"
            found, promised = steepest(derivation, layer), layer.lipschitz
            if found > promised * (1 + TOLERANCE):
                return False, f"slope {found:.6g} above {promised:.6g} for {name} weights"
            worst, count = min(worst, margin), count + 1
            tightest = max(tightest, found / promised if promised > 0 else 0.0)
    if not count:
        return False, f"the layer has none of the shapes {SHAPES}"
    return True, (
        f"{count} draws, relative margin ≥ {worst:.1e}, steepest slope {tightest:.4f} of the bound"
    )


def sized(derivation: Derivation, cls: type[Layer], sizes: tuple[int, int, int]) -> Any:
    """A float64 layer with m, n, p (as many of them as it has)."""
    import torch

    m, n, p = sizes
    made: Callable[..., Any] = cls
    family = partial(made, dtype=torch.float64)
    if derivation.family == "Linear":
        return family(m, p)
    if not derivation.takes_relu:
        family = partial(family, activation=leaky_relu(derivation.slopes[0]))
    return family(m, n) if derivation.square else family(m, n, p)


def _fits(derivation: Derivation, cls: type[Layer], sizes: tuple[int, int, int]) -> bool:
    """Whether the layer has this shape: a Cayley map that is to be tall refuses others."""
    try:
        sized(derivation, cls, sizes).witness()
    except ShapeError:
        return False
    return True


def _layers(derivation: Derivation, cls: type[Layer]) -> Iterator[tuple[str, Any]]:
    import torch

    changes: dict[str, Callable[[Any], Any]] = {
        "default": lambda p: p,
        "random": lambda p: torch.randn_like(p),
        "large": lambda p: 10 * torch.randn_like(p),
        "zero": torch.zeros_like,
        "tiny": lambda p: 1e-20 * torch.randn_like(p),
        "huge": lambda p: 1e15 * torch.randn_like(p) if p.ndim > 1 else p,
        "rank one": lambda p: (
            torch.outer(torch.randn_like(p[:, 0]), torch.randn_like(p[0])) if p.ndim > 1 else p
        ),
        "zero row": lambda p: torch.cat([p[:1] * 0, p[1:]]),
        "duplicate": lambda p: p[torch.arange(len(p)) // 2],
    }
    for sizes in SHAPES:
        if not _fits(derivation, cls, sizes):
            continue
        for name, change in changes.items():
            layer = sized(derivation, cls, sizes)
            with torch.no_grad():
                for key in layer.free:
                    parameter = getattr(layer, key)
                    parameter.copy_(change(parameter))
            yield name, layer


def relative_margin(derivation: Derivation, layer: Any) -> float:
    """The least eigenvalue (or entry) of the condition at the witness, by the largest entry."""
    arguments = _symbols(derivation, layer)
    matrix = derivation.condition(**arguments)
    scale = max([np.abs(matrix).max(), *(np.abs(a).max() for a in arguments.values()), 1e-300])
    return float(derivation.condition.margin(**arguments)) / scale


def _symbols(derivation: Derivation, layer: Any) -> dict[str, np.ndarray]:
    """The condition's symbols at the layer's witness."""
    values = layer.witness()
    return {k: values[k].detach().double().numpy() for k in derivation.condition.symbols}


def steepest(derivation: Derivation, layer: Any) -> float:
    """The largest slope of the layer's system over random patterns of its units."""
    system = layer.system()
    rng = np.random.default_rng(0)
    low, high = derivation.slopes
    n = system.units
    largest = 0.0
    for k in range(40):
        J = rng.choice([low, high], size=n) if k % 4 else rng.uniform(low, high, size=n)
        inner = np.eye(n) - J[:, None] * system.A
        K = system.D + system.C @ np.linalg.solve(inner, J[:, None] * system.B)
        largest = max(largest, float(np.linalg.norm(K, 2 if derivation.norm == 2 else np.inf)))
    return largest


def convex(derivation: Derivation) -> tuple[bool, str]:
    """The condition with the witness's weights: feasible as claimed, and its optimum."""
    import torch

    cls = derivation.layer()
    sizes = next(s for s in ((4, 5, 3), (4, 3, 5)) if _fits(derivation, cls, s))
    shown = "-".join(map(str, sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layer = sized(derivation, cls, sizes)
        with torch.no_grad():
            for key in layer.free:
                parameter = getattr(layer, key)
                parameter.copy_(torch.randn_like(parameter))
    arguments = _symbols(derivation, layer)
    if derivation.condition.cone == "nonnegative":
        return _linear_program(derivation, arguments, shown)
    best = optimum(derivation, arguments)
    if best is None:
        return False, "Clarabel found no multipliers at all"
    claimed = math.sqrt(float(arguments["rho"]))
    holds = best <= claimed * (1 + 1e-6) + 1e-9
    return holds, f"claimed {claimed:.6g}, optimum over the multipliers {best:.6g} at {shown}"


def optimum(derivation: Derivation, values: dict[str, Any]) -> float | None:
    """The least √ρ over the condition's multipliers, the other symbols fixed."""
    import cvxpy as cp

    condition = derivation.condition
    rho = cp.Variable(nonneg=True)
    chosen: dict[str, Any] = {**values, "rho": rho}
    for name in condition.signed:
        chosen[name] = cp.Variable(np.asarray(values[name]).shape, nonneg=True)
    matrix = condition(**chosen)
    problem = cp.Problem(cp.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    with warnings.catch_warnings():
        # Its figure is evidence and shown as such; the witness's own margin is what is checked.
        warnings.filterwarnings("ignore", "Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL)
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        return None
    return math.sqrt(max(float(rho.value), 0.0))


def _linear_program(derivation: Derivation, values: dict[str, Any], shown: str) -> tuple[bool, str]:
    """The witness's scalar in the last place, and the least for which weights η exist."""
    import cvxpy as cp

    condition = derivation.condition
    name = "gamma" if "gamma" in values else "c"
    claimed = float(values[name])

    def feasible(bound: float) -> bool:
        eta = cp.Variable(len(values["eta"]))
        rows = condition(**{**values, "eta": eta, name: bound})
        problem = cp.Problem(cp.Minimize(0), [rows >= 0, eta >= 1e-3 * min(values["eta"])])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Solution may be inaccurate")
            problem.solve(solver=cp.CLARABEL)
        return problem.status == cp.OPTIMAL

    size = abs(claimed) + 1.0
    if not feasible(claimed + 1e-7 * size):
        return False, f"no weights for {name} = {claimed:.6g}"
    low, high = claimed - 10 * size, claimed
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return True, f"claimed {name} = {claimed:.6g}, optimum over the weights {high:.6g} at {shown}"
