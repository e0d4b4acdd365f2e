"""Instances of every convolution, the weights that break implementations of them, and the matrices
that they apply."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from layer_cases import EXTREMES, put
from torch import Tensor, nn

from sdplip.layers import CONVOLUTIONS, ConvLayer

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SLACK = {torch.float32: 1e-5, torch.float64: 1e-12}
SOLVED = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Instead of SLACK for equilibria that forward found, which have a residual."""

MODES = ("zeros", "circular")

CHANNELS = 4, 6
"""In and out, of rectangular kernels; `groups` divides both."""

GEOMETRIES: dict[str, dict[str, Any]] = {
    "1": {"kernel_size": 1},
    "2": {"kernel_size": 2},
    "3": {"kernel_size": 3},
    "3x2": {"kernel_size": (3, 2)},
    "5": {"kernel_size": 5},
    "3 valid": {"kernel_size": 3, "padding": "valid"},
    "4 padding 1": {"kernel_size": 4, "padding": 1},
    "1 stride 2": {"kernel_size": 1, "stride": 2},
    "3 stride 2": {"kernel_size": 3, "stride": 2},
    "2 stride 2x1": {"kernel_size": 2, "stride": (2, 1)},
    "3 dilation 2": {"kernel_size": 3, "dilation": 2},
    "3 stride 2 dilation 2": {"kernel_size": 3, "stride": 2, "dilation": 2},
    "3 groups 2": {"kernel_size": 3, "groups": 2},
    "3 stride 2 groups 2": {"kernel_size": 3, "stride": 2, "groups": 2},
}

REFUSED: dict[str, tuple[str, ...]] = {
    "orthogonal": ("3 stride 2 dilation 2",),
    "sandwich": ("3 stride 2 dilation 2",),
    "nemon": ("2", "3x2"),
}
"""Geometries for which a family has no proof; every other one must work."""

OPTIONS: dict[str, dict[str, Any]] = {
    "lben": {"gamma": 0.5, "feedthrough": True},
    "nemon": {"c": 0.5, "feedthrough": True},
}

FEEDFORWARD = [name for name, cls in CONVOLUTIONS.items() if not hasattr(cls, "solve")]
EQUILIBRIA = [name for name, cls in CONVOLUTIONS.items() if hasattr(cls, "solve")]
ACTIVATED, HIDDEN = (
    [name for name, cls in CONVOLUTIONS.items() if argument in inspect.signature(cls).parameters]
    for argument in ("activation", "hidden")
)


def make(
    family: str,
    geometry: str | dict[str, Any] = "3",
    channels: tuple[int, int] = CHANNELS,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """A convolution of any family with equilibria to rounding, from seed 0."""
    cls = CONVOLUTIONS[family]
    arguments = GEOMETRIES[geometry] if isinstance(geometry, str) else geometry
    first, last = channels
    between = [5] if hasattr(cls, "solve") else []
    torch.default_generator.manual_seed(0)
    layer = cls(
        first, *between, last, dtype=dtype, **{**OPTIONS.get(family, {}), **arguments, **options}
    )
    if hasattr(layer, "tol"):
        layer.tol = 1e-11 if dtype == torch.float64 else 1e-6
    return layer


def geometries(family: str) -> Iterator[str]:
    """Those that the family has arguments for and does not refuse."""
    known = inspect.signature(CONVOLUTIONS[family]).parameters
    for name, arguments in GEOMETRIES.items():
        if arguments.keys() <= known.keys() and name not in REFUSED.get(family, ()):
            yield name


WEIGHTS: dict[str, Callable[[nn.Module], None]] = {
    **{name: lambda layer, name=name: put(layer, name) for name in EXTREMES},
    "no input channel": lambda layer: _silence(layer, (slice(None), 0)),
    "constant": lambda layer: _fill(layer, 1.0),
    "alternating": lambda layer: _alternate(layer),
}


def draw(layer: nn.Module, weights: str) -> None:
    torch.default_generator.manual_seed(1)
    with torch.no_grad():
        WEIGHTS[weights](layer)


def _silence(layer: nn.Module, index: tuple[Any, ...]) -> None:
    for parameter in layer.parameters():
        if parameter.ndim == 4:
            parameter[index] = 0


def _fill(layer: nn.Module, value: float) -> None:
    for parameter in layer.parameters():
        if parameter.ndim == 4:
            parameter.fill_(value)


def _alternate(layer: nn.Module) -> None:
    """The largest singular value at the highest frequency, which small images do not have."""
    for parameter in layer.parameters():
        if parameter.ndim == 4:
            y, x = (torch.arange(k) for k in parameter.shape[2:])
            parameter.copy_((1.0 - 2 * ((y[:, None] + x) % 2)).expand_as(parameter))


def units_on(family: str) -> dict[str, Any]:
    """Options with which forward is linear, all units with slope one: for residual layers the
    worst pattern of them."""
    return {"activation": "identity"} if family in ACTIVATED else {}


def without_bias(layer: Any) -> Any:
    for name in ("bias", "out_bias"):
        if getattr(layer, name, None) is not None:
            setattr(layer, name, None)
    return layer


def matrix(f: Callable[[Tensor], Tensor], *shape: int, dtype: torch.dtype) -> Tensor:
    """The matrix in float64 of a linear map of images of this shape, from the identity basis."""
    n = math.prod(shape)
    basis = torch.eye(n, dtype=dtype).view(n, *shape)
    with torch.no_grad():
        return f(basis).flatten(1).double().mT


def applied(layer: ConvLayer, image: tuple[int, int]) -> Tensor:
    """The matrix of what forward applies to images of this size, the biases removed."""
    dtype = next(layer.parameters()).dtype
    return matrix(without_bias(layer), layer.in_channels, *image, dtype=dtype)


def norm(M: Tensor, order: float = 2) -> float:
    return torch.linalg.matrix_norm(M.double(), ord=order).item()


def holds(layer: ConvLayer, image: tuple[int, int]) -> bool:
    """Whether what forward applies to images of this size keeps the layer's bound."""
    slack = SOLVED if hasattr(layer, "solve") else SLACK
    allowed = layer.lipschitz * (1 + slack[next(layer.parameters()).dtype])
    return norm(applied(layer, image), layer.norm) <= allowed
