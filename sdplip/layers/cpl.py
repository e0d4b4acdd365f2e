"""Convex potential layers: the residual layer with T = ‖W‖₂² I [CPL]."""

from torch import Tensor

from ._gram import FLOOR, spectral
from ._residual import ResidualLayer, residual


def multiplier(W: Tensor) -> Tensor:
    """T = ‖W‖₂² I ⪰ WᵀW for W (*batch, m, n), as its diagonal (*batch, n)."""
    T = spectral(W).clamp(min=FLOOR)
    return T.unsqueeze(-1).expand(*W.shape[:-2], W.shape[-1])


def witness(W: Tensor) -> dict[str, Tensor]:
    """Every symbol of the residual condition from an arbitrary W (*batch, m, n)."""
    return residual(W, multiplier(W))


class CPLLinear(ResidualLayer):
    """x ↦ x - (2 / ‖W‖₂²) W σ(Wᵀx + b) is 1-Lipschitz for σ with slopes in [0, 1].

    One gradient step on a convex potential. The norm is exact and stateless: no power iteration,
    the same in training and evaluation.

    Args:
        features: width of input and output.
        hidden: units; default `features`.
        activation: a name, or an `Activation`, with slopes in [0, 1].

    Raises:
        InvalidInput: slopes outside [0, 1].

    Source: Meunier, Delattre, Araujo, Allauzen, A dynamical system perspective for Lipschitz neural
    networks (ICML 2022).
    """

    def _multiplier(self, W: Tensor) -> Tensor:
        return multiplier(W)
