"""Train networks from every layer family, and measure what their guarantees are worth.

splits = load("digits")
config = override(preset("sll", splits), epochs=10)
result = train(config, splits)            # sdplip.train.fit, which needs Lightning
rows = evaluate(result.model, config, splits)

config = find_preset("sll-small").config(load("cifar10"))    # a published network and its recipe
"""

from typing import Any

from ..layers.head import last_layer_pairs
from .checkpoint import load_model, save_model
from .config import EvalConfig, RunConfig, TrainConfig, override, preset
from .data import DATASETS, Splits, load, pixels
from .evaluation.attack import Attack, pgd
from .evaluation.autopgd import apgd
from .evaluation.certify import certified_accuracy, certified_radii, global_pairs, linf_pairs
from .evaluation.evaluate import evaluate
from .evaluation.row import Row
from .experiments.presets import PRESETS, Preset, find_preset
from .loss import margin_cross_entropy, multi_margin
from .models import BASELINES, ModelConfig, build

__all__ = [
    "BASELINES",
    "DATASETS",
    "PRESETS",
    "Attack",
    "EvalConfig",
    "ModelConfig",
    "Preset",
    "Row",
    "RunConfig",
    "Splits",
    "TrainConfig",
    "apgd",
    "build",
    "certified_accuracy",
    "certified_radii",
    "evaluate",
    "find_preset",
    "global_pairs",
    "last_layer_pairs",
    "linf_pairs",
    "load",
    "load_model",
    "margin_cross_entropy",
    "multi_margin",
    "override",
    "pgd",
    "pixels",
    "preset",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and only training needs it.
    if name == "train":
        from .fit import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
