"""What a run is made of: a model, a training recipe, an evaluation. All of it JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import InvalidInput
from .data import DATASETS, Splits
from .loss import OFFSET, TEMPERATURE
from .models import ModelConfig, norm_of, read_config

SCHEDULES = ("constant", "piecewise", "onecycle", "cosine", "step")
LOSSES = ("margin", "cross_entropy")


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: Adam at `lr` under `schedule`, minimising `loss`.

    `linf_penalty` weighs NEMON's differentiable ℓ∞ bound in the loss.
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

    def __post_init__(self) -> None:
        for name, known in (("data", DATASETS), ("schedule", SCHEDULES), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise InvalidInput(
                    f"train: {name} is {getattr(self, name)!r}, but must be one of "
                    f"{', '.join(known)}."
                )
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InvalidInput(f"train: {name} is {value!r}, but must be an integer ≥ {least}.")
        for name in ("lr", "temperature"):
            _finite("train", name, getattr(self, name), positive=True)
        for name in ("offset", "linf_penalty"):
            _finite("train", name, getattr(self, name), positive=False)


@dataclass(frozen=True)
class EvalConfig:
    """The measurements: accuracies at `radii` (ℓ₂) and `linf_radii` (ℓ∞), per raw pixel in [0, 1].

    All three accuracies are taken on the same first `images` test images (None: all of them).
    `verify` asks for the SDP bound; networks of more than `verify_units` units are left out of it.
    """

    radii: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    linf_radii: tuple[float, ...] = (0.01, 0.03, 0.1)
    steps: int = 20
    restarts: int = 2
    images: int | None = None
    verify: bool = True
    verify_units: int = 300

    def __post_init__(self) -> None:
        for name in ("radii", "linf_radii"):
            for radius in getattr(self, name):
                _finite("evaluate", name, radius, positive=True)
        for name in ("steps", "restarts", "images", "verify_units"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidInput(f"evaluate: {name} is {value!r}, but must be an integer ≥ 1.")


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        evaluate = asdict(self.evaluate)
        evaluate |= {name: list(evaluate[name]) for name in ("radii", "linf_radii")}
        return {
            "model": self.model.to_dict(),
            "train": asdict(self.train),
            "evaluate": evaluate,
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
    """Defaults for a family on a data set: what `sdplip train` and `sdplip compare` start from."""
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


def _finite(where: str, name: str, value: float, *, positive: bool) -> None:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        rule = "positive" if positive else "not negative"
        raise InvalidInput(f"{where}: {name} is {value}, but must be finite and {rule}.")
