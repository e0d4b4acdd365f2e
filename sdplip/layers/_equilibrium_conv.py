"""Equilibrium layers on images, solved on a torus in the Fourier domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._tensors import full_precision
from ..activations import Activation, activation
from ..equilibrium import Circulant, Solution
from ..equilibrium.operators import from_spectrum, spectrum
from ..errors import InvalidInput
from ..system import System
from ._base import check_size, fill_uniform, numpy, undefined, wide
from ._conv import ConvLayer
from ._equilibrium import Equilibrium, doubles, untraced
from ._geometry import Geometry, Pair
from ._unrolled import FoldedEquilibriumConv2d

READOUTS = ("image", "pool")
Free = Callable[..., nn.Parameter]
"""A parameter of this shape, of the layer's device and dtype."""


class EquilibriumConv2d(Equilibrium, ConvLayer):
    """y = Cz + Dx + c at z = σ(Az + Bx + b) for images; the subclass gives A, B, C, D as symbols.

    Everything lives on a torus. With circular padding it is the image. With zeros it is the image
    framed by kernel_size - 1 zeros, and by some more up to a number of pixels that is a product of
    2, 3 and 5, for which Fourier transforms are fast; hidden units have values in the frame too,
    and the output is cropped. To embed and to crop expands nothing in ℓ₂ nor in ℓ∞.

    Attributes:
        readout: "image" for outputs of the input's height and width; "pool" for 1 x 1, the sum over
            the torus divided by the root of its pixels, which keeps the norm of ℓ₂.
        fallback: as in `Equilibrium`, where the layer has at most 2,000 units in all.
    """

    B: nn.Parameter
    C: nn.Parameter
    D: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        hidden: int | tuple[int, ...],
        out_channels: int,
        kernel_size: int | Pair,
        *,
        bias: bool,
        feedthrough: bool,
        readout: str,
        activation: str | Activation,
        padding_mode: str,
        method: str,
        tol: float | None,
        max_steps: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        owner = type(self).__name__
        for units in hidden if isinstance(hidden, tuple) else (hidden,):
            check_size(owner, "hidden", units)
        super().__init__(
            in_channels,
            out_channels,
            Geometry.of(owner, kernel_size, 1, "same", 1, 1, padding_mode, {}),
        )
        if readout not in READOUTS:
            raise InvalidInput(
                f"{owner}: readout = {readout!r} is unknown. Use one of {', '.join(READOUTS)}."
            )
        self.hidden, self.readout = hidden, readout
        self.activation = self._accepted(activation)
        self._set_solver(method, tol, max_steps)

        def free(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self._create(free, bias, feedthrough)

    def _create(self, free: Free, bias: bool, feedthrough: bool) -> None:
        """Register the parameters."""
        hidden, inner = cast(int, self.hidden), self.geometry.kernel_size
        outer = inner if self.readout == "image" else (1, 1)
        self.B = free(hidden, self.in_channels, *inner)
        self.C = free(self.out_channels, hidden, *outer)
        self.D = free(self.out_channels, self.in_channels, *outer) if feedthrough else None
        self.bias = free(hidden) if bias else None
        self.out_bias = free(self.out_channels) if bias else None

    def reset_parameters(self) -> None:
        """Draw B, C and the biases as nn.Conv2d does; the direct path D starts at zero."""
        fill_uniform(self.B, self.bias, fan_in=self.B[0].numel())
        fill_uniform(self.C, self.out_bias, fan_in=self.C[0].numel())
        if self.D is not None:
            nn.init.zeros_(self.D)

    @property
    def feedthrough(self) -> bool:
        """Whether there is a direct path D."""
        return self.D is not None

    @untraced
    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        image = _size(x)
        with full_precision(x):
            w, size = self._at(image), self._torus(image)
            waves = spectrum(self._entered(wide(batch)))
            v = self._drive(w, waves, size)
            z = self._find(Circulant(w["A"], size, kept=w["kept"]), v.flatten(1), w["metric"])
            y = self._output(w, z.view_as(v), waves, image)
        return (y if x.ndim == 4 else y.squeeze(0)).to(x.dtype)

    def solve(self, x: Tensor, z0: Tensor | None = None) -> Solution:
        """The equilibria for x, z as (..., channels, height, width) on the torus, with residual,
        error bound and steps of every sample; from such a z0 on, if given.

        Not differentiable; never raises for lack of convergence.
        """
        self._check(x)
        image = _size(x)
        with torch.no_grad(), full_precision(x):
            w, size = self._at(image), self._torus(image)
            batch = x if x.ndim == 4 else x.unsqueeze(0)
            v = self._drive(w, spectrum(self._entered(wide(batch))), size)
            v = v if x.ndim == 4 else v.squeeze(0)
            A = Circulant(w["A"], size, kept=w["kept"])
            start = None if z0 is None else z0.flatten(-3)
            found = self._solution(A, v.flatten(-3), w["metric"], start)
        return replace(found, z=found.z.view_as(v))

    def solve_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found, image = self.solve(x), _size(x)
        with torch.no_grad(), full_precision(x):
            w, size = self._at(image), self._torus(image)
            batch, z = (x, found.z) if x.ndim == 4 else (x.unsqueeze(0), found.z.unsqueeze(0))
            y = self._output(w, z, spectrum(self._entered(wide(batch))), image).to(x.dtype)
            exact, z, waves = doubles(w), z.double(), spectrum(self._entered(batch.double()))
            v, gap = self._drive(exact, waves, size), y - self._output(exact, z, waves, image)
            A = Circulant(w["A"], size, kept=w["kept"])
            rows = (v.flatten(1), z.flatten(1), exact["C"], w["metric"], gap.flatten(1))
            error = self._left_open(A, *rows)
        return (y, error) if x.ndim == 4 else (y.squeeze(0), error.squeeze(0))

    def witness(self, image: Pair | None = None) -> dict[str, Tensor]:
        """Every symbol of the condition for images (height, width), differentiable.

        Returns:
            A, B, C, D as (h, w//2 + 1, rows, columns), the matrices of the frequencies of rfft2 on
            the torus: complex, in the precision of the parameters, float32 at least.
        """
        if image is None:
            raise InvalidInput(
                f"{type(self).__name__}: the symbols of a convolution are those of one size of "
                "images. Pass image=(height, width)."
            )
        with full_precision(next(self.parameters())):
            return {k: v for k, v in self._symbols(self._torus(image)).items() if k != "metric"}

    def _symbols(self, size: Pair) -> dict[str, Tensor]:
        """What forward applies on a torus, and the metric (n,) in which I - A is monotone."""
        raise undefined(self, "_symbols", "what forward applies on a torus, and the metric")

    def _at(self, image: Pair) -> dict[str, Any]:
        """The symbols, kept in evaluation with the step and the resolvents that they lead to."""
        size = self._torus(image)
        return self._cache.get(
            self,
            lambda: (self._options(), size),
            lambda: self._symbols(size) | cast(dict[str, Any], {"kept": {}}),
        )

    def _torus(self, image: Pair) -> Pair:
        """The height and width of the torus."""
        if self.geometry.mode == "circular":
            return image
        h, w = (_smooth(n + k - 1) for n, k in zip(image, self.geometry.kernel_size, strict=True))
        return h, w

    def _entered(self, x: Tensor) -> Tensor:
        """Images as they lie on the torus."""
        h, w = self._torus(_size(x))
        return F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2]))

    def _left(self, y: Tensor, image: Pair) -> Tensor:
        """What is seen of images on the torus."""
        return y[..., : image[0], : image[1]]

    def _unit_bias(self) -> Tensor | None:
        """The bias of every channel on the torus."""
        return None if self.bias is None else wide(self.bias)

    def _drive(self, w: dict[str, Tensor], waves: Tensor, size: Pair) -> Tensor:
        v = from_spectrum(waves @ w["B"].mT, size)
        bias = self._unit_bias()
        return v if bias is None else v + bias.to(v.dtype)[:, None, None]

    def _output(self, w: dict[str, Tensor], z: Tensor, waves: Tensor, image: Pair) -> Tensor:
        y = self._read(w, z, waves, image)
        return y if self.out_bias is None else y + wide(self.out_bias)[:, None, None]

    def _read(self, w: dict[str, Tensor], z: Tensor, waves: Tensor, image: Pair) -> Tensor:
        size = _size(z)
        if self.readout == "image":
            y = spectrum(z) @ w["C"].mT
            if self.feedthrough:
                y = y + waves @ w["D"].mT
            return self._left(from_spectrum(y, size), image)
        # C and D act at frequency zero, which holds the sum over all pixels.
        y = z.sum(dim=(-2, -1)) @ w["C"][0, 0].real.mT
        if self.feedthrough:
            y = y + waves[0, 0].real @ w["D"][0, 0].real.mT
        return (y / math.prod(size) ** (1 - 1 / self.norm))[..., None, None]

    def _folded(self) -> nn.Module:
        return FoldedEquilibriumConv2d(self)

    def _unrolled(self, image: Pair) -> System:
        with torch.no_grad():
            size = self._torus(image)
            w = doubles(self._symbols(size))
            A = Circulant(w["A"], size)
            x = torch.eye(
                self.in_channels * math.prod(image), dtype=A.dtype, device=A.values.device
            )
            waves = spectrum(self._entered(x.view(-1, self.in_channels, *image)))
            z = torch.eye(A.units, dtype=A.dtype, device=A.values.device).view(-1, A.blocks, *size)
            B = from_spectrum(waves @ w["B"].mT, size).flatten(1).mT
            silent, still = torch.zeros_like(waves[:, :, :1]), torch.zeros_like(z[:1])
            C = self._read(w, z, silent, image).flatten(1).mT
            D = self._read(w, still, waves, image).flatten(1).mT
            b, pixels = self._unit_bias(), C.shape[0] // self.out_channels
        return System.equilibrium(
            numpy(A.explicit().values),
            numpy(B),
            numpy(C),
            numpy(D) if self.feedthrough else None,
            None if b is None else np.repeat(numpy(b), math.prod(size)),
            None if self.out_bias is None else np.repeat(numpy(self.out_bias), pixels),
            activation(self.activation).name,
        )

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"readout": self.readout}

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, hidden={self.hidden}, bias={self.bias is not None}, "
            f"feedthrough={self.feedthrough}, readout={self.readout}, "
            f"activation={activation(self.activation).name}"
        )


def at_zero(K: Tensor, size: Pair) -> Tensor:
    """The symbol that is K (rows, columns) at frequency zero and vanishes elsewhere."""
    values = K.new_zeros(size[0], size[1] // 2 + 1, *K.shape, dtype=K.dtype.to_complex())
    first = torch.zeros((*values.shape[:2], 1, 1), dtype=torch.bool, device=K.device)
    first[0, 0] = True
    return torch.where(first, K.to(values.dtype), values)


def _smooth(n: int) -> int:
    """The least number from n on that is a product of 2, 3 and 5."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else _smooth(n + 1)


def _size(x: Tensor) -> Pair:
    return x.shape[-2], x.shape[-1]
