"""Elementwise functions by slopes alone: enough for a bound, not for an equilibrium.

The slope ranges are exact where they are short numbers and rounded outward elsewhere; the tests
prove each by interval arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InvalidInput

THRESHOLD = 40
"""Where torch.nn.Softplus may turn into v: the jump down, exp(-40), is below float64's rounding."""


@dataclass(frozen=True)
class Elementwise:
    """An elementwise σ, Lipschitz, with all slopes in [alpha, beta].

    Attributes:
        name: `activations.elementwise(name)` gives it back.
        alpha, beta: the slope range.
        function: v ↦ σ(v).
    """

    name: str
    alpha: float
    beta: float
    function: Callable[[Tensor], Tensor] = field(repr=False, compare=False)

    def __call__(self, v: Tensor) -> Tensor:
        """σ(v), elementwise."""
        return self.function(v)

    def derivative(self, v: Tensor) -> Tensor:
        """An element of the slope range at the pre-activation v; at a kink, PyTorch's choice."""
        with torch.enable_grad():
            at = v if v.requires_grad else v.detach().requires_grad_()
            value = self.function(at).sum()
            return torch.autograd.grad(value, at, create_graph=v.requires_grad)[0]


Parts = tuple[float, float, Callable[[Tensor], Tensor]]


def _leaky_relu(slope: float) -> Parts:
    return min(slope, 1.0), max(slope, 1.0), lambda v: torch.where(v > 0, v, slope * v)


def _elu(scale: float) -> Parts:
    return min(scale, 0.0), max(scale, 1.0), partial(F.elu, alpha=scale)


def _celu(scale: float) -> Parts:
    _positive("celu", scale)
    # The derivative of torch's own is off by 1e-8, also in float64.
    return 0.0, 1.0, lambda v: scale * F.elu(v / scale)


def _softplus(sharpness: float) -> Parts:
    _positive("softplus", sharpness)
    return 0.0, 1.0, lambda v: torch.logaddexp(sharpness * v, torch.zeros_like(v)) / sharpness


def _hardtanh(low: float, high: float) -> Parts:
    if not low < high:
        raise InvalidInput(f"hardtanh({low!r},{high!r}) is constant, but must have low < high.")
    return 0.0, 1.0, partial(torch.clamp, min=low, max=high)


def _softshrink(width: float) -> Parts:
    if width < 0:
        raise InvalidInput(f"softshrink({width!r}) jumps, but its width must be >= 0.")
    return 0.0, 1.0, partial(F.softshrink, lambd=width)


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise InvalidInput(
            f"{name}({value!r}) has no bounded slopes; its parameter must be positive."
        )


PLAIN: dict[str, Parts] = {
    "abs": (-1.0, 1.0, torch.abs),
    "asinh": (0.0, 1.0, torch.asinh),
    "atan": (0.0, 1.0, torch.atan),
    "cos": (-1.0, 1.0, torch.cos),
    "erf": (0.0, 1.1283792, torch.erf),
    "gelu": (-0.12891, 1.12891, F.gelu),
    "gelu_tanh": (-0.129, 1.129, partial(F.gelu, approximate="tanh")),
    # The derivative of torch's own is 1/6 in float32, which is larger.
    "hardsigmoid": (0.0, math.nextafter(1 / 6, 1), lambda v: torch.clamp(v + 3, 0, 6) / 6),
    "hardswish": (-0.5, 1.5, F.hardswish),
    "logsigmoid": (0.0, 1.0, F.logsigmoid),
    "mish": (-0.11253, 1.0885, F.mish),
    "selu": (0.0, 1.7581, F.selu),
    "silu": (-0.09985, 1.09985, F.silu),
    "sin": (-1.0, 1.0, torch.sin),
    "softsign": (0.0, 1.0, F.softsign),
    "tanhshrink": (0.0, 1.0, F.tanhshrink),
}
"""Those without parameters."""

FAMILIES: dict[str, tuple[int, Callable[..., Parts]]] = {
    "celu": (1, _celu),
    "elu": (1, _elu),
    "hardtanh": (2, _hardtanh),
    "leaky_relu": (1, _leaky_relu),
    "softplus": (1, _softplus),
    "softshrink": (1, _softshrink),
}
"""Those with parameters, written as in "hardtanh(-1.0,1.0)", and how many."""


def named(name: str) -> Elementwise | None:
    """The elementwise function of this name, of those in this module; None if it has no other.

    Raises:
        InvalidInput: a parameter for which the function jumps or has no bounded slopes.
    """
    if name in PLAIN:
        return Elementwise(name, *PLAIN[name])
    if not (match := re.fullmatch(r"(\w+)\(([-+.,\deE ]+)\)", name)) or match[1] not in FAMILIES:
        return None
    count, build = FAMILIES[match[1]]
    try:
        values = [float(text) for text in match[2].split(",")]
    except ValueError:
        return None
    if len(values) != count or not all(map(math.isfinite, values)):
        return None
    return Elementwise(name, *build(*values))


def parametrised(family: str, *values: float) -> str:
    """The name with every digit of its parameters: "elu(0.5)"."""
    return f"{family}({','.join(repr(float(value)) for value in values)})"


_MODULES: dict[type[nn.Module], tuple[str, Sequence[str]]] = {
    nn.CELU: ("celu", ["alpha"]),
    nn.ELU: ("elu", ["alpha"]),
    nn.Hardsigmoid: ("hardsigmoid", []),
    nn.Hardswish: ("hardswish", []),
    nn.Hardtanh: ("hardtanh", ["min_val", "max_val"]),
    nn.LeakyReLU: ("leaky_relu", ["negative_slope"]),
    nn.LogSigmoid: ("logsigmoid", []),
    nn.Mish: ("mish", []),
    nn.ReLU6: ("hardtanh", ["min_val", "max_val"]),
    nn.SELU: ("selu", []),
    nn.SiLU: ("silu", []),
    nn.Softplus: ("softplus", ["beta"]),
    nn.Softshrink: ("softshrink", ["lambd"]),
    nn.Softsign: ("softsign", []),
    nn.Tanhshrink: ("tanhshrink", []),
}


def module_name(module: nn.Module) -> str | None:
    """The name of the function that this torch.nn module computes; None if it has none here."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if type(module) is nn.Softplus and module.threshold < THRESHOLD:
        return None
    if type(module) not in _MODULES:
        return None
    family, parameters = _MODULES[type(module)]
    values = [getattr(module, parameter) for parameter in parameters]
    return parametrised(family, *values) if values else family
