"""Equilibrium layers trained at a tolerance of 1e-2, or to contract: what that changes.

    python benchmarks/equilibrium_training.py                      # LBEN, 80 units, γ = 1, MNIST
    python benchmarks/equilibrium_training.py --seeds 3 --exact    # also trained to 1e-6
    python benchmarks/equilibrium_training.py --contraction 0.9    # instead of without a bound

Trains as `sdplip train --layer lben --data mnist --width 80 --gamma 1 --epochs 20 --normalise std
--loss cross_entropy` does, and measures the test error of every trained network with equilibria
solved to 1e-2, to 1e-6 (what evaluation does by itself) and in float64 by Newton's method, to
rounding. 'Differ' counts the images that the exact network classifies otherwise than that at 1e-6;
'apart' is the largest distance of their logits, with what float32 rounds. 'Steps' are the
iterations to 1e-6, on average and at most over the test images. SDPLIP_DATA names the folder of
data.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from sdplip.layers import _equilibrium
from sdplip.train import data
from sdplip.train.config import RunConfig, preset
from sdplip.train.evaluation.measure import exact_copy
from sdplip.train.fit import train

TRAINING, EVALUATION = _equilibrium.TRAINING_TOL, _equilibrium.EVALUATION_TOL
LIMIT = 0.1
"""Percentage points by which the error in evaluation may differ from the exact one."""


def recipe(splits: data.Splits, arguments: argparse.Namespace, rate: float, seed: int) -> RunConfig:
    config = preset("lben", splits, arguments.width)
    model = replace(config.model, gamma=1.0, normalise="std", contraction=rate)
    fit = replace(config.train, epochs=arguments.epochs, loss="cross_entropy", seed=seed)
    return replace(config, model=model, train=replace(fit, train_images=arguments.images))


def outputs(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        parts = [model(data.pixels(part, dtype)).double() for part in images.split(1000)]
    return torch.cat(parts)


def errors(model: nn.Sequential, splits: data.Splits) -> dict[str, float]:
    """Test errors in percent by tolerance, and how far the evaluation is from exact equilibria."""
    images, labels = splits.test
    logits = {}
    for name, tol in (("1e-2", 1e-2), ("1e-6", 1e-6)):
        for module in model.modules():
            if isinstance(module, _equilibrium.Equilibrium):
                module.tol = tol
        logits[name] = outputs(model, images, torch.float32)
    # A sample leaves when it has converged, and each is looked at in every fourth iteration.
    *before, layer = model
    with torch.no_grad():
        steps = layer.solve(nn.Sequential(*before)(data.pixels(images, torch.float32))).steps
    logits["exact"] = outputs(exact_copy(model), images, torch.float64)
    wrong = {name: y.argmax(-1) != labels for name, y in logits.items()}
    differ = logits["exact"].argmax(-1) != logits["1e-6"].argmax(-1)
    apart = torch.linalg.vector_norm(logits["exact"] - logits["1e-6"], dim=-1)
    rates = {name: 100 * float(missed.double().mean()) for name, missed in wrong.items()}
    rates |= {"mean": float(steps.double().mean()), "most": int(steps.max())}
    return rates | {"differ": int(differ.sum()), "apart": float(apart.max())}


def main() -> int:
    """Train, measure, print the table; 1 where the limit is missed."""
    parser = argparse.ArgumentParser(description="Training at 1e-2 against exact equilibria.")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, help="train on so many images only")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="also train at 1e-6")
    parser.add_argument("--contraction", type=float, action="append", help="of the layer")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    splits, missed = data.load(arguments.data), False
    heads = ("trained at", "contraction", "seed", "processor s", "error at 1e-2", "1e-6", "exact")
    print("|", " | ".join((*heads, "differ", "apart", "steps")), "|")
    print("|", " | ".join(["---"] * 10), "|")
    tols = (TRAINING, EVALUATION) if arguments.exact else (TRAINING,)
    rates = arguments.contraction or [1.0]
    for seed, tol, rate in itertools.product(range(arguments.seeds), tols, rates):
        began = time.process_time()
        _equilibrium.TRAINING_TOL = tol
        model = train(recipe(splits, arguments, rate, seed), splits, device="cpu").model
        seconds = time.process_time() - began
        row = errors(model, splits)
        missed |= abs(row["1e-6"] - row["exact"]) > LIMIT
        shares = " | ".join(f"{row[name]:.2f} %" for name in ("1e-2", "1e-6", "exact"))
        start = f"| {tol:g} | {rate:g} | {seed} | {seconds:.1f} | {shares} | {row['differ']} |"
        print(f"{start} {row['apart']:.0e} | {row['mean']:.1f}, {row['most']} |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
