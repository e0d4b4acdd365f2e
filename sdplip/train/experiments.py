"""Published comparisons by name: the settings, and beside the results what was published.

[LBEN], [NEMON]: the experiment scripts of the authors' code, and the models stored with it, whose
test errors and least bounds over diagonal multipliers were measured anew, for normalised inputs.
[ARAUJO], [AOL], [CPL], [1LLC]: see `presets`, whose networks and recipes these comparisons train.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InvalidInput
from .config import CIFAR_RADII, RunConfig, override, preset
from .data import FOLDER, Splits
from .presets import CIFAR10_SHAPE, find_preset
from .published import (
    AOL_CIFAR10,
    AOL_CIFAR100,
    AOL_SOURCE,
    CIFAR10_24H,
    CIFAR_STORED,
    CPL_CIFAR10,
    GRID,
    GRID_SOURCE,
    LBEN_ATTACKED,
    LBEN_STORED,
    LBEN_WIDTHS,
    SLL_CIFAR10,
    SLL_CIFAR100,
    SLL_TINY,
    STORED_SOURCE,
)

ATTACKED = 1000
TINY_SHAPE = (3, 64, 64)


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

        Raises InvalidInput for another data set.
        """
        fits = (splits.num_classes, splits.input_shape) == (self.classes, self.shape)
        if splits.name not in self.data and not (splits.name.startswith(FOLDER) and fits):
            shape = "x".join(map(str, self.shape))
            known = " or ".join((*self.data, f"a folder of {self.classes} classes of {shape}"))
            raise InvalidInput(
                f"the experiment is about {known}, but the data set is {splits.name!r} with "
                f"{splits.num_classes} classes of {'x'.join(map(str, splits.input_shape))}. "
                "Choose it with --data."
            )
        return {
            variant.name: override(self._config(variant, splits), **changes)
            for variant in self.variants
        }

    def _config(self, variant: Variant, splits: Splits) -> RunConfig:
        settings = {**self.changes, **variant.changes}
        name = settings.pop("preset", None)
        config = preset(settings["layer"], splits) if name is None else _found(name, splits)
        if "gamma" in settings and settings["gamma"] is None:
            # None means 'as it is' to `override`.
            config = replace(config, model=replace(config.model, gamma=None))
        if settings.get("architecture") == "equilibrium":
            # Together: a family that only convolutions of equilibria know is none before.
            names = ("layer", "architecture", "width")
            together = {name: settings.pop(name) for name in names}
            config = replace(config, model=replace(config.model, **together))
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

    def published(self) -> dict[str, dict[str, float]]:
        """What was published, by the variants' names."""
        return {variant.name: variant.published for variant in self.variants}

    def sources(self) -> dict[str, str]:
        """Where that is from."""
        return {variant.name: variant.source or self.source for variant in self.variants}


def _found(name: str, splits: Splits) -> RunConfig:
    return find_preset(name).config(splits)


def _goes_by(variant: Variant, name: str) -> bool:
    return variant.name == name or variant.name.split()[0] == name


_STD = {"normalise": "std", "mean": 0.1307, "std": 0.3081}
_EQUILIBRIUM: dict[str, Any] = {
    "batch_size": 128,
    "loss": "cross_entropy",
    "attack_images": ATTACKED,
}
_LBEN: dict[str, Any] = {
    **_EQUILIBRIUM,
    **_STD,
    "width": 80,
    "epochs": 30,
    "lr": 1e-3,
    "schedule": "step",
    "radii": (0.4, 0.8, 1.5, 2.3, 3.9, 7.3),
}
_NEMON: dict[str, Any] = {
    **_EQUILIBRIUM,
    "linf_radii": (0.01, 0.03, 0.05, 0.1, 0.2),
    "linf": True,
}
_CIFAR: dict[str, Any] = {
    **_EQUILIBRIUM,
    "architecture": "equilibrium",
    "width": 81,
    "normalise": "std",
    "lr": 1e-3,
    "schedule": "multistep",
    "attack_images": 200,
}
"""Mean and deviation are those of the data."""


def _sizes(
    sizes: dict[str, dict[str, float]], source: str, layer: str = "sll"
) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"{layer} {size}", {"layer": layer, "preset": f"{layer}-{size}"}, figures, source)
        for size, figures in sizes.items()
    )


def _lben(gamma: float) -> Variant:
    error, bound, sampled = LBEN_STORED[gamma]
    figures = {"error": error, "verified": bound, "sampled": sampled}
    attacked = LBEN_ATTACKED.get(f"lben γ={gamma:g}", {})
    return Variant(f"lben γ={gamma:g}", {"layer": "lben", "gamma": gamma}, figures | attacked)


def _cifar(name: str, layer: str, gamma: float | None) -> Variant:
    return Variant(name, {"layer": layer, "gamma": gamma}, CIFAR_STORED.get(name, {}))


def _grid(layer: str, size: str) -> Variant:
    figures = dict(GRID.get(layer, {}).get(size, {})) | CIFAR10_24H.get(f"{layer} {size}", {})
    changes = {"layer": layer, "preset": f"convnet-{size}-{layer}"}
    return Variant(f"{layer} {size}", changes, figures)


_PENALTIES = (1e-4, 1e-3, 1e-2)

EXPERIMENTS = {
    "lben-mnist": Experiment(
        "Test error against the Lipschitz bound: equilibrium networks of 80 units on MNIST",
        STORED_SOURCE,
        ("mnist",),
        10,
        (1, 28, 28),
        _LBEN,
        (
            *map(_lben, LBEN_STORED),
            Variant(
                "lben no bound",
                {"layer": "lben", "gamma": None},
                {"error": 2.03, "verified": 11.76, "sampled": 9.26},
            ),
            Variant(
                "mon",
                {"layer": "mon", "gamma": None},
                {"error": 2.04, "verified": 8.752, "sampled": 7.07} | LBEN_ATTACKED["mon"],
            ),
            Variant(
                "lipschitz-margin",
                {"layer": "unconstrained", "depth": 1, "loss": "lipschitz_margin", "offset": 0.1},
            ),
            Variant("unconstrained", {"layer": "unconstrained", "depth": 1}),
        ),
    ),
    "lben-mnist-widths": Experiment(
        "Test error against the width: equilibrium networks with γ = 1 on MNIST",
        STORED_SOURCE,
        ("mnist",),
        10,
        (1, 28, 28),
        _LBEN | {"layer": "lben", "gamma": 1.0},
        tuple(
            Variant(f"lben width={width}", {"width": width}, {"error": error, "verified": bound})
            for width, (error, bound) in LBEN_WIDTHS.items()
        ),
    ),
    "lben-cifar10": Experiment(
        "Test error against the Lipschitz bound: equilibrium convolutions of 81 channels on "
        "CIFAR-10",
        f"{STORED_SOURCE}: figures as stored, metric of every pixel, ε = 0.1",
        ("cifar10",),
        10,
        CIFAR10_SHAPE,
        _CIFAR | {"epochs": 25, "milestones": (0.6,), "radii": (0.38, 1.54, 3.85)},
        (
            *(_cifar(f"lben γ={gamma:g}", "lben", gamma) for gamma in (1.0, 2.0, 3.0, 5.0, 50.0)),
            _cifar("lben no bound", "lben", None),
            _cifar("mon", "mon", None),
            Variant(
                "unconstrained", {"layer": "unconstrained"}, CIFAR_STORED["unconstrained"]
            ),
        ),
    ),
    "nemon-mnist": Experiment(
        "Robustness in ℓ∞: equilibrium networks of 100 units on MNIST",
        "[NEMON] section 6; without published numbers",
        ("mnist",),
        10,
        (1, 28, 28),
        _NEMON | _STD | {"width": 100, "epochs": 30, "lr": 2e-3, "schedule": "piecewise"},
        (
            Variant("nemon", {"layer": "nemon", "linf_penalty": 0.0}),
            *(
                Variant(f"nemon penalty {weight:g}", {"layer": "nemon", "linf_penalty": weight})
                for weight in _PENALTIES
            ),
            Variant("mon", {"layer": "mon", "gamma": None}),
            Variant("lben γ=5", {"layer": "lben", "gamma": 5.0}),
        ),
    ),
    "nemon-cifar10": Experiment(
        "Robustness in ℓ∞: equilibrium convolutions of 81 channels on CIFAR-10",
        "[NEMON] section 6; without published numbers",
        ("cifar10",),
        10,
        CIFAR10_SHAPE,
        _NEMON
        | _CIFAR
        | {
            "epochs": 40,
            "milestones": (0.625,),
            "kernel": 5,
            "fgsm": True,
            "linf_radii": (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
        },
        (
            Variant("nemon", {"layer": "nemon", "linf_penalty": 0.0}),
            *(
                Variant(f"nemon penalty {weight:g}", {"layer": "nemon", "linf_penalty": weight})
                for weight in (1e-4, 1e-3)
            ),
            Variant("mon", {"layer": "mon", "gamma": None}),
            Variant("unconstrained", {"layer": "unconstrained"}),
        ),
    ),
    "sll-cifar10": Experiment(
        "Certified accuracy of 1-Lipschitz residual networks on CIFAR-10",
        "[ARAUJO] section 5",
        ("cifar10",),
        10,
        CIFAR10_SHAPE,
        {},
        (
            *SLL_CIFAR10_VARIANTS,
        ),
    ),
}
"""Every experiment by name."""
