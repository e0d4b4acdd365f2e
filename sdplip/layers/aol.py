"""Almost-orthogonal layers: T from Gershgorin's discs [AOL]."""

from torch import Tensor, nn

from ._base import wide
from ._conv import LinearConv, from_phases, per_group, to_phases
from ._linear import LinearLayer
from .closed_forms import gershgorin, normalised


def witness(W: Tensor, taps: int = 0) -> dict[str, Tensor]:
    """D = W T^{-1/2} with T = diag(Σ_j |WᵀW|_ij) ⪰ WᵀW, hence DᵀD ⪯ I.

    Args:
        W: (*batch, p, m), in any scale; the returned W is scaled to max|W| = 1, which leaves D.
            Or the kernel (*batch, p, m, k₁, k₂) of a convolution, for which |WᵀW| sums over all
            shifts: T bounds the operator on the plane and on every torus.
        taps: how many dimensions of taps W ends with, 0 or 2.

    Returns:
        D and W of the shape of W, T (*batch, m) and rho.
    """
    W = normalised(W, taps)
    T = gershgorin(W, taps=taps)
    return {"D": W / columns(T.sqrt(), taps), "W": W, "T": T, "rho": W.new_ones(())}


def columns(T: Tensor, taps: int) -> Tensor:
    """One number per column (*batch, m), to be multiplied with (*batch, p, m, *taps)."""
    return T.unsqueeze(-2)[(..., *[None] * taps)]


class AOLLinear(LinearLayer):
    """x ↦ W T^{-1/2} x + b with T = diag(Σ_j |WᵀW|_ij) is 1-Lipschitz.

    Arguments as in nn.Linear. Source: Prach, Lampert, Almost-orthogonal layers for efficient
    general-purpose Lipschitz networks (ECCV 2022), Theorem 1.
    """

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight))


class AOLConv2d(LinearConv):
    """The convolution by W T^{-1/2} is 1-Lipschitz: T_c sums |W⋆W| over channels and shifts.

    Any kernel, stride, dilation and groups, zeros or circular; a stride has one T per channel and
    phase of the image, as tight as the space-to-depth that it is. Arguments as in nn.Conv2d.
    Source: [AOL], Theorem 2; for zeros the operator is a compression of the one on the plane.
    """

    def _closed_form(self) -> dict[str, Tensor]:
        g = self.geometry
        w = witness(to_phases(per_group(wide(self.weight), g.groups), g), taps=2)
        return w | {"D": from_phases(w["D"], g).flatten(0, 1)}


class AOLConvTranspose2d(AOLConv2d):
    """The adjoint of `AOLConv2d`, as nn.ConvTranspose2d: weight (in, out / groups, k₁, k₂)."""

    transposed = True
    weight: nn.Parameter
