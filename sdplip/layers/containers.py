"""Sums and branches of modules, with the constant that follows from theirs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._tensors import HALVES, full_precision
from ..errors import InvalidInput, ShapeError
from ._base import check_finite, wide
from ._part import Container


class Residual(Container):
    """x ↦ skip(x) + f(x), Lipschitz with L_skip + L_f in every norm.

    That is 2 for a 1-Lipschitz f and the identity; `ConvexResidual` and the residual layers (SLL,
    CPL) stay at 1.

    Args:
        f: the branch.
        skip: the other one; None is the identity.

    Raises:
        ShapeError: on branches whose outputs differ in shape.
    """

    def __init__(self, f: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.f = f
        self.skip = nn.Identity() if skip is None else skip

    def combined(self, norm: float, constant: Callable[[str], float]) -> float:
        return constant("skip") + constant("f")

    def forward(self, x: Tensor) -> Tensor:
        skip, f = self.skip(x), self.f(x)
        _check_same_shape("Residual", skip, f)
        return skip + f


class ConvexResidual(Container):
    """x ↦ (1 - a)·skip(x) + a·f(x), Lipschitz with (1 - a)·L_skip + a·L_f ≤ max(L_skip, L_f).

    Args:
        f, skip: as in `Residual`, with outputs of one shape.
        share: a, strictly between 0 and 1; learned from there through its logit, hence always
            between 0 and 1.

    Raises:
        InvalidInput: another share.
    """

    def __init__(
        self,
        f: nn.Module,
        skip: nn.Module | None = None,
        share: float = 0.5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise InvalidInput(
                f"ConvexResidual: share = {share}, but must lie strictly between 0 and 1."
            )
        self.f = f
        self.skip = nn.Identity() if skip is None else skip
        logit = math.log(share) - math.log1p(-share)
        self.logit = nn.Parameter(torch.full((), logit, device=device, dtype=dtype))

    def combined(self, norm: float, constant: Callable[[str], float]) -> float:
        check_finite("ConvexResidual", {"logit": self.logit})
        with torch.no_grad():
            # In half precision they are rounded where they are applied.
            half = self.logit.dtype in HALVES
            rounding = torch.finfo(self.logit.dtype).eps if half else 0.0
            weights = [float(weight) * (1 + rounding) for weight in self._weights()]
        # A branch with weight 0 may have no finite constant.
        parts = zip(weights, ("skip", "f"), strict=True)
        return sum(weight * constant(name) for weight, name in parts if weight > 0)

    def forward(self, x: Tensor) -> Tensor:
        rest, share = self._weights()
        skip, f = self.skip(x), self.f(x)
        _check_same_shape("ConvexResidual", skip, f)
        return rest.to(skip.dtype) * skip + share.to(f.dtype) * f

    def _weights(self) -> tuple[Tensor, Tensor]:
        """1 - a and a."""
        with full_precision(self.logit):
            logit = wide(self.logit)
            return torch.sigmoid(-logit), torch.sigmoid(logit)

    def extra_repr(self) -> str:
        return "share=?" if self.logit.is_meta else f"share={float(self._weights()[1]):.4g}"


class Concatenate(Container):
    """x ↦ (f₁(x), f₂(x), …) along one dimension: √(L₁² + L₂² + …) in ℓ₂, max L_i in ℓ∞.

    Args:
        branches: one or more modules.
        dim: -3 for the channels of images (batched or not), -1 for vectors.

    Raises:
        InvalidInput: no branches.
    """

    def __init__(self, *branches: nn.Module, dim: int = -3) -> None:
        super().__init__()
        if not branches:
            raise InvalidInput("Concatenate: there are no branches. Give at least one module.")
        self.branches = nn.ModuleList(branches)
        self.dim = dim

    def combined(self, norm: float, constant: Callable[[str], float]) -> float:
        each = [constant(f"branches.{i}") for i in range(len(self.branches))]
        return math.hypot(*each) if norm == 2 else max(each)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def _check_same_shape(owner: str, skip: Tensor, f: Tensor) -> None:
    """Broadcasting would repeat entries, and multiply the constant."""
    if skip.shape != f.shape:
        raise ShapeError(
            f"{owner}: skip gives shape {tuple(skip.shape)} and f {tuple(f.shape)}, but both must "
            "be the same. Give another skip."
        )
