"""What every measurement of a trained model needs: logits in batches, attacks, pairs of classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import ChannelSlice, EquilibriumLayer, Layer, lipschitz_bound, solve_output
from ...layers._equilibrium import Equilibrium
from ...layers.head import last_layer_pairs
from ..config import EvalConfig, RunConfig
from ..data import pixels
from .attack import correctly, pgd, project
from .autopgd import apgd
from .certify import global_pairs
from .row import SHORTER

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

    @property
    def implicit(self) -> bool:
        return any(isinstance(module, Equilibrium) for module in self.model.modules())

    def left_open(self, x: Tensor) -> Tensor:
        """What equilibrium solvers left open of the logits of images as in a data set (N,)."""
        if self.implicit:
            return self.outputs(x)[1]
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `logits`, and what equilibrium solvers left open of them (N,); never raises for it."""
        if not self.implicit:
            return self.logits(x), self.left_open(x)
        parts = [solve_output(self.model, pixels(p, self.dtype)) for p in x.split(self.batch)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def standing(
        self,
        x: Tensor,
        labels: Tensor,
        correct: Tensor,
        radii: Sequence[float],
        norm: float,
        settings: EvalConfig,
        seed: int,
    ) -> Tensor:
        """Which images, of those that are `correct` (N,), no attack breaks; (N, len(radii)) bool.

        Certified images are attacked too, or an unsound certificate would never be seen. An image
        broken at a radius is broken at every larger one. The attack is clipped to pixels in [0, 1].
        """
        approximate = exact_copy(self.model, "peaceman_rachford", ATTACK_TOL, "ignore").float()
        for parameter in approximate.parameters():
            parameter.requires_grad_(False)
        x = pixels(x, torch.float64)
        stands = correct[:, None].repeat(1, len(radii))
        up = correct.clone()
        for k in sorted(range(len(radii)), key=lambda k: radii[k]):
            left = torch.nonzero(up).squeeze(1)
            result = (apgd if settings.attack == "apgd" else pgd)(
                approximate,
                x[left].float(),
                labels[left],
                radii[k],
                norm=norm,
                steps=settings.steps,
                restarts=settings.restarts,
                seed=seed,
                batch_size=self.attack_batch,
            )
            hit = left[result.broken]
            if len(hit):
                # The search is in float32; only what is in the ball and wrong as measured counts,
                # by more than a solver left open.
                found = project(result.x[result.broken].double(), x[hit], radii[k], norm)
                logits, error = self.outputs(found)
                favoured = logits.double().scatter_add(-1, labels[hit, None], 2 * error[:, None])
                up[hit] = correctly(favoured, labels[hit])
            stands[:, k] = up
        return stands


def exact_copy(
    model: nn.Sequential,
    method: str = "newton",
    tol: float = 1e-12,
    on_failure: str | None = None,
) -> nn.Sequential:
    """A float64 copy in eval mode whose equilibria are solved by `method` to `tol`."""
    twin = copy.deepcopy(model).double().eval()
    for module in twin.modules():
        if isinstance(module, Equilibrium):
            module.on_failure = on_failure
        if isinstance(module, EquilibriumLayer):
            module.method, module.tol = method, tol
        elif isinstance(module, Equilibrium):
            # Too many units for Newton's method.
            module.tol = tol
    return twin


def promised_pairs(exact: nn.Sequential, promised: float, classes: int, norm: float = 2) -> Tensor:
    """Bounds of the differences of logits, from the layers' promises alone.

    In ℓ₂, where the last layer is linear, also when only its first outputs are kept, by the
    differences of its rows; elsewhere by the bound of the whole.
    """
    pairs = global_pairs(promised, classes, norm)
    if norm != 2:
        return pairs
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
    return f"{SHORTER}: {train.epochs} of {train.of_epochs} epochs{limit}"


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
    """No TensorFloat-32 and no bfloat16, to whose 10 or 7 bits products may be allowed to round."""
    backends: Any = torch.backends
    kinds = [backends.cuda.matmul, backends.mkldnn.matmul]
    kinds += [backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value
