"""Classifiers from every layer family, and two baselines that promise nothing.

A model is an `nn.Sequential`. A dense one is made of Flatten, Normalize, then layers and
activations: what `System.from_module` and `lipschitz_bound` understand, hence what can be
verified. The convolutional ones are those of `convnets`.
"""

from __future__ import annotations

import inspect
import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..activations import activation
from ..errors import InvalidInput
from ..layers import (
    LAYERS,
    AvgPool2d,
    ImplicitLinear,
    MONLinear,
    Normalize,
    NormalizedLinear,
    OrthogonalLinear,
    lipschitz_bound,
)
from ..layers._products import PRODUCTS
from ..layers.nemon import Measured
from . import convnets
from .entries import check_choices, check_finite, check_least, check_types, plain, read_config

BASELINES = (convnets.UNCONSTRAINED, "torch-spectral")
SPECIAL = {"mon": "lben", "implicit": "nemon"}
"""Special cases, each with the family that it belongs to: Λ = I, and ‖A‖_∞ < 1."""
FAMILIES: Mapping[str, Callable[..., nn.Module]] = ChainMap(
    {"mon": MONLinear, "implicit": ImplicitLinear},
    LAYERS,  # type: ignore[arg-type]
)
"""The layer families by name, those that join LAYERS later too, with their special cases."""
UNBOUNDED = ("lben", "mon")
"""Families whose ℓ₂ bound can be switched off."""
DENSE = "dense"
ARCHITECTURES = (DENSE, *convnets.ARCHITECTURES)
NORMALISE = ("none", "mean", "std")


@dataclass(frozen=True)
class ModelConfig:
    """Everything a model is rebuilt from, apart from its weights.

    `width` is the number of units per layer, `depth` the number of hidden layers (equilibrium
    families have one); in a convolutional `architecture` that of channels and of convolutions, see
    `convnets`. Residual convolutions have `hidden` channels of units (None: as many as channels),
    equilibrium convolutions a `kernel` of that side; `dense_depth` layers of `dense_width` units
    follow the convolutions where the architecture has some. `gamma` is LBEN's and MON's bound for
    the normalised input, None for no bound. `normalise` subtracts `mean` (one, or one per channel)
    and, for "std", divides by `std`, inside the model: bounds per raw pixel are then 1/std times
    those of the rest. `tol` is the equilibrium solver's tolerance while training, None for the
    layers' own, 1e-2, and `contraction` that of a dense LBEN or MON. `products` are SLL's and
    AOL's; those of convolutions of fewer than `convnets.WIDE` channels stay exact.
    """

    layer: str
    input_shape: tuple[int, ...]
    num_classes: int
    width: int = 64
    depth: int = 2
    gamma: float | None = 1.0
    normalise: str = "mean"
    mean: float | tuple[float, ...] = 0.0
    std: float = 1.0
    activation: str = "relu"
    tol: float | None = None
    architecture: str = DENSE
    hidden: int | None = None
    dense_depth: int = 0
    dense_width: int = 0
    products: str = "exact"
    kernel: int = 3
    contraction: float = 1.0

    def __post_init__(self) -> None:
        check_types("model", self)
        known_layer(self.layer)
        if not self.input_shape:
            raise InvalidInput("model: input_shape is empty, but must hold the sizes of an input.")
        sizes = ("width", "depth", "num_classes", "kernel", "hidden", "input_shape")
        check_least("model", self, 1, *sizes)
        check_least("model", self, 0, "dense_depth", "dense_width")
        check_finite("model", self, "gamma", "std", "tol")
        if self.gamma is None and self.layer not in UNBOUNDED:
            raise InvalidInput(
                f"model: gamma is null, but only {' and '.join(UNBOUNDED)} can do without a bound."
            )
        if self.contraction != 1 and (self.layer not in UNBOUNDED or self.architecture != DENSE):
            raise InvalidInput(
                f"model: contraction = {self.contraction:g}, but only {' and '.join(UNBOUNDED)} of "
                f"the architecture {DENSE} have one. Leave it at 1."
            )
        means = self.mean if isinstance(self.mean, tuple) else (self.mean,)
        if not all(math.isfinite(mean) for mean in means):
            raise InvalidInput(f"model: mean is {self.mean}, but must be finite.")
        if isinstance(self.mean, tuple) and len(means) != self.input_shape[0]:
            raise InvalidInput(
                f"model: mean has {len(means)} entries, but must be one number, or one per "
                f"channel of {self.input_shape}."
            )
        choices = {"normalise": NORMALISE, "architecture": ARCHITECTURES, "products": PRODUCTS}
        check_choices("model", self, choices)
        activation(self.activation)
        if self.architecture != DENSE:
            convnets.check(self)

    @property
    def scale(self) -> float:
        """What the input is divided by."""
        return self.std if self.normalise == "std" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; InvalidInput for unknown, missing or ill-typed entries."""
        return read_config(cls, values)


def known_layer(name: str) -> str:
    """`name` if it is a layer family or a baseline; InvalidInput listing them otherwise."""
    if name not in FAMILIES and name not in BASELINES:
        raise InvalidInput(
            f"layer {name!r} is not known. The families are {', '.join(FAMILIES)}; "
            f"the baselines {', '.join(BASELINES)}."
        )
    return name


def norm_of(layer: str) -> float:
    """The norm in which the family makes its promise; 2 for the baselines."""
    family = LAYERS.get(SPECIAL.get(layer, layer))
    return 2.0 if family is None else float(family.norm)


def promises(config: ModelConfig) -> bool:
    """Whether a bound holds by construction; torch's spectral norm only approximates one."""
    return config.layer in FAMILIES and config.gamma is not None


def build(config: ModelConfig, *, seed: int | None = None) -> nn.Sequential:
    """The model that `config` describes, freshly initialised on the CPU in float32.

    With a `seed` the weights depend on it alone and the global generator is left as it was.
    """
    if seed is None:
        return _build(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(config)


def _build(config: ModelConfig) -> nn.Sequential:
    if config.architecture != DENSE:
        return nn.Sequential(*convnets.build(config))
    features = math.prod(config.input_shape)
    modules: list[nn.Module] = [nn.Flatten()]
    if config.normalise != "none":
        ones = torch.ones(features)
        mean = torch.tensor(config.mean)
        if mean.ndim:
            mean = mean.repeat_interleave(features // len(mean))
        modules.append(Normalize(mean * ones, config.scale * ones))
    return nn.Sequential(*modules, *_body(config, features))


def _body(config: ModelConfig, features: int) -> list[nn.Module]:
    """What the constructor asks for decides how layers are put together, so that a new family in
    LAYERS needs nothing here: one equilibrium layer, residual blocks, or a stack."""
    layer, width, classes = config.layer, config.width, config.num_classes
    if layer in BASELINES:
        return _stack(partial(_baseline, layer), config, features, activated=True)
    family = FAMILIES[layer]
    # Special cases pass their family's arguments on.
    accepted = inspect.signature(LAYERS.get(SPECIAL.get(layer, ""), family)).parameters
    gamma = math.inf if config.gamma is None else config.gamma
    offered = {
        "gamma": gamma,
        "activation": config.activation,
        "tol": config.tol,
        "contraction": config.contraction,
        "products": config.products,
    }
    options = {name: value for name, value in offered.items() if name in accepted}
    if {"hidden", "out_features"} <= accepted.keys():
        return [family(features, width, classes, **options)]
    if "features" in accepted:
        blocks = [family(features, hidden=width, **options) for _ in range(config.depth)]
        return [*blocks, OrthogonalLinear(features, classes)]
    return _stack(partial(family, **options), config, features, LAYERS[layer].condition == "linear")


def _stack(
    linear: Callable[[int, int], nn.Module], config: ModelConfig, features: int, activated: bool
) -> list[nn.Module]:
    sizes = [features, *[config.width] * config.depth, config.num_classes]
    body: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        body.append(linear(fan_in, fan_out))
        if activated:
            body.append(activation(config.activation).module())
    return body[:-1] if activated else body


def _baseline(layer: str, fan_in: int, fan_out: int) -> nn.Module:
    linear = nn.Linear(fan_in, fan_out)
    return spectral_norm(linear) if layer == "torch-spectral" else linear


def logit_scale(model: nn.Sequential, config: ModelConfig) -> float:
    """What the margin in a loss is in units of: the ℓ₂ bound of the model; before a last layer with
    unit rows, of what comes before that. 1 without a promise."""
    if not promises(config) or norm_of(config.layer) != 2:
        return 1.0
    return lipschitz_bound(model[:-1] if isinstance(model[-1], NormalizedLinear) else model)


def linf_bounds(model: nn.Sequential) -> list[Tensor]:
    """The differentiable ℓ∞ bounds of the model's NEMON layers, each of everything after it too.

    Bounds of pooling and dense layers count as factors; normalisation does not.
    """
    factor, bounds = torch.ones(()), []
    for module in reversed(model):
        if isinstance(module, Measured):
            bounds.append(module.linf_bound() * factor)
        elif isinstance(module, nn.Linear):
            factor = factor * torch.linalg.matrix_norm(module.weight, torch.inf)
        elif isinstance(module, AvgPool2d):
            factor = factor * module.lipschitz_in(torch.inf)
    return bounds


def norm_product(model: nn.Module) -> Tensor:
    """The product of the ℓ₂ norms of the model's nn.Linear weights, differentiable."""
    norms = [torch.linalg.matrix_norm(m.weight, 2) for m in model.modules() if type(m) is nn.Linear]
    return torch.stack(norms).prod()


def families() -> tuple[str, ...]:
    """Everything that can be trained by name: the layer families, then the baselines."""
    return (*LAYERS, *BASELINES)


def parameters(config: ModelConfig) -> int:
    """The number of parameters of the model, whose tensors are not allocated."""
    # Normalize has no parameters, and refuses the meta device, where it has no values to check.
    bare = replace(config, normalise="none")
    with torch.device("meta"):
        return sum(p.numel() for p in _build(bare).parameters())
