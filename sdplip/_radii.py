"""What margins certify: one rule for the bounds of `verify` and the tables of `train`."""

from __future__ import annotations

import torch
from torch import Tensor

DOWN = 1 - 2.0**-51
"""A factor that undoes the rounding of a quotient and of its product with this one."""


SLACK = {torch.float32: 1e-5, torch.float64: 1e-9}
"""The part of the largest logit that is taken off every margin, for rounding and the solver; of
logits in half precision `COARSE`."""
COARSE = 1e-2


def least_quotient(margins: Tensor, bounds: Tensor) -> Tensor:
    """min_j margins_j / bounds_j, rounded down: how far an input may move while all stay positive.

    Args:
        margins, bounds: (…, K) float64; j changes by at most bounds_j per unit of distance. ∞ is
            no margin at all; one that is not positive gives 0; a bound of 0 keeps a positive one.

    Returns:
        (…), float64.
    """
    quotients = torch.where(margins > 0, margins / bounds, torch.zeros_like(margins))
    return quotients.amin(-1) * DOWN
