"""Layers x ↦ Dx + b with ‖D‖₂ ≤ 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._tensors import HALVES
from ..system import System
from ._base import Layer, fill_orthogonal, fill_uniform, numpy, operator_norm
from ._plain import linear


class LinearLayer(Layer):
    """nn.Linear whose free `weight` (out_features, in_features) becomes D by a closed form.

    In half precision D is rounded, and `lipschitz` is its norm where that exceeds 1.
    """

    condition = "linear"
    weight: nn.Parameter
    free = {"weight": ("out_features", "in_features")}  # noqa: RUF012

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self._register({"in_features": in_features, "out_features": out_features}, device, dtype)
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthonormal rows or columns: every direction starts with gain 1, and T = WᵀW."""
        fill_orthogonal(self.weight)
        fill_uniform(self.bias, fan_in=self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return F.linear(x, self._applied(), self.bias)

    def _promise(self) -> float:
        if next(self.parameters()).dtype not in HALVES:
            return 1.0
        with torch.no_grad():
            return max(1.0, operator_norm(self._applied().double()))

    def _folded(self) -> nn.Module:
        return linear(self._applied(), self.bias)

    def _system(self) -> System:
        return System.linear(numpy(self._applied()), numpy(self.bias))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def _applied(self) -> Tensor:
        return self._current()["D"].to(next(self.parameters()).dtype)
