"""Equilibria as differentiable functions of A and v, by the implicit function theorem."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..activations import Activation, linear
from .problem import Problem, Solution, announce, as_activation, check_on_failure
from .solve import Settings, run, working_dtype
from .splitting import optimal_step

Report = Callable[[Solution, str], None]


class _Equilibrium(torch.autograd.Function):
    """z(A, v); the adjoint u = D(g + Aᵀu), D = diag σ'(A z + v), is an equilibrium as well."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        A: Tensor,
        v: Tensor,
        sigma: Activation,
        settings: Settings,
        report: Report,
    ) -> Tensor:
        solution = run(A, v, sigma, settings)
        report(solution, "")
        ctx.save_for_backward(A, v, solution.z)
        ctx.how = sigma, settings, report  # type: ignore[attr-defined]
        return solution.z

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        A, v, z = ctx.saved_tensors  # type: ignore[attr-defined]
        sigma, settings, report = ctx.how  # type: ignore[attr-defined]
        with torch.autocast(v.device.type, enabled=False):
            known = z.isfinite().all(-1, keepdim=True)
            slopes = sigma.derivative(Problem(A, v, sigma).preactivation(z))
            # A row without an equilibrium has no gradient, but where nothing asks for one.
            g = torch.where(known | (g == 0).all(-1, keepdim=True), g, torch.nan)
            size = g.abs().sum(-1, keepdim=True)
            size = torch.where(size > 0, size, 1)
            metric = None if settings.metric is None else 1 / settings.metric
            adjoint = replace(settings, metric=metric, z0=None)
            solution = run(A.mT, g / size, linear(torch.where(known, slopes, 0)), adjoint)
            report(solution, " (gradient)")
            u = size * solution.z
            if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
                return None, u, None, None, None
            usable = known & u.isfinite().all(-1, keepdim=True)
            by_A = torch.where(usable, u, 0).mT @ torch.where(usable, z, 0)
        return by_A, u, None, None, None


def implicit(
    A: Tensor,
    v: Tensor,
    activation: str | Activation | Sequence[str | Activation] = "relu",
    *,
    method: str = "peaceman_rachford",
    tol: float = 1e-6,
    max_steps: int | None = None,
    step: float | None = None,
    metric: Tensor | None = None,
    z0: Tensor | None = None,
    fallback: str | None = "newton",
    on_failure: str = "raise",
    layer_name: str = "equilibrium",
) -> Tensor:
    """The equilibrium z = σ(A z + v), differentiable once with respect to A and v.

    With g the cotangent of z and D = diag σ'(A z + v), the adjoint u = D(g + Aᵀu) is found by the
    same method, step and tolerance (g being scaled to ‖g‖₁ = 1 in each row); then ∂v = u and
    ∂A = Σ u zᵀ over the rows. Nothing of the iterations is recorded; differentiating twice raises.

    Rows whose z or u is not finite: with on_failure="raise" they raise, in the backward pass too.
    Otherwise such a row has a NaN gradient in v (zero where its cotangent is zero, so masking it
    out of a loss works) and is left out of the gradient of A. A row that is finite but did not
    converge is announced and counts.

    Args:
        A, v, activation, method, tol, max_steps, step, metric, z0, fallback: as for `solve`.
            Neither metric nor z0 is differentiated.
        on_failure: "raise", "warn" or "ignore", see `announce`.
        layer_name: named in the announcement.

    Returns:
        z: (..., n) in the dtype of v.

    Raises:
        NotConverged, ShapeError, InvalidInput: as `solve` and `announce`.
    """
    check_on_failure(on_failure)
    settings = Settings(method, tol, max_steps, step, metric, z0, fallback)
    settings.check(A, v)
    rows = (math.prod(v.shape[:-1]), v.shape[-1])
    settings = replace(
        settings,
        step=optimal_step(A, method, metric) if step is None and method != "newton" else step,
        metric=None if metric is None else metric.detach(),
        z0=None if z0 is None else z0.detach().reshape(rows),
    )
    work, sigma = working_dtype(A, v), as_activation(activation, rows[1])
    report = partial(_report, layer_name, on_failure)
    z: Tensor = _Equilibrium.apply(A.to(work), v.to(work).reshape(rows), sigma, settings, report)
    return z.reshape(v.shape).to(v.dtype)


def _report(layer_name: str, on_failure: str, solution: Solution, suffix: str) -> None:
    announce(solution, layer_name + suffix, on_failure)
