"""The equation of an equilibrium, its residual, and what is said about a solution of it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import activations
from ..activations import Activation
from ..errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError
from .operators import Operator, as_operator
from .splitting import monotonicity

ON_FAILURE = ("raise", "warn", "ignore")

MAX_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
"""The largest residual that may pass for rounding: beyond it nothing has been solved."""


@dataclass(frozen=True)
class Problem:
    """z = σ(A z + v) for every row of v (batch, units)."""

    A: Operator
    v: Tensor
    sigma: Activation

    def rows(self, index: Tensor) -> "Problem":
        return Problem(self.A, self.v[index], self.sigma.rows(index))

    def preactivation(self, z: Tensor) -> Tensor:
        return self.A.plus(self.v, z)

    def defect(self, z: Tensor) -> Tensor:
        return z - self.sigma(self.preactivation(z))

    def residual(self, z: Tensor) -> Tensor:
        """‖z - σ(A z + v)‖₂ / (1 + ‖z‖₂) of every row: no step size enters."""
        norm = torch.linalg.vector_norm
        return norm(self.defect(z), dim=-1) / (1 + norm(z, dim=-1))

    def solved(self, z: Tensor, residual: Tensor, tol: float) -> Tensor:
        """The rows whose residual is at most tol, or at most what rounding alone makes of it.

        That is 2·eps·‖ |z| + |A| |z| + |v| ‖₂ / (1 + ‖z‖₂), of the numbers that the row itself
        adds up (see `Operator.losses`), and never more than MAX_ROUNDING.
        """
        done = residual <= tol
        near = (~done & (residual <= MAX_ROUNDING[z.dtype])).nonzero()[:, 0]
        if len(near):
            lost = 2 * torch.finfo(z.dtype).eps * self.A.losses(z[near], self.v[near])
            done[near] = residual[near] <= lost / (1 + torch.linalg.vector_norm(z[near], dim=-1))
        return done


def rounding(A: Operator) -> float:
    """The residual that rounding alone can cause in A's dtype: 2·eps·(1 + ‖A‖_F)."""
    return 2 * torch.finfo(A.dtype).eps * (1 + float(A.largest_norm))


@dataclass(frozen=True)
class Solution:
    """The rows of an equilibrium and how far each of them can be trusted.

    Attributes:
        z: (..., n) in the dtype of v. NaN in the rows whose v is not finite or which overflowed.
        residual: (...,) ‖z - σ(A z + v)‖₂ / (1 + ‖z‖₂), measured in the precision of the solve.
        steps: (...,) iterations that the row took part in.
        converged: (...,) whether the residual reached the tolerance, or the row's rounding level.
        finite: (...,) whether the row's v is finite; where it is not, nothing was solved.
        method: the method, with "+newton" where the fallback was used.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    finite: Tensor
    method: str


def announce(solution: Solution, layer_name: str, on_failure: str = "raise") -> None:
    """Say that samples of `solution` did not converge, if any did not.

    A sample whose v is NaN or Inf has no equilibrium to find: it is named in a NotConvergedWarning
    and costs its neighbours nothing, with "raise" too.

    Args:
        layer_name: for the message.
        on_failure: "raise", "warn" or "ignore".

    Raises:
        NotConverged: a sample with a finite v did not converge (with "warn": NotConvergedWarning
            is issued).
        InvalidInput: another on_failure.
    """
    check_on_failure(on_failure)
    if on_failure == "ignore" or bool(solution.converged.all()):
        return
    if not bool(solution.finite.all()):
        warnings.warn(
            f"{layer_name}: {int((~solution.finite).sum())} of {solution.finite.numel()} samples "
            "have an input with NaN or Inf, and NaN is their equilibrium. Look at these samples; "
            "the others are not affected.",
            NotConvergedWarning,
            stacklevel=3,
        )
    failed = solution.finite & ~solution.converged
    if not bool(failed.any()):
        return
    residual, steps = solution.residual[failed], int(solution.steps[failed].max())
    finite = residual[residual.isfinite()]
    worst = f"worst residual {float(finite.max()):.2e}" if finite.numel() else "none of them finite"
    lost = residual.numel() - finite.numel()
    message = (
        f"{layer_name}: {residual.numel()} of {failed.numel()} equilibria did not converge by "
        f"{solution.method} ({worst} after {steps} steps, {lost} not finite). Try a larger "
        'max_steps or method="newton"; or a larger eps, or the metric in which I - A is monotone.'
    )
    if on_failure == "raise":
        raise NotConverged(message)
    warnings.warn(message, NotConvergedWarning, stacklevel=3)


def check_on_failure(on_failure: str) -> None:
    if on_failure not in ON_FAILURE:
        raise InvalidInput(
            f"on_failure = {on_failure!r} is unknown. Use one of {', '.join(ON_FAILURE)}."
        )


def as_activation(units: str | Activation | Sequence[str | Activation], n: int) -> Activation:
    """The activation of n units, given as one for all or one for each."""
    if isinstance(units, str | Activation):
        return activations.activation(units)
    if len(units) != n:
        raise ShapeError(
            f"activation names {len(units)} units, but v has {n}. Name each unit once."
        )
    return activations.per_unit(units)


def error_bound(
    A: Tensor | Operator,
    v: Tensor,
    z: Tensor,
    activation: str | Activation | Sequence[str | Activation] = "relu",
    *,
    metric: Tensor | None = None,
) -> Tensor:
    """Bound the distance ‖z - z*‖_Λ of any point z from the equilibrium z*, per sample.

    ẑ = σ(A z + v) is the equilibrium of the drive v + A(z - ẑ), and equilibria are 1/m-Lipschitz
    in the drive, so ‖z - z*‖ ≤ ‖z - ẑ‖ + ‖A(z - ẑ)‖ / m, with m of `monotonicity`. Shapes as for
    `solve`. Rounding is not included.

    Returns:
        (...,) in the norm ‖x‖_Λ = (Σ λ_i x_i²)^½; infinite where m ≤ 0.
    """
    sigma, A = as_activation(activation, v.shape[-1]), as_operator(A)
    m, _ = monotonicity(A, metric)
    root = 1.0 if metric is None else A.spread(metric.to(z)).sqrt()
    rows = z.reshape(-1, z.shape[-1])
    defect = rows - sigma(A.plus(v.expand_as(z).reshape(rows.shape), rows))
    moved = A.plus(torch.zeros_like(defect), defect)
    near, far = (torch.linalg.vector_norm(x * root, dim=-1) for x in (defect, moved))
    bound = near + far / m if m > 0 else torch.full_like(near, torch.inf)
    return bound.reshape(z.shape[:-1])
