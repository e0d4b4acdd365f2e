"""What every layer shares: its promise, its witness, the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Signature, signature
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from .._tensors import certainly_at_most, full_precision
from ..activations import Activation, activation
from ..errors import InvalidInput, ShapeError
from ..system import System
from ._cache import Cache
from ._state import agree, pack, unpack, wide

ROUNDING = 1e-6
"""By how much float32 weights may exceed a bound, relative to it: they are rounded after they were
computed. In float64 the excess is below 1e-12. A layer in half precision counts the rounding of
its weights in `lipschitz`; what no constant counts is that of the products, which are off by up to
2⁻⁸ in half precision, under autocast too, and by 2⁻¹¹ in TensorFloat-32. Under bfloat16 autocast,
for weights that leave no room, linear maps were measured up to 1.0033 and residual ones, of two
products twice as long, up to 1.0172 times their bound."""

LIMIT = 10.0
"""Free matrices saturate at Frobenius norm LIMIT·√k, k the smaller side. To orthogonal layers
larger ones add nothing: Cayley rotations reach 2·atan(LIMIT) in every plane at once, the
exponential repeats after π√k."""

Method = TypeVar("Method", bound=Callable[..., None])


class Layer(nn.Module):
    """A map with a proven Lipschitz constant.

    The constant is that of the weights which are applied; see `ROUNDING` for what rounding adds.
    A state_dict also holds what the map depends on besides parameters, such as the activation:
    a layer refuses the state of one that computes another map.

    Attributes:
        condition: the name in `sdplip.conditions` of the matrix condition that `witness` satisfies.
        norm: 2 or inf, the norm of input and output that `lipschitz` is about.
        free: the parameters of the closed form, with the names of their sizes.
    """

    condition: ClassVar[str]
    norm: ClassVar[float] = 2
    free: ClassVar[Mapping[str, tuple[str | int, ...]]] = {}

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        for name, size in {"in_features": in_features, "out_features": out_features}.items():
            check_size(type(self).__name__, name, size)
        self.in_features = in_features
        self.out_features = out_features
        self._cache = Cache()

    def train(self, mode: bool = True) -> Self:
        self._cache.forget()
        return super().train(mode)

    @property
    def lipschitz(self) -> float:
        """The promised Lipschitz constant in `norm`, for all finite values of the parameters.

        Raises:
            InvalidInput: a parameter that is NaN or Inf, or on the meta device.
        """
        self._check_parameters()
        return self._promise()

    def witness(self) -> dict[str, Tensor]:
        """Every symbol of the condition as the parameters give it, differentiable.

        Returns:
            Tensors in the parameters' dtype, float32 at least; diagonal matrices by their entries.
        """
        return self._tensors()

    def system(self) -> System:
        """The map that forward computes, in float64.

        Raises:
            InvalidInput: a parameter that is NaN or Inf, or on the meta device.
        """
        self._check_parameters()
        return self._system()

    def get_extra_state(self) -> Tensor:
        return pack(self._options())

    def set_extra_state(self, state: Tensor) -> None:
        owner, own = type(self).__name__, self._options()
        found = unpack(owner, state)
        agree(owner, {k: v for k, v in own.items() if not isinstance(v, float)}, found)
        for name, value in own.items():
            if isinstance(value, float):
                setattr(self, name, found.get(name))

    def _options(self) -> dict[str, str | float]:
        """What the map depends on besides parameters. Strings must agree when a state is loaded,
        numbers are taken over."""
        return {"layer": type(self).__name__}

    def _promise(self) -> float:
        """`lipschitz`, the parameters being finite."""
        raise undefined(self, "_promise", "the constant")

    def _system(self) -> System:
        """`system`, the parameters being finite."""
        raise undefined(self, "_system", "the System that forward computes")

    def _closed_form(self) -> dict[str, Tensor]:
        """What forward applies, from the parameters; called with autocast off."""
        raise undefined(self, "_closed_form", "what forward applies, tensors by their names")

    def _register(
        self,
        sizes: Mapping[str, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Create the parameters of `free`, whose sizes are given by name."""
        for name, shape in self.free.items():
            numbers = [size if isinstance(size, int) else sizes[size] for size in shape]
            empty = torch.empty(numbers, device=device, dtype=dtype)
            setattr(self, name, nn.Parameter(empty))

    def _tensors(self) -> dict[str, Tensor]:
        with full_precision(next(self.parameters(), torch.empty(0))):
            return self._closed_form()

    def _current(self) -> dict[str, Tensor]:
        """`_tensors` for forward: kept in evaluation while nothing it depends on changes."""
        return self._cache.get(self, self._options, self._by_columns)

    def _by_columns(self) -> dict[str, Tensor]:
        """`_tensors`, matrices stored by columns: F.linear multiplies a few percent faster."""
        return {k: v.mT.contiguous().mT if v.ndim == 2 else v for k, v in self._tensors().items()}

    def _check_parameters(self) -> None:
        check_finite(type(self).__name__, dict(self.named_parameters()))

    def _check(self, x: Tensor) -> None:
        check_floating(type(self).__name__, x)
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"{type(self).__name__}: the input has shape {tuple(x.shape)}, but in_features = "
                f"{self.in_features}. Give it as (..., {self.in_features})."
            )


def undefined(owner: object, method: str, returns: str) -> InvalidInput:
    """That a class lacks a method which its base leaves to it."""
    return InvalidInput(
        f"{type(owner).__name__}: {method} is not defined. Define it in the class, to return "
        f"{returns}."
    )


def options_of(base: Callable[..., None]) -> Callable[[Method], Method]:
    """For an __init__ that hands its **options on to this one: they are in its signature."""

    def decorate(init: Method) -> Method:
        own = {k: p for k, p in signature(init).parameters.items() if p.kind != p.VAR_KEYWORD}
        parameters = dict(signature(base).parameters) | own
        init.__signature__ = Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return init

    return decorate


def check_size(owner: str, name: str, size: int) -> None:
    if size < 1:
        raise InvalidInput(f"{owner}: {name} = {size}, but must be at least 1.")


def check_floating(owner: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise InvalidInput(
            f"{owner}: the input is {x.dtype}, but must be floating-point. "
            "Convert it, e.g. with x.float()."
        )


def check_finite(owner: str, tensors: Mapping[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.is_meta:
            raise InvalidInput(
                f"{owner}: {name} is on the meta device and has no values. Move the module with "
                "to_empty(device=...) and load or reset its parameters."
            )
        if tensor.is_complex():
            raise InvalidInput(
                f"{owner}: {name} holds complex numbers, for which no bound is known. Use real "
                "ones, real and imaginary parts as separate features."
            )
        if not tensor.isfinite().all():
            raise InvalidInput(
                f"{owner}: {name} contains NaN or Inf, for which no bound holds. The training "
                "diverged or the file is damaged; load other weights."
            )


def slopes_in_unit_interval(owner: str, name: str | Activation) -> str | Activation:
    """`name` itself, if its slopes lie in [0, 1]; the layers' conditions hold for no others."""
    sigma = activation(name)
    if not 0 <= sigma.alpha <= sigma.beta <= 1:
        raise InvalidInput(
            f"{owner}: {sigma.name} has slopes in [{sigma.alpha:g}, {sigma.beta:g}], outside "
            "[0, 1], where the bound fails. Use relu, tanh or another activation within."
        )
    return name


def numpy(x: Tensor | None) -> Any:
    return None if x is None else x.detach().double().cpu().numpy()


def shown(x: Tensor) -> str:
    """A scalar for `extra_repr`, which must not fail on the meta device."""
    return "?" if x.is_meta else f"{float(x.detach()):g}"


def operator_norm(X: Tensor, norm: float = 2) -> float:
    """‖X‖ from ℓ_norm to ℓ_norm of a float64 matrix, rounded upwards."""
    return float(torch.linalg.matrix_norm(X, ord=norm)) * (1 + 1e-12)


def bounded(X: Tensor) -> Tensor:
    """X, shrunk where its Frobenius norm exceeds LIMIT·√k: larger ones would only cost digits."""
    return saturate(X, LIMIT * min(X.shape[-2:]) ** 0.5)


def saturate(X: Tensor, limit: float | Tensor) -> Tensor:
    """X shrunk to Frobenius norm `limit` where it is larger: a huge one would only cost digits."""
    if certainly_at_most(torch.linalg.vector_norm(X.detach()), limit):  # if it overflows, it is not
        return X
    norm = partial(torch.linalg.vector_norm, dim=(-2, -1), keepdim=True)
    Y = X.double()
    return (Y * (limit / norm(Y).clamp(min=limit))).to(X.dtype)


def soft_bound(x: Tensor, limit: float) -> Tensor:
    """x kept in (-limit, limit), smoothly."""
    return limit * torch.tanh(x / limit)


def fill_uniform(*parameters: nn.Parameter | None, fan_in: int) -> None:
    """nn.Linear's initialisation: uniform in ±1/√fan_in."""
    for parameter in parameters:
        if parameter is not None:
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(parameter, -bound, bound)


def fill_normal(*parameters: nn.Parameter) -> None:
    """Normal entries of variance 1/k, k the larger side."""
    for parameter in parameters:
        nn.init.normal_(parameter, std=max(parameter.shape) ** -0.5)


def fill_orthogonal(weight: nn.Parameter) -> None:
    """Orthonormal rows or columns, drawn in float32 at least (QR knows no half precision)."""
    with torch.no_grad():
        weight.copy_(nn.init.orthogonal_(torch.empty_like(wide(weight))))
