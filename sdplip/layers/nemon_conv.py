"""Non-Euclidean monotone equilibrium convolutions: ℓ∞ instead of ℓ₂ [NEMON]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..activations import Activation
from ..errors import InvalidInput
from ._base import fill_uniform, wide
from ._equilibrium_conv import EquilibriumConv2d, Free, at_zero
from ._geometry import Pair
from ._torus import symbol
from .nemon import Measured, metric, metzler, witness


class NEMONConv2d(Measured, EquilibriumConv2d):
    """x ↦ Cz + Dx + c at z = σ(Az + Bx + b) on images, μ_{∞,η}(A) ≤ c < 1 with one weight η per
    channel, is well-posed for every size of images; slopes in [0, 1].

    `lipschitz` is the ℓ∞ constant that its weights give, exact on a torus larger than the kernel:
    absolute values summed over taps make one matrix of channels. To train it, add `linf_bound()`
    to the loss. Unlike the other layers it promises no constant in advance.

    Args:
        in_channels, hidden, out_channels: of input, units and output.
        kernel_size: of T, B, C and D, odd.
        c: the bound on the matrix measure, in [-1e9, 1); it comes back with the state_dict.
        feedthrough: add the direct path D.
        activation: a name, or an `Activation`, with slopes in [0, 1].
        readout: "image" for outputs of the input's size; "pool" for (N, out_channels, 1, 1), by
            the mean over all pixels.
        padding_mode: "zeros" frames the image, by kernel_size - 1 zeros or some more, and units
            live in the frame as well; "circular" does not.
        method, tol, max_steps: of `sdplip.equilibrium.solve`.

    Raises:
        InvalidInput: an even kernel, which has no middle tap; c out of range, slopes outside
            [0, 1], another padding_mode.

    Source: Jafarpour, Davydov, Proskurnikov, Bullo, Robust implicit networks via non-Euclidean
    contractions (NeurIPS 2021).
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        c: float = 0.0,
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
        if not all(k % 2 for k in self.geometry.kernel_size):
            raise InvalidInput(
                f"{type(self).__name__}: kernel_size = {kernel_size}, but must be odd: the middle "
                "tap holds the diagonal that bounds the measure. Use e.g. 3."
            )
        self.c = c
        self.reset_parameters()

    def _create(self, free: Free, bias: bool, feedthrough: bool) -> None:
        super()._create(free, bias, feedthrough)
        self.T = free(len(self.B), len(self.B), *self.geometry.kernel_size)
        self.d = free(len(self.B))

    def reset_parameters(self) -> None:
        """nn.Conv2d's initialisation throughout, η = 1."""
        super().reset_parameters()
        fill_uniform(self.T, fan_in=self.T[0].numel())
        nn.init.zeros_(self.d)

    def witness(self, image: Pair | None = None) -> dict[str, Tensor]:
        """A, B, C, D as kernels, eta and c, differentiable; with an image size, as in
        `EquilibriumConv2d`, their symbols."""
        return self._tensors() if image is None else super().witness(image)

    def _closed_form(self) -> dict[str, Tensor]:
        T, B, C = wide(self.T), wide(self.B), wide(self.C)
        n, _, k1, k2 = T.shape
        c = C.new_full((), self.c)
        w = witness(T.permute(0, 2, 3, 1).flatten(1), wide(self.d), c)
        A = w["A"].view(n, k1, k2, n).permute(0, 3, 1, 2)
        D = C.new_zeros(self.out_channels, self.in_channels, *C.shape[2:])
        D = D if self.D is None else wide(self.D)
        return {**w, "A": A, "B": B, "C": C, "D": D}

    def _summed(self, w: dict[str, Tensor]) -> dict[str, Tensor]:
        """Absolute values summed over taps, but for the diagonal of the middle one; upwards."""
        A = w["A"]
        k1, k2 = A.shape[2:]
        middle = metzler(A[:, :, k1 // 2, k2 // 2])
        others = A.abs().sum(dim=(2, 3)) - A[:, :, k1 // 2, k2 // 2].abs()
        lost = k1 * k2 * torch.finfo(A.dtype).eps
        rounded = {name: w[name].abs().sum(dim=(2, 3)) * (1 + lost) for name in "BCD"}
        return {"A": middle + others + lost * A.abs().sum(dim=(2, 3)), **rounded}

    def _symbols(self, size: Pair) -> dict[str, Tensor]:
        w, origin, pooled = self._closed_form(), self.geometry.before, self.readout == "pool"

        def read(K: Tensor) -> Tensor:
            return at_zero(K[:, :, 0, 0], size) if pooled else symbol(K, origin, size)

        A, B = (symbol(w[name], origin, size) for name in "AB")
        Lam = metric(self._summed(w)["A"].detach().double())
        return {"A": A, "B": B, "C": read(w["C"]), "D": read(w["D"]), "metric": Lam}
