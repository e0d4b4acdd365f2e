"""Slope-restricted activations: values, derivatives and the proximal maps that equilibria need.

Every `Activation` is non-decreasing with slopes in [0, 1], so σ = prox_f for a convex f with
∂f = σ⁻¹ - I. Monotone splitting needs prox_{step·f} for other steps as well [MON, section 3].
`elementwise` knows more functions, of any slopes: those serve verification alone.

Sources: [MON] Winston, Kolter, Monotone operator equilibrium networks (NeurIPS 2020).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._elementwise import FAMILIES, PLAIN, THRESHOLD, Elementwise, module_name, named
from ._smooth import SMOOTH
from .errors import InvalidInput, ShapeError


@dataclass(frozen=True)
class Activation(Elementwise):
    """An elementwise σ with all slopes in [alpha, beta]; those of this module lie in [0, 1].

    Attributes:
        name: `activation(name)` gives the activation back (but for `per_unit` and `linear`).
        alpha, beta: the slope range.
        function, slope, prox: v ↦ σ(v), v ↦ σ'(v) and (v, step) ↦ prox_{step·f}(v).
        select: for an activation that differs between the samples, the one of the given rows.
        reflect: (v, step) ↦ 2·prox(v, step) - v where there is a shorter way to it.
    """

    slope: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    prox: Callable[[Tensor, Tensor | float], Tensor] = field(repr=False, compare=False)
    select: Callable[[Tensor], "Activation"] | None = field(default=None, repr=False, compare=False)
    reflect: Callable[[Tensor, float], Tensor] | None = field(
        default=None, repr=False, compare=False
    )

    def __reduce__(self) -> str | tuple[object, ...]:
        """Pickle by name where the name tells all; functions made here have no other way."""
        try:
            if activation(self.name) == self:
                return activation, (self.name,)
        except InvalidInput:
            pass
        return super().__reduce__()

    def derivative(self, v: Tensor) -> Tensor:
        """An element of the slope range at the pre-activation v; at a kink, PyTorch's choice."""
        return self.slope(v)

    def resolvent(self, v: Tensor, step: Tensor | float) -> Tensor:
        """prox_{step·f}(v) where σ = prox_f: the z with z + step·(σ⁻¹(z) - z) ∋ v.

        Closed form for the piecewise linear activations, safeguarded Newton on the pre-activation
        u, z = σ(u), for the smooth ones: as accurate as the rounding of v and z permits, for any
        finite v and step. Differentiable in v and step to any order (where σ is).

        Args:
            v: any shape, floating point.
            step: > 0, a number or a tensor that broadcasts against v.

        Raises:
            InvalidInput: step is a number that is not positive and finite.
        """
        if not isinstance(step, Tensor) and not 0 < step < float("inf"):
            raise InvalidInput(f"step = {step}, but must be positive and finite. Pass e.g. 1.0.")
        return self.prox(v, step)

    def reflection(self, v: Tensor, step: float) -> Tensor:
        """2·resolvent(v, step) - v; for ReLU |v|."""
        if self.reflect is not None:
            return self.reflect(v, step)
        return 2 * self.prox(v, step) - v

    def rows(self, index: Tensor) -> "Activation":
        """The activation of the samples `index` of a batch: itself, unless samples differ."""
        return self if self.select is None else self.select(index)

    def module(self) -> nn.Module:
        """The torch.nn module of this activation.

        Raises:
            InvalidInput: it has none (`per_unit`, `linear`).
        """
        if self.name.startswith("leaky_relu"):
            return nn.LeakyReLU(self.alpha)
        if self.name not in _MODULES:
            raise InvalidInput(
                f"activation {self.name!r} has no torch.nn module. Use one of {', '.join(_MODULES)}"
                " or leaky_relu."
            )
        if self.name == "softplus":
            return nn.Softplus(threshold=THRESHOLD)
        return _MODULES[self.name]()


def activation(name: str | Activation) -> Activation:
    """The activation of this name, e.g. "relu" or "leaky_relu(0.2)".

    Raises:
        InvalidInput: an unknown name, or a slope outside [0, 1]; one that acts on groups of units.
    """
    if isinstance(name, Activation):
        return name
    if not isinstance(name, str) or name.lower() in GROUPED:
        raise InvalidInput(
            f"activation = {name!r}, but must be the name of one with a slope in [0, 1] for every "
            "unit by itself, which proofs here use. Use relu or another of "
            f"{', '.join(ACTIVATIONS)}; MaxMin, GroupSort and Householder are modules to put "
            "between linear layers."
        )
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if match := re.fullmatch(r"leaky_relu\(([-+.\deE]+)\)", name):
        try:
            return leaky_relu(float(match[1]))
        except ValueError as error:
            raise InvalidInput(
                f"activation {name!r} has a slope that is no number in [0, 1]. "
                "Write e.g. leaky_relu(0.2)."
            ) from error
    if other := named(name):
        raise InvalidInput(
            f"activation {name!r}, with slopes in [{other.alpha:g}, {other.beta:g}], has no proven "
            f"proximal map here: it can be verified, not used where one is needed. "
            f"Use one of {', '.join(ACTIVATIONS)}, or leaky_relu(slope) as in leaky_relu(0.2)."
        )
    raise InvalidInput(
        f"activation {name!r} is unknown. "
        f"Use one of {', '.join(ACTIVATIONS)}, or leaky_relu(slope) as in leaky_relu(0.2)."
    )


def elementwise(name: str) -> Elementwise:
    """The function of this name for verification: an `Activation`, or one of any bounded slopes.

    Beyond the activations: abs, asinh, atan, cos, erf, gelu, gelu_tanh, hardsigmoid, hardswish,
    logsigmoid, mish, selu, silu, sin, softsign, tanhshrink, and with parameters celu(a), elu(a),
    hardtanh(low,high), leaky_relu(slope), softplus(beta), softshrink(width).

    Raises:
        InvalidInput: an unknown name, or a parameter for which slopes are not bounded.
    """
    try:
        return activation(name)
    except InvalidInput as error:
        if isinstance(name, str) and (found := named(name)):
            return found
        raise InvalidInput(
            f"activation = {name!r}, but must be one of {', '.join([*ACTIVATIONS, *PLAIN])}, or "
            f"{', '.join(FAMILIES)} with parameters, as in leaky_relu(0.2)."
        ) from error


def of_module(module: nn.Module) -> Activation:
    """The activation that a torch.nn module computes.

    Raises:
        InvalidInput: none of ReLU, Tanh, Sigmoid, Softplus(beta=1, threshold ≥ 40), ELU(alpha=1),
            Identity, LeakyReLU, or a negative slope outside [0, 1].
    """
    if type(module) is nn.LeakyReLU:
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.Softplus) and (module.beta != 1 or module.threshold < THRESHOLD):
        raise InvalidInput(
            f"Softplus has beta = {module.beta} and threshold = {module.threshold}, but slopes in "
            f"[0, 1] need beta = 1 and a threshold of {THRESHOLD} or more: it jumps down by "
            "exp(-threshold) there, 2e-9 by default. "
            f"Use torch.nn.Softplus(threshold={THRESHOLD})."
        )
    if isinstance(module, nn.ELU) and module.alpha != 1:
        raise InvalidInput(
            f"ELU has alpha = {module.alpha}, but must have 1: others have a kink, and above 1 "
            "slopes beyond [0, 1]. Use torch.nn.ELU()."
        )
    for name, kind in _MODULES.items():
        if type(module) is kind:
            return ACTIVATIONS[name]
    raise InvalidInput(
        f"{module} is no activation with known slopes in [0, 1]. "
        f"Use ReLU, Tanh, Sigmoid, Softplus(threshold={THRESHOLD}), ELU, Identity or LeakyReLU."
    )


def elementwise_of(module: nn.Module) -> Elementwise | None:
    """What this torch.nn module computes, for verification; None if its slopes are unknown."""
    try:
        return of_module(module)
    except InvalidInput:
        name = module_name(module)
        return None if name is None else elementwise(name)


def leaky_relu(negative_slope: float) -> Activation:
    """v ↦ max(v, negative_slope·v), with the slope in its name: "leaky_relu(0.2)".

    Raises:
        InvalidInput: a slope outside [0, 1].
    """
    slope = float(negative_slope)
    if not 0 <= slope <= 1:
        raise InvalidInput(
            f"leaky_relu has negative slope {slope}, which must be in [0, 1]. "
            "Use e.g. leaky_relu(0.2)."
        )
    return Activation(
        "leaky_relu" if slope == 0.01 else f"leaky_relu({slope!r})",
        slope,
        1.0,
        partial(F.leaky_relu, negative_slope=slope),
        partial(_leaky_slope, slope),
        partial(_leaky_prox, slope),
    )


def per_unit(units: Sequence[str | Activation]) -> Activation:
    """The activation whose unit i (the last dimension) is units[i].

    Raises:
        InvalidInput: an unknown name. ShapeError: applied to another number of units.
    """
    kinds = [activation(unit) for unit in units]
    distinct = list(dict.fromkeys(kinds))
    if len(distinct) == 1:
        return distinct[0]
    where = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in distinct}
    order = torch.tensor([i for kind in distinct for i in where[kind]], dtype=torch.long)
    groups = _Groups(tuple((kind, len(where[kind])) for kind in distinct), order)
    return Activation(
        "per_unit(" + ",".join(kind.name for kind in kinds) + ")",
        min((kind.alpha for kind in kinds), default=0.0),
        max((kind.beta for kind in kinds), default=1.0),
        partial(groups.apply, "function"),
        partial(groups.apply, "slope"),
        partial(groups.apply, "prox"),
    )


def linear(slopes: Tensor) -> Activation:
    """w ↦ slopes·w with slopes in [0, 1] of the shape of w: an activation's linearisation."""
    factors: dict[object, Tensor] = {}

    # The same in every sweep of a solve.
    def factor(step: Tensor | float) -> Tensor:
        if isinstance(step, Tensor):
            return slopes / (slopes + step * (1 - slopes))
        if step not in factors:
            factors[step] = slopes / (slopes + step * (1 - slopes))
        return factors[step]

    def reflect(v: Tensor, step: float) -> Tensor:
        if (key := (step,)) not in factors:
            factors[key] = 2 * factor(step) - 1
        return factors[key] * v

    return Activation(
        "linear",
        0.0,
        1.0,
        lambda w: slopes * w,
        lambda w: slopes.expand_as(w),
        lambda v, step: v * factor(step),
        lambda index: linear(slopes[index]),
        reflect,
    )


@dataclass(frozen=True)
class _Groups:
    """The units gathered by their activation: (activation, count) and the gathering order."""

    kinds: tuple[tuple[Activation, int], ...]
    order: Tensor

    def apply(self, part: str, v: Tensor, step: Tensor | float = 1.0) -> Tensor:
        if v.shape[-1] != self.order.numel():
            raise ShapeError(
                f"an activation for {self.order.numel()} units was applied to shape "
                f"{tuple(v.shape)}. Give one name per unit of the last dimension."
            )
        order = self.order.to(v.device)
        counts = [count for _, count in self.kinds]
        pieces = v[..., order].split(counts, -1)
        steps: Sequence[Tensor | float] = [step] * len(counts)
        if isinstance(step, Tensor):
            steps = step.expand_as(v)[..., order].split(counts, -1)
        parts = [getattr(kind, part) for kind, _ in self.kinds]
        if part == "prox":
            out = [f(x, s) for f, x, s in zip(parts, pieces, steps, strict=True)]
        else:
            out = [f(x) for f, x in zip(parts, pieces, strict=True)]
        return torch.cat(out, -1)[..., order.argsort()]


def _relu_slope(v: Tensor) -> Tensor:
    return (v > 0).to(v.dtype)


def _relu_prox(v: Tensor, step: Tensor | float) -> Tensor:
    return torch.relu(v)


def _identity(v: Tensor, step: Tensor | float = 1.0) -> Tensor:
    return v


def _leaky_slope(slope: float, v: Tensor) -> Tensor:
    return torch.where(v > 0, torch.ones_like(v), slope)


def _leaky_prox(slope: float, v: Tensor, step: Tensor | float) -> Tensor:
    if slope == 0:
        return torch.relu(v)
    return torch.where(v > 0, v, v * (slope / (slope + step * (1 - slope))))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        "relu", 0.0, 1.0, torch.relu, _relu_slope, _relu_prox, reflect=lambda v, step: v.abs()
    ),
    **{
        name: Activation(name, 0.0, beta, parts.value, parts.slope, parts.prox)
        for name, (beta, parts) in SMOOTH.items()
    },
    "identity": Activation("identity", 1.0, 1.0, _identity, torch.ones_like, _identity),
    "leaky_relu": leaky_relu(0.01),
}
"""The activations by name."""

GROUPED = ("maxmin", "groupsort", "householder")
"""Of `sdplip.layers`; no elementwise functions."""

_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "identity": nn.Identity,
}
