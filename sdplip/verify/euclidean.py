"""ℓ₂ → ℓ₂: a method proposes multipliers, and the best bound that they prove is taken."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from .._arrays import Array
from ..errors import CertificationError, InvalidInput, NotConvergedWarning
from ..system import System
from . import chain, convex, descent, equations
from .interior import Optimum, minimise
from .reduce import Problem, least_rho, normalise, start
from .rigorous import LARGE

Progress = Callable[[int, float, float], None]
"""Called with the iteration, the best bound so far and a lower bound of the optimum."""
Prove = Callable[[float, Array], float | None]
"""About the least provable bound from the one that multipliers should give; None for none."""
OWN = ("auto", "interior", "chain", "descent", "layerwise", "product")
SECOND_ORDER_UNITS = 2500
"""Above this many units the interior point method's n by n systems take too long."""
LONGEST_STEP = 1e12
"""Floating-point operations of a step of the second-order method for chains, at most."""
PACE = 1e9
"""At least so many of them a second are the steps of a second-order search, some 30 in all."""
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
    _check_time(system, deadline)
    problem = normalise(system)
    if method in ("layerwise", "product") and problem.levels is None:
        raise InvalidInput(f"method = {method!r} needs an acyclic system; use 'interior'.")
    if method in ("chain", "descent", "product") and not chain.fits(problem):
        raise InvalidInput(
            f"method = {method!r} needs a chain, each layer fed by the one before alone. Use "
            "'interior'."
        )
    # Eliminating a dense M takes long where a chain's blocks serve, and may not be needed.
    first = cache(lambda: _start(problem, warm))
    if problem.levels is None:
        first()
    if not problem.C.any() or not problem.B.any():
        # Only D matters, and any multipliers serve; small ones keep the rest of M out of the way.
        scales = 10.0 ** (np.arange(0, 26, 2) * (1 if problem.B.any() else -1))
        candidates = [first()[1] / scale for scale in scales]
        norm = float(np.linalg.norm(system.D, 2))
        return _best("closed form", system, problem, candidates, prove, norm, norm)
    chosen = method == "auto"
    method = _choose(problem, deadline) if chosen else method
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
    loose = found.rho - found.dual > LOOSE * found.rho
    if early and loose and chosen and small:
        # Degenerate blocks end it early; the dense method goes on where it can.
        other = run["interior"]()
        if other.rho < found.rho or other.dual > found.dual:
            found, method = other, "interior"
    elif early and loose:
        dense = " Use method = 'auto', which tries the dense method, too." if small else ""
        warnings.warn(
            "method = 'chain' stopped where rounding hides the way on: its bound holds, but may "
            f"lie above the best one.{dense}",
            NotConvergedWarning,
            stacklevel=5,
        )
    solved, optimum = (problem.gain * math.sqrt(max(v, 0.0)) for v in (found.rho, found.dual))
    known = optimum if found.dual > -math.inf else None
    return _best(method, system, problem, _blends(found.lam, first), prove, solved, known)


def _check_time(system: System, deadline: float | None) -> None:
    """Refuse what has no bound within a minute of the deadline: a large dense M."""
    size = system.units + system.inputs
    if deadline is None or size < LARGE or descent.layers(system) is not None:
        return
    # A start, eigenvalues, and a proof, of which the search around cycles takes several.
    seconds = (100 if system.levels is None else 10) * size**3 / (10 * PACE)
    left = max(deadline - time.monotonic(), 0.0)
    if seconds > left + 60:
        raise InvalidInput(
            f"lipschitz: time_limit leaves {left:.0f} s, but a first bound of {system.units} units "
            f"that are no chain of layers takes about {seconds:.0f} s. Give more time, or no limit."
        )


def _choose(problem: Problem, deadline: float | None) -> str:
    """The cheapest method that reaches the optimum, or the best one that is affordable."""
    n, levels = len(problem.A), problem.levels or ()
    if not chain.fits(problem):
        return "interior" if n <= SECOND_ORDER_UNITS or problem.levels is None else "layerwise"
    if (problem.alpha == problem.beta).any():
        # Whose best multipliers are infinite: no interior point is central.
        return "descent"
    method = "chain" if len(levels) >= DEEP or n > SECOND_ORDER_UNITS else "interior"
    sizes = np.array([problem.B.shape[1], *map(len, levels)], dtype=float)
    step = 4 * sizes.sum() ** 3
    if method == "chain":
        step = equations.cost(n, int(sizes[1:].max())) + 60 * (sizes**3).sum()
    # Stopped halfway, it is looser than a first-order search.
    late = deadline is not None and step > 2 * PACE * (deadline - time.monotonic())
    return "descent" if step > LONGEST_STEP or late else method


def _start(problem: Problem, warm: Array | None) -> tuple[float, Array]:
    """A strictly feasible point; that of a large chain by its layers."""
    if warm is not None or len(problem.A) <= 2 * SECOND_ORDER_UNITS or not chain.fits(problem):
        return start(problem, warm)
    found = descent.minimise(problem, max_steps=0)
    return 1.5 * found.rho, found.lam


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
        # What `descent` ends with is the least ρ.
        known = solved if first is None and method == "descent" else None
        least = problem.gain * math.sqrt(eliminate(scaled)) if known is None else known
        lam = problem.lam(scaled)
        if not (least < best and (lam > 0).all()):
            continue
        first = least if first is None else first
        bound = prove(max(least, 1e-140 * problem.gain), lam)
        if bound is not None and bound < best:
            best, multipliers = bound, lam
        # The next blends are looser by more than their proofs can save, or take too long.
        if best < least * (1 + (1e-8 if system.units < LARGE else 1e-5)):
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
    return partial(descent.least_rho, layers)


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
