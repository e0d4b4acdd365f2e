"""What every measurement of a trained model needs: logits in batches, attacks, pairs of classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import ChannelSlice, EquilibriumLayer, Layer, lipschitz_bound, solve_output
from ..layers._equilibrium import Equilibrium
from .attack import pgd, project
from .certify import global_pairs, last_layer_pairs
from .config import RunConfig
from .data import pixels

ATTACK_TOL = 1e-5
BATCH = 1000


@dataclass(frozen=True)
class Subject:
    """What is measured: `model` in `dtype`, attacked through a float32 copy of it."""

    model: nn.Sequential
    dtype: torch.dtype = torch.float64
    batch: int = BATCH
    attack_batch: int = 1024

    def logits(self, x: Tensor) -> Tensor:
        """Of images as in a data set, in `dtype`."""
        with torch.no_grad():
            return torch.cat([self.model(pixels(part, self.dtype)) for part in x.split(self.batch)])

    def left_open(self, x: Tensor) -> Tensor:
        """What equilibrium solvers left open of the logits of images as in a data set (N,)."""
        if not any(isinstance(module, Equilibrium) for module in self.model.modules()):
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        parts = (pixels(part, self.dtype) for part in x.split(self.batch))
        return torch.cat([solve_output(self.model, part)[1] for part in parts])

    def attacked(
        self,
        x: Tensor,
        labels: Tensor,
        correct: Tensor,
        certified: Tensor,
        radii: tuple[float, ...],
        norm: float,
        config: RunConfig,
    ) -> tuple[tuple[float, ...], int]:
        """Robust accuracy under attack at each radius, and how many certificates it refutes.

        Certified images are attacked too, or an unsound certificate would never be seen. An image
        broken at a radius is broken at every larger one.
        """
        approximate = exact_copy(self.model, "peaceman_rachford", ATTACK_TOL).float()
        for parameter in approximate.parameters():
            parameter.requires_grad_(False)
        x = pixels(x, torch.float64)
        standing = correct.clone()
        unsound = torch.zeros_like(correct)
        accuracies = {}
        for radius in sorted(radii):
            left = torch.nonzero(standing).squeeze(1)
            result = pgd(
                approximate,
                x[left].float(),
                labels[left],
                radius,
                norm=norm,
                steps=config.evaluate.steps,
                restarts=config.evaluate.restarts,
                seed=config.train.seed,
                batch_size=self.attack_batch,
            )
            broken = left[result.broken]
            # The search is in float32; only what is in the ball and wrong as measured counts.
            found = project(result.x[result.broken].double(), x[broken], radius, norm)
            if len(broken):
                confirmed = broken[~correctly(self.logits(found), labels[broken])]
                standing[confirmed] = False
                unsound[confirmed] |= certified[confirmed] > radius
            accuracies[radius] = float(standing.double().mean())
        return tuple(accuracies[r] for r in radii), int(unsound.sum())


def exact_copy(model: nn.Sequential, method: str = "newton", tol: float = 1e-12) -> nn.Sequential:
    """A float64 copy in eval mode whose equilibria are solved by `method` to `tol`."""
    twin = copy.deepcopy(model).double().eval()
    for module in twin.modules():
        if isinstance(module, EquilibriumLayer):
            module.method, module.tol = method, tol
        elif isinstance(module, Equilibrium):
            # Too many units for Newton's method.
            module.tol = tol
    return twin


def correctly(logits: Tensor, labels: Tensor) -> Tensor:
    """Which logits are largest at the label, ties and NaN excluded; (N,) bool."""
    others = logits.scatter(-1, labels[:, None], -torch.inf).amax(-1)
    return logits.gather(-1, labels[:, None]).squeeze(-1) > others


def promised_pairs(exact: nn.Sequential, promised: float, classes: int) -> Tensor:
    """ℓ₂ bounds of the differences of logits, from the layers' promises alone.

    Where the last layer is linear, also when only its first outputs are kept, by the differences of
    its rows; elsewhere √2 times the bound of the whole.
    """
    pairs = global_pairs(promised, classes)
    body, last = exact[:-1], exact[-1]
    if isinstance(last, ChannelSlice) and last.dim == -1:
        body, last = exact[:-2], exact[-2]
    if not isinstance(last, Layer) or last.condition != "linear":
        return pairs
    W = torch.as_tensor(last.system().D.copy())[:classes]
    return torch.minimum(pairs, last_layer_pairs(lipschitz_bound(body, norm=2), W))


def shortened(config: RunConfig) -> str:
    """That a run is shorter than its recipe, else ""."""
    train = config.train
    if train.of_epochs is None:
        return ""
    limit = "" if train.train_images is None else f" on {train.train_images:,} images"
    return f"scaled down: {train.epochs} of {train.of_epochs} epochs{limit}"


def collapsed(clean: float, labels: Tensor) -> str:
    """A warning where `clean` is no better than always answering the commonest class, else ""."""
    count = len(labels)
    chance = float(labels.bincount().max()) / max(count, 1)
    if clean > chance + 3 * math.sqrt(chance * (1 - chance) / max(count, 1)):
        return ""
    return (
        f"collapsed: {100 * clean:.1f} % is no better than guessing ({100 * chance:.1f} %); "
        "train for longer, or with another --lr or --seed"
    )


@contextmanager
def full_float32() -> Iterator[None]:
    """No TensorFloat-32, which rounds products on recent graphics cards to 10 bits."""
    flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
