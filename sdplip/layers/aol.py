"""Almost-orthogonal layers: T from Gershgorin's discs [AOL]."""

from torch import Tensor

from ._base import wide
from ._linear import LinearLayer
from .closed_forms import gershgorin, normalised


def witness(W: Tensor) -> dict[str, Tensor]:
    """D = W T^{-1/2} with T = diag(Σ_j |WᵀW|_ij) ⪰ WᵀW, hence DᵀD ⪯ I.

    Args:
        W: (*batch, p, m), in any scale; the returned W is scaled to max|W| = 1, which leaves D.

    Returns:
        D and W (*batch, p, m), T (*batch, m) and rho.
    """
    W = normalised(W)
    T = gershgorin(W)
    return {"D": W / T.sqrt().unsqueeze(-2), "W": W, "T": T, "rho": W.new_ones(())}


class AOLLinear(LinearLayer):
    """x ↦ W T^{-1/2} x + b with T = diag(Σ_j |WᵀW|_ij) is 1-Lipschitz.

    Arguments as in nn.Linear. Source: Prach, Lampert, Almost-orthogonal layers for efficient
    general-purpose Lipschitz networks (ECCV 2022), Theorem 1.
    """

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight))
