"""The equation of an equilibrium, its residual, and what is said about a solution of it."""

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import activations
from ..activations import Activation
from ..errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError
from .operators import Operator, as_operator
from .splitting import monotonicity

ON_FAILURE = ("raise", "warn", "ignore")
_OURS = (__name__.partition(".")[0], "torch")

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
        return self.look(z)[0]

    def look(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`residual` and `preactivation`."""
        norm, w = torch.linalg.vector_norm, self.preactivation(z)
        size = norm(z, dim=-1).add_(1)
        # NaN where the norm overflows, which would make zero of any defect.
        return norm(z - self.sigma(w), dim=-1).div_(size).add_(size, alpha=0), w

    def solved(self, z: Tensor, residual: Tensor, tol: float) -> Tensor:
        """The rows whose residual is at most tol, or at most what rounding alone makes of it.

        That is what 2·eps of the numbers that the row itself adds up (`Operator.losses`) makes of
        z - σ(A z + v), where σ is not flat, over 1 + ‖z‖₂; and never more than MAX_ROUNDING.
        """
        done = residual <= tol
        near = (~done & (residual <= MAX_ROUNDING[z.dtype])).nonzero()[:, 0]
        if len(near):
            part, at, eps = self.rows(near), z[near], 2 * torch.finfo(z.dtype).eps
            w, lost = part.preactivation(at), eps * part.A.losses(at, part.v)
            moved = part.sigma(w + lost) - part.sigma(w - lost) + eps * at.abs()
            norm = torch.linalg.vector_norm
            hidden = torch.minimum(norm(moved, dim=-1), norm(lost, dim=-1))
            done[near] = residual[near] <= hidden / (1 + norm(at, dim=-1))
        return done

    def unsolved(self, z: Tensor, residual: Tensor, tol: float) -> Tensor:
        """The indices of the other rows whose residual is finite."""
        return (~self.solved(z, residual, tol) & residual.isfinite()).nonzero()[:, 0]


def rounding(A: Operator) -> float:
    """The residual that rounding alone can cause in A's dtype: 2·eps·(1 + ‖A‖_F)."""
    return 2 * torch.finfo(A.dtype).eps * (1 + A.largest_norm)


@dataclass(frozen=True)
class Solution:
    """The rows of an equilibrium and how far each of them can be trusted.

    Attributes:
        z: (..., n) in the dtype of v. NaN in the rows whose v is not finite or which overflowed.
        residual: (...,) ‖z - σ(A z + v)‖₂ / (1 + ‖z‖₂), measured in the precision of the solve.
        steps: (...,) iterations that the row took part in.
        converged: (...,) whether the residual reached the tolerance, or the row's rounding level.
        finite: (...,) whether the row's v is finite; where it is not, nothing was solved.
        method: the method, with "+newton" where that helped.
        error_bound: (...,) float64, `error_bound` of z: what ‖z - z*‖_Λ is at most; None where
            nobody asked for it.
        needed: the sweeps after which, as it seems, a look would have found all rows solved.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    finite: Tensor
    method: str
    error_bound: Tensor | None = None
    needed: int = 0

    def by_row(self) -> "Solution":
        return self


class Solved(NamedTuple):
    """A `Solution` of which the last look found all rows (batch, n) converged, and A z + v there.

    It is made in every step of training, where nobody asks about a single row.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor | int
    method: str
    needed: int
    preactivation: Tensor

    def by_row(self) -> Solution:
        done = torch.ones_like(self.residual, dtype=torch.bool)
        steps = self.steps
        if isinstance(steps, int):
            steps = torch.full_like(done, steps, dtype=torch.long)
        return Solution(self.z, self.residual, steps, done, done, self.method, needed=self.needed)


def announce(solution: Solution | Solved, layer_name: str, on_failure: str = "raise") -> None:
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
    if isinstance(solution, Solved) or on_failure == "ignore" or bool(solution.converged.all()):
        return
    if not bool(solution.finite.all()):
        warnings.warn(
            f"{layer_name}: {int((~solution.finite).sum())} of {solution.finite.numel()} samples "
            "have an input with NaN or Inf, and NaN is their equilibrium. Look at these samples; "
            "the others are not affected.",
            NotConvergedWarning,
            stacklevel=_caller(),
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
    warnings.warn(message, NotConvergedWarning, stacklevel=_caller())


def _caller() -> int:
    """The `stacklevel`, for whoever calls this, of the line that called this package or PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level


def check_on_failure(on_failure: str) -> None:
    if on_failure not in ON_FAILURE:
        raise InvalidInput(
            f"on_failure = {on_failure!r} is unknown. Use one of {', '.join(ON_FAILURE)}."
        )


def as_activation(units: str | Activation | Sequence[str | Activation], n: int) -> Activation:
    """The activation of n units, given as one for all or one for each."""
    if isinstance(units, str | Activation):
        sigma = activations.activation(units)
        if not 0 <= sigma.alpha <= sigma.beta <= 1:
            raise InvalidInput(
                f"activation {sigma.name} has slopes in [{sigma.alpha:g}, {sigma.beta:g}], but "
                "equilibria are unique for slopes in [0, 1]. Use relu or another of these."
            )
        return sigma
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
    modulus: float | None = None,
) -> Tensor:
    """Bound the distance ‖z - z*‖_Λ of any point z from the equilibrium z*, per sample.

    For any p, q = σ(p) solves the equation whose drive is v + r, r = p - (A q + v). With slopes in
    [0, β] equilibria are 1/k-Lipschitz in the drive, k = m + 1/β - 1 with m of `monotonicity`, so
    that ‖z - z*‖ ≤ ‖z - q‖ + ‖r‖ / k. Two p are tried: w = A z + v, and what σ takes to z as nearly
    as one Newton step finds it, in the units that are steep enough to gain by it. Shapes as for
    `solve`.

    Usually it is within L / m times of the distance: for 166,000 rows on the way to equilibria with
    L / m ≤ 5, it was 1.2 to 2 times that in the median, 4.3 in all but 1 % of them, and once 27.
    But it is evaluated in float64, whose rounding is included as it may be at worst: it is never
    less than (n + 16)·eps·‖ |z| + |A| |z| + |v| ‖₂ / k, eps = 2.2e-16, and does not tell how much
    nearer a z is, such as one that Newton's method found in float64.

    Args:
        modulus: a lower bound on m, if one is known; computed otherwise.

    Raises:
        ShapeError: shapes that do not fit. InvalidInput: A, metric or modulus not finite, or a
            slope outside [0, 1].

    Returns:
        (...,) float64, in the norm ‖x‖_Λ = (Σ λ_i x_i²)^½; infinite where k ≤ 0 or z is not finite.
    """
    sigma, A = as_activation(activation, v.shape[-1]), as_operator(A)
    if not A.fits(v.shape[-1]) or not _expands(v.shape, z.shape):
        raise ShapeError(
            f"A has shape {tuple(A.values.shape)}, v {tuple(v.shape)} and z {tuple(z.shape)}, but "
            f"A and v must be {A.shapes}, and v as z or one for all rows of it."
        )
    if not A.finite:
        raise InvalidInput("A has entries that are NaN or Inf. Look at what it is made of.")
    check_modulus(modulus)
    return distance(A, v.expand_as(z), z, sigma, metric, modulus)


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    fits = all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
    return fits and len(shape) <= len(to)


def check_modulus(modulus: float | None) -> None:
    if modulus is not None and not -math.inf < modulus < math.inf:
        raise InvalidInput(f"modulus = {modulus}, but must be finite. Leave it to be computed.")


def distance(
    A: Operator,
    v: Tensor,
    z: Tensor,
    sigma: Activation,
    metric: Tensor | None,
    modulus: float | None,
) -> Tensor:
    """`error_bound` with checked arguments."""
    A, rows = A.to(torch.float64), z.reshape(math.prod(z.shape[:-1]), z.shape[-1]).double()
    problem = Problem(A, v.reshape(rows.shape).double(), sigma)
    eps = torch.finfo(torch.float64).eps
    if modulus is None:
        m, L = A.recall("extremes", lambda: monotonicity(A, metric))
        modulus = m - 4 * A.blocks * eps * L
    k = (modulus + (1 / sigma.beta - 1 if sigma.beta else math.inf)) * (1 - 4 * eps)
    root = rows.new_ones(1) if metric is None else A.spread(metric.to(rows)).sqrt()

    norm = torch.linalg.vector_norm

    def size(x: Tensor) -> Tensor:
        return norm(x * root, dim=-1)

    w = problem.preactivation(rows)
    slope = sigma.derivative(w)
    bounds = []
    # Of the products, and of two Fourier transforms: Higham, Accuracy and stability, theorem 24.2.
    terms = A.blocks + 8 * (1 + (A.units // max(A.blocks, 1)).bit_length())
    steep = slope > 1 / (1 + max(k, 0))
    for p in (w, w + (rows - sigma(w)) / torch.where(steep, slope, 1)):
        q = sigma(p)
        r = p - problem.preactivation(q)
        lost = terms * eps * norm(A.losses(q, problem.v) + p.abs(), dim=-1)
        bounds.append(size(rows - q) * (1 + 1e-9) + (size(r) + lost * root.max()) * (1 + 1e-9) / k)
    bound = torch.fmin(*bounds) if k > 0 else torch.full_like(bounds[0], torch.inf)
    return bound.nan_to_num(nan=torch.inf, posinf=torch.inf).reshape(z.shape[:-1])
