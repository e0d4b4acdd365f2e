"""Bases for layers given by a closed form alone: what derivations emit and users write by hand.

A subclass has a table `free` of parameters and `closed_form`, a function of them that returns every
symbol of its condition; a derivation writes both (`Derivation.layer`, `sdplip derive --emit`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._arrays import Array
from .._tensors import HALVES
from ..activations import Activation, activation
from ..errors import InvalidInput, NotWellPosed, ShapeError
from ..system import UNKNOWN, System
from ._base import (
    ROUNDING,
    Layer,
    check_size,
    fill_normal,
    fill_orthogonal,
    fill_uniform,
    numpy,
    operator_norm,
    slopes_in_unit_interval,
    wide,
)
from ._equilibrium import EquilibriumLayer
from ._linear import LinearLayer
from ._plain import linear, summed
from .nemon import checked_linf_bound, metric

SYMBOLS = {
    "linear": ("D", "rho"),
    "residual": ("H", "G", "W", "Lam", "rho"),
    "lipschitz": ("A", "B", "C", "D", "Lam", "rho"),
    "equilibrium": ("A", "B", "C", "D", "Lam", "rho"),
    "linf": ("A", "B", "C", "D"),
    "measure": ("A", "B", "C", "D"),
}
"""What a closed form returns at least, by its condition."""
SHAPES = {
    "A": "nn", "B": "nm", "C": "pn", "D": "pm", "H": "pm", "G": "pn", "W": "mn", "Lam": "n",
    "rho": "",
}  # fmt: skip
"""In sizes of input m, units n and output p."""


class ClosedForm(Layer):
    """What the bases below share.

    Attributes:
        constants: names of attributes that `closed_form` takes after the parameters.
        slopes: the range of slopes that the proof covers; other activations are refused.
    """

    constants: ClassVar[tuple[str, ...]] = ()
    slopes: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @staticmethod
    def closed_form(*arguments: Any) -> dict[str, Tensor]:
        """Every symbol of the condition, from the parameters in the order of `free` (float64),
        then the constants; diagonal matrices by their entries."""
        return {}

    def reset_parameters(self) -> None:
        """Draw matrices by `_fill`; vectors start at zero, biases as in nn.Linear."""
        for name in self.free:
            parameter = getattr(self, name)
            if parameter.ndim > 1:
                self._fill(parameter)
            else:
                nn.init.zeros_(parameter)
        for name in ("bias", "out_bias"):
            fill_uniform(getattr(self, name, None), fan_in=self.in_features)

    def _register(
        self,
        sizes: Mapping[str, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """As `Layer._register`.

        Raises:
            InvalidInput: a subclass whose `free` or `closed_form` is missing or does not fit.
        """
        used = {size for shape in self.free.values() for size in shape if isinstance(size, str)}
        unknown = ", ".join(sorted(used - sizes.keys()))
        if unknown or not self.free:
            raise InvalidInput(
                f"{type(self).__name__}: free {f'has sizes {unknown}' if unknown else 'is empty'}, "
                f"but must hold the parameters with their sizes, of {', '.join(sizes)} and "
                f'numbers. Write in the class, say, free = {{"W": ("{next(iter(sizes))}", 1)}}.'
            )
        names = (*self.free, *self.constants)
        if type(self).closed_form is ClosedForm.closed_form:
            raise self._unfit("is missing")
        if not isinstance(inspect.getattr_static(self, "closed_form"), staticmethod):
            raise self._unfit("is no static method")
        try:
            inspect.signature(self.closed_form).bind(*names)
        except TypeError:
            raise self._unfit(f"does not take {', '.join(names)}") from None
        super()._register(sizes, device, dtype)

    @property
    def _returned(self) -> tuple[str, ...]:
        """The symbols that `closed_form` must return."""
        return SYMBOLS.get(self.condition, ("rho",))

    def _check_shapes(self, tensors: dict[str, Tensor]) -> None:
        sizes = {"m": self.in_features, "n": getattr(self, "hidden", 0), "p": self.out_features}
        for name in self._returned:
            wanted, shape = tuple(sizes[k] for k in SHAPES[name]), tuple(tensors[name].shape)
            if shape != wanted:
                raise ShapeError(
                    f"{type(self).__name__}: closed_form returns {name} of shape {shape}, but it "
                    f"must be {wanted}, a diagonal matrix by its entries. Give it so."
                )

    def _unfit(self, fault: str) -> InvalidInput:
        """That `closed_form` has a fault, and what to write."""
        return InvalidInput(
            f"{type(self).__name__}: closed_form {fault}. Write in the class\n"
            "    @staticmethod\n"
            f"    def closed_form({', '.join((*self.free, *self.constants))}):\n"
            "        ...\n"
            f"        return {{{', '.join(f'{chr(34)}{k}{chr(34)}: {k}' for k in self._returned)}}}"
        )

    def _fill(self, parameter: nn.Parameter) -> None:
        fill_normal(parameter)

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {name: getattr(self, name) for name in self.constants}

    def _closed_form(self) -> dict[str, Tensor]:
        parameters = [getattr(self, name) for name in self.free]
        constants = [getattr(self, name) for name in self.constants]
        found = self.closed_form(*(p.double() for p in parameters), *constants)
        if lacking := [k for k in self._returned if not isinstance(found, dict) or k not in found]:
            raise self._unfit(f"does not return {', '.join(lacking)}")
        like = wide(parameters[0])
        as_tensor = partial(torch.as_tensor, dtype=like.dtype, device=like.device)
        tensors = {name: as_tensor(value) for name, value in found.items()}
        self._check_shapes(tensors)
        return tensors

    def _promise(self) -> float:
        """√ρ, and in half precision what the rounding of the applied weights can add."""
        with torch.no_grad():
            return math.sqrt(self._tensors()["rho"].double()) + self._rounding()

    def _rounding(self) -> float:
        return 0.0

    @property
    def _half(self) -> bool:
        return next(self.parameters()).dtype in HALVES

    def _accepted(self, name: str | Activation) -> str | Activation:
        sigma, (low, high) = activation(name), self.slopes
        if not low <= sigma.alpha <= sigma.beta <= high:
            raise InvalidInput(
                f"{type(self).__name__}: {sigma.name} has slopes in [{sigma.alpha:g}, "
                f"{sigma.beta:g}], outside [{low:g}, {high:g}], where the bound fails. "
                "Use an activation within."
            )
        return name


class ClosedFormLinear(ClosedForm, LinearLayer):
    """x ↦ Dx + b. Arguments as in nn.Linear."""

    def _fill(self, parameter: nn.Parameter) -> None:
        fill_orthogonal(parameter)

    def _rounding(self) -> float:
        if not self._half:
            return 0.0
        return operator_norm(self._applied().double() - self._tensors()["D"].double())


class ClosedFormResidual(ClosedForm):
    """x ↦ Hx + Gσ(Wᵀx + b).

    Args:
        in_features, hidden, out_features: m, n, p.
        bias: with b.
    """

    condition = "residual"

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str | Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        check_size(type(self).__name__, "hidden", hidden)
        self.hidden = hidden
        self.activation = self._accepted(activation)
        sizes = {"in_features": in_features, "hidden": hidden, "out_features": out_features}
        self._register(sizes | {"features": in_features}, device, dtype)
        self.bias = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        w = {name: value.to(x.dtype) for name, value in self._applied().items()}
        h = activation(self.activation)(F.linear(x, w["W"].mT, self.bias))
        return F.linear(x, w["H"]) + F.linear(h, w["G"])

    def _folded(self) -> nn.Module:
        w, sigma = self._applied(), activation(self.activation)
        inner, outer = linear(w["W"].mT, self.bias), linear(w["G"])
        return summed(linear(w["H"]), inner, sigma, outer)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, hidden={self.hidden}, "
            f"out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={activation(self.activation).name}"
        )

    def _exact(self) -> dict[str, Tensor]:
        """H, G and W, also where the condition names them D, C and Bᵀ."""
        w = self._current()
        if "H" in w:
            return {name: w[name] for name in "HGW"}
        return {"H": w["D"], "G": w["C"], "W": w["B"].mT}

    def _applied(self) -> dict[str, Tensor]:
        dtype = next(self.parameters()).dtype
        return {name: value.to(dtype) for name, value in self._exact().items()}

    def _rounding(self) -> float:
        if not self._half:
            return 0.0
        old = {name: value.double() for name, value in self._exact().items()}
        new = {name: value.double() for name, value in self._applied().items()}
        off = {name: operator_norm(new[name] - old[name]) for name in "HGW"}
        steepest = max(map(abs, self.slopes))
        G, W = operator_norm(old["G"]), operator_norm(new["W"])
        return off["H"] + steepest * (off["G"] * W + G * off["W"])

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"activation": activation(self.activation).name}

    def _system(self) -> System:
        H, G, W = (numpy(value) for value in self._applied().values())
        return residual_system(H, G, W, numpy(self.bias), self.activation)


def residual_system(H: Array, G: Array, W: Array, b: Any, name: str | Activation) -> System:
    """x ↦ Hx + Gσ(Wᵀx + b); of an `Activation` the slopes are all that is known."""
    sigma, n = activation(name), W.shape[1]
    if isinstance(name, str):
        return System.residual(H, G, W, b, activation=sigma.name)
    return System(
        np.zeros((n, n)),
        W.T,
        G,
        H,
        b,
        alpha=np.full(n, sigma.alpha),
        beta=np.full(n, sigma.beta),
        activation=UNKNOWN,  # type: ignore[arg-type]
    )


class ClosedFormEquilibrium(ClosedForm, EquilibriumLayer):
    """x ↦ Cz + Dx + c at z = σ(Az + Bx + b).

    Args:
        in_features, hidden, out_features: m, n, p.
        activation: a name, or an `Activation`, with slopes in [0, 1].
        method, tol, max_steps: of `sdplip.equilibrium.solve`.

    Attributes:
        feedthrough: whether the closed form gives a direct path D.
    """

    condition = "equilibrium"
    feedthrough: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str | Activation = "relu",
        method: str = "peaceman_rachford",
        tol: float | None = None,
        max_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            hidden,
            out_features,
            bias=bias,
            feedthrough=False,
            activation=activation,
            method=method,
            tol=tol,
            max_steps=max_steps,
            device=device,
            dtype=dtype,
        )
        self.reset_parameters()

    def _accepted(self, name: str | Activation) -> str | Activation:
        return slopes_in_unit_interval(type(self).__name__, super()._accepted(name))

    def _fill(self, parameter: nn.Parameter) -> None:
        fill_uniform(parameter, fan_in=parameter.shape[-1])

    def _promise(self) -> float:
        """√ρ, or the least constant that the multipliers show for the weights as they were
        rounded, where that exceeds √ρ by more than ROUNDING.

        Raises:
            NotWellPosed: the multipliers show no equilibrium for the rounded weights.
        """
        owner, w = type(self).__name__, self._tensors()
        if self.norm != 2:
            return checked_linf_bound(owner, w)
        with torch.no_grad():
            A, B, C, D, Lam, rho = (w[k].double() for k in ("A", "B", "C", "D", "Lam", "rho"))
            L = torch.diag(Lam)
            X = 2 * L - L @ A - A.mT @ L - C.mT @ C
            N = C.mT @ D + L @ B
            factor, failed = torch.linalg.cholesky_ex(X)
            if failed or not factor.isfinite().all():
                raise NotWellPosed(
                    f"{owner}: rounded weights keep no margin in the condition. Use smaller "
                    "parameters, a larger eps, or float64."
                )
            S = torch.linalg.solve_triangular(factor, N, upper=False)
            needed = math.sqrt(torch.linalg.eigvalsh(D.mT @ D + S.mT @ S)[-1].clamp(min=0))
            promised = math.sqrt(rho)
        return promised if needed <= promised * (1 + ROUNDING) else needed

    def _metric(self, w: dict[str, Tensor]) -> Tensor:
        if "Lam" in w:
            return w["Lam"].detach()
        return metric(w["A"].detach().double())
