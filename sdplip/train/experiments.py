"""Published comparisons by name: the settings, and beside the results what was published.

[LBEN], [NEMON]: the experiment scripts of the authors' code, and the models stored with it, whose
test errors and least bounds over diagonal multipliers were measured anew, for normalised inputs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .checkpoint import read_json
from .config import RunConfig, override, preset
from .data import Splits

ATTACKED = 1000
MEASURING = 0.35
"""The share of a budget that is kept for measuring what was trained."""
WARM, PROBED = 3, 10
"""Steps before a step's time is taken, and steps that it is taken from."""


@dataclass(frozen=True)
class Variant:
    """One model of a comparison: its name, what it changes, and published figures by name."""

    name: str
    changes: dict[str, Any]
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A comparison: data set, settings common to all, and the models."""

    title: str
    source: str
    data: tuple[str, ...]
    changes: dict[str, Any]
    variants: tuple[Variant, ...]

    def configs(self, splits: Splits, **changes: Any) -> dict[str, RunConfig]:
        """Every variant's configuration by its name; `changes` as in `override` go on top.

        Raises InvalidInput for another data set.
        """
        if splits.name not in self.data:
            raise InvalidInput(
                f"the experiment is about {' or '.join(self.data)}, but the data set is "
                f"{splits.name!r}. Choose it with --data."
            )
        found = {}
        for variant in self.variants:
            settings = {**self.changes, **variant.changes}
            config = preset(settings["layer"], splits)
            if "gamma" in settings and settings["gamma"] is None:
                # None means 'as it is' to `override`.
                config = replace(config, model=replace(config.model, gamma=None))
            found[variant.name] = override(override(config, **settings), **changes)
        return found

    def published(self) -> dict[str, dict[str, float]]:
        """What was published, by the variants' names."""
        return {variant.name: variant.published for variant in self.variants}


def shrink(config: RunConfig, scale: float) -> RunConfig:
    """The same run with a share of its epochs, at least one; it keeps the full number.

    Raises InvalidInput for a scale outside (0, 1].
    """
    if not 0 < scale <= 1:
        raise InvalidInput(f"scale is {scale}, but must lie in (0, 1].")
    full = config.train.of_epochs or config.train.epochs
    epochs = max(1, round(scale * full))
    return override(config, epochs=epochs, of_epochs=None if epochs == full else full)


def affordable(
    configs: dict[str, RunConfig], splits: Splits, minutes: float, device: str = "auto"
) -> dict[str, RunConfig]:
    """The runs shortened so that all of them, measuring included, take about `minutes`.

    Every run gets the same time; what one leaves over goes to the others. A run that cannot finish
    one epoch gets fewer images, evenly from all classes.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise InvalidInput(f"budget is {minutes}, but must be a positive number of minutes.")
    cost = {name: _epoch_seconds(config, splits, device) for name, config in configs.items()}
    left, found = 60 * minutes * (1 - MEASURING), {}
    # The cheapest first: what they cannot use is the others'.
    order = sorted(configs, key=lambda name: cost[name] * configs[name].train.epochs)
    for k, name in enumerate(order):
        share = left / (len(order) - k)
        config, full = configs[name], configs[name].train.epochs
        epochs = min(full, max(1, int(share / cost[name])))
        images = config.train.train_images or len(splits.train[0])
        if cost[name] > share:
            least = min(images, 10 * splits.num_classes)
            images = max(least, int(images * share / cost[name]))
        limited = images < len(splits.train[0])
        found[name] = override(
            config,
            epochs=epochs,
            of_epochs=full if epochs < full else None,
            train_images=images if limited else None,
        )
        left -= epochs * cost[name] * images / (config.train.train_images or len(splits.train[0]))
    return {name: found[name] for name in configs}


def _epoch_seconds(config: RunConfig, splits: Splits, device: str) -> float:
    """Seconds of an epoch, from a few steps of a model that is thrown away."""
    from .fit import steps

    chosen = splits.first(config.train.train_images)
    batches = -(-len(chosen.train[0]) // config.train.batch_size)
    times = []
    began = time.perf_counter()
    for k, _ in enumerate(steps(config, chosen, device)):
        now = time.perf_counter()
        if k >= WARM:
            times.append(now - began)
        began = now
        if k + 1 >= min(WARM + PROBED, max(batches, WARM + 1)):
            break
    return batches * sorted(times)[len(times) // 2]


def settled(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with the length of the run that `folder` holds, where that is all that differs.

    A budget is measured anew by every command; what was begun must go on as it began.
    """
    if not (folder / "config.json").is_file():
        return config
    try:
        stored = RunConfig.from_dict(read_json(folder / "config.json"))
    except InvalidInput:
        return config
    names = ("epochs", "of_epochs", "train_images")
    length = {name: getattr(stored.train, name) for name in names}
    same = replace(config, train=replace(config.train, **length))
    return same if same == stored else config


_LBEN: dict[str, Any] = {
    "width": 80,
    "normalise": "std",
    "mean": 0.1307,
    "std": 0.3081,
    "epochs": 30,
    "batch_size": 128,
    "lr": 1e-3,
    "schedule": "step",
    "loss": "cross_entropy",
    "attack_images": ATTACKED,
    "radii": (0.4, 0.8, 1.5, 2.3, 3.9, 7.3),
}
_STORED = {
    0.1: (10.12, 0.0991, 0.0988),
    0.2: (7.41, 0.1962, 0.1954),
    0.3: (5.44, 0.2937, 0.2920),
    0.5: (3.52, 0.4821, 0.4757),
    1.0: (2.36, 0.9158, 0.8834),
    8.0: (1.83, 5.50, 4.94),
    50.0: (1.77, 13.21, 11.04),
}
"""γ: test error in %, least bound, largest Jacobian found."""


def _lben(gamma: float) -> Variant:
    error, bound, sampled = _STORED[gamma]
    return Variant(
        f"lben γ={gamma:g}",
        {"layer": "lben", "gamma": gamma},
        {"error": error, "verified": bound, "sampled": sampled},
    )


EXPERIMENTS = {
    "lben-mnist": Experiment(
        "Test error against the Lipschitz bound: equilibrium networks of 80 units on MNIST",
        "[LBEN] section 7; published: the models stored with the authors' code",
        ("mnist",),
        _LBEN,
        (
            *map(_lben, _STORED),
            Variant(
                "lben no bound",
                {"layer": "lben", "gamma": None},
                {"error": 2.03, "verified": 11.76, "sampled": 9.26},
            ),
            Variant(
                "mon",
                {"layer": "mon", "gamma": None},
                {"error": 2.04, "verified": 8.752, "sampled": 7.07},
            ),
            Variant(
                "lipschitz-margin",
                {"layer": "unconstrained", "depth": 1, "loss": "lipschitz_margin", "offset": 0.1},
            ),
            Variant("unconstrained", {"layer": "unconstrained", "depth": 1}),
        ),
    ),
    "nemon-mnist": Experiment(
        "Robustness in ℓ∞: equilibrium networks of 100 units on MNIST",
        "[NEMON] section 6; without published numbers",
        ("mnist",),
        {
            "width": 100,
            "normalise": "std",
            "mean": 0.1307,
            "std": 0.3081,
            "epochs": 30,
            "batch_size": 128,
            "lr": 2e-3,
            "schedule": "piecewise",
            "loss": "cross_entropy",
            "attack_images": ATTACKED,
            "linf_radii": (0.01, 0.03, 0.05, 0.1, 0.2),
            "linf": True,
        },
        (
            Variant("nemon", {"layer": "nemon", "linf_penalty": 0.0}),
            *(
                Variant(f"nemon penalty {weight:g}", {"layer": "nemon", "linf_penalty": weight})
                for weight in (1e-4, 1e-3, 1e-2)
            ),
            Variant("mon", {"layer": "mon", "gamma": None}),
            Variant("lben γ=5", {"layer": "lben", "gamma": 5.0}),
        ),
    ),
}
"""Every experiment by name."""
