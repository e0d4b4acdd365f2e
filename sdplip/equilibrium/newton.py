"""Semi-smooth Newton: for ReLU the active-set method, which ends at the exact solution."""

from collections.abc import Callable

import torch
from torch import Tensor

from .problem import Problem
from .splitting import Iteration

SWEEPS = 16
"""Splitting iterations after the first Newton step that fails; k times as many after step k."""

MAX_ELEMENTS = 2**24
"""Entries of the Jacobians that exist at the same time."""


def newton(
    problem: Problem, z: Tensor, tol: float, max_steps: int, rescue: Callable[[], Iteration]
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve z - σ(A z + v) = 0 row by row; where Newton's step does not help, sweep by `rescue`.

    A step counts if it halves the least residual that the row has had. That can happen only
    finitely often, and between such steps the row carries on its own sequence of `rescue`: so no
    active set cycles, and whatever `rescue` converges for, this does too. Rows go on below tol
    while the steps still halve the residual: until only rounding is left.

    Returns z, residual and steps. A is `Dense`; the Jacobians are factored in groups of rows.
    """
    best, residual = z.clone(), problem.residual(z)
    point, state = z.clone(), z.clone()
    sweeping = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    steps = torch.zeros(len(z), dtype=torch.long, device=z.device)
    floor = torch.finfo(z.dtype).eps
    live = ((residual > floor) & residual.isfinite()).nonzero()[:, 0]
    for done in range(1, max_steps + 1):
        if not len(live):
            break
        part, before = problem.rows(live), residual[live]
        unsolved = ~part.solved(best[live], before, tol)
        y = point[live] + _direction(part, point[live])
        error = part.residual(y)
        helped = error < before / 2
        sweeping[live[helped]] = False
        lost = (~helped & unsolved).nonzero()[:, 0]
        if len(lost):
            scheme, rows, rest = rescue(), live[lost], part.rows(lost)
            u, drive = scheme.start(rest, point[rows])
            u = torch.where(sweeping[rows, None], state[rows], u)
            for _ in range(SWEEPS * done):
                u = scheme.sweep(rest.sigma, u, drive)
            y[lost] = scheme.point(rest.sigma, u)
            error[lost] = rest.residual(y[lost])
            state[rows], sweeping[rows] = u, True
        point[live], steps[live] = y, done
        better = error < before
        best[live[better]], residual[live[better]] = y[better], error[better]
        going = torch.where(unsolved, error.isfinite(), helped)
        live = live[going & (residual[live] > floor)]
    return best, residual, steps


def _direction(problem: Problem, z: Tensor) -> Tensor:
    """-(I - D A)⁻¹ (z - σ(A z + v)) with D = diag σ'(A z + v), row by row."""
    n, A = z.shape[-1], problem.A.values
    eye = torch.eye(n, dtype=z.dtype, device=z.device)
    slopes, defect = problem.sigma.derivative(problem.preactivation(z)), problem.defect(z)
    size = max(1, MAX_ELEMENTS // n**2)
    pieces = [
        # solve_ex gives a singular row Inf or NaN and leaves the other rows alone.
        torch.linalg.solve_ex(eye - d[:, :, None] * A, -r[:, :, None])[0][:, :, 0]
        for d, r in zip(slopes.split(size), defect.split(size), strict=True)
    ]
    return torch.cat(pieces)
