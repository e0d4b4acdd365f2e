"""The last layer of a classifier: rows of norm 1, hence a constant for every two classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import operator_norm, wide
from ._linear import LinearLayer
from .closed_forms import spectral_square


def unit_rows(W: Tensor) -> Tensor:
    """The rows of W (*batch, p, m), each divided by its norm; a zero row stays zero."""
    scale = W.detach().abs().amax(dim=-1, keepdim=True)
    W = W / torch.where(scale > 0, scale, 1)
    square = W.square().sum(dim=-1, keepdim=True)
    return W / torch.where(square > 0, square, 1).sqrt()


def last_layer_pairs(body: float, W: Tensor) -> Tensor:
    """ℓ₂ bounds of the differences of outputs of x ↦ W f(x), for an f with ℓ₂ bound `body`:
    body·‖w_i - w_j‖₂, never worse than √2·body·‖W‖₂.

    Args:
        W: (K, m).

    Returns:
        (K, K) float64, with a zero diagonal.
    """
    W = W.double()
    return body * torch.linalg.vector_norm(W[:, None] - W[None], dim=-1)


class NormalizedLinear(LinearLayer):
    """x ↦ Wx + b with rows w_i of norm 1: z_i - z_j is ‖w_i - w_j‖-Lipschitz in ℓ₂, at most 2.

    All logits together are ‖W‖₂-Lipschitz, which exceeds 1 unless the rows are orthogonal:
    `lipschitz` is that number, `pair_bounds` the tighter one for each pair.

    Args:
        in_features: as in nn.Linear. classes: out_features of nn.Linear.

    Source: Singla, Singla, Feizi, Improved deterministic l2 robustness (ICLR 2022), section 5.
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, classes, bias, device, dtype)

    def pair_bounds(self, body: float = 1.0) -> Tensor:
        """body · ‖w_i - w_j‖₂ of the applied rows: float64 (classes, classes), zero diagonal.

        Args:
            body: an ℓ₂ Lipschitz constant of what comes before this layer.

        Raises:
            InvalidInput: a parameter that is NaN or Inf, or on the meta device.
        """
        self._check_parameters()
        with torch.no_grad():
            return last_layer_pairs(body, self._applied())

    def lipschitz_in(self, norm: float) -> float:
        """‖W‖ for ℓ_norm to ℓ_norm, norm = 2 or inf, of the applied rows.

        Raises:
            InvalidInput: a parameter that is NaN or Inf, or on the meta device.
        """
        self._check_parameters()
        with torch.no_grad():
            return operator_norm(self._applied().double(), norm)

    def _promise(self) -> float:
        return self.lipschitz_in(2.0)

    def _closed_form(self) -> dict[str, Tensor]:
        D = unit_rows(wide(self.weight))
        return {"D": D, "rho": spectral_square(D)}
