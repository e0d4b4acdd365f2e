"""Published networks by name, each with the recipe that it was published with.

`sll-*` [ARAUJO] and `cpl-*` [CPL] are one architecture; `aol-*` is that of [AOL]. `convnet-SIZE`
and `convnet-SIZE-FAMILY` are the ConvNet of [1LLC], for every family that can be stacked.

Sources, of architectures and recipes alike, are the authors' public code. What it leaves open:
[ARAUJO]'s batches are of four processes with 64 images each. [CPL] gives no sizes in the code; the
paper's and [ARAUJO]'s parameters (236 M) agree with those here. [AOL] penalises the squared kernels
in the loss, which is twice that factor as weight decay, here on biases as well. [1LLC] searched
rates and weight decay at random for every family and size: the best for XS, S and M are here, L
takes those of M; `orthogonal` takes BCOP's, and families that they did not train take AOL's. Their
rates are for thousands of epochs, with a warm-up of a third: AOL and its kin need lower ones in a
short run.

[CPL]: Meunier, Delattre, Araujo, Allauzen, A dynamical system perspective for Lipschitz neural
networks (ICML 2022). [1LLC]: Prach, Brau, Buttazzo, Lampert, 1-Lipschitz layers compared (CVPR
2024). [AOL], [ARAUJO]: see `sdplip.layers.aol` and `sdplip.layers.sll`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ...errors import InvalidInput
from .. import convnets
from ..config import CIFAR_RADII, EvalConfig, RunConfig, TrainConfig
from ..data import Splits
from ..models import ModelConfig, parameters

CIFAR10_SHAPE = (3, 32, 32)
ATTACKED = 500
"""Test images that are attacked unless --attack-images says otherwise."""


@dataclass(frozen=True)
class Preset:
    """A published network: `model` and `train` are entries of ModelConfig and TrainConfig.

    `published` is the number of parameters that its source states, in millions (None: no number).
    """

    source: str
    model: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    published: float | None = None

    def config(self, splits: Splits) -> RunConfig:
        """The network and its recipe for a data set.

        Raises InvalidInput for images that the architecture cannot take.
        """
        model = dict(self.model)
        if model["architecture"] == "convnet" and min(splits.input_shape[1:], default=0) >= 64:
            # [1LLC]: one block more, from half as many channels.
            model["width"] //= 2
        return RunConfig(
            ModelConfig(
                input_shape=splits.input_shape,
                num_classes=splits.num_classes,
                normalise="mean",
                mean=tuple(round(mean, 4) for mean in splits.channel_means),
                std=round(splits.std, 4),
                **model,
            ),
            TrainConfig(data=splits.name, **self.train),
            EvalConfig(radii=CIFAR_RADII, verify=False, attack_images=ATTACKED),
        )

    def parameters(self) -> int:
        """Of the network for CIFAR-10."""
        config = ModelConfig(input_shape=CIFAR10_SHAPE, num_classes=10, **self.model)
        return parameters(config)

    def recipe(self) -> str:
        """The recipe in a few words."""
        train = TrainConfig(**self.train)
        words = (train.optimizer, f"lr {train.lr:g}", train.schedule, train.loss, train.augment)
        return f"{', '.join(words)}, {train.epochs} epochs of batches of {train.batch_size}"


_SIZES = {
    "small": (20, 45, 7),
    "medium": (30, 60, 10),
    "large": (50, 90, 10),
    "xlarge": (70, 120, 15),
}
"""Convolutions, their channels, dense layers."""

_SLL_RECIPE: dict[str, Any] = {
    "epochs": 1000,
    "batch_size": 256,
    "lr": 1e-2,
    "betas": (0.5, 0.9),
    "schedule": "piecewise",
    "augment": "colour",
}
_CPL_RECIPE: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 256,
    "lr": 1e-3,
    "schedule": "piecewise",
    "loss": "multi_margin",
    "offset": 0.7,
    "augment": "crop-reflect",
}
_AOL_RECIPE: dict[str, Any] = {
    "epochs": 1000,
    "batch_size": 250,
    "lr": 1e-3,
    "optimizer": "sgd",
    "nesterov": True,
    "weight_decay": 1e-3,
    "schedule": "multistep",
    "milestones": (0.9, 0.99, 0.999),
    "offset": 2**0.5,
    "augment": "affine",
}
_CONVNET_RECIPE: dict[str, Any] = {
    "epochs": 1000,
    "batch_size": 256,
    "optimizer": "sgd",
    "schedule": "onecycle",
    "offset": 0.3993,
    "augment": "crop",
}
CONVNETS = {"xs": (16, 1.57), "s": (32, 6.28), "m": (64, 25.1), "l": (128, 100.0)}
"""Channels of the first block, and millions of parameters."""

# Learning rate and weight decay of the runs of 24 hours on CIFAR-10.
_SEARCHED = {
    "aol": {"xs": (5.73e-2, 3.68e-5), "s": (1.26e-2, 5.43e-5), "m": (1.54e-2, 1.03e-4)},
    "sll": {"xs": (9.07e-2, 1.99e-5), "s": (3.99e-2, 1.94e-4), "m": (9.47e-2, 8.70e-5)},
    "cpl": {"xs": (3.43e-2, 1.27e-4), "s": (7.04e-2, 1.50e-4), "m": (8.44e-2, 9.94e-5)},
    "orthogonal": {"xs": (6.52e-3, 2.56e-4), "s": (3.63e-3, 7.74e-5), "m": (6.02e-3, 6.55e-6)},
}


def _every() -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    published = {"small": 41.4, "medium": 78.7, "large": 118.0, "xlarge": 236.0}
    for layer, source, recipe in (("sll", "[ARAUJO]", _SLL_RECIPE), ("cpl", "[CPL]", _CPL_RECIPE)):
        for size, (depth, width, dense) in _SIZES.items():
            model = {
                "layer": layer,
                "architecture": "residual",
                "width": width,
                "depth": depth,
                "hidden": 5,
                "dense_depth": dense,
                "dense_width": 2048,
            }
            found[f"{layer}-{size}"] = Preset(source, model, recipe, published[size])
    for size, kept in {"small": 16, "medium": 32, "large": 48}.items():
        model = {
            "layer": "aol",
            "architecture": "patchwise",
            "width": 192,
            "depth": 12,
            "dense_depth": 14,
            "dense_width": 64 * kept,
        }
        found[f"aol-{size}"] = Preset("[AOL]", model, _AOL_RECIPE)
    for size in CONVNETS:
        for family in (*convnets.families(), convnets.UNCONSTRAINED):
            found[f"convnet-{size}-{family}"] = _convnet(size, family)
    return found


def _convnet(size: str, family: str) -> Preset:
    width, millions = CONVNETS[size]
    rates = _SEARCHED.get(family, _SEARCHED["aol"])
    lr, decay = rates.get(size, rates["m"])
    model = {"layer": family, "architecture": "convnet", "width": width, "depth": 5}
    recipe = _CONVNET_RECIPE | {"lr": lr, "weight_decay": decay}
    if family == convnets.UNCONSTRAINED:
        recipe |= {"loss": "cross_entropy"}
    # Other families have more or fewer free numbers for the same kernels.
    return Preset("[1LLC]", model, recipe, millions if family in ("aol", "cpl", "sll") else None)


PRESETS = _every()
"""Every published network by its name."""


def find_preset(name: str, layer: str | None = None) -> Preset:
    """The preset `name`; that of a convnet's size, with the family `layer`.

    Raises InvalidInput for a name that is none, and for a convnet without a family.
    """
    sizes = [f"convnet-{size}" for size in CONVNETS]
    if name in sizes:
        if layer is None:
            raise InvalidInput(
                f"preset {name!r} needs a family. Add --layer, one of "
                f"{', '.join(convnets.families())}."
            )
        name = f"{name}-{layer}"
    if name not in PRESETS:
        raise InvalidInput(_unknown(name, sizes))
    return PRESETS[name]


def _unknown(name: str, sizes: list[str]) -> str:
    from .comparisons import EXPERIMENTS

    models = [f"{key}/{model}" for key, found in EXPERIMENTS.items() for model in found.models]
    close = get_close_matches(name, [*PRESETS, *sizes, *EXPERIMENTS, *models])
    similar = f"; similar: {', '.join(close)}" if close else ""
    others = [key for key in PRESETS if not key.startswith("convnet-")]
    return (
        f"preset {name!r} is not known{similar}. The "
        f"networks are {', '.join(others)}, and {', '.join(sizes)} with one of the families "
        f"{', '.join(convnets.families())} or {convnets.UNCONSTRAINED}, as in convnet-xs-aol; the "
        f"comparisons are {', '.join(EXPERIMENTS)}, and their models as {models[0]}: see "
        "--list-presets."
    )
