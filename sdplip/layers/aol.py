"""Almost-orthogonal layers: T from Gershgorin's discs [AOL]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._base import wide
from ._conv import LinearConv, from_phases, per_group, to_phases
from ._geometry import Pair
from ._linear import LinearLayer
from ._products import Dominated, check_products
from .closed_forms import gershgorin, normalised


def witness(W: Tensor, taps: int = 0, products: str = "exact") -> dict[str, Tensor]:
    """D = W T^{-1/2} with T = diag(Σ_j |WᵀW|_ij) ⪰ WᵀW, hence DᵀD ⪯ I.

    Args:
        W: (*batch, p, m), in any scale; the returned W is scaled to max|W| = 1, which leaves D.
            Or the kernel (*batch, p, m, k₁, k₂) of a convolution, for which |WᵀW| sums over all
            shifts: T bounds the operator on the plane and on every torus.
        taps: how many dimensions of taps W ends with, 0 or 2.
        products: of `closed_forms.dominated`.

    Returns:
        D and W of the shape of W, T (*batch, m) and rho.
    """
    W = normalised(W, taps)
    T = gershgorin(W, taps=taps, products=products)
    return {"D": W / columns(T.sqrt(), taps), "W": W, "T": T, "rho": W.new_ones(())}


def columns(T: Tensor, taps: int) -> Tensor:
    """One number per column (*batch, m), to be multiplied with (*batch, p, m, *taps)."""
    return T.unsqueeze(-2)[(..., *[None] * taps)]


class AOLLinear(Dominated, LinearLayer):
    """x ↦ W T^{-1/2} x + b with T = diag(Σ_j |WᵀW|_ij) is 1-Lipschitz.

    Arguments as in nn.Linear, and products as in `SLLLinear`. Source: Prach, Lampert,
    Almost-orthogonal layers for efficient general-purpose Lipschitz networks (ECCV 2022),
    Theorem 1.

    Raises:
        InvalidInput: unknown products.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        products: str = "exact",
    ) -> None:
        self.products = check_products(type(self).__name__, products)
        super().__init__(in_features, out_features, bias, device, dtype)

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight), products=self.products)


class AOLConv2d(Dominated, LinearConv):
    """The convolution by W T^{-1/2} is 1-Lipschitz: T_c sums |W⋆W| over channels and shifts.

    Any kernel, stride, dilation and groups, zeros or circular; a stride has one T per channel and
    phase of the image, as tight as the space-to-depth that it is. Arguments as in nn.Conv2d,
    and products as in `SLLConv2d`. Source: [AOL], Theorem 2; for zeros the operator is a
    compression of the one on the plane.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = "same",
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        products: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.products = check_products(type(self).__name__, products)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )

    def _closed_form(self) -> dict[str, Tensor]:
        g = self.geometry
        phases = to_phases(per_group(wide(self.weight), g.groups), g)
        w = witness(phases, 2, self.products)
        return w | {"D": from_phases(w["D"], g).flatten(0, 1)}


class AOLConvTranspose2d(AOLConv2d):
    """The adjoint of `AOLConv2d`, as nn.ConvTranspose2d: weight (in, out / groups, k₁, k₂)."""

    transposed = True
    weight: nn.Parameter
