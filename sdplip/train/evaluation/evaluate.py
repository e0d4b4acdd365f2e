"""Measure a trained model: clean, certified and attacked accuracy, and three Lipschitz constants.

A dense model is measured as a float64 copy, equilibria solved to rounding, whose system is the one
that is verified. A convolutional one is too large for that: its certificates rest on the layers'
promises, and where float64 takes too long logits are those of float32, with a slack that exceeds
what the rounding was found to do.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...equilibrium import solve
from ...layers import lipschitz_bound
from ...system import UNKNOWN, System
from ..config import EvalConfig, RunConfig
from ..data import Splits, pixels
from ..models import DENSE, norm_of, promises
from .attack import correctly
from .certify import (
    SLACK,
    certified_accuracy,
    certified_radii,
    global_pairs,
    linf_pairs,
)
from .local import certified_locally
from .measure import (
    BATCH,
    Subject,
    collapsed,
    exact_copy,
    full_float32,
    promised_pairs,
    shortened,
)
from .row import Row
from .verified import Verified, by_file, too_large, verify

if TYPE_CHECKING:
    from ...verify import Certificate

CURVE_POINTS = 61

AFFORDABLE = 5_000_000
"""Convolutional models of more parameters are measured in float32 on a CPU."""

PROBED = 16
"""Images on which the rounding of float32 is looked at."""

JACOBIANS = (4, 10)
"""At how many images, and of how many logits, a Jacobian bounds the constant from below."""

EVAL_BYTES, ATTACK_BYTES = 1 << 28, 1 << 30
"""Memory for activations, by which batches are sized."""


@dataclass(frozen=True)
class _Measured:
    """A model on its test images; `slack` times the largest logit is taken off for rounding."""

    config: RunConfig
    subject: Subject
    x: Tensor
    labels: Tensor
    cost: dict[str, Any]
    slack: float = SLACK[torch.float64]

    @cached_property
    def logits(self) -> Tensor:
        return self.subject.logits(self.x)

    @cached_property
    def left_open(self) -> Tensor:
        return self.subject.left_open(self.x)


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
    cost = {"step_ms": step_ms, "train_seconds": train_seconds}
    with full_float32():
        if config.model.architecture == DENSE:
            return _dense_rows(exact, x, labels, config, cost)
        return _image_rows(exact, x, labels, config, cost)


def _dense_rows(
    exact: nn.Sequential, x: Tensor, labels: Tensor, config: RunConfig, cost: dict[str, float]
) -> list[Row]:
    system = System.from_module(exact, features=math.prod(config.model.input_shape))
    measured = _Measured(config, Subject(exact), x, labels, cost)
    residual, rows = _residual(system, x), []
    for norm in _norms(config):
        promised, pairs = _promised(exact, config, norm)
        if promised is not None and norm != 2:
            pairs = torch.minimum(pairs, linf_pairs(system))
        verified = verify(system, norm, config)
        # Every entry of either matrix is a bound, so the smaller of the two is one.
        verified = replace(verified, pairs=torch.minimum(pairs, verified.pairs))
        rows.append(_row(measured, verified, norm, promised, residual=residual, system=system))
    return rows


def _image_rows(
    exact: nn.Sequential, x: Tensor, labels: Tensor, config: RunConfig, cost: dict[str, float]
) -> list[Row]:
    subject, slack = _subject(exact, x, config)
    measured = _Measured(config, subject, x, labels, cost, slack)
    rows = []
    for norm in _norms(config):
        promised, pairs = _promised(exact, config, norm)
        note = "not verified: a semidefinite program of a convolutional network is too large"
        sampled = _steepest(exact, x, norm)
        rows.append(_row(measured, Verified(pairs, note=note), norm, promised, sampled=sampled))
    return rows


def _promised(exact: nn.Sequential, config: RunConfig, norm: float) -> tuple[float | None, Tensor]:
    """What the layers promise in this norm, and bounds of all pairs of classes from that."""
    model = config.model
    if not promises(model) or norm_of(model.layer) != norm:
        return None, global_pairs(math.inf, model.num_classes)
    promised = lipschitz_bound(exact, norm=norm)
    return promised, promised_pairs(exact, promised, model.num_classes, norm)


def _norms(config: RunConfig) -> list[float]:
    """The norms that a model is measured in."""
    model = config.model
    promised = promises(model) and norm_of(model.layer) == math.inf
    return [2.0, math.inf] if config.evaluate.linf or promised else [2.0]


def _subject(exact: nn.Sequential, x: Tensor, config: RunConfig) -> tuple[Subject, float]:
    """What a convolutional model is measured by, and the slack of its logits."""
    area = config.model.width * math.prod(config.model.input_shape[1:])
    batch = max(1, min(BATCH, EVAL_BYTES // (32 * area)))
    attack_batch = max(1, min(1024, ATTACK_BYTES // (4 * area * len(exact))))
    size = sum(p.numel() for p in exact.parameters())
    precise = Subject(exact, torch.float64, batch, attack_batch)
    if x.device.type == "cuda" or size <= AFFORDABLE:
        return precise, SLACK[torch.float64]
    subject = Subject(copy.deepcopy(exact).float(), torch.float32, batch, attack_batch)
    probe = x[:PROBED]
    z = precise.logits(probe)
    off = (subject.logits(probe).double() - z).abs().amax(-1) / z.abs().amax(-1)
    return subject, max(SLACK[torch.float32], 4 * float(off.max()))


def _steepest(exact: nn.Sequential, x: Tensor, norm: float) -> float:
    """The largest norm of a Jacobian of some logits at some images: a lower bound."""
    images, logits = JACOBIANS
    point = pixels(x[:images], torch.float64).requires_grad_()
    outputs = exact(point).sum(0)
    rows = [
        torch.autograd.grad(output, point, retain_graph=True)[0].flatten(1)
        for output in outputs[:logits]
    ]
    return float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), ord=norm).max())


def _row(
    m: _Measured,
    verified: Verified,
    norm: float,
    promised: float | None,
    *,
    sampled: float | None = None,
    residual: float = 0.0,
    system: System | None = None,
) -> Row:
    config, settings, certificate = m.config, m.config.evaluate, verified.certificate
    found = certified_radii(m.logits, m.labels, verified.pairs, m.slack, m.left_open)
    correct = correctly(m.logits, m.labels)
    clean = float(correct.double().mean())
    radii = settings.radii if norm == 2 else settings.linf_radii
    first = settings.attack_images
    first = None if first is None or first >= len(m.x) else first

    def standing(settings: EvalConfig) -> Tensor:
        attacked = m.x[:first], m.labels[:first], correct[:first]
        return m.subject.standing(*attacked, radii, norm, settings, config.train.seed)

    stands = standing(settings)
    once = replace(settings, attack="pgd", steps=1, restarts=1)
    stands_fgsm = standing(once) if settings.fgsm else stands
    proved = found[:first, None] > torch.tensor(radii, dtype=found.dtype, device=found.device)
    local, around, without = _local(m, verified.pairs, norm, radii, system, proved, stands)
    unsound = int((proved & ~(stands & stands_fgsm)).any(1).sum())
    remarks = shortened(config), verified.note, without, collapsed(clean, m.labels)
    grid = torch.linspace(0, 1.5 * max(radii, default=1.0), CURVE_POINTS).tolist()
    return Row(
        layer=config.model.layer,
        norm=norm,
        clean=clean,
        radii=tuple(radii),
        certified=tuple(certified_accuracy(found, r) for r in radii),
        attacked=tuple(_shares(stands)),
        attack=settings.attack,
        fgsm=tuple(_shares(stands_fgsm)) if settings.fgsm else (),
        promised=promised,
        verified=None if certificate is None else certificate.bound,
        proven=None if certificate is None else certificate.proven,
        sampled=sampled if certificate is None else certificate.lower,
        product=None if certificate is None else certificate.norm_product,
        images=len(m.x),
        parameters=sum(p.numel() for p in m.subject.model.parameters()),
        verify_seconds=None if certificate is None else certificate.seconds,
        slack=m.slack,
        residual=residual,
        scale=config.model.scale,
        unsound=unsound,
        undecided=verified.undecided,
        note="; ".join(filter(None, remarks)),
        certificates=by_file(norm, verified, around),
        curve={"radius": grid, "certified": [certified_accuracy(found[:first], r) for r in grid]},
        **local,
        attack_images=first,
        attack_clean=None if first is None else float(correct[:first].double().mean()),
        attack_certified=()
        if first is None
        else tuple(certified_accuracy(found[:first], r) for r in radii),
        **m.cost,
    )


def _local(
    m: _Measured,
    pairs: Tensor,
    norm: float,
    radii: Sequence[float],
    system: System | None,
    proved: Tensor,
    stands: Tensor,
) -> tuple[dict[str, Any], dict[tuple[int, int, int], Certificate], str]:
    """A row's entries about local certificates, which `proved` (N, len(radii)) takes over, and
    these; or why there are none."""
    settings = m.config.evaluate
    if settings.local_images is None:
        return {}, {}, ""
    without = _no_local(system, settings)
    if system is None or without:
        return {}, {}, without
    n = min(settings.local_images, len(proved))
    began = time.perf_counter()
    x = pixels(m.x[:n], torch.float64).flatten(1)
    inside, around = certified_locally(
        system, x, m.labels[:n], m.logits[:n], pairs, radii, norm, m.slack, m.left_open[:n]
    )
    inside = inside.to(proved.device)
    shares = {"certified": proved[:n], "local": inside, "attacked": stands[:n]}
    entries = {
        "local_seconds": time.perf_counter() - began,
        "local_images": n,
        "local": {name: _shares(values) for name, values in shares.items()},
    }
    proved[:n] |= inside
    return entries, around, ""


def _shares(of: Tensor) -> list[float]:
    """The share of images (rows) at every radius."""
    return of.double().mean(0).tolist()


def _no_local(system: System | None, settings: EvalConfig) -> str:
    """Why there are no local certificates, or ""."""
    if system is None:
        why = "the network is convolutional"
    elif UNKNOWN in system.activation:
        why = "some activations are known by their slopes only"
    else:
        why = too_large(system, settings)
    return f"no local certificates: {why}" if why else ""


def _residual(system: System, x: Tensor) -> float:
    """The largest equilibrium residual over the images; 0 for a network without a loop."""
    if system.is_feedforward:
        return 0.0
    A, B, b = (torch.as_tensor(m.copy()) for m in (system.A, system.B, system.b))
    names = [str(name) for name in system.activation]
    parts = (pixels(x, torch.float64).flatten(1).cpu() @ B.mT + b).split(BATCH)
    return max(float(solve(A, v, names, method="newton").residual.max()) for v in parts)
