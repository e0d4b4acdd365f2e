"""Sandwich layers: y = √2 AᵀΨσ(√2 Ψ⁻¹Bx + b) with AAᵀ + BBᵀ = I [LBDN]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._tensors import HALVES
from ..activations import Activation, activation
from ..errors import InvalidInput, ShapeError
from ..system import System
from ._base import (
    Layer,
    fill_normal,
    fill_uniform,
    numpy,
    operator_norm,
    slopes_in_unit_interval,
    wide,
)
from ._conv import ConvLayer, from_phases, norm_estimate, per_group, to_phases, unit_images
from ._geometry import Geometry, Pair, pair
from ._plain import adjoint, convolution, linear
from ._rotation import factorised, rotated, worthwhile
from .closed_forms import weights
from .orthogonal import orthogonal_kernel, semi_orthogonal


def witness(W: Tensor, log_psi: Tensor) -> dict[str, Tensor]:
    """H = 0, G = √2 AᵀΨ, W = √2 BᵀΨ⁻¹, Λ = Ψ², ρ = 1 with [A B] = Q(X).

    The residual condition's Schur complement is 2Ψ(I - AAᵀ - BBᵀ)Ψ = 0.

    Args:
        W: X (*batch, n, n + m), arbitrary.
        log_psi: (*batch, n); Ψ = exp of it, kept within e^±4.

    Source: Wang, Manchester, Direct parameterization of Lipschitz-bounded deep networks (ICML
    2023), Theorem 3.2.
    """
    n = W.shape[-2]
    A, B = semi_orthogonal(W).tensor_split([n], dim=-1)
    psi = _bounded(log_psi)
    inner, outer = math.sqrt(2) / psi, math.sqrt(2) * psi
    return {
        "H": W.new_zeros(*W.shape[:-1], W.shape[-1] - n),
        "G": A.mT * outer.unsqueeze(-2),
        "W": B.mT * inner.unsqueeze(-2),
        "Lam": psi.square(),
        "rho": W.new_ones(()),
    }


def _bounded(log_psi: Tensor) -> Tensor:
    """Ψ, NaN for what is infinite: a training that diverged is to be seen."""
    return weights(log_psi) + 0 * log_psi


class SandwichLinear(Layer):
    """x ↦ √2 AᵀΨσ(√2 Ψ⁻¹Bx + b) is 1-Lipschitz for AAᵀ + BBᵀ = I and σ with slopes in [0, 1].

    There are as many units as outputs. The activation is part of the layer. In training, batches
    smaller than A are multiplied without forming A and B, as in `OrthogonalLinear`. Arguments as in
    nn.Linear.

    Args:
        activation: a name, or an `Activation`, with slopes in [0, 1].

    Attributes:
        weight: (out_features, out_features + in_features), of which the Cayley map makes [A B].
        log_psi: log Ψ (out_features,), zero at first, bounded softly by ±4.

    Raises:
        InvalidInput: slopes outside [0, 1].

    Source: see `witness`.
    """

    condition = "residual"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        self.activation = slopes_in_unit_interval(type(self).__name__, activation)

        def free(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = free(out_features, out_features + in_features)
        self.log_psi = free(out_features)
        self.bias = free(out_features) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw as `OrthogonalLinear`; Ψ = 1."""
        fill_normal(self.weight)
        nn.init.zeros_(self.log_psi)
        fill_uniform(self.bias, fan_in=self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        sigma = activation(self.activation)
        if not worthwhile(self, self.weight, x):
            G, W = self._applied()
            return F.linear(sigma(F.linear(x, W.mT, self.bias)), G)
        X, n, psi = self.weight, self.out_features, _bounded(self.log_psi)
        solved = factorised(X)
        h = rotated(X, F.pad(x, [n, 0]), solved) * (math.sqrt(2) / psi)
        h = sigma(h if self.bias is None else h + self.bias)
        return rotated(X.mT, h * (math.sqrt(2) * psi), solved)[..., :n]

    def _applied(self) -> tuple[Tensor, Tensor]:
        w = self._current()
        return w["G"].to(self.weight.dtype), w["W"].to(self.weight.dtype)

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight), wide(self.log_psi))

    def _promise(self) -> float:
        if self.weight.dtype not in HALVES:
            return 1.0
        with torch.no_grad():
            exact = {name: value.double() for name, value in self._tensors().items()}
            G, W = (matrix.double() for matrix in self._applied())
            psi = exact["Lam"].sqrt()
            e, f = operator_norm((G - exact["G"]) / psi), operator_norm((W - exact["W"]) * psi)
            return _product(e, f)

    def _folded(self) -> nn.Module:
        G, W = self._applied()
        sigma = activation(self.activation).module()
        return nn.Sequential(linear(W.mT, self.bias), sigma, linear(G))

    def _system(self) -> System:
        G, W = (numpy(matrix) for matrix in self._applied())
        H = numpy(self._tensors()["H"]).reshape(self.out_features, self.in_features)
        name = activation(self.activation).name
        return System.residual(H, G, W, numpy(self.bias), activation=name)

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"activation": activation(self.activation).name}

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={activation(self.activation).name}"
        )


def _product(outer: float, inner: float) -> float:
    """‖2(A + E)ᵀS(B + F)‖ for slopes S from the norms of √2 E and √2 F: ‖2AᵀSB‖, ‖A‖, ‖B‖ ≤ 1."""
    e, f = outer / math.sqrt(2), inner / math.sqrt(2)
    return 1 + 2 * (e + f + e * f) * (1 + 1e-12)


class SandwichConv2d(ConvLayer):
    """x ↦ √2 AᵀΨσ(√2 Ψ⁻¹Bx + b) with [A B] one orthogonal convolution is 1-Lipschitz for images of
    every size.

    A and B map images of out_channels and of in_channels to the same units, y = √2 A*Ψσ(√2 Ψ⁻¹Bx +
    b), A* the adjoint. On the plane and on a torus AA* + BB* = I. With S the pixels of units that
    there are and E those of images, zeros give S(AEE*A* + BEE*B*)S* ⪯ SS* = I: 1-Lipschitz for
    every image size.

    Images keep their size over the stride, rounded up. B sees the stride's phases of the input as
    channels, so that its kernel covers ⌈k / stride⌉ blocks of stride pixels; numbers given as
    `padding` count such blocks. Padding says where there are units. Arguments as in nn.Conv2d.

    Args:
        activation: a name, or an `Activation`, with slopes in [0, 1].

    Attributes:
        weight, projectors: of `orthogonal_kernel` for A and B side by side, out_channels and then
            in_channels times the phases, both over the groups.
        log_psi: log Ψ (out_channels,), zero at first, bounded softly by ±4.

    Raises:
        InvalidInput: slopes outside [0, 1]; dilation together with a stride; padding that repeats
            pixels; groups that do not divide.
    """

    condition = "residual"

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
        activation: str | Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        owner = type(self).__name__
        s1, s2 = self.stride = pair(owner, "stride", stride)
        k1, k2 = pair(owner, "kernel_size", kernel_size)
        size = -(-k1 // s1), -(-k2 // s2)
        channels = {"in_channels": in_channels, "out_channels": out_channels}
        geometry = Geometry.of(owner, size, 1, padding, dilation, groups, padding_mode, channels)
        if geometry.dilation != (1, 1) and self.stride != (1, 1):
            raise InvalidInput(
                f"{owner}: dilation = {dilation} with stride = {stride}, but phases of the image "
                "are dilated as blocks only. Set the other to 1."
            )
        super().__init__(in_channels, out_channels, geometry)
        self.activation = slopes_in_unit_interval(owner, activation)

        def free(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        columns = (out_channels + in_channels * s1 * s2) // groups
        blocks = sum(size) - 2
        self.weight = free(out_channels, columns, 1, 1)
        self.projectors = free(groups, blocks, columns, columns // 2) if blocks else None
        self.log_psi = free(out_channels)
        self.bias = free(out_channels) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw as `OrthogonalConv2d`; Ψ = 1."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        if self.projectors is not None:
            nn.init.normal_(self.projectors, std=self.projectors.shape[-2] ** -0.5)
        nn.init.zeros_(self.log_psi)
        taps = self.geometry.kernel_size[0] * self.geometry.kernel_size[1]
        inputs = self.weight.shape[1] - self.out_channels // self.geometry.groups
        fill_uniform(self.bias, fan_in=inputs * taps)

    def witness(self) -> dict[str, Tensor]:
        """G and W as kernels of the units, (out_channels, ·, k₁, k₂), Lam per unit and rho."""
        w = self._tensors()
        return w | {"rho": w["Lam"].new_ones(())}

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        w = self._applied()
        size = self._blocks(x)
        h = self._strided.convolve(w["W"], x if x.ndim == 4 else x.unsqueeze(0), self.bias)
        y = self.geometry.transpose(w["G"], activation(self.activation)(h), size)
        return y if x.ndim == 4 else y.squeeze(0)

    @property
    def _strided(self) -> Geometry:
        """How B's kernel walks over the image, of which `geometry` sees blocks of stride pixels: of
        the last ones, zeros fill what is missing."""
        g = self.geometry
        (s1, s2), (k1, k2), (b1, b2), (a1, a2) = self.stride, g.kernel_size, g.before, g.after
        r1, r2 = (s1 - 1, s2 - 1) if g.mode == "zeros" else (0, 0)
        return Geometry(
            (k1 * s1, k2 * s2),
            (s1, s2),
            (b1 * s1, b2 * s2),
            (a1 * s1 + r1, a2 * s2 + r2),
            g.dilation,
            g.groups,
            g.mode,
        )

    def _blocks(self, x: Tensor) -> Pair:
        """How many blocks of stride pixels the images have; ShapeError for what the kernel does not
        fit."""
        owner, (height, width) = type(self).__name__, x.shape[-2:]
        if self.geometry.mode == "circular" and (height % self.stride[0] or width % self.stride[1]):
            raise ShapeError(
                f"{owner}: the image is {height} x {width}, but with circular padding its sides "
                f"must be multiples of the stride {self.stride}. Pad the image, or use "
                "padding_mode='zeros'."
            )
        self._strided.check(owner, (height, width))
        return -(-height // self.stride[0]), -(-width // self.stride[1])

    def _applied(self) -> dict[str, Tensor]:
        w = self._current()
        return {name: w[name].to(self.weight.dtype) for name in "GW"}

    def _closed_form(self) -> dict[str, Tensor]:
        g = self.geometry
        free = None if self.projectors is None else wide(self.projectors)
        X = wide(self.weight).unflatten(0, (g.groups, -1))
        A, B = orthogonal_kernel(X, free, g.kernel_size).tensor_split([X.shape[1]], dim=2)
        psi = _bounded(wide(self.log_psi))
        inner, outer = (
            scale[:, None, None, None] for scale in (math.sqrt(2) / psi, math.sqrt(2) * psi)
        )
        B = from_phases(B, self._strided)
        return {"G": A.flatten(0, 1) * outer, "W": B.flatten(0, 1) * inner, "Lam": psi.square()}

    def _promise(self) -> float:
        if self.weight.dtype not in HALVES:
            return 1.0
        with torch.no_grad():
            exact, applied = self._tensors(), self._applied()
            psi = exact["Lam"].double().sqrt()[:, None, None, None]
            G, W = (applied[name].double() - exact[name].double() for name in "GW")
            W = to_phases(per_group(W * psi, self.geometry.groups), self._strided)
            return _product(norm_estimate(G / psi), norm_estimate(W.flatten(0, 1)))

    def _folded(self) -> nn.Module:
        w = self._applied()
        return nn.Sequential(
            convolution(self._strided, w["W"], self.bias),
            activation(self.activation).module(),
            adjoint(self.geometry, w["G"]),
        )

    def _unrolled(self, image: Pair) -> System:
        with torch.no_grad():
            w = {name: kernel.double() for name, kernel in self._applied().items()}
            images = unit_images(self.weight, self.in_channels, *image)
            size = self._blocks(images)
            W = self._strided.convolve(w["W"], images)
            G = self.geometry.transpose(w["G"], unit_images(W, *W.shape[1:]), size).flatten(1).mT
        bias = None
        if self.bias is not None:
            bias = numpy(self.bias.repeat_interleave(W[0, 0].numel()))
        name = activation(self.activation).name
        return System.residual(
            numpy(G.new_zeros(len(G), len(images))),
            numpy(G),
            numpy(W.flatten(1)),
            bias,
            activation=name,
        )

    def _options(self) -> dict[str, str | float]:
        own = {"stride": str(self.stride), "activation": activation(self.activation).name}
        return super()._options() | own

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, stride={self.stride}, bias={self.bias is not None}, "
            f"activation={activation(self.activation).name}"
        )
