"""Layers y = Cz + Dx + c at the equilibrium z = σ(Az + Bx + b)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._tensors import certainly_finite, full_precision
from ..activations import Activation, activation
from ..equilibrium import (
    Dense,
    Operator,
    Solution,
    Tuning,
    error_bound,
    implicit,
    optimal_step,
    solve,
)
from ..equilibrium.splitting import conditioning
from ..errors import InvalidInput
from ..system import System
from ._base import (
    Layer,
    check_size,
    fill_uniform,
    numpy,
    slopes_in_unit_interval,
    undefined,
    wide,
)
from ._plain import linear
from ._spectrum import norm_square
from ._state import pack, unpack
from ._unrolled import FoldedEquilibrium, Unrolled

TRAINING_TOL, EVALUATION_TOL = 1e-2, 1e-6
"""Residuals to solve to where a layer has no `tol` of its own."""

Forward = Callable[[Any, Tensor], Tensor]


def untraced(forward: Forward) -> Forward:
    """The same, but torch.compile leaves it as it is and compiles what is around: otherwise it
    would compile the solver's loop again for every number of iterations."""
    disabled: Forward | None = None

    @wraps(forward)
    def call(layer: Any, x: Tensor) -> Tensor:
        nonlocal disabled
        # Before this is imported, which takes seconds, nothing can be compiled.
        if disabled is None and "torch._dynamo" in sys.modules:
            disabled = torch.compiler.disable(forward)
        return (disabled or forward)(layer, x)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


class Equilibrium(Layer):
    """What dense and convolutional equilibrium layers share: how they are solved.

    Attributes:
        method, max_steps, fallback, polish: of `sdplip.equilibrium.solve`; change them at any time.
        tol: likewise; None is 1e-2 in training and 1e-6 in evaluation.
        gradient: of `sdplip.equilibrium.implicit`.
        on_failure: what happens to samples that do not reach `tol`: "raise", "warn", "ignore", or
            None for "warn" in training and "raise" in evaluation. A sample whose input is NaN or
            Inf comes back as NaN with a warning, and leaves its neighbours alone.
    """

    hidden: int | tuple[int, ...]
    activation: str | Activation
    method: str
    tol: float | None
    max_steps: int | None
    bias: nn.Parameter | None
    out_bias: nn.Parameter | None
    on_failure: str | None = None
    fallback: str | None = "newton"
    polish: bool = False
    gradient: str | int = "implicit"

    def _set_solver(self, method: str, tol: float | None, max_steps: int | None) -> None:
        self.method, self.tol, self.max_steps = method, tol, max_steps
        self._tuning = Tuning()
        self._steady: tuple[object, float] | None = None

    def _accepted(self, activation: str | Activation) -> str | Activation:
        return slopes_in_unit_interval(type(self).__name__, activation)

    def _settled(self) -> bool:
        """Whether the next solve needs no metric: its step is known."""
        name = "peaceman_rachford"
        return self.training and self.method in (name, "auto") and self._tuning.knows(name)

    def _find(self, A: Operator, v: Tensor, metric: Tensor | None) -> Tensor:
        """The equilibria of the rows v (batch, units), differentiable."""
        return implicit(
            A,
            v,
            self.activation,
            step=self._tuning if self.training else self._step(A, metric),
            gradient=self.gradient,
            on_failure=self.on_failure or ("warn" if self.training else "raise"),
            layer_name=type(self).__name__,
            **self._solver(metric),
        )

    def _step(self, A: Operator, metric: Tensor | None) -> float | None:
        """The step in evaluation, of the weights as they are; None where it is kept with them."""
        if not torch.is_grad_enabled() or self.method == "newton" or not certainly_finite(A.values):
            return None
        # What is of other weights has another sum and norm.
        key = self.method, complex(A.values.detach().sum()), float(A.largest_norm)
        if self._steady is None or self._steady[0] != key:
            self._steady = key, optimal_step(A, self.method, metric)
        return self._steady[1]

    def _solution(self, A: Operator, v: Tensor, metric: Tensor, z0: Tensor | None) -> Solution:
        options = self._solver(metric)
        return solve(A, v, self.activation, z0=z0, modulus=self._modulus(metric), **options)

    def _modulus(self, metric: Tensor) -> float | None:
        """A lower bound on the modulus of I - A in this metric, or None to compute it."""
        return None

    def _solver(self, metric: Tensor | None) -> dict[str, Any]:
        usual = TRAINING_TOL if self.training else EVALUATION_TOL
        return {
            "metric": metric,
            "method": self.method,
            "tol": usual if self.tol is None else self.tol,
            "max_steps": self.max_steps,
            "fallback": self.fallback,
            "polish": self.polish,
        }

    def solve_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and how far it may be from the exact one.

        Returns:
            y as forward gives it; and for every sample a bound (...,) float64 on its distance, in
            `norm`, from Cz* + Dx + c at the exact equilibrium z* of the same A, B, C, D: what the
            solver left open and what was rounded, but for products in float64.
        """
        raise undefined(self, "solve_output", "the output and a bound of its distance")

    def _left_open(
        self,
        A: Operator,
        v: Tensor,
        z: Tensor,
        C: Tensor,
        metric: Tensor,
        gap: Tensor,
    ) -> Tensor:
        """The bound of `solve_output` for the drive v in float64 and the gap (..., outputs) that
        rounding has opened between y and what z gives.

        ‖C(z - z*)‖ ≤ ‖CΛ^{-1/2}‖₂ ‖z - z*‖_Λ for C (*frequencies, p, n); Λ may be that of channels.
        """
        modulus = self._modulus(metric)
        bound = error_bound(A, v, z, self.activation, metric=metric, modulus=modulus)
        gain = torch.linalg.matrix_norm(C * metric.double().rsqrt(), ord=2).max() * (1 + 1e-9)
        total = gain * bound + torch.linalg.vector_norm(gap, self.norm, dim=-1)
        return total.nan_to_num(*[torch.inf] * 2)

    def get_extra_state(self) -> Tensor:
        return pack(self._options() | self._tuning.state())

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        self._tuning.load(unpack(type(self).__name__, state))

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"activation": activation(self.activation).name}

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if x.is_meta:
            raise InvalidInput(
                f"{type(self).__name__}: no equilibrium can be computed on the meta device, which "
                "holds no values. Move the layer and its input to another one."
            )


class EquilibriumLayer(Equilibrium):
    """A well-posed equilibrium network whose subclass gives A, B, C, D from its parameters."""

    free = {"B": ("hidden", "in_features"), "C": ("out_features", "hidden")}  # noqa: RUF012
    hidden: int
    B: nn.Parameter
    C: nn.Parameter

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        bias: bool,
        feedthrough: bool,
        activation: str | Activation,
        method: str,
        tol: float | None,
        max_steps: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(in_features, out_features)
        owner = type(self).__name__
        check_size(owner, "hidden", hidden)
        self.hidden = hidden
        self.activation = self._accepted(activation)
        self._set_solver(method, tol, max_steps)

        def free(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        sizes = {"in_features": in_features, "hidden": hidden, "out_features": out_features}
        self._register(sizes, device, dtype)
        if "D" not in self.free:
            self.D = free(out_features, in_features) if feedthrough else None
        self.bias = free(hidden) if bias else None
        self.out_bias = free(out_features) if bias else None

    def reset_parameters(self) -> None:
        """Draw B, C and the biases as nn.Linear does; the direct path D starts at zero."""
        fill_uniform(self.B, self.bias, fan_in=self.in_features)
        fill_uniform(self.C, self.out_bias, fan_in=self.hidden)
        if self.D is not None:
            nn.init.zeros_(self.D)

    @property
    def feedthrough(self) -> bool:
        """Whether there is a direct path D."""
        return self.D is not None

    @untraced
    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if (y := self._fused(x)) is not None:
            return y
        with full_precision(x):
            w = self._current()
            metric = None if self._settled() else self._kept_metric(w)
            z = self._find(self._operator(w), self._drive(x, w["B"]), metric)
            y = self._read(w, z, x)
        return y.to(x.dtype)

    def _fused(self, x: Tensor) -> Tensor | None:
        """What forward returns, where there is a shorter way to it."""
        return None

    def solve(self, x: Tensor, z0: Tensor | None = None) -> Solution:
        """The equilibria for x (..., in_features), with residual, error bound and steps of every
        sample; from z0 (..., hidden) on, if given.

        Not differentiable; never raises for lack of convergence.
        """
        self._check(x)
        with torch.no_grad(), full_precision(x):
            w = self._current()
            v, metric = self._drive(x, w["B"]), self._kept_metric(w)
            return self._solution(self._operator(w), v, metric, z0)

    def solve_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.solve(x)
        with torch.no_grad(), full_precision(x):
            w = self._current()
            y = self._read(w, found.z, x).to(x.dtype)
            exact, x, z = doubles(w), x.double(), found.z.double()
            v, gap = self._drive(x, exact["B"]), y - self._read(exact, z, x)
            metric = self._kept_metric(w)
            return y, self._left_open(self._operator(w), v, z, exact["C"], metric, gap)

    def _operator(self, w: dict[str, Any]) -> Operator:
        return Dense(w["A"], kept=w["kept"])

    def _current(self) -> dict[str, Any]:
        """As in `Layer`; to be called with autocast off."""

        def compute() -> dict[str, Any]:
            return self._closed_form() | cast(dict[str, Any], {"kept": {}})

        return self._cache.get(self, self._options, compute)

    def _read(self, w: dict[str, Tensor], z: Tensor, x: Tensor) -> Tensor:
        y = F.linear(z, w["C"], _as(w["C"], self.out_bias))
        return y + F.linear(wide(x), w["D"]) if self.feedthrough else y

    def _folded(self) -> nn.Module:
        w = self._tensors()
        inner = Unrolled(w["A"], self.activation, self._metric(w))
        drive, read = linear(w["B"], self.bias), linear(w["C"], self.out_bias)
        return FoldedEquilibrium(drive, inner, read, linear(w["D"]) if self.feedthrough else None)

    def _system(self) -> System:
        w = {name: numpy(value) for name, value in self._tensors().items()}
        return System.equilibrium(
            w["A"],
            w["B"],
            w["C"],
            w["D"],
            numpy(self.bias),
            numpy(self.out_bias),
            _names(activation(self.activation)),
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, hidden={self.hidden}, "
            f"out_features={self.out_features}, bias={self.bias is not None}, "
            f"feedthrough={self.feedthrough}, activation={activation(self.activation).name}"
        )

    def _metric(self, w: dict[str, Tensor]) -> Tensor:
        """The diagonal Λ (n,) in which I - A is strongly monotone."""
        raise undefined(self, "_metric", "the diagonal Λ (n,) in which I - A is strongly monotone")

    def _kept_metric(self, w: dict[str, Any]) -> Tensor:
        if "metric" not in w:
            w["metric"] = self._metric(w)
        return cast(Tensor, w["metric"])

    def _drive(self, x: Tensor, B: Tensor) -> Tensor:
        return F.linear(wide(x), B, _as(B, self.bias))


def contracted(A: Tensor, Lam: Tensor, m: Tensor, rate: float) -> Tensor:
    """A - μI with the least μ ≥ 0 for which this shows that ‖R‖_Λ ≤ rate at the step 1/√(mL).

    N = Λ^½ (I - A) Λ^-½ has ⟨x, Nx⟩ ≥ m‖x‖² and ‖N‖₂ = L. The shift makes m + μ and at most L + μ
    of them, whose ratio is κ = `conditioning(rate)` for μ = (L - κm) / (κ - 1). What is in the
    condition of the bound grows by 2μΛ ⪰ 0, so that γ stands.

    Args:
        A: (n, n). Lam: (n,). m: (), at most the modulus. rate: in (0, 1).
    """
    root, identity = Lam.sqrt(), torch.eye(len(Lam), dtype=A.dtype, device=A.device)
    N = root.unsqueeze(-1) * (identity - A) / root
    kappa, slack = conditioning(rate), 64 * torch.finfo(A.dtype).eps  # for the rounding of A
    L = (1 + slack) * norm_square(N[..., None, None]).sqrt()
    return A - ((L - kappa * m).clamp(min=0) / (kappa - 1)).to(A.dtype) * identity


def _names(sigma: Activation) -> str | list[str]:
    """As a `System` names it: one for all units, or one for each."""
    many = sigma.name.startswith("per_unit(")
    return sigma.name[len("per_unit(") : -1].split(",") if many else sigma.name


def _as(like: Tensor, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(like.dtype)


def doubles(w: dict[str, Any]) -> dict[str, Tensor]:
    """A, B, C, D in float64, real or complex."""
    return {k: w[k].to(torch.promote_types(w[k].dtype, torch.float64)) for k in "ABCD"}
