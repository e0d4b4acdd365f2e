"""The tightest bound that the condition gives: propose multipliers, then prove the bound."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits
from torch import nn

from .. import __version__
from .._arrays import Array, parse_norm
from ..errors import CertificationError, InvalidInput, NotConverged, NotWellPosed
from ..system import System
from . import convex
from .certificate import Certificate, as_system, holds
from .interior import minimise
from .lower import lower_bound
from .reduce import Problem, least_rho, live_units, normalise, prune, start

THREADED_ORDER = 1500
SECOND_ORDER_UNITS = 2500
"""Above this many units the interior point method's n by n systems take too long."""


def lipschitz(
    model: System | nn.Module,
    norm: float | str = 2,
    *,
    solver: str = "auto",
    lower: bool = True,
    seed: int = 0,
) -> Certificate:
    """The tightest Lipschitz bound over diagonal multipliers, with its certificate.

    Args:
        model: a `System`, a layer with `system()`, or a Torch module that `System.from_module`
            takes.
        norm: 2 (ℓ₂ → ℓ₂, a semidefinite program) or inf (ℓ∞ → ℓ∞, a linear program whose optimum
            has a closed form).
        solver: for norm 2: "interior" (own primal-dual method), "recursion" (closed form, loose,
            acyclic systems only), or a CVXPY solver such as "CLARABEL" or "SCS", the reference;
            "auto" is "interior", beyond 2,500 units "recursion" where that is possible. For norm
            inf: "auto", "closed form" or a CVXPY solver. An inaccurate solver can make the bound
            looser, never wrong.
        lower: whether to search for a lower bound, too.
        seed: of that search.

    Raises:
        NotWellPosed: the network has no bound that this condition can show.
        CertificationError: multipliers were found, but no bound could be proven with them.
        InvalidInput: an unknown norm or solver, or a module that is no system.
    """
    began = time.perf_counter()
    norm = parse_norm(norm)
    system = as_system(model)
    if not (system.inputs and system.outputs):
        raise InvalidInput(
            f"The system maps R^{system.inputs} to R^{system.outputs}: there is nothing to bound."
        )
    # BLAS threads cost more than they give on small matrices, and far more on a busy machine.
    threads = 1 if system.units + system.inputs < THREADED_ORDER else None
    # What overflows or underflows is found out by the proof, which then fails.
    with threadpool_limits(threads), np.errstate(all="ignore"):
        certificate = _certify(system, norm, solver, lower, seed)
    return replace(certificate, seconds=time.perf_counter() - began)


def _certify(system: System, norm: float, solver: str, lower: bool, seed: int) -> Certificate:
    live, small = live_units(system), prune(system)
    optimum: float | None = None
    if small.units == 0:
        used, found, best = "closed form", np.zeros(0), float(np.linalg.norm(small.D, norm))
        bound = _prove_linear(small, norm, best)
        optimum = best
    elif norm == 2:
        used, found, bound, optimum = _euclidean(small, solver)
    else:
        used, found, bound, optimum = _maximum(small, solver)
    multipliers = np.zeros(system.units)
    multipliers[live] = found
    below = None
    if lower:
        # The bound stands whether or not this network can be evaluated everywhere.
        with contextlib.suppress(NotConverged):
            below = lower_bound(system, norm, seed=seed)
    if below is not None and below > bound * (1 + 1e-9):
        raise RuntimeError(
            f"A Jacobian of norm {below!r} contradicts the bound {bound!r}: this is a defect of "
            "sdplip or of the model's description; please report it."
        )
    return Certificate(
        bound=bound,
        norm=norm,
        multipliers=tuple(multipliers.tolist()),
        proven=True,
        lower=None if below is None else min(below, bound),
        optimum=optimum,
        norm_product=norm_product(system, norm),
        solver=used,
        seconds=0.0,
        inputs=system.inputs,
        units=system.units,
        outputs=system.outputs,
        model=system.digest(),
        version=__version__,
    )


def norm_product(system: System, norm: float | str = 2) -> float | None:
    """The bound by norms of single blocks, with no coupling between layers.

    For an acyclic system, Σ over paths of products of norms times slopes (for a multilayer
    perceptron the product of the norms); for an equilibrium with slopes in [0, 1] and
    m = λ_min of the symmetric part of I − A positive, ‖C‖‖B‖/m + ‖D‖ [Pabbaraju et al., ICLR 2021];
    None elsewhere. Floating point: a comparison, not a certificate.
    """
    order = parse_norm(norm)

    def size(matrix: Array) -> float:
        return float(np.linalg.norm(matrix, order)) if matrix.size else 0.0

    slope = np.maximum(abs(system.alpha), abs(system.beta))
    if system.levels is None:
        if order != 2 or system.alpha.min() < 0 or system.beta.max() > 1:
            return None
        modulus = 1 - np.linalg.eigvalsh((system.A + system.A.T) / 2)[-1]
        if modulus <= 0:
            return None
        return float(size(system.C) * size(system.B) / modulus + size(system.D))
    gains: list[float] = []
    for k, level in enumerate(system.levels):
        paths = sum(size(system.A[np.ix_(level, system.levels[j])]) * gains[j] for j in range(k))
        gains.append(float(slope[level].max() * (size(system.B[level]) + paths)))
    paths = sum(size(system.C[:, v]) * g for v, g in zip(system.levels, gains, strict=True))
    return float(size(system.D) + paths)


def _euclidean(system: System, solver: str) -> tuple[str, Array, float, float | None]:
    """Solver, multipliers, proven bound and dual value for ℓ₂."""
    problem = normalise(system)
    if solver == "auto":
        large = system.units > SECOND_ORDER_UNITS and problem.levels is not None
        solver = "recursion" if large else "interior"
    if solver == "recursion" and problem.levels is None:
        raise InvalidInput("solver = 'recursion' needs an acyclic system; use 'interior'.")
    rho, interior = start(problem)
    if not problem.C.any() or not problem.B.any():
        # Only D matters, and any multipliers serve; small ones keep the rest of M out of the way.
        scales = 10.0 ** (np.arange(0, 26, 2) * (1 if problem.B.any() else -1))
        bound, lam = _prove(system, problem, [interior / scale for scale in scales])
        return "closed form", lam, bound, float(np.linalg.norm(system.D, 2))
    candidates, optimum = [interior], None
    if solver == "interior":
        found = minimise(problem.form(), rho, interior)
        candidates = _blends(found.lam, interior)
        optimum = problem.gain * math.sqrt(max(found.dual, 0.0))
    elif solver != "recursion":
        candidates = _blends(_polish(problem, convex.solve(problem, solver)), interior)
    bound, lam = _prove(system, problem, candidates)
    return solver, lam, bound, optimum


def _blends(lam: Array, interior: Array) -> list[Array]:
    """The multipliers, then ever further towards the interior, where proofs are easier."""
    shares = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
    return [(1 - s) * lam + s * interior for s in shares]


def _polish(problem: Problem, lam: Array) -> Array:
    """The best common factor for the multipliers: solvers stop a little off their scale."""
    from scipy.optimize import minimize_scalar

    data = problem.form()
    rest = minimize_scalar(
        lambda t: min(least_rho(data, math.exp(t) * lam), 1e300),
        bounds=(-0.5, 0.5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return lam if least_rho(data, lam) <= rest.fun else math.exp(rest.x) * lam


def _prove(system: System, problem: Problem, candidates: list[Array]) -> tuple[float, Array]:
    """The best bound that a candidate (in scaled units) proves, and its multipliers."""
    data = problem.form()
    # About what the proof of positive definiteness gives away to rounding at this order.
    first = max(1e-13, 1e-16 * (system.units + system.inputs) ** 2)
    best, multipliers = math.inf, None
    for scaled in candidates:
        least = problem.gain * math.sqrt(least_rho(data, scaled))
        lam = problem.lam(scaled)
        if not (least < best and (lam > 0).all()):
            continue
        relative = [max(least * (1 + first * 10.0**k), 1e-30 * problem.gain) for k in range(8)]
        absolute = [least + problem.gain * 10.0**k for k in range(-10, 3)]
        for bound in map(float, [*relative, *absolute]):
            if bound >= best:
                break
            if holds(system, 2, bound, lam):
                best, multipliers = bound, lam
                break
        # The next blends are looser by more than their proofs can save.
        if multipliers is not None and best < least * (1 + 1e-8):
            break
    if multipliers is None:
        raise CertificationError(
            f"Multipliers were found, but no bound could be proven with them in float64 "
            f"({system.units} units). Rescale the weights, or try another solver."
        )
    return best, multipliers


def _prove_linear(system: System, norm: float, value: float) -> float:
    # 0 is proven by D = 0 alone, not by a norm that underflowed.
    for bound in [value, *(value * (1 + 10.0 ** np.arange(-13, -2)))]:
        bound = float(bound)
        if holds(system, norm, bound, np.zeros(0)):
            return bound
    raise CertificationError(f"The norm {value!r} of the linear map could not be proven.")


def _maximum(system: System, solver: str) -> tuple[str, Array, float, float]:
    """Solver, η, proven bound and optimum for ℓ∞."""

    def top(eta: Array) -> float:
        return float((abs(system.C) @ eta + abs(system.D).sum(axis=1)).max())

    least = _eta(system, 0.0)
    if solver in ("auto", "closed form"):
        solver, eta = "closed form", least
    else:
        eta = _eta_cvxpy(system, solver)
    scale = eta.max() or 1.0
    for inflation in 10.0 ** np.arange(-13, -3):
        slack = inflation * np.maximum(eta, 1e-3 * inflation * scale)
        if solver != "closed form":
            slack = slack + inflation * scale
        wider = eta + (_eta(system, slack) - least)
        bound = max(top(wider) * (1 + 1e-12), 1e-300)
        if holds(system, math.inf, bound, wider):
            return solver, wider, bound, top(least)
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
    reach = gain * abs(system.B).sum(axis=1)
    try:
        eta = np.linalg.solve(np.eye(n) - coupling, reach + slack)
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
        raise CertificationError(f"{solver} failed: {error} Try solver='auto'.") from error
    if eta.value is None:
        if task.status == "infeasible":
            raise NotWellPosed("No weights η > 0 satisfy the ℓ∞ condition: no ℓ∞ bound.")
        raise CertificationError(f"{solver} stopped at {task.status!r}. Try solver='auto'.")
    return np.maximum(np.asarray(eta.value), 0.0)
