"""Convolutional classifiers, put together from any family in CONVOLUTIONS and LAYERS.

Like the dense ones a model is an `nn.Sequential` that `lipschitz_bound` understands. What the
constructor of a family takes decides how it is used, so that a new family needs nothing here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from ..activations import activation
from ..errors import InvalidInput
from ..layers import (
    CONVOLUTIONS,
    LAYERS,
    AvgPool2d,
    ChannelPad,
    ChannelSlice,
    ConvLayer,
    Layer,
    MaxMin,
    MaxPool2d,
    MONConv2d,
    Normalize,
    NormalizedLinear,
    SpaceToDepth,
    SpectralLinear,
)

if TYPE_CHECKING:
    from .models import ModelConfig

UNCONSTRAINED = "unconstrained"
"""The one baseline that convolutional architectures know: nn.Conv2d and nn.Linear."""

BLOCKS = 5
"""Of a convnet: each halves the image, so that its side must be a multiple of 2^BLOCKS."""

WIDE = 512
"""Channels from which products in bfloat16 are cheaper than exact ones."""

PATCH = 4
"""The side of a patchwise network's patches, and of a residual network's pooling windows."""

WINDOW = 2
"""The side of an equilibrium network's pooling windows."""


def families() -> tuple[str, ...]:
    """The families that keep the image and can be stacked; equilibrium layers are no part of it."""
    return tuple(
        name for name, cls in CONVOLUTIONS.items() if name in LAYERS and not _needs(cls, "hidden")
    )


def equilibria() -> dict[str, Callable[..., nn.Module]]:
    """The equilibrium convolutions by name, MON among them as LBEN's special case."""
    needing = {name: cls for name, cls in CONVOLUTIONS.items() if _needs(cls, "hidden")}
    return {**needing, "mon": MONConv2d}


def families_of(architecture: str) -> tuple[str, ...]:
    """The families that a convolutional architecture can be built from."""
    return tuple(equilibria()) if architecture == "equilibrium" else families()


def _needs(family: Callable[..., object], name: str) -> bool:
    parameter = inspect.signature(family).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def build(config: ModelConfig) -> list[nn.Module]:
    """The modules of a convolutional model, in their order."""
    modules: list[nn.Module] = []
    if config.normalise != "none":
        channels = config.input_shape[0]
        mean = config.mean if isinstance(config.mean, tuple) else (config.mean,) * channels
        modules.append(Normalize(mean, (config.scale,) * channels, dim=-3))
    body = ARCHITECTURES[config.architecture](config)
    for module in body:
        _start(module)
    return modules + body


def _start(module: nn.Module) -> None:
    """Biases of linear layers at zero, as published: in a deep chain that loses no norm random ones
    would drown the image. Without a constraint kernels have to be drawn so that they keep it."""
    free = isinstance(module, nn.Conv2d | nn.Linear)
    if free or (isinstance(module, Layer) and module.condition == "linear"):
        for name, parameter in module.named_parameters():
            if name == "bias":
                nn.init.zeros_(parameter)
            elif free:
                nn.init.orthogonal_(parameter)


def check(config: ModelConfig) -> None:
    """Raise InvalidInput for what the architecture cannot be built from, before anything is."""
    known = families_of(config.architecture)
    if config.layer not in (*known, UNCONSTRAINED):
        raise InvalidInput(
            f"model: the architecture {config.architecture} knows no layer {config.layer!r}. Its "
            f"families are {', '.join(known)}; the baseline {UNCONSTRAINED}."
        )
    if len(config.input_shape) != 3:
        raise InvalidInput(
            f"model: the architecture {config.architecture} takes images, but input_shape is "
            f"{config.input_shape}. Use the architecture dense."
        )
    if config.input_shape[0] > config.width:
        raise InvalidInput(
            f"model: width is {config.width}, but the images have {config.input_shape[0]} "
            "channels. Choose at least as many."
        )
    _CHECKS[config.architecture](config)


def convnet(config: ModelConfig) -> list[nn.Module]:
    """ConvNet: blocks of `depth` convolutions at 1, 1/2, 1/4, ... of the image's side.

    `width` channels at first; after every block half of them are dropped and the image is folded
    into channels, which doubles them. Images of 64 pixels and more have one block more, as the
    authors' TConvNet. In the last block, at 2x2 pixels, kernels are 1x1.

    Source: Prach, Brau, Buttazzo, Lampert, 1-Lipschitz layers compared (CVPR 2024).
    """
    blocks, width = _blocks(config), config.width
    body = [ChannelPad(width), _conv(config, width, 1), MaxMin()]
    for block in range(blocks):
        kernel = 1 if block == blocks - 1 else 3
        for _ in range(config.depth):
            body += [_conv(config, width, kernel), MaxMin()]
        body += [ChannelSlice(width // 2), SpaceToDepth(2)]
        width *= 2
    left = tuple(side >> blocks for side in config.input_shape[1:])
    if left != (1, 1):
        body.append(MaxPool2d((left[0], left[1])))
    body += [nn.Flatten(), _dense(config, width, width)]
    return [*body, ChannelSlice(config.num_classes, dim=-1)]


def _blocks(config: ModelConfig) -> int:
    return BLOCKS + (min(config.input_shape[1:]) >= 64)


def _check_convnet(config: ModelConfig) -> None:
    blocks = _blocks(config)
    _divides(config, 2**blocks)
    if config.width % 2:
        raise InvalidInput(f"model: width is {config.width}, but a convnet needs an even number.")
    if config.width << blocks < config.num_classes:
        raise InvalidInput(
            f"model: width is {config.width}, too small for {config.num_classes} classes. Choose "
            f"at least {-(-config.num_classes >> blocks)}."
        )


def residual(config: ModelConfig) -> list[nn.Module]:
    """`depth` convolutions 3x3 of `width` channels, pooling 4x4, `dense_depth` dense layers.

    For residual families (SLL, CPL), whose units are `hidden` channels and `dense_width` numbers;
    their activation is inside. Other families get as many channels as there are, and MaxMin. The
    last layer has unit rows.

    Source: Meunier, Delattre, Araujo, Allauzen, A dynamical system perspective for Lipschitz
    neural networks (ICML 2022), and [ARAUJO], section 5.
    """
    width = config.width
    body: list[nn.Module] = [ChannelPad(width)]
    for _ in range(config.depth):
        body += _activated(config, _conv(config, width, 3))
    body += [AvgPool2d(PATCH), nn.Flatten()]
    features = width * _patches(config)
    for _ in range(config.dense_depth):
        body += _activated(config, _dense(config, features, features, config.dense_width))
    last = nn.Linear if config.layer == UNCONSTRAINED else NormalizedLinear
    return [*body, last(features, config.num_classes)]


def patchwise(config: ModelConfig) -> list[nn.Module]:
    """Patches of 4x4 pixels, `depth` convolutions 3x3 of `width` channels, `dense_depth` dense
    layers of `dense_width` units, as many per patch; MaxMin between all of them.

    Source: the code of [AOL].
    """
    channels, width = config.input_shape[0] * PATCH**2, config.width
    kept = config.dense_width // _patches(config)
    body: list[nn.Module] = [SpaceToDepth(PATCH), _conv(config, width, 1, channels), MaxMin()]
    for _ in range(config.depth):
        body += [_conv(config, width, 3), MaxMin()]
    body += [_conv(config, width, 1), ChannelSlice(kept), nn.Flatten()]
    for _ in range(config.dense_depth):
        body += [_dense(config, config.dense_width, config.dense_width), MaxMin(dim=-1)]
    return [*body[:-1], ChannelSlice(config.num_classes, dim=-1)]


def equilibrium(config: ModelConfig) -> list[nn.Module]:
    """One equilibrium convolution of `width` channels, pooling 2x2, a dense layer.

    γ bounds the whole: where there is one, the dense layer is spectrally normalised. In [LBEN] and
    [MON] what is read out of the units is only pooled before it, and part of their condition.

    Source: [LBEN], [MON] and [NEMON], the experiments on CIFAR-10.
    """
    channels, width = config.input_shape[0], config.width
    body: list[nn.Module]
    if config.layer == UNCONSTRAINED:
        bounded = False
        body = [nn.Conv2d(channels, width, config.kernel, padding="same")]
        body.append(activation(config.activation).module())
    else:
        family = equilibria()[config.layer]
        options: dict[str, object] = {"activation": config.activation, "tol": config.tol}
        gamma = math.inf if config.gamma is None else config.gamma
        options |= _accepted(family, {"gamma": gamma})
        bounded = options.get("gamma", math.inf) != math.inf
        body = [family(channels, width, width, config.kernel, **options)]
    features = width * math.prod(side // WINDOW for side in config.input_shape[1:])
    last = SpectralLinear if bounded else nn.Linear
    return [*body, AvgPool2d(WINDOW), nn.Flatten(), last(features, config.num_classes)]


def _patches(config: ModelConfig) -> int:
    return math.prod(side // PATCH for side in config.input_shape[1:])


def _check_residual(config: ModelConfig) -> None:
    _divides(config, PATCH)


def _check_equilibrium(config: ModelConfig) -> None:
    _divides(config, WINDOW)
    if config.layer == "nemon" and config.kernel % 2 == 0:
        raise InvalidInput(f"model: kernel is {config.kernel}, but nemon needs an odd number.")


def _check_patchwise(config: ModelConfig) -> None:
    _divides(config, PATCH)
    patches = _patches(config)
    kept = config.dense_width // patches
    for name, value in (("width", config.width), ("dense_width", config.dense_width)):
        if value % 2:
            raise InvalidInput(f"model: {name} is {value}, but MaxMin needs an even number.")
    if config.dense_width % patches or not 0 < kept <= config.width:
        raise InvalidInput(
            f"model: dense_width is {config.dense_width}, but must be a multiple of the "
            f"{patches} patches, at most {patches * config.width}."
        )
    if not config.num_classes <= config.dense_width or not config.dense_depth:
        raise InvalidInput(
            f"model: dense_width is {config.dense_width} and dense_depth {config.dense_depth}, but "
            f"{config.num_classes} classes need at least as many units, in at least one layer."
        )


def _divides(config: ModelConfig, size: int) -> None:
    if any(side % size or not side for side in config.input_shape[1:]):
        height, width = config.input_shape[1:]
        raise InvalidInput(
            f"model: the images have {height}x{width} pixels, but the architecture "
            f"{config.architecture} needs multiples of {size}. Resize them, or use another one."
        )


def _activated(config: ModelConfig, layer: nn.Module) -> list[nn.Module]:
    """Residual and sandwich layers have their activation inside."""
    if hasattr(layer, "activation"):
        return [layer]
    return [layer, MaxMin(dim=-3 if isinstance(layer, ConvLayer | nn.Conv2d) else -1)]


def _conv(config: ModelConfig, width: int, kernel: int, channels: int | None = None) -> nn.Module:
    channels = width if channels is None else channels
    if config.layer == UNCONSTRAINED:
        return nn.Conv2d(channels, width, kernel, padding="same")
    family: Callable[..., nn.Module] = CONVOLUTIONS[config.layer]
    offered = _offered(config) | {"hidden": config.hidden}
    if min(channels, config.hidden or width) < WIDE:
        del offered["products"]
    return family(channels, width, kernel, **_accepted(family, offered))


def _dense(
    config: ModelConfig, features: int, outputs: int, hidden: int | None = None
) -> nn.Module:
    if config.layer == UNCONSTRAINED:
        return nn.Linear(features, outputs)
    family: Callable[..., nn.Module] = LAYERS[config.layer]
    offered = _offered(config) | {"hidden": hidden or None}
    accepted = _accepted(family, offered)
    if "features" in inspect.signature(family).parameters:
        return family(features, **accepted)
    return family(features, outputs, **accepted)


def _offered(config: ModelConfig) -> dict[str, object]:
    return {"activation": config.activation, "products": config.products}


def _accepted(family: Callable[..., object], offered: Mapping[str, object]) -> dict[str, object]:
    known = inspect.signature(family).parameters
    return {name: value for name, value in offered.items() if name in known}


ARCHITECTURES: dict[str, Callable[[ModelConfig], list[nn.Module]]] = {
    "convnet": convnet,
    "residual": residual,
    "patchwise": patchwise,
    "equilibrium": equilibrium,
}
"""Every convolutional architecture by name; `dense` is that of `models`."""

_CHECKS: dict[str, Callable[[ModelConfig], None]] = {
    "convnet": _check_convnet,
    "residual": _check_residual,
    "patchwise": _check_patchwise,
    "equilibrium": _check_equilibrium,
}
