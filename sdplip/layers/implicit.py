"""Implicit deep learning: equilibrium layers with ‖A‖_∞ ≤ c, NEMON's special case [GHAOUI]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._base import fill_uniform, options_of, wide
from ._equilibrium import EquilibriumLayer
from ._state import Constant
from .nemon import NEMONLinear


def witness(T: Tensor, c: Tensor) -> dict[str, Tensor]:
    """A = T, its rows shrunk to Σ_j|a_ij| ≤ c where they are longer; η = 1.

    μ_∞(A) = max_i a_ii + Σ_{j≠i}|a_ij| ≤ ‖A‖_∞ ≤ c. The row sums are rounded upwards.

    Args:
        T: (*batch, n, n), arbitrary. c: scalar in [0, 1).

    Returns:
        A (*batch, n, n), eta (*batch, n), c.
    """
    info = torch.finfo(T.dtype)
    c = c.clamp(max=1 - 16 * info.eps)
    # In units of the largest entry, so that no sum overflows.
    largest = T.detach().abs().amax(dim=-1, keepdim=True).clamp(min=1)
    size = (T / largest).abs().sum(dim=-1, keepdim=True) * (1 + 2 * T.shape[-1] * info.eps)
    A = T / largest * (c / torch.maximum(size, (c / largest).clamp(min=info.tiny)))
    return {"A": A, "eta": torch.ones_like(T[..., 0]), "c": c}


class ImplicitLinear(NEMONLinear):
    """`NEMONLinear` with ‖A‖_∞ ≤ c instead of μ_∞(A) ≤ c: weights cannot help, and a negative
    diagonal does not.

    Args:
        c: the bound on ‖A‖_∞, in [0, 1); it comes back with the state_dict.
        options: everything else, as in `NEMONLinear`.

    Source: El Ghaoui, Gu, Travacca, Askari, Tsai, Implicit deep learning (SIAM Journal on
    Mathematics of Data Science, 2021), which projects A onto this set after every step; here its
    rows are scaled into it, so that they may be trained freely.
    """

    c = Constant(lambda c: 0 <= c < 1, "must be in [0, 1). Use e.g. 0.99.")

    @options_of(NEMONLinear.__init__)
    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        c: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__(in_features, hidden, out_features, c=c, **options)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name != "d":  # η = 1
            super().register_parameter(name, param)

    def reset_parameters(self) -> None:
        """nn.Linear's initialisation throughout."""
        EquilibriumLayer.reset_parameters(self)
        fill_uniform(self.T, fan_in=self.hidden)

    def _closed_form(self) -> dict[str, Tensor]:
        B, C = wide(self.B), wide(self.C)
        D = C.new_zeros(self.out_features, self.in_features) if self.D is None else wide(self.D)
        return {**witness(wide(self.T), C.new_full((), self.c)), "B": B, "C": C, "D": D}
