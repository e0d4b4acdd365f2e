"""Train networks from every layer family, and measure what their guarantees are worth.

splits = load("digits")
config = override(preset("sll", splits), epochs=10)
result = train(config, splits)            # sdplip.train.fit, which needs Lightning
rows = evaluate(result.model, config, splits)
"""

from typing import Any

from .attack import Attack, pgd
from .certify import (
    certified_accuracy,
    certified_radii,
    global_pairs,
    last_layer_pairs,
    linf_pairs,
)
from .checkpoint import load_model, save_model
from .config import EvalConfig, RunConfig, TrainConfig, override, preset
from .data import DATASETS, Splits, load
from .evaluate import evaluate
from .loss import margin_cross_entropy
from .models import BASELINES, ModelConfig, build
from .row import Row

__all__ = [
    "BASELINES",
    "DATASETS",
    "Attack",
    "EvalConfig",
    "ModelConfig",
    "Row",
    "RunConfig",
    "Splits",
    "TrainConfig",
    "build",
    "certified_accuracy",
    "certified_radii",
    "evaluate",
    "global_pairs",
    "last_layer_pairs",
    "linf_pairs",
    "load",
    "load_model",
    "margin_cross_entropy",
    "override",
    "pgd",
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
