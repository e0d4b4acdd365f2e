"""What the condition shows of a model's system: the bound of the whole, and of pairs of classes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...errors import CertificationError, NotWellPosed
from ...layers.head import last_layer_pairs
from ...system import System
from ..config import EvalConfig, RunConfig
from .certify import global_pairs, linf_pairs

if TYPE_CHECKING:
    from ...verify import Certificate

CERTIFICATES = {2.0: "certificate-2.json", math.inf: "certificate-inf.json"}
PAIRS, AROUND = "pairs", "local"
"""Folders of the certificates of two classes: NORM-i-j.json, and around an image NORM-IMAGE-i-j."""

PAIRED, PAIRED_INPUTS = 10, 1024
"""With more classes or inputs than these, pairs of classes are not bounded one by one: a proof is
about a matrix of all inputs and units."""


PAIR = 0.5
"""What the bound of a pair of classes takes, relative to that of all outputs."""


@dataclass(frozen=True)
class Verified:
    """Bounds of all `pairs` of classes (K, K), and what proves them: for all outputs together, and
    `by_pair` where each has a bound of its own; a note says what is missing."""

    pairs: Tensor
    certificate: Certificate | None = None
    by_pair: dict[tuple[int, int], Certificate] = field(default_factory=dict)
    note: str = ""
    undecided: bool = False


def verify(system: System, norm: float, config: RunConfig) -> Verified:
    settings, classes = config.evaluate, config.model.num_classes
    pairs = global_pairs(math.inf, classes)
    if not settings.verify:
        return Verified(pairs, note="not verified: switched off")
    if norm == 2 and (note := too_large(system, settings)):
        return Verified(pairs, note=f"not verified: {note}")
    from ...verify import lipschitz

    began, limit = time.monotonic(), settings.time_limit
    try:
        certificate = lipschitz(system, norm=norm, time_limit=limit)
    except NotWellPosed as error:
        return Verified(pairs, note=f"no bound: {error}")
    except CertificationError as error:
        return Verified(pairs, note=f"undecided: {error}", undecided=True)
    taken = time.monotonic() - began
    pairs = global_pairs(certificate.bound, classes, norm)
    small = system.units <= settings.pair_units and system.inputs <= PAIRED_INPUTS
    paired = classes <= PAIRED and (norm != 2 or small)
    late = limit is not None and taken * (1 + PAIR * math.comb(classes, 2)) > limit
    notes = ["no time to bound pairs of classes one by one"] if paired and late else []
    if limit is not None and taken > limit:
        notes.append(f"the search for the bound ended after {limit:g} s")
    try:
        if paired and not late:
            bounds, by_pair = _one_by_one(system, norm)
        else:
            bounds, by_pair = _by_rows(system, norm, limit), {}
    except (NotWellPosed, CertificationError) as error:
        return Verified(pairs, certificate, note=f"pairs of classes undecided: {error}")
    return Verified(torch.minimum(pairs, bounds), certificate, by_pair, "; ".join(notes))


def _one_by_one(system: System, norm: float) -> tuple[Tensor, dict[tuple[int, int], Certificate]]:
    from ...verify import margin_bounds

    found = margin_bounds(system, norm)
    return torch.as_tensor(found.bounds), found.certificates


def _by_rows(system: System, norm: float, limit: float | None) -> Tensor:
    """Bounds of the differences of outputs by the rows of the last layer."""
    from ...verify import lipschitz

    if norm != 2:
        return linf_pairs(system)
    read = np.flatnonzero(system.C.any(axis=0))
    if system.D.any() or not read.size:
        return global_pairs(math.inf, system.outputs)
    # y = Cz + c: the units that C reads are the body, in one more bound.
    body = replace(
        system,
        C=np.eye(system.units)[read],
        D=np.zeros((len(read), system.inputs)),
        c=np.zeros(len(read)),
    )
    bound = lipschitz(body, lower=False, time_limit=limit).bound
    return last_layer_pairs(bound, torch.tensor(system.C[:, read]))


def too_large(system: System, settings: EvalConfig) -> str:
    if system.units <= settings.verify_units:
        return ""
    return f"{system.units} units, more than verify_units = {settings.verify_units}"


def by_file(
    norm: float, verified: Verified, around: dict[tuple[int, int, int], Certificate]
) -> dict[str, Certificate]:
    """A row's certificates, with those `around` images, by the file that a run keeps each in."""
    name = "2" if norm == 2 else "inf"
    whole = {} if verified.certificate is None else {CERTIFICATES[norm]: verified.certificate}
    pairs = {f"{PAIRS}/{name}-{i}-{j}.json": c for (i, j), c in verified.by_pair.items()}
    local = {f"{AROUND}/{name}-{k}-{i}-{j}.json": c for (k, i, j), c in around.items()}
    return whole | pairs | local
