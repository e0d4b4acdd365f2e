"""Published comparisons by name: the settings, and beside the results what was published.

[LBEN], [NEMON]: the experiment scripts of the authors' code, and the models stored with it, whose
test errors and least bounds over diagonal multipliers were measured anew, for normalised inputs.
[ARAUJO], [AOL], [CPL], [1LLC]: see `presets`, whose networks and recipes these comparisons train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...errors import InvalidInput
from .. import convnets
from ..config import RunConfig, override, preset
from ..data import FOLDER, Splits
from ..directory import folder_name
from ..models import ModelConfig
from . import published
from .presets import CIFAR10_SHAPE, find_preset

ATTACKED = 1000
"""Test images of MNIST that are attacked."""


@dataclass(frozen=True)
class Variant:
    """One model of a comparison: its name, what it changes, and published figures by name.

    `changes` are entries of a configuration, or "preset", the published network to start from.
    `published` are figures as in `captions`, from `source`, or that of the comparison.
    """

    name: str
    changes: dict[str, Any]
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Experiment:
    """A comparison: data sets, settings common to all, and the models.

    `data` are names of data sets; a folder of images will do where it has as many `classes` and
    images of this `shape`. With `each`, a budget is that of each model's training.
    """

    title: str
    source: str
    data: tuple[str, ...]
    classes: int
    shape: tuple[int, ...]
    changes: dict[str, Any]
    variants: tuple[Variant, ...]
    each: bool = False

    def configs(self, splits: Splits, **changes: Any) -> dict[str, RunConfig]:
        """Every variant's configuration by its name; `changes` as in `override` go on top.

        What trains on fewer images or epochs is marked as shorter than its recipe.

        Raises InvalidInput for another data set, and for what a variant, by its name, sets itself.
        """
        fits = (splits.num_classes, splits.input_shape) == (self.classes, self.shape)
        if splits.name not in self.data and not (splits.name.startswith(FOLDER) and fits):
            shape = "x".join(map(str, self.shape))
            folder = f"a folder of {self.classes} classes of {shape}"
            known = " or ".join((*self.data, folder))
            raise InvalidInput(
                f"the experiment is about {known}, but the data set is {splits.name!r} with "
                f"{splits.num_classes} classes of {'x'.join(map(str, splits.input_shape))}. "
                "Choose it with --data."
            )
        found = {}
        for variant in self.variants:
            for name in variant.changes:
                if changes.get(name) is not None:
                    raise InvalidInput(
                        f"{name} = {changes[name]!r}, but the model {variant.name!r} of the "
                        f"comparison has {name} = {variant.changes[name]!r}. Leave it out."
                    )
            recipe = self._config(variant, splits)
            config = found[variant.name] = override(recipe, **changes)
            full, images = recipe.train.epochs, config.train.train_images or math.inf
            if config.train.epochs < full or images < len(splits.train[0]):
                full = max(full, config.train.epochs)
                found[variant.name] = override(config, of_epochs=full)
        return found

    def _config(self, variant: Variant, splits: Splits) -> RunConfig:
        settings = {**self.changes, **variant.changes}
        name = settings.pop("preset", None)
        if name is None:
            config = preset(settings["layer"], splits)
        else:
            config = find_preset(name).config(splits)
        if "gamma" in settings and settings["gamma"] is None:
            # None means 'as it is' to `override`.
            config = replace(config, model=replace(config.model, gamma=None))
        return override(config, **settings)

    def only(self, names: str) -> Experiment:
        """With the models of these names, or of the families, separated by commas; "all".

        Raises InvalidInput for a name of none.
        """
        if names == "all":
            return self
        wanted = [name.strip() for name in names.split(",")]
        for name in wanted:
            if not any(_goes_by(variant, name) for variant in self.variants):
                raise InvalidInput(
                    f"the experiment has no model {name!r}. Its models are "
                    f"{', '.join(variant.name for variant in self.variants)}."
                )
        kept = tuple(v for v in self.variants if any(_goes_by(v, name) for name in wanted))
        return replace(self, variants=kept)

    @property
    def models(self) -> dict[str, Variant]:
        """The variants by their names in `sdplip train --preset COMPARISON/MODEL`."""
        return {folder_name(variant.name): variant for variant in self.variants}

    def published(self, **changes: Any) -> dict[str, dict[str, float]]:
        """What was published, by the variants' names; nothing where `changes` make other models."""
        if any(changes.get(setting.name) is not None for setting in fields(ModelConfig)):
            return {}
        return {variant.name: variant.published for variant in self.variants}

    def sources(self, data: str = "") -> dict[str, str]:
        """Where that is from; and that it is about other images, where `data` is a folder."""
        found = {variant.name: variant.source or self.source for variant in self.variants}
        if self.data and data.startswith(FOLDER):
            found = {k: f"{source}; of {self.data[0]}'s own images" for k, source in found.items()}
        return found


def _goes_by(variant: Variant, name: str) -> bool:
    return variant.name == name or variant.name.split()[0] == name


_NORMALISED = {"normalise": "std", "mean": 0.1307, "std": 0.3081}
_MNIST: dict[str, Any] = {"data": ("mnist",), "classes": 10, "shape": (1, 28, 28)}
_CIFAR10: dict[str, Any] = {"data": ("cifar10",), "classes": 10, "shape": CIFAR10_SHAPE}
_CIFAR100: dict[str, Any] = {"data": ("cifar100",), "classes": 100, "shape": CIFAR10_SHAPE}
_TINY: dict[str, Any] = {"data": (), "classes": 200, "shape": (3, 64, 64)}
_COMMON: dict[str, Any] = {
    "batch_size": 128,
    "loss": "cross_entropy",
    "attack_images": ATTACKED,
}
_LBEN: dict[str, Any] = {
    **_COMMON,
    **_NORMALISED,
    "width": 80,
    "epochs": 30,
    "lr": 1e-3,
    "schedule": "step",
    # 0.39, 0.78, 1.55, 2.3, 3.85 and 7.3 for the normalised input.
    "radii": (0.12, 0.24, 0.48, 0.71, 1.19, 2.25),
    "fgsm": True,
}
_NEMON: dict[str, Any] = {
    **_COMMON,
    **_NORMALISED,
    "width": 100,
    "epochs": 30,
    "lr": 2e-3,
    "schedule": "piecewise",
    "linf_radii": (0.01, 0.03, 0.05, 0.1, 0.2),
    "linf": True,
    "fgsm": True,
}
# Mean and deviation are those of the data; ε is that of the layers, 1 instead of 0.1.
_CONVOLUTION: dict[str, Any] = {
    **_COMMON,
    "architecture": "equilibrium",
    "width": 81,
    "normalise": "std",
    "lr": 1e-3,
    "schedule": "multistep",
    "attack_images": 200,
    "steps": 10,
    "restarts": 1,
    "fgsm": True,
}


def _lben(gamma: float) -> Variant:
    name = f"lben γ={gamma:g}"
    figures = dict(zip(("error", "verified", "sampled"), published.LBEN_MNIST[gamma], strict=True))
    attacked = published.LBEN_ATTACKED.get(name, {})
    return Variant(name, {"layer": "lben", "gamma": gamma}, figures | attacked)


def _without_bound(name: str, layer: str) -> Variant:
    figures = published.WITHOUT_BOUND[name] | published.LBEN_ATTACKED.get(name, {})
    return Variant(name, {"layer": layer, "gamma": None}, figures)


def _convolution(name: str, layer: str, **changes: Any) -> Variant:
    return Variant(name, {"layer": layer, **changes}, published.LBEN_CIFAR10.get(name, {}))


def _penalties(*weights: float) -> list[Variant]:
    return [
        Variant("nemon", {"layer": "nemon", "linf_penalty": 0.0}),
        *(
            Variant(f"nemon penalty {weight:g}", {"layer": "nemon", "linf_penalty": weight})
            for weight in weights
        ),
    ]


def _networks(data: str, *layers: str) -> tuple[Variant, ...]:
    """The published networks of these families."""
    tables = {
        "sll": (published.SLL, published.SLL_SOURCE),
        "cpl": (published.CPL, published.CPL_SOURCE),
        "aol": (published.AOL, published.AOL_SOURCE),
    }
    return tuple(
        Variant(
            f"{layer} {size}", {"layer": layer, "preset": f"{layer}-{size}"}, figures, source
        )
        for layer in layers
        for table, source in [tables[layer]]
        for size, figures in table[data].items()
    )  # fmt: skip


def _grid(data: str, layers: Sequence[str], *sizes: str) -> tuple[Variant, ...]:
    """Convnets of these families and sizes."""
    return tuple(
        Variant(
            f"{layer} {size}",
            {"layer": layer, "preset": f"convnet-{size}-{layer}"},
            published.grid(data, layer, size),
            published.GRID_SOURCE,
        )
        for layer in layers
        for size in sizes
    )


def _compared(name: str, data: str, where: dict[str, Any]) -> Experiment:
    return Experiment(
        f"1-Lipschitz layers compared: family x size at the same time, on {name}; a budget is "
        "that of each training",
        published.GRID_SOURCE,
        **where,
        changes={},
        variants=_grid(data, convnets.families(), *published.GRID_SIZES),
        each=True,
    )


EXPERIMENTS = {
    "lben-mnist": Experiment(
        "Test error against the Lipschitz bound: equilibrium networks of 80 units on MNIST",
        f"{published.STORED}, measured anew",
        **_MNIST,
        changes=_LBEN,
        variants=(
            *map(_lben, published.LBEN_MNIST),
            _without_bound("lben no bound", "lben"),
            _without_bound("mon", "mon"),
            Variant(
                "lipschitz-margin",
                {"layer": "unconstrained", "depth": 1, "loss": "lipschitz_margin", "offset": 0.1},
            ),
            Variant("unconstrained", {"layer": "unconstrained", "depth": 1}),
        ),
    ),
    "lben-mnist-widths": Experiment(
        "Test error against width: equilibrium networks with γ = 1 on MNIST",
        f"{published.STORED}, measured anew",
        **_MNIST,
        changes={**_LBEN, "layer": "lben", "gamma": 1.0},
        variants=tuple(
            Variant(f"lben width={width}", {"width": width}, {"error": error, "verified": bound})
            for width, (error, bound) in published.LBEN_WIDTHS.items()
        ),
    ),
    "lben-cifar10": Experiment(
        "Test error against the Lipschitz bound: equilibrium convolutions of 81 channels on "
        "CIFAR-10",
        f"{published.STORED}, as stored",
        **_CIFAR10,
        changes={**_CONVOLUTION, "epochs": 25, "milestones": (0.6,), "radii": (0.1, 0.4, 1.0)},
        variants=(
            *(
                _convolution(f"lben γ={gamma:g}", "lben", gamma=gamma)
                for gamma in (1.0, 2.0, 3.0, 5.0, 50.0)
            ),
            _convolution("lben no bound", "lben", gamma=None),
            _convolution("mon", "mon", gamma=None),
            _convolution("unconstrained", "unconstrained"),
        ),
    ),
    "nemon-mnist": Experiment(
        "Robustness in ℓ∞: equilibrium networks of 100 units on MNIST",
        "Jafarpour et al. (arXiv 2106.03194), section 6; without published numbers",
        **_MNIST,
        changes=_NEMON,
        variants=(
            *_penalties(1e-4, 1e-3, 1e-2),
            Variant("implicit", {"layer": "implicit", "linf_penalty": 0.0}),
            Variant("mon", {"layer": "mon", "gamma": None}),
            Variant("lben γ=5", {"layer": "lben", "gamma": 5.0}),
        ),
    ),
    "nemon-cifar10": Experiment(
        "Robustness in ℓ∞: equilibrium convolutions of 81 channels on CIFAR-10",
        "Jafarpour et al. (arXiv 2106.03194), section 6; without published numbers",
        **_CIFAR10,
        changes={
            **_CONVOLUTION,
            "kernel": 5,
            "epochs": 40,
            "milestones": (0.625,),
            "linf_radii": tuple(k / 255 for k in (1, 2, 4, 8, 16)),
            "linf": True,
        },
        variants=(
            *_penalties(1e-4, 1e-3),
            Variant("mon", {"layer": "mon", "gamma": None}),
            Variant("unconstrained", {"layer": "unconstrained"}),
        ),
    ),
    "sll-cifar10": Experiment(
        "Certified accuracy of 1-Lipschitz networks on CIFAR-10",
        published.SLL_SOURCE,
        **_CIFAR10,
        changes={},
        variants=(
            *_networks("cifar10", "sll", "cpl", "aol"),
            *_grid("cifar10", ["orthogonal"], "l"),
        ),
    ),
    "sll-cifar100": Experiment(
        "Certified accuracy of 1-Lipschitz networks on CIFAR-100",
        published.SLL_SOURCE,
        **_CIFAR100,
        changes={},
        variants=(
            *_networks("cifar100", "sll", "aol"),
            *_grid("cifar100", ["orthogonal"], "l"),
        ),
    ),
    "sll-tiny": Experiment(
        "Certified accuracy of 1-Lipschitz networks on Tiny-ImageNet, a folder of images",
        published.SLL_SOURCE,
        **_TINY,
        changes={},
        variants=_networks("tiny", "sll"),
    ),
    "1lc-cifar10": _compared("CIFAR-10", "cifar10", _CIFAR10),
    "1lc-cifar100": _compared("CIFAR-100", "cifar100", _CIFAR100),
    "1lc-tiny": _compared("Tiny-ImageNet, a folder of images", "tiny", _TINY),
}
"""Every experiment by name."""


def one_model(name: str) -> Experiment | None:
    """The comparison with this one model, named as in "lben-mnist/lben-gamma-1"; None where the
    name is of another kind.

    Raises InvalidInput for a model that the comparison does not have.
    """
    experiment, _, model = name.partition("/")
    if experiment not in EXPERIMENTS:
        return None
    whole = EXPERIMENTS[experiment]
    if model not in whole.models:
        raise InvalidInput(
            f"preset {name!r} is no model of the comparison {experiment}. Give one of "
            f"{', '.join(f'{experiment}/{known}' for known in whole.models)}, or train them all "
            f"with sdplip compare --preset {experiment}."
        )
    return replace(whole, variants=(whole.models[model],))
