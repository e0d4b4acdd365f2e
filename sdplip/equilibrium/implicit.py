"""Equilibria as differentiable functions of A and v, by the implicit function theorem."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .._tensors import certainly_finite, full_precision
from ..activations import Activation, linear
from ..errors import InvalidInput
from .operators import Operator, as_operator
from .problem import Solution, Solved, announce, as_activation, check_on_failure
from .solve import Settings, run, working_dtype
from .splitting import optimal_step
from .tuning import Tuning

LARGE = 1e4
"""‖g‖₁ to which cotangents are scaled: the adjoint's residual is relative to it where ‖u‖ is small,
and to ‖u‖ elsewhere."""

Kind = Callable[[Tensor], Operator]
"""What makes an operator of its values: autograd sees these alone."""


@dataclass
class Report:
    """What is done with the solutions of one call of `implicit`.

    Attributes:
        solved: whether that of the equation itself is known to be finite in all rows.
    """

    layer_name: str
    on_failure: str
    tuning: Tuning | None
    truncated: bool
    solved: bool = False

    def __call__(self, solution: Solution | Solved, adjoint: bool) -> None:
        if adjoint and self.truncated:
            return
        if not adjoint:
            self.solved = isinstance(solution, Solved)
        if self.tuning is not None and solution.needed:
            self.tuning.observe(adjoint, solution.needed)
        announce(solution, self.layer_name + " (gradient)" * adjoint, self.on_failure)


class _Function(torch.autograd.Function):
    """A function whose forward takes no ctx: torch.func needs that, but calls are slower."""

    direct: ClassVar[type[torch.autograd.Function]]

    def __init_subclass__(cls) -> None:
        def forward(ctx: FunctionCtx, *inputs: Any) -> Any:
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward)}
        cls.direct = type(cls.__name__, (torch.autograd.Function,), methods)

    @classmethod
    def call(cls, *inputs: Any) -> Any:
        """`apply`, if anything is to be recorded."""
        if torch._C._are_functorch_transforms_active():
            return cls.apply(*inputs)
        return (cls.direct.apply if torch.is_grad_enabled() else cls.forward)(*inputs)


class _Equilibrium(_Function):
    """z(A, v), and w = A z + v; the adjoint u = D(g + Aᵀu), D = diag σ'(w), is one as well."""

    @staticmethod
    def forward(
        values: Tensor,
        v: Tensor,
        metric: Tensor | None,
        z0: Tensor | None,
        kind: Kind,
        sigma: Activation,
        settings: Settings,
        adjoint: Settings,
        report: Report,
    ) -> tuple[Tensor, Tensor]:
        with full_precision(v):
            A = kind(values)
            solution = run(A, v, sigma, settings, metric, z0)
            report(solution, False)
            z = solution.z
            return z, solution.preactivation if isinstance(solution, Solved) else A.plus(v, z)

    @staticmethod
    def setup_context(
        ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
    ) -> None:
        values, v, metric, _, *how = inputs
        ctx.save_for_backward(values, v, metric, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.how = how  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        values, v, metric, z, w = ctx.saved_tensors  # type: ignore[attr-defined]
        kind, sigma, _, settings, report = ctx.how  # type: ignore[attr-defined]
        nothing = (None,) * 7
        A = kind(values)
        with full_precision(v):
            clean = report.solved or certainly_finite(z)
            if not clean:
                known = z.isfinite().all(-1, keepdim=True)
                z, v = torch.where(known, z, 0), torch.where(known, v, 0)
            # Further derivatives need that of w as well.
            again = not clean or torch.is_grad_enabled()
            slopes = sigma.derivative(A.plus(v, z) if again else w)
            dual = None if metric is None else 1 / metric
            adjoint = A.adjoint()
            how = (adjoint.kind, settings, report)
            if clean:
                u = by_v = _Adjoint.call(adjoint.values, slopes, g, dual, *how)
            else:
                slopes, asked = torch.where(known, slopes, 0), torch.where(known, g, 0)
                u = _Adjoint.call(adjoint.values, slopes, asked, dual, *how)
                # A row without an equilibrium has no gradient, but where nothing asks for one.
                by_v = torch.where(known | (g == 0).all(-1, keepdim=True), u, torch.nan)
            if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
                return None, by_v, *nothing
            if not certainly_finite(u):
                u = torch.where(u.isfinite().all(-1, keepdim=True), u, 0)
            by_values = A.outer(u, z)
        return by_values, by_v, *nothing

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        values: Tensor,
        v: Tensor,
        metric: Tensor | None,
        z0: Tensor | None,
        *how: Any,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        v, z0 = _flat(info, in_dims[1], v), None if z0 is None else _flat(info, in_dims[3], z0)
        z, w = _Equilibrium.call(values, v, metric, z0, *how)
        shape = (info.batch_size, len(z) // info.batch_size, z.shape[-1])
        return (z.reshape(shape), w.reshape(shape)), (0, 0)


class _Adjoint(_Function):
    """u = D(g + M u), D = diag(slopes): linear, so its derivatives are again of this kind."""

    @staticmethod
    def forward(
        values: Tensor,
        slopes: Tensor,
        g: Tensor,
        metric: Tensor | None,
        kind: Kind,
        settings: Settings,
        report: Report,
    ) -> Tensor:
        # Large, so that the residual is measured by u itself.
        size = torch.linalg.vector_norm(g / LARGE, ord=1, dim=-1, keepdim=True)
        size.clamp_(min=torch.finfo(size.dtype).tiny)
        with full_precision(g):
            solution = run(kind(values), g / size, linear(slopes), settings, metric)
        # The samples of a bad input have been taken out; another g that is not finite is a failure.
        if isinstance(solution, Solution):
            solution = replace(solution, finite=torch.ones_like(solution.finite))
        report(solution, True)
        return size * solution.z

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, slopes, g, metric, *how = inputs
        ctx.save_for_backward(values, slopes, g, metric, output)
        ctx.how = how  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: FunctionCtx, h: Tensor) -> tuple[Tensor | None, ...]:
        values, slopes, g, metric, u = ctx.saved_tensors  # type: ignore[attr-defined]
        kind, *how = ctx.how  # type: ignore[attr-defined]
        dual, M = None if metric is None else 1 / metric, kind(values)
        adjoint = M.adjoint()
        p = _Adjoint.call(adjoint.values, slopes, h, dual, adjoint.kind, *how)
        return M.outer(p, u), adjoint.plus(h, p) * M.plus(g, u), p, None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        values: Tensor,
        slopes: Tensor,
        g: Tensor,
        metric: Tensor | None,
        *how: Any,
    ) -> tuple[Tensor, int]:
        slopes, g = _flat(info, in_dims[1], slopes), _flat(info, in_dims[2], g)
        u = _Adjoint.call(values, slopes, g, metric, *how)
        return u.reshape(info.batch_size, len(u) // info.batch_size, u.shape[-1]), 0


def _flat(info: Any, dim: int | None, x: Tensor) -> Tensor:
    """The rows (k, n) of every sample of a vmap, below each other."""
    x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.reshape(math.prod(x.shape[:2]), x.shape[2])


def implicit(
    A: Tensor | Operator,
    v: Tensor,
    activation: str | Activation | Sequence[str | Activation] = "relu",
    *,
    method: str = "peaceman_rachford",
    tol: float = 1e-6,
    max_steps: int | None = None,
    step: float | Tuning | None = None,
    metric: Tensor | None = None,
    z0: Tensor | None = None,
    fallback: str | None = "newton",
    polish: bool = False,
    gradient: str | int = "implicit",
    on_failure: str = "raise",
    layer_name: str = "equilibrium",
) -> Tensor:
    """The equilibrium z = σ(A z + v), differentiable with respect to A (its values) and v.

    With g the cotangent of z and D = diag σ'(A z + v), the adjoint u = D(g + Aᵀu) is found by the
    same method, step and tolerance (g being scaled to ‖g‖₁ = 1e4 in each row); then ∂v = u and
    ∂A = Σ u zᵀ over the rows. Nothing of the iterations is recorded. Further derivatives are those
    of the adjoint, almost everywhere. torch.func: grad, vjp, jacrev, and vmap over v (and z0) with
    one A; no forward mode (jvp, jacfwd, hessian), no vmap over A or metric.

    A row of v that is not finite has z = NaN and is warned of (unless on_failure="ignore"), in the
    forward pass alone. With on_failure="raise" any other row whose z or u is not finite raises, in
    the backward pass too. A row without a finite z or u has a NaN gradient in v (zero where its
    cotangent is zero, so masking it out of a loss works) and is left out of the gradient of A. A
    row that is finite but did not converge is announced and counts.

    Args:
        A, v, activation, method, tol, max_steps, metric, z0, fallback, polish: as for `solve`.
            Neither metric nor z0 is differentiated.
        step: as for `solve`; or a `Tuning` that keeps it over the calls, for an A that drifts.
        gradient: "implicit" for the adjoint to tol, "newton" for the adjoint to rounding, or k for
            k steps of Peaceman-Rachford on it: off by no more than ‖R‖_Λ^k of what zero steps
            would be, with the Cayley matrix R, and unannounced.
        on_failure: "raise", "warn" or "ignore", see `announce`.
        layer_name: named in the announcement.

    Returns:
        z: (..., n) in the dtype of v.

    Raises:
        NotConverged, ShapeError, InvalidInput: as `solve` and `announce`.
    """
    check_on_failure(on_failure)
    if gradient not in ("implicit", "newton") and not (type(gradient) is int and gradient > 0):
        raise InvalidInput(
            f"gradient = {gradient!r}, but must be 'implicit', 'newton' or a number of steps."
        )
    tuning = step if isinstance(step, Tuning) else None
    given = None if isinstance(step, Tuning) else step
    settings = Settings(method, tol, max_steps, given, fallback, polish)
    operator = as_operator(A).remembering()
    try:
        settings.check(operator, v, metric, z0)
    except RuntimeError as error:
        # The check reads the values of A and metric, which vmap refuses for what it maps over.
        if "vmap" not in str(error):
            raise
        raise InvalidInput(
            "A or metric differs between the samples of torch.func.vmap, but one A serves all rows "
            "of v. Map over v alone, or loop over the matrices."
        ) from error
    rows = (math.prod(v.shape[:-1]), v.shape[-1])
    name = "peaceman_rachford" if method in ("auto", "newton") else method
    if tuning is not None:
        given = tuning.choose(name, lambda: optimal_step(operator, name, metric))
    elif given is None and method != "newton":
        given = optimal_step(operator, name, metric)
    if given is not None and name == "peaceman_rachford":
        metric = None  # which only serves to choose a step
    settings = adjoint = settings._replace(step=given)
    if gradient == "newton":
        adjoint = settings._replace(method="newton")
    elif gradient != "implicit":
        adjoint = settings._replace(
            method="peaceman_rachford",
            step=given if name == "peaceman_rachford" else None,
            max_steps=int(gradient),
            first=int(gradient),
            fallback=None,
            polish=False,
        )
    if adjoint is not settings:
        adjoint.check(operator, v, metric, z0)
    if tuning is not None:
        settings = settings._replace(first=tuning.first(adjoint=False))
        if gradient == "implicit":
            adjoint = adjoint._replace(first=tuning.first(adjoint=True))
    metric = None if metric is None else metric.detach()
    z0 = None if z0 is None else z0.detach().reshape(rows)
    work, sigma = working_dtype(operator, v), as_activation(activation, rows[1])
    truncated = not isinstance(gradient, str)
    report = Report(layer_name, on_failure, tuning, truncated)
    operator, flat = operator.to(work), v.to(work)
    if v.ndim != 2:
        flat = flat.reshape(rows)
    how = (operator.kind, sigma, settings, adjoint, report)
    z, _ = _Equilibrium.call(operator.values, flat, metric, z0, *how)
    return cast(Tensor, z if v.ndim == 2 else z.reshape(v.shape)).to(v.dtype)
