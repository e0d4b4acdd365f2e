"""The reference route: the condition as it stands, handed to a solver through CVXPY."""

from __future__ import annotations

import warnings

import numpy as np

from .._arrays import Array
from ..errors import CertificationError, InvalidInput
from .reduce import Problem


def require(solver: str, own: str) -> None:
    """Raise InvalidInput unless CVXPY has this solver."""
    import cvxpy as cp

    if solver not in cp.installed_solvers():
        raise InvalidInput(
            f"method = {solver!r} is not known; choose {own} or, through CVXPY, "
            f"{', '.join(cp.installed_solvers())}."
        )


def solve(problem: Problem, solver: str) -> Array:
    """Multipliers (n,) of the scaled problem, as the solver left them: a proposal.

    Raises:
        InvalidInput: no such solver.
        CertificationError: the solver gave no multipliers; the message has its status.
    """
    import cvxpy as cp

    from .. import conditions

    require(solver, "auto, interior, chain, descent, layerwise, product")
    lam = cp.Variable(problem.units, nonneg=True)
    rho = cp.Variable(nonneg=True)
    M = conditions.lipschitz(
        A=problem.A, B=problem.B, C=problem.C, D=problem.D,
        Lam=lam, alpha=problem.alpha, beta=problem.beta, rho=rho,
    )  # fmt: skip
    task = cp.Problem(cp.Minimize(rho), [M >> 0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task.solve(solver=solver)
    except cp.SolverError as error:
        raise CertificationError(f"{solver} failed: {error} Try method='interior'.") from error
    if lam.value is None:
        raise CertificationError(
            f"{solver} stopped at {task.status!r} without multipliers. Try method='interior'."
        )
    return np.maximum(np.asarray(lam.value, dtype=np.float64), 0.0)
