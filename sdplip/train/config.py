"""What a run is made of: a model, a training recipe, an evaluation. All of it JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InvalidInput
from .data import DATASETS, FOLDER, Splits, augment, known
from .entries import check_choices, check_finite, check_least, check_types, plain, read_config
from .evaluation.attack import ATTACKS
from .loss import OFFSET, TEMPERATURE
from .models import ModelConfig, norm_of

SCHEDULES = ("constant", "piecewise", "onecycle", "cosine", "step", "multistep")
LOSSES = ("margin", "multi_margin", "cross_entropy", "lipschitz_margin")
OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("32", "bf16-mixed")
CIFAR_RADII = (36 / 255, 72 / 255, 108 / 255, 1.0)
"""Where the literature states certified accuracy on colour images."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: `optimizer` at `lr` under `schedule`, minimising `loss`.

    `betas` are Adam's, `momentum` and `nesterov` those of SGD; a multistep schedule divides the
    rate by ten at every share of the epochs in `milestones`. `offset` and `temperature` belong to
    the losses with a margin, `linf_penalty` weighs NEMON's differentiable ℓ∞ bound in the loss.
    `augment` names one of AUGMENTATIONS. With `precision` "bf16-mixed" products are in bfloat16
    while training; what is measured afterwards never is. `train_images` restricts the training
    images, see `Splits.first`. The optimiser steps after every `accumulate` batches; with
    `ema` > 0 the result is the exponential moving average of the weights, with that decay.
    `of_epochs` is the recipe's number of epochs where a run is shorter.
    """

    data: str = "digits"
    epochs: int = 30
    batch_size: int = 64
    lr: float = 5e-3
    schedule: str = "piecewise"
    loss: str = "margin"
    offset: float = OFFSET
    temperature: float = TEMPERATURE
    linf_penalty: float = 0.0
    seed: int = 0
    optimizer: str = "adam"
    betas: tuple[float, ...] = (0.9, 0.999)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = (0.9, 0.99, 0.999)
    augment: str = "none"
    precision: str = "32"
    train_images: int | None = None
    of_epochs: int | None = None
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self) -> None:
        check_types("train", self)
        if not known(self.data):
            raise InvalidInput(
                f"train: data is {self.data!r}, but must be one of {', '.join(DATASETS)} or "
                f"{FOLDER}PATH."
            )
        choices = {
            "schedule": SCHEDULES,
            "loss": LOSSES,
            "optimizer": OPTIMIZERS,
            "precision": PRECISIONS,
            "augment": tuple(augment.AUGMENTATIONS),
        }
        check_choices("train", self, choices)
        check_least(
            "train", self, 1, "epochs", "batch_size", "train_images", "of_epochs", "accumulate"
        )
        check_least("train", self, 0, "seed")
        check_finite("train", self, "lr", "temperature")
        check_finite("train", self, "offset", "linf_penalty", "weight_decay", positive=False)
        self._check_shares()

    def _check_shares(self) -> None:
        if len(self.betas) != 2:
            raise InvalidInput(f"train: betas is {self.betas}, but must be two numbers.")
        for name, shares in (
            ("betas", self.betas),
            ("momentum", (self.momentum,)),
            ("ema", (self.ema,)),
            ("milestones", self.milestones),
        ):
            if not all(0 <= share < 1 for share in shares):
                raise InvalidInput(
                    f"train: {name} is {getattr(self, name)}, but must lie in [0, 1)."
                )
        if self.nesterov and self.momentum == 0:
            raise InvalidInput("train: nesterov is set, but momentum is 0. Give it a momentum.")


@dataclass(frozen=True)
class EvalConfig:
    """The measurements: accuracies at `radii` (ℓ₂) and `linf_radii` (ℓ∞), per raw pixel in [0, 1].

    Accuracies are taken on the first `images` test images (None: all of them), those under attack
    on the first `attack_images` of these (None: all). With `linf`, models that promise nothing in
    ℓ∞ are measured in it too. The `attack` is "pgd", or "apgd" at six times the cost;
    `fgsm` attacks by one step of the radius as well. `verify` asks for the SDP bound; networks of
    more than `verify_units` units, and convolutional ones, are left out of it. With at most
    `pair_units` units every two of up to ten classes have a bound of their own. The first
    `local_images` of the images under attack are certified by bounds of their own surroundings,
    too, at up to a second per image and norm (None: none). With a `time_limit` in seconds, the
    search for the SDP bound ends then, and pairs have bounds of their own only if that is in time.
    """

    radii: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    linf_radii: tuple[float, ...] = (0.01, 0.03, 0.1)
    steps: int = 20
    restarts: int = 2
    images: int | None = None
    verify: bool = True
    verify_units: int = 300
    attack_images: int | None = None
    linf: bool = False
    fgsm: bool = False
    attack: str = "pgd"
    pair_units: int = 130
    local_images: int | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_types("evaluate", self)
        check_finite("evaluate", self, "radii", "linf_radii", "time_limit")
        check_choices("evaluate", self, {"attack": ATTACKS})
        counts = ("steps", "restarts", "images", "attack_images", "verify_units", "local_images")
        check_least("evaluate", self, 1, *counts)
        check_least("evaluate", self, 0, "pair_units")


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        augment.check(self.train.augment, self.model.input_shape)
        bounded = (self.model.layer, self.model.architecture) == ("unconstrained", "dense")
        if self.train.loss == "lipschitz_margin" and not bounded:
            raise InvalidInput(
                "train: loss is 'lipschitz_margin', which takes the norms of nn.Linear layers, but "
                f"the model is {self.model.layer}, {self.model.architecture}. Use it with the "
                "layer unconstrained of the architecture dense."
            )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return {
            "model": self.model.to_dict(),
            "train": plain(self.train),
            "evaluate": plain(self.evaluate),
        }

    @classmethod
    def from_dict(cls, values: object) -> RunConfig:
        """The inverse of `to_dict`; InvalidInput for unknown, missing or ill-typed entries."""
        outer = values if isinstance(values, dict) else {}
        return cls(
            read_config(ModelConfig, outer.get("model")),
            read_config(TrainConfig, outer.get("train")),
            read_config(EvalConfig, outer.get("evaluate")),
        )


def preset(layer: str, splits: Splits, width: int | None = None) -> RunConfig:
    """Defaults for a dense network of a family: what `sdplip train` and `sdplip compare` start
    from without --preset."""
    small = splits.name == "digits"
    bounded = layer != "unconstrained" and norm_of(layer) == 2
    model = ModelConfig(
        layer,
        splits.input_shape,
        splits.num_classes,
        width=(64 if small else 128) if width is None else width,
        mean=round(splits.mean, 4),
        std=round(splits.std, 4),
    )
    train = TrainConfig(
        data=splits.name,
        epochs=50 if small else 20,
        batch_size=64 if small else 128,
        lr=5e-3 if small else 2e-3,
        # A margin in the loss pays where the bound is fixed; without one it only scales weights.
        loss="margin" if bounded else "cross_entropy",
        linf_penalty=1e-2 if norm_of(layer) == math.inf else 0.0,
    )
    radii = (0.1, 0.25, 0.5, 1.0) if small else (0.1, 0.3, 0.5, 1.0, 1.58)
    if splits.input_shape[0] == 3:
        radii = CIFAR_RADII
    return RunConfig(model, train, EvalConfig(radii=radii))


def override(config: RunConfig, **changes: Any) -> RunConfig:
    """`config` with the given entries replaced, wherever they live; None leaves an entry as it is.

    Raises InvalidInput for a name that no part has, and for values the parts refuse.
    """
    wanted = {name: value for name, value in changes.items() if value is not None}
    parts = {"model": config.model, "train": config.train, "evaluate": config.evaluate}
    for key, part in parts.items():
        mine = {name: wanted.pop(name) for name in list(wanted) if hasattr(part, name)}
        parts[key] = replace(part, **mine)  # type: ignore[type-var]
    if wanted:
        raise InvalidInput(f"run: unknown entries {', '.join(sorted(wanted))}.")
    return RunConfig(**parts)  # type: ignore[arg-type]
