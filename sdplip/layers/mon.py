"""Monotone operator equilibrium layers: LBEN in the plain metric [MON]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ._base import options_of
from ._geometry import Pair
from .lben import Bounded, LBENLinear
from .lben_conv import LBENConv2d
from .multiscale import MultiscaleLBEN


class Plain(Bounded):
    """Λ = I: ψ is the constant zero, no parameter."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name != "psi":
            super().register_parameter(name, param)

    @property
    def psi(self) -> None:  # type: ignore[override]
        return None


class MONLinear(Plain, LBENLinear):
    """`LBENLinear` with A = (1 - ε)I - VᵀV - S + Sᵀ: strongly monotone without a metric.

    Args:
        gamma: inf for an equilibrium that is only well-posed, as published; else a bound, which
            takes (CᵀC + BBᵀ) / 2γ off A.
        options: everything else, as in `LBENLinear`.

    Source: Winston, Kolter, Monotone operator equilibrium networks (NeurIPS 2020).
    """

    fusible = True

    @options_of(LBENLinear.__init__)
    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        gamma: float = math.inf,
        **options: Any,
    ) -> None:
        super().__init__(in_features, hidden, out_features, gamma=gamma, **options)


class MONConv2d(Plain, LBENConv2d):
    """`LBENConv2d` without a metric; gamma and source as in `MONLinear`, the rest as there."""

    @options_of(LBENConv2d.__init__)
    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        gamma: float = math.inf,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, hidden, out_channels, kernel_size, gamma=gamma, **options)


class MultiscaleMON(Plain, MultiscaleLBEN):
    """`MultiscaleLBEN` without a metric; gamma and source as in `MONLinear`, the rest as there."""

    @options_of(MultiscaleLBEN.__init__)
    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int],
        out_channels: int,
        kernel_size: int | Pair,
        *,
        gamma: float = math.inf,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, hidden, out_channels, kernel_size, gamma=gamma, **options)
