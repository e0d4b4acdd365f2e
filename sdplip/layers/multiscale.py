"""Lipschitz-bounded equilibria of several resolutions [LBEN], [MON]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activations import Activation
from ..errors import InvalidInput, ShapeError
from ._base import fill_uniform, wide
from ._equilibrium_conv import EquilibriumConv2d, Free, at_zero
from ._geometry import Pair
from ._torus import bounded, polyphase, symbol
from .lben import CONTRACTION, Bounded, limits, solution, unbounded


class MultiscaleLBEN(Bounded, EquilibriumConv2d):
    """An `LBENConv2d` whose units live at several resolutions, each half of the one before, all
    coupled with each other at one equilibrium; γ-Lipschitz in ℓ₂ for every size of images.

    Seen from the coarsest grid, with the pixels of a coarse pixel as its channels, every
    convolution and every strided one is a convolution of stride 1: the closed form is that of
    `LBENConv2d`. A frequency's matrix has Σ_l hidden[l]·4^(L-1-l) rows, and is inverted.

    Args:
        in_channels, out_channels: of input and output, both of the finest resolution.
        hidden: channels of the scales, the finest first.
        kernel_size: of couplings within a scale; one between scales of which r² pixels make one has
            kernel_size + r - 1. V and S couple every scale with the finer ones, VᵀV and S - Sᵀ all.
        gamma, learn_gamma, eps, feedthrough, readout, padding_mode, activation, method, tol,
            max_steps: as in `LBENConv2d`. Zeros frame the coarsest grid.

    The sides of images must be multiples of 2^(L-1). Parameters carry the numbers of their scales:
    `V2_0` leads from the finest scale to the third, `C1` is that of the second as in
    nn.ConvTranspose2d; `psi` and `bias` are those of all channels.

    Raises:
        InvalidInput: as `LBENConv2d`, or no scale. ShapeError: an image of another size.

    Source: [LBEN]; Winston, Kolter, Monotone operator equilibrium networks (NeurIPS 2020), section
    on multi-tier networks, has Λ = I, couplings from fine to coarse only and no γ.
    """

    hidden: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int],
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
        if isinstance(hidden, int) or not len(hidden):
            raise InvalidInput(
                f"{type(self).__name__}: hidden = {hidden}, but must be the channels of one scale "
                "or more. Give e.g. (16, 32)."
            )
        super().__init__(
            in_channels,
            tuple(hidden),
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
        pooled, (m, p) = self.readout == "pool", (self.in_channels, self.out_channels)
        units = sum(self.hidden)
        for i, n in enumerate(self.hidden):
            setattr(self, f"B{i}", free(n, m, *self._reach(i)))
            if not pooled:
                setattr(self, f"C{i}", free(n, p, *self._reach(i)))
            for j, finer in enumerate(self.hidden[: i + 1]):
                for name in "VS":
                    setattr(self, f"{name}{i}_{j}", free(n, finer, *self._reach(i - j)))
        if pooled:
            self.C = free(p, units)
        direct = (p, m) if pooled else (p, m, *self._reach(0))
        self.D = free(*direct) if feedthrough else None
        self.psi = free(units)
        self.bias = free(units) if bias else None
        self.out_bias = free(p) if bias else None

    # The eigenvalues of all frequencies would take longer than a solve.
    _modulus = Bounded._margin

    def reset_parameters(self) -> None:
        """nn.Conv2d's initialisation throughout, but ψ = 0 and D = 0."""
        taps = math.prod(self.geometry.kernel_size)
        for name, parameter in self.named_parameters():
            if name[0] in "VSB":
                coupled = sum(self.hidden) if name[0] in "VS" else self.in_channels
                fill_uniform(parameter, fan_in=coupled * math.prod(parameter.shape[2:]))
            elif name[0] == "C":
                fill_uniform(parameter, fan_in=sum(self.hidden) * math.prod(parameter.shape[2:]))
        fill_uniform(self.bias, fan_in=self.in_channels * taps)
        fill_uniform(self.out_bias, fan_in=sum(self.hidden))
        if self.D is not None:
            nn.init.zeros_(self.D)
        self._reset_bound()

    def _reach(self, halvings: int) -> Pair:
        """The kernel between scales so far apart."""
        k1, k2 = (k + 2**halvings - 1 for k in self.geometry.kernel_size)
        return k1, k2

    @property
    def _sides(self) -> list[int]:
        """The side of a pixel of the coarsest grid in pixels of each scale."""
        return [2 ** (len(self.hidden) - 1 - i) for i in range(len(self.hidden))]

    def _torus(self, image: Pair) -> Pair:
        side = self._sides[0]
        if image[0] % side or image[1] % side:
            raise ShapeError(
                f"{type(self).__name__}: the image is {image[0]} x {image[1]}, but with "
                f"{len(self.hidden)} scales its sides must be multiples of {side}. Pad it."
            )
        return super()._torus((image[0] // side, image[1] // side))

    def _entered(self, x: Tensor) -> Tensor:
        side = self._sides[0]
        h, w = self._torus((x.shape[-2], x.shape[-1]))
        framed = F.pad(x, (0, w * side - x.shape[-1], 0, h * side - x.shape[-2]))
        # PyTorch's pixel_unshuffle gives an empty batch another shape.
        split = framed.unflatten(-1, (w, side)).unflatten(-3, (h, side))
        return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    def _left(self, y: Tensor, image: Pair) -> Tensor:
        side = self._sides[0]
        split = y.unflatten(1, (self.out_channels, side, side)).permute(0, 1, 4, 2, 5, 3)
        return super()._left(split.flatten(4).flatten(2, 3), image)

    def _unit_bias(self) -> Tensor | None:
        return None if self.bias is None else self._per_unit(wide(self.bias))

    def _per_unit(self, x: Tensor) -> Tensor:
        """Numbers of channels (..., Σ hidden) for the channels of the coarsest grid."""
        parts = x.split(self.hidden, dim=-1)
        pieces = [
            part.repeat_interleave(side**2, dim=-1)
            for part, side in zip(parts, self._sides, strict=True)
        ]
        return torch.cat(pieces, dim=-1)

    def _symbols(self, size: Pair) -> dict[str, Tensor]:
        gamma, sides = self._gamma(), self._sides
        units = sum(n * side**2 for n, side in zip(self.hidden, sides, strict=True))
        scale, outer = limits(units, gamma)
        rows = {f"{i}": side for i, side in enumerate(sides)}
        grid = {f"{i}_{j}": sides[i] for i in range(len(sides)) for j in range(i + 1)}

        def limited(name: str, rows: dict[str, int], limit: float | Tensor) -> dict[str, Tensor]:
            kernels = [wide(getattr(self, name + at)) for at in rows]
            counts = [K[0, 0].numel() * r**2 for K, r in zip(kernels, rows.values(), strict=True)]
            return dict(zip(rows, bounded(kernels, counts, limit), strict=True))

        def block(K: Tensor, row: int, column: int) -> Tensor:
            return symbol(*polyphase(K, self.geometry.before, row, column), size)

        def adjoint(K: Tensor, row: int, column: int) -> Tensor:
            G, (top, left) = polyphase(K, self.geometry.before, row, column)
            turned = (G.shape[-2] - 1 - top, G.shape[-1] - 1 - left)
            return symbol(G.transpose(0, 1).flip(-2, -1), turned, size)

        def square(name: str) -> Tensor:
            kernels = limited(name, grid, scale)
            lines = []
            for i, row in enumerate(sides):
                known = [block(kernels[f"{i}_{j}"], row, sides[j]) for j in range(i + 1)]
                left = units - sum(K.shape[-1] for K in known)
                lines.append(F.pad(torch.cat(known, dim=-1), (0, left)))
            return torch.cat(lines, dim=-2)

        def outward(name: str, part: Callable[..., Tensor]) -> list[Tensor]:
            kernels = limited(name, rows, outer)
            return [part(kernels[at], row, sides[0]) for at, row in rows.items()]

        pooled, X = self.readout == "pool", None
        if pooled:
            # Sums over the pixels of a scale, over the root of their number.
            parts = bounded([wide(self.C)], [1], outer)[0].split(self.hidden, dim=-1)
            means = [part / side for part, side in zip(parts, sides, strict=True)]
            C = at_zero(self._per_unit(torch.cat(means, dim=-1)), size)
        else:
            C = torch.cat(outward("C", adjoint), dim=-1)
        if self.D is not None:
            D = wide(self.D)
            if not unbounded(gamma):
                (D,) = bounded([D], [1 if pooled else D[0, 0].numel() * sides[0] ** 2], CONTRACTION)
            if pooled:
                X = at_zero(D.repeat_interleave(sides[0] ** 2, dim=-1) / sides[0], size)
            else:
                X = block(D, sides[0], sides[0])
        psi = None if self.psi is None else self._per_unit(wide(self.psi))
        B = torch.cat(outward("B", block), dim=-2)
        w = solution(psi, square("V"), square("S"), B, C, X, gamma, self.eps)
        return w | {"metric": w["Lam"].detach()}
