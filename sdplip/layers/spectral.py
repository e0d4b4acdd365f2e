"""Spectral normalisation: T = ‖W‖₂² I."""

from torch import Tensor

from ._base import wide
from ._linear import LinearLayer
from .closed_forms import normalised, spectral


def witness(W: Tensor) -> dict[str, Tensor]:
    """D = W T^{-1/2} with T = ‖W‖₂² I ⪰ WᵀW, hence DᵀD ⪯ I.

    Args:
        W: (*batch, p, m), in any scale; the returned W is scaled to max|W| = 1, which leaves D.

    Returns:
        D and W (*batch, p, m), T (*batch, m) and rho.
    """
    W = normalised(W)
    T = spectral(W)
    return {"D": W / T.sqrt().unsqueeze(-2), "W": W, "T": T, "rho": W.new_ones(())}


class SpectralLinear(LinearLayer):
    """x ↦ (W / ‖W‖₂) x + b is 1-Lipschitz.

    The norm is exact and stateless: no power iteration, the same in training and evaluation.
    Arguments as in nn.Linear.
    """

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight))
