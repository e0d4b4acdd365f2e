"""Lipschitz-bounded equilibrium convolutions [LBEN]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import Activation
from ._base import fill_uniform, wide
from ._equilibrium_conv import EquilibriumConv2d, Free, at_zero
from ._geometry import Pair
from ._torus import bounded, symbol
from .lben import CONTRACTION, Bounded, limits, solution, unbounded


class LBENConv2d(Bounded, EquilibriumConv2d):
    """x ↦ Cz + Dx + c at z = σ(Az + Bx + b) on images is well-posed and γ-Lipschitz in ℓ₂, for
    every size of images; slopes in [0, 1].

    V, S, B, C are kernels, Λ has one entry per channel, and `lben.solution` gives A frequency by
    frequency: Parseval's identity makes one condition of theirs.

    Args:
        in_channels, hidden, out_channels: of input, units and output.
        kernel_size: of V, S, B, C and D, odd or even; taps beyond the image wrap around the torus.
        gamma, learn_gamma, eps, feedthrough, activation: as in `LBENLinear`.
        readout: "image" for outputs of the input's size; "pool" for (N, out_channels, 1, 1), by
            the sum over all pixels divided by the root of their number, which keeps the norm.
        padding_mode: "zeros" frames the image, by kernel_size - 1 zeros or some more, and units
            live in the frame as well; "circular" does not.
        method, tol, max_steps: of `sdplip.equilibrium.solve`.

    `gamma` and `eps` come back with the state_dict. The bound is that of the exact equilibrium; two
    computed outputs can differ by what their residuals allow on top of it.

    Raises:
        InvalidInput: gamma or eps out of range, slopes outside [0, 1], another padding_mode.

    Source: Revay, Wang, Manchester, Lipschitz bounded equilibrium networks (arXiv 2010.01732);
    Winston, Kolter, Monotone operator equilibrium networks (NeurIPS 2020) for the Fourier domain.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        gamma: float = 1.0,
        learn_gamma: bool = False,
        eps: float = 1.0,
        feedthrough: bool = False,
        readout: str = "image",
        bias: bool = True,
        activation: str | Activation = "relu",
        padding_mode: str = "zeros",
        method: str = "peaceman_rachford",
        tol: float | None = None,
        max_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            hidden,
            out_channels,
            kernel_size,
            bias=bias,
            feedthrough=feedthrough,
            readout=readout,
            activation=activation,
            padding_mode=padding_mode,
            method=method,
            tol=tol,
            max_steps=max_steps,
            device=device,
            dtype=dtype,
        )
        self._set_bound(gamma, learn_gamma, eps)
        self.reset_parameters()

    def _create(self, free: Free, bias: bool, feedthrough: bool) -> None:
        super()._create(free, bias, feedthrough)
        hidden = len(self.B)
        self.psi = free(hidden)
        self.V = free(hidden, hidden, *self.geometry.kernel_size)
        self.S = free(hidden, hidden, *self.geometry.kernel_size)

    # The eigenvalues of all frequencies would take longer than a solve.
    _modulus = Bounded._margin

    def reset_parameters(self) -> None:
        """nn.Conv2d's initialisation throughout, but ψ = 0."""
        super().reset_parameters()
        fill_uniform(self.V, self.S, fan_in=self.V[0].numel())
        self._reset_bound()

    def _symbols(self, size: Pair) -> dict[str, Tensor]:
        gamma = self._gamma()
        scale, outer = limits(len(self.V), gamma)
        origin, pooled = self.geometry.before, self.readout == "pool"

        def limited(K: Tensor, limit: float | Tensor) -> Tensor:
            return bounded([wide(K)], [K[0, 0].numel()], limit)[0]

        def read(K: Tensor) -> Tensor:
            return at_zero(K[:, :, 0, 0], size) if pooled else symbol(K, origin, size)

        V, S = (symbol(limited(K, scale), origin, size) for K in (self.V, self.S))
        B = symbol(limited(self.B, outer), origin, size)
        C, X = read(limited(self.C, outer)), None
        if self.D is not None:
            free = unbounded(gamma)
            X = read(wide(self.D) if free else limited(self.D, CONTRACTION))
        psi = None if self.psi is None else wide(self.psi)
        w = solution(psi, V, S, B, C, X, gamma, self.eps)
        return w | {"metric": w["Lam"].detach()}
