"""Convex potential layers: the residual layer with T = ‖W‖₂² I [CPL]."""

from torch import Tensor

from ._residual import ResidualLayer, residual
from .closed_forms import spectral


def witness(W: Tensor) -> dict[str, Tensor]:
    """Every symbol of the residual condition from an arbitrary W (*batch, m, n)."""
    return residual(W, spectral(W))


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
        return spectral(W)
