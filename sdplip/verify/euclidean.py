"""ℓ₂ → ℓ₂: a method proposes multipliers, and the best bound that they prove is taken."""

from __future__ import annotations

import itertools
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
from .layered import WIDE
from .reduce import Problem, least_rho, nearer, normalise, start
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
QUICK = 1e10
"""Floating-point operations that are not worth an estimate."""
OVERHEAD = 10.0
"""Seconds after the end of a time limit by which there must be a first bound."""
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
    end, short = _plan(system, deadline)
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
    if chosen:
        slopes = np.hypot(problem.alpha, problem.beta)
        plain = chain.fits(problem) and (slopes <= 1).all()
        method = "product" if short and plain else _choose(problem, end)
    if method == "product":
        # In normalised units every layer's norm is 1, and so is ρ, without an elimination.
        ones, known = np.full(system.units, 1 + 1e-9), problem.gain * (1 + 1e-8) if short else None
        return _best(method, system, problem, [ones], prove, known)

    def report(step: int, upper: float, dual: float) -> None:
        if progress is not None:
            progress(step, *(problem.gain * math.sqrt(max(v, 0.0)) for v in (upper, dual)))

    if method == "layerwise":
        return _best(method, system, problem, [first()[1]], prove)
    if method not in OWN:
        proposed = _polish(problem, convex.solve(problem, method))
        return _best(method, system, problem, _blends(proposed, first), prove)
    run: dict[str, Callable[[], Optimum]] = {
        "interior": lambda: minimise(problem.form(), *first(), deadline=end, progress=report),
        # A chain's own start is better than the closed form.
        "chain": lambda: chain.minimise(
            problem, *(() if warm is None else first()), deadline=end, progress=report
        ),
        "descent": lambda: descent.minimise(problem, deadline=end, progress=report),
    }
    found, rest = run[method](), []
    small = problem.units <= SECOND_ORDER_UNITS
    early = method == "chain" and found.stopped in ("rounding", "steps")
    loose = found.rho - found.dual > LOOSE * found.rho
    if early and loose and chosen and small:
        # Degenerate blocks end it early; the dense method goes on where it can.
        other = run["interior"]()
        if other.rho < found.rho or other.dual > found.dual:
            found, other, method = other, found, "interior"
        # Rounding may have flattered the better one.
        rest = [other.lam]
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
    blends = _blends(found.lam, first)
    tried = itertools.chain([next(blends)], rest, blends)
    return _best(method, system, problem, tried, prove, solved, known, deadline)


def _plan(system: System, deadline: float | None) -> tuple[float | None, bool]:
    """When the search must end, for the proof to end in time; whether it should not begin at all.

    Raises:
        InvalidInput: there would be no bound even `OVERHEAD` after the deadline.
    """
    if deadline is None:
        return None, False
    scaling, first, proof = operations(system)
    if scaling + first + proof < QUICK:
        return deadline, False
    pace, left = _pace(), max(deadline - time.monotonic(), 0.0)
    # Of a chain the product of norms needs no point to begin with.
    least = scaling + proof + (0.0 if descent.layers(system) else first)
    if least > pace * (left + OVERHEAD):
        raise InvalidInput(
            f"lipschitz: time_limit leaves {left:.0f} s, but the first bound of these "
            f"{system.units} units takes about {least / pace:.0f} s. Give more time, or no limit."
        )
    return deadline - proof / pace, scaling + first + proof > pace * left


def _pace() -> float:
    """Floating-point operations a second of matrix products, as the machine can spare them now."""
    K = np.ones((1024, 1024))
    began = time.perf_counter()
    K @ K @ K @ K
    return 6 * 1024**3 / (time.perf_counter() - began)


def operations(system: System) -> tuple[float, float, float]:
    """Floating-point operations, about, of the scaling, a first feasible point, and the proof.

    Those of the proof count double, for what they wait for memory.
    """
    size = float(system.units + system.inputs)
    chain = descent.layers(system)
    if chain is None:
        # Around cycles, of a search for well-posedness, too.
        first = (10 if system.levels else 15) * size**3
        return 0.0, first, (8 if size < LARGE else 2) * size**3
    sizes = [float(W.shape[1]) for W in chain.weights]
    scaling, first, proof, rows = 0.0, 0.0, 0.0, float(system.outputs)
    for n, before in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
        few = min(rows, n)
        scaling += 4 * min(n, before) ** 2 * max(n, before)
        first += 2 * few * n * (rows + few + before)
        proof += 15 * n * (n + before) * max(n, before)
        # Elimination goes by the smaller side.
        rows = n + rows if 4 * rows < 3 * n else n
    widest = max(sizes[1:])
    rest = size - widest + system.outputs
    if widest >= WIDE and rest <= 4 * widest:
        # That level is eliminated.
        proof = 3 * rest**2 * (widest + (20 if rest < LARGE else 1) * rest)
    # All of A is hashed, zeros and all.
    return scaling, first, proof + 200 * system.units**2


def _choose(problem: Problem, deadline: float | None) -> str:
    """The cheapest method that reaches the optimum, or the best one that is affordable."""
    n, levels = problem.units, problem.levels or ()
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
    if problem.units <= 2 * SECOND_ORDER_UNITS or not chain.fits(problem):
        return start(problem, warm)
    found = descent.minimise(problem, max_steps=0)
    return nearer(problem, warm, 1.5 * found.rho, found.lam, _elimination(problem))


def _best(
    method: str,
    system: System,
    problem: Problem,
    candidates: Iterable[Array],
    prove: Prove,
    solved: float | None = None,
    optimum: float | None = None,
    deadline: float | None = None,
) -> Proposal:
    """The best bound that a candidate (in scaled units) proves; after the deadline, the first."""
    eliminate = _elimination(problem)
    best, multipliers, first = math.inf, None, None
    for scaled in candidates:
        # What `descent` ends with is the least ρ; of a product it is known, or not.
        known = solved if first is None and method in ("descent", "product") else None
        least = problem.gain * math.sqrt(eliminate(scaled)) if known is None else known
        lam = problem.lam(scaled)
        if not (least < best and (lam > 0).all()):
            continue
        first = least if first is None else first
        bound = prove(max(least, 1e-140 * problem.gain), lam)
        if bound is not None and bound < best:
            best, multipliers = bound, lam
        # The next blends are looser by more than their proofs can save, or take too long.
        late = deadline is not None and time.monotonic() > deadline
        if best < (math.inf if late else least * (1 + (1e-8 if system.units < LARGE else 1e-5))):
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
