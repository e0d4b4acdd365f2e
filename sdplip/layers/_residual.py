"""Layers x ↦ x - 2WT⁻¹σ(Wᵀx + b) with a diagonal T ⪰ WᵀW."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activations import Activation, activation
from ..system import System
from ._base import (
    Layer,
    check_size,
    fill_normal,
    fill_uniform,
    numpy,
    slopes_in_unit_interval,
    undefined,
    wide,
)
from ._plain import linear, summed


def residual(W: Tensor, T: Tensor) -> dict[str, Tensor]:
    """H = I, G = -2WT⁻¹, Λ = 2T⁻¹, ρ = 1: what T ⪰ WᵀW says in the residual condition.

    The off-diagonal block -HᵀG - WΛ vanishes and 2Λ - GᵀG = 4T⁻¹(T - WᵀW)T⁻¹.

    Args:
        W: (*batch, m, n). T: (*batch, n), positive.

    Source: [ARAUJO] Theorem 3.
    """
    Lam = 2 / T
    H = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    return {"H": H, "G": -W * Lam.unsqueeze(-2), "W": W, "Lam": Lam, "rho": W.new_ones(()), "T": T}


class ResidualLayer(Layer):
    """A residual layer with free `weight` = Wᵀ (hidden, features), whose subclass gives T.

    Attributes:
        scaled: whether T depends on weights q > 0 of the units, through `log_q` (hidden,).
    """

    condition = "residual"
    scaled: ClassVar[bool] = False

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        bias: bool = True,
        *,
        activation: str | Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, features)
        owner = type(self).__name__
        self.hidden = features if hidden is None else hidden
        check_size(owner, "hidden", self.hidden)
        self.activation = slopes_in_unit_interval(owner, activation)
        self.weight = nn.Parameter(torch.empty(self.hidden, features, device=device, dtype=dtype))
        self.bias = (
            nn.Parameter(torch.empty(self.hidden, device=device, dtype=dtype)) if bias else None
        )
        if self.scaled:
            self.log_q = nn.Parameter(torch.empty(self.hidden, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal entries: T exceeds WᵀW, so the layer starts near the identity, which deep
        networks train from better than from the reflection that orthonormal rows would give."""
        fill_normal(self.weight)
        fill_uniform(self.bias, fan_in=self.in_features)
        if self.scaled:
            nn.init.zeros_(self.log_q)

    def witness(self) -> dict[str, Tensor]:
        """H, G, W, Lam, rho of the residual condition, and T (see `Layer.witness`)."""
        tensors = self._tensors()
        return residual(tensors["W"], tensors["T"])

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        scale = 2 / self._current()["T"]
        # A view, because autocast keeps its copy of a parameter from one training step to the next.
        V = self.weight.view_as(self.weight)
        h = activation(self.activation)(F.linear(x, V, self.bias))
        return x - F.linear((h * scale).to(V.dtype), V.mT)

    def _promise(self) -> float:
        return 1.0

    def _folded(self) -> nn.Module:
        w = {name: value.double() for name, value in self._tensors().items()}
        G, dtype = residual(w["W"], w["T"])["G"].to(self.weight.dtype), self.weight.dtype
        inner, outer = linear(w["W"].mT.to(dtype), self.bias), linear(G)
        return summed(None, inner, activation(self.activation), outer)

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"activation": activation(self.activation).name}

    def _system(self) -> System:
        tensors = self._tensors()
        exact = residual(tensors["W"].double(), tensors["T"].double())
        H, G, W = (numpy(exact[name]) for name in "HGW")
        return System.residual(
            H, G, W, numpy(self.bias), activation=activation(self.activation).name
        )

    def extra_repr(self) -> str:
        return (
            f"features={self.in_features}, hidden={self.hidden}, bias={self.bias is not None}, "
            f"activation={activation(self.activation).name}"
        )

    def _multiplier(self, W: Tensor) -> Tensor:
        """The diagonal (n,) of a T ⪰ WᵀW."""
        raise undefined(self, "_multiplier", "T as its diagonal")

    def _closed_form(self) -> dict[str, Tensor]:
        W = wide(self.weight).mT
        return {"W": W, "T": self._multiplier(W)}
