"""ℓ₂ → ℓ₂: a method proposes multipliers, and the best bound that they prove is taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from .._arrays import Array
from ..errors import CertificationError, InvalidInput, NotConvergedWarning
from ..system import System
from . import chain, convex, descent
from .interior import Optimum, minimise
from .reduce import Problem, least_rho, normalise, start

Progress = Callable[[int, float, float], None]
"""Called with the iteration, the best bound so far and a lower bound of the optimum."""
Prove = Callable[[float, Array], float | None]
"""About the least provable bound from the one that multipliers should give; None for none."""
OWN = ("auto", "interior", "chain", "descent", "layerwise", "product")
SECOND_ORDER_UNITS = 2500
"""Above this many units the interior point method's n by n systems take too long."""
LOOSE = 1e-6
"""From this relative gap of ρ on, a search that stops early says so."""
DEEP = 3
"""Hidden layers from which on the blocks of a chain are worth their overhead."""


@dataclass(frozen=True)
class Proposal:
    """What a method found: its name, multipliers, the bound proven with them, what it had before
    the proof, and a lower bound of the optimum."""

    method: str
    multipliers: Array
    bound: float
    solved: float | None
    optimum: float | None


def euclidean(
    system: System,
    method: str,
    prove: Prove,
    deadline: float | None = None,
    progress: Progress | None = None,
    warm: Array | None = None,
) -> Proposal:
    """The best bound that `method` leads to; `prove` has the last word."""
    problem = normalise(system)
    if method in ("layerwise", "product") and problem.levels is None:
        raise InvalidInput(f"method = {method!r} needs an acyclic system; use 'interior'.")
    if method in ("chain", "descent", "product") and not chain.fits(problem):
        raise InvalidInput(
            f"method = {method!r} needs a chain, each layer fed by the one before alone. Use "
            "'interior'."
        )
    # Eliminating a dense M takes long where a chain's blocks serve, and may not be needed.
    first = cache(lambda: start(problem, warm))
    if problem.levels is None:
        first()
    if not problem.C.any() or not problem.B.any():
        # Only D matters, and any multipliers serve; small ones keep the rest of M out of the way.
        scales = 10.0 ** (np.arange(0, 26, 2) * (1 if problem.B.any() else -1))
        candidates = [first()[1] / scale for scale in scales]
        norm = float(np.linalg.norm(system.D, 2))
        return _best("closed form", system, problem, candidates, prove, norm, norm)
    chosen = method == "auto"
    method = _choose(problem) if chosen else method
    if method == "product":
        # In normalised units every layer's norm is 1.
        ones = np.full(system.units, 1 + 1e-9)
        return _best(method, system, problem, [ones], prove)

    def report(step: int, upper: float, dual: float) -> None:
        if progress is not None:
            progress(step, *(problem.gain * math.sqrt(max(v, 0.0)) for v in (upper, dual)))

    if method == "layerwise":
        return _best(method, system, problem, [first()[1]], prove)
    if method not in OWN:
        proposed = _polish(problem, convex.solve(problem, method))
        return _best(method, system, problem, _blends(proposed, first), prove)
    run: dict[str, Callable[[], Optimum]] = {
        "interior": lambda: minimise(problem.form(), *first(), deadline=deadline, progress=report),
        # A chain's own start is better than the closed form.
        "chain": lambda: chain.minimise(
            problem, *(() if warm is None else first()), deadline=deadline, progress=report
        ),
        "descent": lambda: descent.minimise(problem, deadline=deadline, progress=report),
    }
    found = run[method]()
    small = len(problem.A) <= SECOND_ORDER_UNITS
    early = method == "chain" and found.stopped in ("rounding", "steps")
    if early and chosen and small:
        # Degenerate blocks end it early; the dense method goes on where it can.
        other = run["interior"]()
        if other.rho < found.rho or other.dual > found.dual:
            found, method = other, "interior"
    elif early and found.rho - found.dual > LOOSE * found.rho:
        warnings.warn(
            "method = 'chain' stopped where rounding hides the way on: its bound holds, but may "
            "lie above the best one. Use method = 'auto', which tries the dense method, too.",
            NotConvergedWarning,
            stacklevel=4,
        )
    solved, optimum = (problem.gain * math.sqrt(max(v, 0.0)) for v in (found.rho, found.dual))
    known = optimum if found.dual > -math.inf else None
    return _best(method, system, problem, _blends(found.lam, first), prove, solved, known)


def _choose(problem: Problem) -> str:
    """The cheapest method that reaches the optimum, or the best one that is affordable."""
    n = len(problem.A)
    if chain.fits(problem) and (len(problem.levels or ()) >= DEEP or n > SECOND_ORDER_UNITS):
        return "chain" if n <= 2 * SECOND_ORDER_UNITS else "descent"
    return "interior" if n <= SECOND_ORDER_UNITS or problem.levels is None else "layerwise"


def _best(
    method: str,
    system: System,
    problem: Problem,
    candidates: Iterable[Array],
    prove: Prove,
    solved: float | None = None,
    optimum: float | None = None,
) -> Proposal:
    """The best bound that a candidate (in scaled units) proves."""
    eliminate = _elimination(problem)
    best, multipliers, first = math.inf, None, None
    for scaled in candidates:
        least = problem.gain * math.sqrt(eliminate(scaled))
        lam = problem.lam(scaled)
        if not (least < best and (lam > 0).all()):
            continue
        first = least if first is None else first
        bound = prove(max(least, 1e-30 * problem.gain), lam)
        if bound is not None and bound < best:
            best, multipliers = bound, lam
        # The next blends are looser by more than their proofs can save.
        if best < least * (1 + 1e-8):
            break
    if multipliers is None:
        raise CertificationError(
            f"Multipliers were found, but no bound could be proven with them in float64 "
            f"({system.units} units). Rescale the weights, or try another method."
        )
    # The least ρ for these multipliers may lie below the one that a method came with.
    reached = [value for value in (solved, first) if value is not None]
    return Proposal(method, multipliers, best, min(reached), optimum)


def _blends(lam: Array, first: Callable[[], tuple[float, Array]]) -> Iterator[Array]:
    """The multipliers, then ever further towards the interior, where proofs are easier."""
    yield lam
    for share in (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0):
        yield (1 - share) * lam + share * first()[1]


def _elimination(problem: Problem) -> Callable[[Array], float]:
    """The least ρ as a function of the scaled multipliers."""
    layers = descent.layers(problem)
    if layers is None:
        return partial(least_rho, problem.form())
    return partial(chain.least_rho, layers)


def _polish(problem: Problem, lam: Array) -> Array:
    """The best common factor for the multipliers: solvers stop a little off their scale."""
    from scipy.optimize import minimize_scalar

    eliminate = _elimination(problem)
    rest = minimize_scalar(
        lambda t: min(eliminate(math.exp(t) * lam), 1e300),
        bounds=(-0.5, 0.5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return lam if eliminate(lam) <= rest.fun else math.exp(rest.x) * lam
