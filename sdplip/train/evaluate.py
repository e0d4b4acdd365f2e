"""Measure a trained model: clean, certified and attacked accuracy, and three Lipschitz constants.

Everything is measured on one object: a float64 copy of the model, equilibria solved to rounding,
whose system is the one that is verified.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..equilibrium import solve
from ..errors import CertificationError, NotWellPosed
from ..layers import EquilibriumLayer, Layer, lipschitz_bound
from ..system import System
from .attack import pgd, project
from .certify import (
    SLACK,
    certified_accuracy,
    certified_radii,
    global_pairs,
    last_layer_pairs,
    linf_pairs,
)
from .config import RunConfig
from .data import Splits
from .models import norm_of, promises
from .row import Row

if TYPE_CHECKING:
    from ..verify import Certificate

ATTACK_TOL = 1e-5
CURVE_POINTS = 61
BATCH = 1000


def evaluate(
    model: nn.Sequential,
    config: RunConfig,
    splits: Splits,
    *,
    device: torch.device | str = "cpu",
    step_ms: float = math.nan,
    train_seconds: float = math.nan,
) -> list[Row]:
    """The rows of a trained model: one for ℓ₂, and one for ℓ∞ where the family promises that.

    Raises InvalidInput when the float64 model and the system that is verified differ.
    """
    exact = exact_copy(model).to(device)
    limit = config.evaluate.images
    x, labels = (t[:limit].to(device) for t in splits.test)
    x = x.double()
    system = System.from_module(exact, features=math.prod(splits.input_shape))
    logits = _in_batches(exact, x)
    layer = config.model.layer
    norms = [2.0] if norm_of(layer) == 2 or not promises(layer) else [2.0, norm_of(layer)]
    return [
        _row(norm, model, exact, system, logits, x, labels, config, step_ms, train_seconds)
        for norm in norms
    ]


def exact_copy(model: nn.Sequential, method: str = "newton", tol: float = 1e-12) -> nn.Sequential:
    """A float64 copy in eval mode whose equilibria are solved by `method` to `tol`."""
    twin = copy.deepcopy(model).double().eval()
    for module in twin.modules():
        if isinstance(module, EquilibriumLayer):
            module.method, module.tol = method, tol
    return twin


def _row(
    norm: float,
    model: nn.Sequential,
    exact: nn.Sequential,
    system: System,
    logits: Tensor,
    x: Tensor,
    labels: Tensor,
    config: RunConfig,
    step_ms: float,
    train_seconds: float,
) -> Row:
    layer, classes = config.model.layer, config.model.num_classes
    promised = None
    pairs = torch.full((classes, classes), torch.inf, dtype=torch.float64)
    if promises(layer) and norm_of(layer) == norm:
        promised = lipschitz_bound(exact, norm=norm)
        pairs = _promised_pairs(exact, system, norm, promised, classes)
    certificate, note, undecided = _verify(system, norm, config)
    if certificate is not None:
        # Every entry of either matrix is a bound, so the smaller of the two is one.
        pairs = torch.minimum(pairs, global_pairs(certificate.bound, classes, norm))
    found = certified_radii(logits, labels, pairs)
    margin_positive = _correct(logits, labels)
    radii = config.evaluate.radii if norm == 2 else config.evaluate.linf_radii
    attacked, unsound = _attack(exact, x, labels, margin_positive, found, radii, norm, config)
    grid = torch.linspace(0, 1.5 * max(radii, default=1.0), CURVE_POINTS).tolist()
    return Row(
        layer=layer,
        norm=norm,
        clean=float(margin_positive.double().mean()),
        radii=tuple(radii),
        certified=tuple(certified_accuracy(found, r) for r in radii),
        attacked=attacked,
        promised=promised,
        verified=None if certificate is None else certificate.bound,
        proven=None if certificate is None else certificate.proven,
        sampled=None if certificate is None else certificate.lower,
        images=len(x),
        parameters=sum(p.numel() for p in model.parameters()),
        step_ms=step_ms,
        train_seconds=train_seconds,
        verify_seconds=None if certificate is None else certificate.seconds,
        slack=SLACK[torch.float64],
        residual=_residual(system, x),
        scale=config.model.scale,
        unsound=unsound,
        undecided=undecided,
        note=note,
        certificate=certificate,
        curve={"radius": grid, "certified": [certified_accuracy(found, r) for r in grid]},
    )


def _promised_pairs(
    exact: nn.Sequential, system: System, norm: float, promised: float, classes: int
) -> Tensor:
    pairs = global_pairs(promised, classes, norm)
    if norm != 2:
        return torch.minimum(pairs, linf_pairs(system))
    last = exact[-1]
    if not isinstance(last, Layer) or last.condition != "linear":
        return pairs
    body = lipschitz_bound(exact[:-1], norm=2)
    W = torch.as_tensor(last.system().D.copy())
    return torch.minimum(pairs, last_layer_pairs(body, W))


def _verify(system: System, norm: float, config: RunConfig) -> tuple[Certificate | None, str, bool]:
    settings = config.evaluate
    if not settings.verify:
        return None, "not verified: switched off", False
    if norm == 2 and system.units > settings.verify_units:
        return (
            None,
            f"not verified: {system.units} units, more than verify_units = {settings.verify_units}",
            False,
        )
    from ..verify import lipschitz

    try:
        return lipschitz(system, norm=norm), "", False
    except NotWellPosed as error:
        return None, f"no bound: {error}", False
    except CertificationError as error:
        return None, f"undecided: {error}", True


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    others = logits.scatter(-1, labels[:, None], -torch.inf).amax(-1)
    return logits.gather(-1, labels[:, None]).squeeze(-1) > others


def _attack(
    exact: nn.Sequential,
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
    approximate = exact_copy(exact, "peaceman_rachford", ATTACK_TOL).float()
    for parameter in approximate.parameters():
        parameter.requires_grad_(False)
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
        )
        broken = left[result.broken]
        # The search is in float32; only what is in the ball and wrong in float64 counts.
        found = project(result.x[result.broken].double(), x[broken], radius, norm)
        confirmed = broken[~_correct(_in_batches(exact, found), labels[broken])]
        standing[confirmed] = False
        unsound[confirmed] |= certified[confirmed] > radius
        accuracies[radius] = float(standing.double().mean())
    return tuple(accuracies[r] for r in radii), int(unsound.sum())


def _in_batches(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(BATCH)])


def _residual(system: System, x: Tensor) -> float:
    """The largest equilibrium residual over the images; 0 for a network without a loop."""
    if system.is_feedforward:
        return 0.0
    A, B, b = (torch.as_tensor(m.copy()) for m in (system.A, system.B, system.b))
    names = [str(name) for name in system.activation]
    parts = (x.flatten(1).cpu() @ B.mT + b).split(BATCH)
    return max(float(solve(A, v, names, method="newton").residual.max()) for v in parts)
