"""Instances of every layer family, and the parameters that break implementations of them."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdplip.layers import LAYERS, Layer

DTYPES = (torch.float32, torch.float64)
HALF = {"linear": 2**-8, "residual": 2**-6 * 1.25}
"""By how much products in bfloat16 exceed the bound for tight weights: measured up to 0.0033 for
linear layers and 0.0172 for residual ones, two products of which are twice as long as x."""

SHAPES = {
    "tall": {"in_features": 5, "out_features": 8, "features": 6, "hidden": 9},
    "wide": {"in_features": 8, "out_features": 5, "features": 9, "hidden": 4},
    "square": {"in_features": 6, "out_features": 6, "features": 6, "hidden": 6},
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "aol": [{"products": "bfloat16"}],
    "sll": [{"products": "bfloat16"}],
    "orthogonal": [{"map": "cayley"}, {"map": "matrix_exp"}],
    "lben": [
        {"gamma": 0.1, "feedthrough": True},
        {"gamma": 3.0, "learn_gamma": True},
        {"contraction": 0.5},
    ],
    "nemon": [{"c": 0.9, "feedthrough": True}, {"c": -1.0}],
}


def make(
    cls: type[Layer], shape: str = "tall", dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """A layer of any family with equilibria to rounding, from seed 0."""
    names = inspect.signature(cls).parameters
    sizes = {name: size for name, size in SHAPES[shape].items() if name in names}
    torch.default_generator.manual_seed(0)
    layer = cls(**sizes, dtype=dtype, **options)
    if hasattr(layer, "tol"):
        layer.tol = 1e-12 if dtype == torch.float64 else 1e-6
    return layer


def variants() -> Iterator[tuple[str, Callable[[torch.dtype], Any]]]:
    """(id, dtype ↦ layer) for every family, shape and set of options."""
    for name, cls in LAYERS.items():
        for shape in SHAPES:
            yield f"{name}-{shape}", lambda dtype, cls=cls, shape=shape: make(cls, shape, dtype)
        for options in OPTIONS.get(name, []):
            text = ",".join(f"{k}={v}" for k, v in options.items())
            yield (
                f"{name}-{text}",
                lambda dtype, cls=cls, options=options: make(cls, "tall", dtype, **options),
            )


def everything(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def apply(layer: nn.Module) -> None:
        for parameter in layer.parameters():
            parameter.copy_(change(parameter))

    return apply


def matrices(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    """Of kernels (rows, columns, k₁, k₂) too, taps and columns being one."""
    return everything(lambda p: change(p.flatten(1)).view_as(p) if p.ndim >= 2 else p)


def _without(index: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    def change(W: Tensor) -> Tensor:
        W = W.clone()
        W[index] = 0
        return W

    return change


def _heavy(W: Tensor) -> Tensor:
    return W * torch.distributions.StudentT(1.0).sample(W.shape).to(W)


def _duplicated(W: Tensor) -> Tensor:
    return W[torch.arange(len(W)) // 2][:, torch.arange(W.shape[1]) // 2]


def _rows(W: Tensor) -> Tensor:
    return W * torch.logspace(-8, 4, len(W), dtype=W.dtype)[:, None]


def tight(layer: nn.Module) -> None:
    """Every matrix becomes semi-orthogonal, every kernel such a tap in the middle of zeros, as
    Dirac's is for the identity: there every T equals WᵀW, and no bound has room."""
    for parameter in layer.parameters():
        if parameter.ndim >= 2:
            tap = torch.empty(parameter.shape[:2], dtype=torch.float64, device=parameter.device)
            parameter.zero_()
            middle = tuple((k - 1) // 2 for k in parameter.shape[2:])
            parameter[(..., *middle)] = nn.init.orthogonal_(tap).to(parameter.dtype)


EXTREMES: dict[str, Callable[[nn.Module], None]] = {
    "default": everything(lambda p: p),
    "zero": everything(torch.zeros_like),
    "zero row": matrices(_without((0,))),
    "zero column": matrices(_without((slice(None), 0))),
    "tiny": everything(lambda p: p * 1e-20),
    "huge": everything(lambda p: p * 1e15),
    "rank one": matrices(lambda W: W[:, :1] * W[:1]),
    "duplicates": matrices(_duplicated),
    "heavy tail": matrices(_heavy),
    "row scales": matrices(_rows),
    "column scales": matrices(lambda W: _rows(W.mT).mT),
    "tight": tight,
}


def put(layer: nn.Module, extreme: str) -> None:
    """Give the layer these parameters; those that start at zero are drawn first."""
    torch.default_generator.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)
        EXTREMES[extreme](layer)
