"""What every layer shares: its promise, its witness, the checks of its arguments."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..activations import Activation, activation
from ..errors import InvalidInput, ShapeError
from ..system import System

ROUNDING = 1e-6
"""By how much float32 weights may exceed a bound, relative to it: they are rounded after they were
computed. In float64 the excess is below 1e-12; in half precision, under autocast too, the products
themselves are off by up to 2⁻⁸, and TensorFloat-32 products by 2⁻¹¹."""


class Layer(nn.Module):
    """A map with a proven Lipschitz constant.

    Attributes:
        condition: the name in `sdplip.conditions` of the matrix condition that `witness` satisfies.
        norm: 2 or inf, the norm of input and output that `lipschitz` is about.
    """

    condition: ClassVar[str]
    norm: ClassVar[float] = 2

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        for name, size in {"in_features": in_features, "out_features": out_features}.items():
            check_size(type(self).__name__, name, size)
        self.in_features = in_features
        self.out_features = out_features

    @property
    def lipschitz(self) -> float:
        """The promised Lipschitz constant in `norm`, for every value of the parameters."""
        return 1.0

    def witness(self) -> dict[str, Tensor]:
        """Every symbol of the condition as the parameters give it, differentiable.

        Returns:
            Tensors in the parameters' dtype, float32 at least; diagonal matrices by their entries.
        """
        return self._tensors()

    def system(self) -> System:
        """The map that forward computes, in float64."""
        raise NotImplementedError

    def _closed_form(self) -> dict[str, Tensor]:
        """What forward applies, from the parameters; called with autocast off."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        with full_precision(next(self.parameters())):
            return self._closed_form()

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"{type(self).__name__}: the input has shape {tuple(x.shape)}, but in_features = "
                f"{self.in_features}. Give it as (..., {self.in_features})."
            )


def check_size(owner: str, name: str, size: int) -> None:
    if size < 1:
        raise InvalidInput(f"{owner}: {name} = {size}, but must be at least 1.")


def slopes_in_unit_interval(owner: str, name: str | Activation) -> str | Activation:
    """`name` itself, if its slopes lie in [0, 1]; the layers' conditions hold for no others."""
    sigma = activation(name)
    if not 0 <= sigma.alpha <= sigma.beta <= 1:
        raise InvalidInput(
            f"{owner}: {sigma.name} has slopes in [{sigma.alpha:g}, {sigma.beta:g}], outside "
            "[0, 1], where the bound fails. Use relu, tanh or another activation within."
        )
    return name


def full_precision(like: Tensor) -> Any:
    """A context without autocast, which would round closed forms to half precision."""
    return torch.autocast(like.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """x in float32 or better: closed forms are not evaluated in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def numpy(x: Tensor | None) -> Any:
    return None if x is None else x.detach().double().cpu().numpy()


def shown(x: Tensor) -> str:
    """A scalar for `extra_repr`, which must not fail on the meta device."""
    return "?" if x.is_meta else f"{float(x.detach()):g}"


def saturate(X: Tensor, limit: float | Tensor) -> Tensor:
    """X shrunk to Frobenius norm `limit` where it is larger: a huge one would only cost digits."""
    Y = X.double()
    norm = torch.linalg.matrix_norm(Y, keepdim=True)
    return (Y * (limit / norm.clamp(min=limit))).to(X.dtype)


def soft_bound(x: Tensor, limit: float) -> Tensor:
    """x kept in (-limit, limit), smoothly."""
    return limit * torch.tanh(x / limit)


def fill_uniform(*parameters: nn.Parameter | None, fan_in: int) -> None:
    """nn.Linear's initialisation: uniform in ±1/√fan_in."""
    for parameter in parameters:
        if parameter is not None:
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(parameter, -bound, bound)


def fill_orthogonal(weight: nn.Parameter) -> None:
    """Orthonormal rows or columns, drawn in float32 at least (QR knows no half precision)."""
    with torch.no_grad():
        weight.copy_(nn.init.orthogonal_(torch.empty_like(wide(weight))))
