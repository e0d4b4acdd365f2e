"""Certified radii: how far an image may move before the predicted class can change.

A matrix `pairs` (K, K) holds, for every two classes, a Lipschitz bound L_ij of the logit
difference z_i − z_j. An image of class t is certified up to min_j (z_t − z_j) / L_tj. Every
valid matrix gives a valid radius, and so does the elementwise minimum of several.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._radii import COARSE, SLACK, least_quotient
from ...errors import ShapeError
from ...layers.nemon import linf_bound, reach
from ...system import System


def global_pairs(bound: float, num_classes: int, norm: float = 2) -> Tensor:
    """Pair bounds from one bound of the whole network: √2·L for ℓ₂ outputs, 2·L for ℓ∞.

    z_i − z_j = (e_i − e_j)ᵀz, and e_i − e_j has dual norm √2 (ℓ₂) or 2 (ℓ∞ to ℓ₁).
    Returns a float64 (K, K) matrix with a zero diagonal.
    """
    factor = 2**0.5 if norm == 2 else 2.0
    pairs = torch.full((num_classes, num_classes), factor * bound, dtype=torch.float64)
    return pairs.fill_diagonal_(0)


def linf_pairs(system: System) -> Tensor:
    """ℓ∞ pair bounds of a system with slopes in [0, 1]: `linf_bound` of every difference of rows.

    Tighter than twice the bound of the whole network. Infinite where I − ⌈A⌉ is no M-matrix.
    Returns a float64 (K, K) matrix.
    """
    A, B, C, D = (torch.as_tensor(M.copy()) for M in (system.A, system.B, system.C, system.D))
    eta = reach(A, torch.ones(len(A), 1, dtype=A.dtype))
    # A positive η with (I − ⌈A⌉)η = 1 is what makes it an M-matrix.
    if (system.alpha < 0).any() or (system.beta > 1).any() or not (eta > 0).all():
        return global_pairs(torch.inf, len(C))
    rows_C, rows_D = ((M[:, None] - M[None]).unsqueeze(-2) for M in (C, D))
    return linf_bound(A, B, rows_C, rows_D)


def certified_radii(
    logits: Tensor,
    labels: Tensor,
    pairs: Tensor,
    slack: float | None = None,
    error: Tensor | None = None,
) -> Tensor:
    """The radius up to which each prediction is proved constant; 0 where it is already wrong.

    `logits` (N, K), `labels` (N,), `pairs` (K, K); returns (N,) float64. From every margin
    `slack` times the largest logit is taken (default: SLACK of the logits' dtype); a tie, and
    a margin within the slack, is not certified. A point is certified at r when its radius
    exceeds r strictly. `error` (N,) is what equilibrium solvers left open of the logits
    (`sdplip.layers.solve_output`, in either norm): twice of it is taken from every margin.
    """
    margin = margins(logits, labels, slack, error)
    if pairs.shape != (margin.shape[-1],) * 2:
        raise ShapeError(
            f"certified_radii: pairs has shape {tuple(pairs.shape)}, but the logits have "
            f"{margin.shape[-1]} classes. Give one bound for every two classes."
        )
    return least_quotient(margin, pairs.to(margin)[labels])


def margins(
    logits: Tensor, labels: Tensor, slack: float | None = None, error: Tensor | None = None
) -> Tensor:
    """How far each label's logit is certain to lead each other; (N, K) float64, inf at the label.

    As `certified_radii`, whose arguments these are.
    """
    relative = SLACK.get(logits.dtype, COARSE) if slack is None else slack
    z = logits.double()
    margin = z.gather(-1, labels[:, None]) - z - relative * z.abs().amax(-1, keepdim=True)
    if error is not None:
        margin = margin - 2 * error.to(z)[:, None]
    return margin.scatter(-1, labels[:, None], torch.inf)


def certified_accuracy(radii: Tensor, at: float) -> float:
    """The share of images whose certified radius exceeds `at` (at 0: correct by the slack)."""
    return float((radii > at).double().mean())
