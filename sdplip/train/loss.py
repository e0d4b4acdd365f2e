"""Training losses."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidInput

OFFSET = 1.5 * math.sqrt(2)
TEMPERATURE = 0.25


def margin_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    offset: float = OFFSET,
    temperature: float = TEMPERATURE,
    lipschitz: float = 1.0,
) -> Tensor:
    """Cross-entropy that asks for a certified margin: CE((z − offset·L·1_y) / t)·t.

    The true class starts `offset`·L behind, so that it is rewarded until its margin, which is
    what a bound L turns into a radius, has grown by that much; the temperature t sets how sharply.

    `logits` (N, K), `labels` (N,); returns the mean, a scalar. `lipschitz` is L.
    Source: the training code of [ARAUJO] (offset 3/2·√2, temperature 1/4).
    """
    if not temperature > 0:
        raise InvalidInput(f"loss: temperature is {temperature}, but must be positive.")
    true_class = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    shifted = logits - offset * lipschitz * true_class
    return F.cross_entropy(shifted / temperature, labels) * temperature


def lipschitz_margin(logits: Tensor, labels: Tensor, bound: Tensor, *, weight: float) -> Tensor:
    """Cross-entropy where every other class gets `weight`·√2·bound ahead.

    `logits` (N, K), `labels` (N,), `bound` a differentiable Lipschitz bound (scalar): training
    widens margins relative to it. Source: Tsuzuku, Sato, Sugiyama, Lipschitz-margin training
    (NeurIPS 2018), section 4.
    """
    others = 1 - F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    return F.cross_entropy(logits + weight * math.sqrt(2) * bound * others, labels)


def multi_margin(
    logits: Tensor, labels: Tensor, *, offset: float = OFFSET, lipschitz: float = 1.0
) -> Tensor:
    """The mean hinge Σ_j max(0, offset·L − z_y + z_j) / K over all other classes j.

    `logits` (N, K), `labels` (N,); returns the mean, a scalar. Source: the training code of [CPL].
    """
    return F.multi_margin_loss(logits, labels, margin=offset * lipschitz)
