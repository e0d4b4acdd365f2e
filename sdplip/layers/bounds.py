"""The Lipschitz constant that a network promises by the constants of its parts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import parse_norm
from .._modules import altered, check_module, plain
from ..activations import of_module
from ..errors import InvalidInput
from ._base import check_finite, operator_norm
from ._conv import per_group, to_phases
from ._geometry import Geometry
from ._part import PROMISES, Container, own_forward
from ._spectrum import norm_square
from .pooling import AvgPool2d, MaxPool2d

IMAGE = -3
"""The first dimension of an image. From the end, those before it are of a batch."""


def lipschitz_bound(model: nn.Module, norm: Any = 2) -> float:
    """The product of the layers' constants through nn.Sequential, a bound for ℓ_norm to ℓ_norm.

    Containers of this package (`Residual`, `Concatenate`, …) combine the constants of what they
    hold. A layer of this package, or any module with attributes `lipschitz` and `norm`, counts with
    what it declares; a part that knows several norms has a method `lipschitz_in(norm)`. Of
    torch.nn there are

    - Linear by its operator norm, in float64; Conv2d and ConvTranspose2d by a bound of theirs for
      every image size (`convolution_bound`), at most 2 % above the supremum over all frequencies
      (parametrised: by those of the weight in evaluation);
    - AvgPool2d, AdaptiveAvgPool2d(1), MaxPool2d, activations by their largest slope;
    - Flatten, Unflatten, Identity, PixelShuffle, PixelUnshuffle, ChannelShuffle, ConstantPad2d
      and, in evaluation, dropout with 1.

    Nothing is changed. `sdplip.lipschitz` gives a tighter bound where it can.

    Args:
        norm: 2 or inf, as a number or by name.

    Raises:
        InvalidInput: a module without a known constant in this norm, named with its place, which
            includes subclasses with a forward of their own, modules with hooks, and options for
            which no bound holds; NaN or Inf; no module, or one without the shapes of its weights.
    """
    check_module("lipschitz_bound", model)
    return _bound(model, parse_norm(norm), "")


def _bound(module: nn.Module, norm: float, path: str) -> float:
    place = f'{type(module).__name__} (at "{path}")' if path else type(module).__name__
    if altered(module):
        raise InvalidInput(
            f"lipschitz_bound: {place} has hooks or a replaced forward, which may change its map. "
            "Remove them, or use parametrizations where they compute a weight."
        )

    def child(name: str) -> float:
        return _bound(module.get_submodule(name), norm, f"{path}.{name}".lstrip("."))

    if plain(module, nn.Sequential):
        # Not named_children(), which leaves out a module that is used twice.
        factors = [child(name) for name in module._modules]
        # A constant map stays constant behind one without a bound.
        return 0.0 if 0 in factors else _product(factors)
    for kind, known in _KNOWN.items():
        if plain(module, kind):
            return known(module, norm, f"lipschitz_bound: {place}")
    if isinstance(module, Container) and own_forward(module, "combined"):
        return module.combined(norm, child)
    declared = _declared(module, norm, place)
    if declared is not None:
        if not declared >= 0:
            raise InvalidInput(
                f"lipschitz_bound: {place} declares lipschitz = {declared}, but a constant is "
                "never negative or NaN."
            )
        return declared
    try:
        sigma = of_module(module)
    except InvalidInput as error:
        raise InvalidInput(
            f"lipschitz_bound: {place} has no known constant. Fold it into its neighbours, or give "
            "it the attributes lipschitz and norm."
        ) from error
    return max(abs(sigma.alpha), abs(sigma.beta))


def _product(factors: list[float]) -> float:
    """In an order in which nothing that is not zero becomes it on the way, hence inf at worst."""
    total = 1.0
    small, large = (sorted(f for f in factors if (f < 1) == under) for under in (True, False))
    while small or large:
        total *= small.pop() if small and (total > 1 or not large) else large.pop()
    return total if total > 0 else math.ulp(0.0)


def _declared(module: nn.Module, norm: float, place: str) -> float | None:
    constant = getattr(module, "lipschitz_in", None)
    if constant is None and not (hasattr(module, "lipschitz") and hasattr(module, "norm")):
        return None
    if not own_forward(module, *PROMISES):
        raise InvalidInput(
            f"lipschitz_bound: {place} replaces forward, but not the constant that was promised "
            "for the one it replaces. Give its class the attribute lipschitz too."
        )
    if constant is not None:
        return float(constant(norm))
    declared = parse_norm(module.norm)
    if declared != norm:
        raise InvalidInput(
            f"lipschitz_bound: {place} promises a constant for norm = {declared:g}, none for "
            f"norm = {norm:g}. Use sdplip.lipschitz(model, norm={norm:g})."
        )
    return float(module.lipschitz)  # type: ignore[arg-type]


def _evaluated(module: nn.Module, owner: str) -> Tensor:
    """The weight in evaluation: reading it in training would advance a power iteration."""
    layer: Any = copy.deepcopy(module).eval()
    check_finite(owner, {"weight": layer.weight, "bias": layer.bias})
    return layer.weight.detach().double()


def _linear(module: nn.Linear, norm: float, owner: str) -> float:
    return operator_norm(_evaluated(module, owner), norm)


def _conv(module: nn.Conv2d, norm: float, owner: str) -> float:
    _check_same_class(module, nn.Conv2d, owner)
    K = _evaluated(module, owner)
    if norm != 2:
        return operator_norm(K.flatten(1), norm)
    padded = module.padding not in ("valid", (0, 0))
    mode = module.padding_mode if padded else "zeros"
    # A torus need not consist of whole strides; without the stride it has more outputs.
    stride = (1, 1) if mode == "circular" else module.stride
    return convolution_bound(K, _geometry(module, owner, stride, mode))


def _transposed(module: nn.ConvTranspose2d, norm: float, owner: str) -> float:
    K = _evaluated(module, owner)
    if norm != 2:
        rows = K.unflatten(0, (module.groups, -1)).transpose(1, 2)
        return operator_norm(rows.flatten(0, 1).flatten(1), norm)
    return convolution_bound(K, _geometry(module, owner, module.stride, "zeros"))


def _geometry(module: Any, owner: str, stride: Any, mode: str) -> Geometry:
    size, padding, dilation = module.kernel_size, module.padding, module.dilation
    return Geometry.of(owner, size, stride, padding, dilation, module.groups, mode, {})


def convolution_bound(K: Tensor, geometry: Geometry) -> float:
    """At least the ℓ₂ norm of a convolution by K (out, in / groups, k₁, k₂), for every image size.

    With zero padding the operator is that on the whole plane between an embedding and a crop, with
    circular padding and stride 1 that on a torus; the supremum over all frequencies bounds both.
    Groups are blocks of a block diagonal operator.
    """
    blocks = to_phases(per_group(K.detach().double(), geometry.groups), geometry)
    if not blocks.numel():
        return 0.0
    scale = blocks.abs().amax().clamp(min=torch.finfo(K.dtype).tiny)
    return float(scale * norm_square(blocks / scale).max().sqrt()) * (1 + 1e-12)


def _average(module: nn.AvgPool2d, norm: float, owner: str) -> float:
    mean = AvgPool2d(module.kernel_size, module.stride)
    padded = module.padding not in (0, (0, 0))
    cut = module.ceil_mode or (padded and not module.count_include_pad)
    if cut and not module.divisor_override:
        raise InvalidInput(
            f"{owner} divides windows at the border by less (ceil_mode, count_include_pad). "
            "Use padding = 0 and whole windows, or sdplip.layers.AvgPool2d."
        )
    window = math.prod(mean.kernel_size)
    return mean.lipschitz_in(norm) * math.sqrt(window) / abs(module.divisor_override or window)


def _global_average(module: nn.AdaptiveAvgPool2d, norm: float, owner: str) -> float:
    if norm == 2 and module.output_size not in (1, (1, 1)):
        raise InvalidInput(
            f"{owner} has output_size = {module.output_size}, whose windows may overlap. "
            "Use sdplip.layers.AdaptiveAvgPool2d."
        )
    return 1.0


def _maximum(module: nn.MaxPool2d, norm: float, owner: str) -> float:
    if module.return_indices:
        raise InvalidInput(f"{owner} also returns indices, which no constant covers.")
    return MaxPool2d(module.kernel_size, module.stride, 0, module.dilation).lipschitz_in(norm)


def _reshaped(module: nn.Flatten | nn.Unflatten, norm: float, owner: str) -> float:
    first = module.start_dim if isinstance(module, nn.Flatten) else module.dim
    if first == 0 or first < IMAGE:
        raise InvalidInput(
            f"{owner} changes dimension {first}, the samples of a batch, which have bounds of "
            "their own. Use nn.Flatten(1)."
        )
    return 1.0


def _dropout(module: nn.Dropout, norm: float, owner: str) -> float:
    if module.training:
        raise InvalidInput(
            f"{owner} has no known constant in training, where it scales and drops at random. "
            "Call model.eval() first."
        )
    return 1.0


def _one(module: nn.Module, norm: float, owner: str) -> float:
    return 1.0


def _check_same_class(module: nn.Module, kind: Any, owner: str) -> None:
    """Conv2d's forward leaves the work to a method that a subclass may replace."""
    if getattr(type(module), "_conv_forward", None) is not kind._conv_forward:
        raise InvalidInput(
            f"{owner} has no known constant: its class replaces _conv_forward. "
            "Give it the attributes lipschitz and norm."
        )


_KNOWN: dict[type[nn.Module], Callable[[Any, float, str], float]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _transposed,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _global_average,
    nn.MaxPool2d: _maximum,
    nn.Flatten: _reshaped,
    nn.Unflatten: _reshaped,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
    nn.Identity: _one,
    nn.PixelShuffle: _one,
    nn.PixelUnshuffle: _one,
    nn.ChannelShuffle: _one,
    nn.ConstantPad2d: _one,
}
