"""`solve`: check the arguments, choose the step, run one method, report every sample."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._tensors import certainly_finite, full_precision
from ..activations import Activation
from ..errors import InvalidInput, ShapeError
from .newton import newton
from .operators import MAX_EXPLICIT, Operator, as_operator
from .problem import Problem, Solution, Solved, as_activation, check_modulus, distance, rounding
from .splitting import Iteration, iterate, iteration, optimal_step
from .tuning import CHECK_EVERY

SPLITTINGS = ("peaceman_rachford", "douglas_rachford", "forward_backward", "average")
METHODS = (
    *("auto", "newton", "adaptive"),
    *map("".join, itertools.product(SPLITTINGS, ("", "+anderson"))),
)

AUTO_STEPS = 100
"""Iterations of Peaceman-Rachford after which "auto" leaves a row to Newton's method."""
HALF = {torch.float16, torch.bfloat16}
FULL = {torch.float32, torch.float64}
KNOWN = HALF | FULL


class Settings(NamedTuple):
    """How to solve; the arguments of `solve`, whose docstring describes them."""

    method: str
    tol: float
    max_steps: int | None
    step: float | None
    fallback: str | None
    polish: bool = False
    first: int = CHECK_EVERY

    def check(self, A: Operator, v: Tensor, metric: Tensor | None, z0: Tensor | None) -> None:
        if not v.dim() or not A.fits(v.shape[-1]):
            raise ShapeError(
                f"A has shape {tuple(A.values.shape)} and v {tuple(v.shape)}, but they must be "
                f"{A.shapes}. Pass v = B x + b."
            )
        kinds, device = {A.dtype, v.dtype}, A.values.device
        if not kinds <= KNOWN or kinds == FULL or device != v.device:
            raise ShapeError(
                f"A is {A.dtype} on {device} and v is {v.dtype} on {v.device}, but both must be "
                "real floating point, on one device. Give both float32, or both float64."
            )
        for name, x, shape in (("metric", metric, (A.blocks,)), ("z0", z0, v.shape)):
            if x is not None and x.shape != shape:
                raise ShapeError(f"{name} has shape {tuple(x.shape)}. Make it {tuple(shape)}.")
        if not A.finite:
            raise InvalidInput("A has entries that are NaN or Inf. Look at what it is made of.")
        for name, value, known in (
            ("method", self.method, METHODS),
            ("fallback", self.fallback, (None, "newton")),
        ):
            if value not in known:
                raise InvalidInput(f"{name} = {value!r} is unknown. Use one of {known}.")
        for name, size in (("step", self.step), ("tol", self.tol), ("max_steps", self.max_steps)):
            if size is not None and not 0 < size < math.inf:
                raise InvalidInput(f"{name} = {size}, but must be positive. Leave the default.")
        if self.method == "newton" and not A.small:
            raise InvalidInput(
                f"method = 'newton', but it needs A as a matrix and A has {A.units} units, more "
                f"than {MAX_EXPLICIT}. Use 'peaceman_rachford'."
            )


def solve(
    A: Tensor | Operator,
    v: Tensor,
    activation: str | Activation | Sequence[str | Activation] = "relu",
    *,
    method: str = "peaceman_rachford",
    tol: float = 1e-6,
    max_steps: int | None = None,
    step: float | None = None,
    metric: Tensor | None = None,
    modulus: float | None = None,
    z0: Tensor | None = None,
    fallback: str | None = None,
    polish: bool = False,
) -> Solution:
    """Solve z = σ(A z + v) for every row of v, each row to its own tolerance.

    A row has converged when ‖z - σ(A z + v)‖₂ / (1 + ‖z‖₂) ≤ tol. Where float32 cannot tell, since
    rounding alone may make 2·eps·(1 + ‖A‖_F) of this very expression, the solve is done in float64.
    A row that misses tol has still converged when rounding hides the rest: when its residual is at
    most 2·eps·‖ |z| + |A| |z| + |v| ‖₂ / (1 + ‖z‖₂), what its own sums can lose, and at most 1e-6
    (1e-3 in float32). No step size and no other row enters the test, and a row that has converged
    changes no more: its result depends on the rest of the batch only by the rounding of batched
    products: the last bits, or what hundreds of accelerated iterations make of them. A row of v
    with NaN or Inf has z = NaN and is not converged. Never raises for lack of convergence, see
    `announce`. Not differentiable, see `implicit`.

    Args:
        A: (n, n) float32 or float64; half precision is solved in float32 or better. Or an
            operator, such as `Circulant`.
        v: (..., n), the drive B x + b. A single sample may be (n,).
        activation: one for all units, or one per unit.
        method: one of METHODS. "newton" goes on below tol, to rounding, and costs O(n³) per row;
            "adaptive" averages with a step of every row's own; "+anderson" accelerates a splitting,
            which pays where products are dear; "auto" is Peaceman-Rachford with Newton for rows
            that take more than AUTO_STEPS of it.
        max_steps: default 1000, for "newton" 50.
        step: default `optimal_step`, which costs two eigenvalue problems of size n: pass it in when
            A changes little. For "newton" it is the step of the splitting that helps it.
        metric: (n,) positive Λ in which I - A is strongly monotone; None is the identity. It serves
            the choice of the step and the error bound. For `Circulant` one number per channel.
        modulus: a lower bound on m of `monotonicity`, if one is known; computed otherwise.
        z0: (..., n), where to start; None (and what is not finite in it) is zero.
        fallback: "newton" gives the rows that did not converge to Newton's method, if A is a matrix
            or not too large to be written as one; None does not.
        polish: end with Newton's method in every row: one or two steps, exact to rounding.

    Raises:
        ShapeError: shapes, dtypes or devices that do not fit.
        InvalidInput: A is not finite; metric, step, tol or max_steps not positive; unknown method;
            an activation with a slope outside [0, 1].
    """
    settings = Settings(method, tol, max_steps, step, fallback, polish)
    operator = as_operator(A).remembering()
    settings.check(operator, v, metric, z0)
    check_modulus(modulus)
    sigma, batch = as_activation(activation, v.shape[-1]), v.shape[:-1]
    rows, work = (math.prod(batch), v.shape[-1]), working_dtype(operator, v)
    start = None if z0 is None else z0.reshape(rows)
    with torch.no_grad(), full_precision(v):
        flat = v.to(work).reshape(rows)
        found = run(operator.to(work), flat, sigma, settings, metric, start).by_row()
        z = found.z.to(v.dtype).reshape(v.shape)
        bound = distance(operator, v, z, sigma, metric, modulus)
    rest = ("residual", "steps", "converged", "finite")
    shaped = {name: getattr(found, name).reshape(batch) for name in rest}
    return replace(found, z=z, **shaped, error_bound=bound)


def working_dtype(A: Operator, v: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(A.dtype, v.dtype), torch.float32)


def run(
    A: Operator,
    v: Tensor,
    sigma: Activation,
    settings: Settings,
    metric: Tensor | None = None,
    z0: Tensor | None = None,
) -> Solution | Solved:
    """`solve` with checked arguments, for rows (batch, units) in the dtype of `working_dtype`,
    without the error bound. To be called without autograd and autocast."""
    given = v.dtype
    if rounding(A) > settings.tol:
        A, v = A.to(torch.float64), v.double()
    if z0 is not None:
        z0 = z0.to(v)
        z0 = torch.where(z0.isfinite(), z0, 0)
    problem = Problem(A, v, sigma)
    if certainly_finite(v):
        found = _rows(problem, z0, settings, metric)
        if isinstance(found, Solved) and v.dtype == given:
            return found
        found = found.by_row()
        return replace(found, z=found.z.to(given))  # which may overflow
    finite = v.isfinite().all(-1)
    index = finite.nonzero()[:, 0]
    rest = None if z0 is None else z0[index]
    found = _rows(problem.rows(index), rest, settings, metric).by_row()
    z, residual = torch.full_like(v, torch.nan), torch.full_like(v[:, 0], torch.nan)
    steps, converged = torch.zeros_like(finite, dtype=torch.long), torch.zeros_like(finite)
    z[index], residual[index], steps[index] = found.z, found.residual, found.steps
    converged[index] = found.converged
    z = z.to(given)
    return Solution(z, residual, steps, converged, finite, found.method, needed=found.needed)


def _rows(
    problem: Problem, start: Tensor | None, settings: Settings, metric: Tensor | None
) -> Solution | Solved:
    """`run` for rows that are finite."""
    A, method, limit, tol = problem.A, settings.method, settings.max_steps, settings.tol
    if not len(problem.v):
        return Solved(problem.v, problem.v.sum(-1), 0, method, 0, problem.v.clone())
    rescue = settings.fallback == "newton" or method == "auto"
    splitting = "peaceman_rachford" if method in ("auto", "newton") else method

    def scheme(kind: str) -> Iteration:
        given = settings.step if kind == splitting else None
        return iteration(A, kind, given or optimal_step(A, kind, metric))

    def by_newton(rows: Problem, z: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        explicit = Problem(A.explicit(), rows.v, rows.sigma)
        return newton(explicit, z, tol, limit, lambda: scheme("peaceman_rachford"))

    steps: Tensor | int
    if method == "newton":
        start = torch.zeros_like(problem.v) if start is None else start
        z, residual, steps = by_newton(problem, start, limit or 50)
        done, needed = False, 0
    else:
        limit = limit or (AUTO_STEPS if method == "auto" and A.small else 1000)
        sweeps = scheme(splitting)
        z, residual, steps, w, done, needed = iterate(
            problem, sweeps, start, tol, limit, settings.first
        )
        if done and not settings.polish:
            return Solved(z, residual, steps, method, needed, w)
    if isinstance(steps, int):
        steps = torch.full_like(residual, steps, dtype=torch.long)
    converged = problem.solved(z, residual, tol)
    if method != "newton" and A.small and (settings.polish or (rescue and not done)):
        index = (~converged | settings.polish).nonzero()[:, 0]
        again = torch.where((residual[index] < 0.1)[:, None], z[index], 0)
        found = by_newton(problem.rows(index), again, 50)
        z[index], residual[index] = found[:2]
        steps[index] += found[2]
        method += "+newton"
        converged = problem.solved(z, residual, tol)
    if not math.isfinite(float(residual.sum())):
        broken = ~residual.isfinite()
        z[broken], residual[broken] = torch.nan, torch.nan
    every = torch.ones_like(converged)
    return Solution(z, residual, steps, converged, every, method, needed=needed)
