"""The linear operators A of an equilibrium: a matrix, or one that commutes with shifts of an image.

Both are given by square matrices: a matrix by itself, a block-circulant operator by its symbol, one
complex matrix per frequency. Sums, inverses, adjoints and norms are those of these matrices.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

MAX_EXPLICIT = 2000
"""Units up to which a block-circulant operator is written out as a matrix, for Newton's method."""

SAMPLES = 6
"""Frequencies of each kind (evenly spaced, of largest norm) that stand for the whole symbol."""


@dataclass(frozen=True, eq=False)
class Operator(ABC):
    """A linear map of rows (batch, units), by matrices `values` (..., n, n).

    Attributes:
        kept: what `recall` computed, or None to keep nothing. It is of these values and of one
            metric, and is shared with the adjoint.
        flipped: whether `kept` is of the adjoint.
    """

    values: Tensor
    kept: dict[object, Any] | None = field(default=None, kw_only=True)
    flipped: bool = field(default=False, kw_only=True)

    @property
    @abstractmethod
    def units(self) -> int:
        """The length of the rows."""

    @property
    @abstractmethod
    def kind(self) -> Callable[[Tensor], Operator]:
        """What makes this operator of its values."""

    @abstractmethod
    def _of(
        self, values: Tensor, kept: dict[object, Any] | None = None, flipped: bool = False
    ) -> Operator:
        """An operator of this kind."""

    @abstractmethod
    def fits(self, units: int) -> bool:
        """Whether the values have the shape of an operator on rows of this length."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Operator:
        """The same in the precision of float32 or float64."""

    @abstractmethod
    def plus(self, v: Tensor, z: Tensor) -> Tensor:
        """v + A z for rows v and z."""

    @abstractmethod
    def outer(self, u: Tensor, z: Tensor) -> Tensor:
        """The gradient of Σ uᵀA z over the rows with respect to the values."""

    @abstractmethod
    def losses(self, z: Tensor, v: Tensor) -> Tensor:
        """The sizes of all numbers that z - (A z + v) adds up, (batch, units) or, as one bound of
        their norm, (batch, 1)."""

    @abstractmethod
    def least_diagonal(self) -> float:
        """The least diagonal entry."""

    @abstractmethod
    def explicit(self) -> Dense:
        """The same as a matrix."""

    @property
    def small(self) -> bool:
        """Whether it may be written out as a matrix."""
        return True

    def spread(self, metric: Tensor) -> Tensor:
        """The metric (n,) of the units."""
        return metric

    @property
    def shapes(self) -> str:
        """What the values and v must be."""
        return "(n, n) and (..., n)"

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.values.dtype

    @property
    def blocks(self) -> int:
        """n, the size of a metric: units may come in groups that share an entry of it."""
        return self.values.shape[-1]

    @cached_property
    def largest_norm(self) -> float:
        """The largest Frobenius norm of the values, a bound on ‖A‖₂."""

        def compute() -> float:
            norms = frobenius(self.values.detach())
            return float(norms if norms.ndim == 0 else norms.max()) if norms.numel() else 0.0

        return self.recall("norm", compute)

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or Inf."""
        # The norm is needed anyway, and a look at every number takes longer.
        return math.isfinite(self.largest_norm) or bool(self.values.isfinite().all())

    def adjoint(self) -> Operator:
        return self._of(self.values.mH.resolve_conj(), self.kept, not self.flipped)

    def affine(self, shift: float, scale: float) -> Operator:
        """shift·I + scale·A."""
        values = scale * self.values
        values.diagonal(dim1=-2, dim2=-1).add_(shift)
        return self._of(values)

    def resolvent(self, step: float) -> Operator:
        """(I + step (I - A))⁻¹; not finite where there is none."""
        return self._of(torch.linalg.inv_ex(self.affine(1 + step, -step).values)[0])

    def cayley(self, step: float) -> Operator:
        """(I - step (I - A)) (I + step (I - A))⁻¹, laid out for products with rows."""

        def compute() -> Tensor:
            R = torch.linalg.inv_ex(self.affine((1 + step) / 2, -step / 2).values)[0]
            R.diagonal(dim1=-2, dim2=-1).sub_(1)
            return R.mH.resolve_conj() if self.flipped else R

        R = self.recall((step, self.dtype), compute)
        R = R.mH.resolve_conj() if self.flipped else R
        return self._of(R.mT.contiguous().mT)

    def remembering(self) -> Operator:
        """The same, which keeps what is computed of it: for one solve and its gradient."""
        return self if self.kept is not None else self._of(self.values, {}, self.flipped)

    def recall(self, key: object, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, or gave before if it is kept."""
        if self.kept is None:
            return compute()
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]

    def sample(self) -> Tensor:
        """Values (k, n, n) that are typical of all, the largest among them."""
        return self.values[None]


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """The matrix `values` (n, n)."""

    @property
    def units(self) -> int:
        return self.values.shape[-1]

    @property
    def kind(self) -> Callable[[Tensor], Operator]:
        return partial(Dense, kept=self.kept, flipped=self.flipped)

    def _of(
        self, values: Tensor, kept: dict[object, Any] | None = None, flipped: bool = False
    ) -> Dense:
        return Dense(values, kept=kept, flipped=flipped)

    def fits(self, units: int) -> bool:
        return self.values.shape == (units, units)

    def to(self, dtype: torch.dtype) -> Dense:
        values = self.values.to(dtype)
        return self if values is self.values else self._of(values, self.kept, self.flipped)

    @cached_property
    def _right(self) -> Tensor:
        return self.values.mT

    def plus(self, v: Tensor, z: Tensor) -> Tensor:
        return torch.addmm(v, z, self._right)

    def outer(self, u: Tensor, z: Tensor) -> Tensor:
        return u.mT @ z

    def losses(self, z: Tensor, v: Tensor) -> Tensor:
        return z.abs() + torch.addmm(v.abs(), z.abs(), self._right.abs())

    def least_diagonal(self) -> float:
        diagonal = self.values.detach().diagonal()
        return float(diagonal.min()) if len(diagonal) else 0.0

    def explicit(self) -> Dense:
        return self


@dataclass(frozen=True, eq=False)
class Circulant(Operator):
    """z ↦ irfft2(Â(f) · rfft2(z)(f)) for images z of n channels on a torus, rows of n·h·w units.

    Attributes:
        values: the symbol Â (h, w//2 + 1, n, n) on the frequencies of rfft2, complex.
        size: (h, w).
    """

    size: tuple[int, int]

    @property
    def units(self) -> int:
        return self.blocks * math.prod(self.size)

    @property
    def kind(self) -> Callable[[Tensor], Operator]:
        return partial(Circulant, size=self.size, kept=self.kept, flipped=self.flipped)

    def _of(
        self, values: Tensor, kept: dict[object, Any] | None = None, flipped: bool = False
    ) -> Circulant:
        return Circulant(values, self.size, kept=kept, flipped=flipped)

    def fits(self, units: int) -> bool:
        (h, w), n = self.size, self.blocks
        return self.values.shape == (h, w // 2 + 1, n, n) and units == self.units

    @property
    def dtype(self) -> torch.dtype:
        # A symbol that is not complex is refused as what it is not: real rows' operator.
        return self.values.dtype.to_real() if self.values.is_complex() else torch.bool

    def to(self, dtype: torch.dtype) -> Circulant:
        values = self.values.to(dtype.to_complex())
        return self if values is self.values else self._of(values, self.kept, self.flipped)

    def plus(self, v: Tensor, z: Tensor) -> Tensor:
        moved = self._rows(self._spectrum(z) @ self.values.flatten(0, 1).mT)
        return v + moved if torch.is_grad_enabled() else moved.add_(v)

    def outer(self, u: Tensor, z: Tensor) -> Tensor:
        product = torch.bmm(self._spectrum(u).mT, self._spectrum(z).conj())
        weights = self._weights.flatten()[:, None, None]
        return (weights * product).unflatten(0, self.values.shape[:2])

    def losses(self, z: Tensor, v: Tensor) -> Tensor:
        norm = partial(torch.linalg.vector_norm, dim=-1, keepdim=True)
        return (1 + self.largest_norm) * norm(z) + norm(v)

    def least_diagonal(self) -> float:
        entries = self.values.detach().diagonal(dim1=-2, dim2=-1).real
        mean = (self._weights[..., None] * entries).sum(dim=(0, 1))
        return float(mean.min()) if len(mean) else 0.0

    @property
    def small(self) -> bool:
        return self.units <= MAX_EXPLICIT

    @property
    def shapes(self) -> str:
        return "(h, w // 2 + 1, n, n) and (..., n * h * w)"

    def spread(self, metric: Tensor) -> Tensor:
        return metric.repeat_interleave(math.prod(self.size))

    def explicit(self) -> Dense:
        eye = torch.eye(self.units, dtype=self.dtype, device=self.values.device)
        return Dense(self.plus(torch.zeros_like(eye), eye).mT)

    def sample(self) -> Tensor:
        values = self.values.flatten(0, 1)
        if len(values) <= 2 * SAMPLES:
            return values
        even = torch.linspace(0, len(values) - 1, SAMPLES, device=values.device).long()
        return values[torch.cat([even, frobenius(values.detach()).topk(SAMPLES).indices])]

    @cached_property
    def _weights(self) -> Tensor:
        """(h, w//2 + 1): how many frequencies of fft2 each one of rfft2 stands for, over h·w."""
        h, w = self.size
        columns = torch.full((w // 2 + 1,), 2.0, dtype=self.dtype, device=self.values.device)
        columns[0] = 1
        if w % 2 == 0:
            columns[-1] = 1
        return (columns / (h * w)).expand(h, -1)

    def _spectrum(self, z: Tensor) -> Tensor:
        """rfft2 of rows, as (frequencies, batch, n)."""
        return spectrum(z.unflatten(-1, (self.blocks, *self.size))).flatten(0, 1)

    def _rows(self, moved: Tensor) -> Tensor:
        return from_spectrum(moved.unflatten(0, self.values.shape[:2]), self.size).flatten(1)


def spectrum(x: Tensor) -> Tensor:
    """rfft2 of images (batch, channels, h, w), as (h, w//2 + 1, batch, channels)."""
    h, w = x.shape[-2:]
    shape = (h, w // 2 + 1, *x.shape[:2])
    if not x.numel():
        return x.new_zeros(shape).to(x.dtype.to_complex())
    # Products would copy one frequency after another, and a matrix is transposed in blocks.
    return torch.fft.rfft2(x).flatten(2).flatten(0, 1).mT.contiguous().view(shape)


def from_spectrum(moved: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `spectrum` for images of this size."""
    if not moved.numel():
        return moved.real.new_zeros(*moved.shape[2:], *size)
    return torch.fft.irfft2(moved.permute(2, 3, 0, 1), s=size)


def as_operator(A: Tensor | Operator) -> Operator:
    return Dense(A) if isinstance(A, Tensor) else A


def frobenius(values: Tensor) -> Tensor:
    """The Frobenius norms of matrices (..., n, m), real or complex."""
    # PyTorch's norm of complex numbers takes several times as long.
    parts = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return torch.linalg.vector_norm(parts, dim=(-3, -2, -1) if values.is_complex() else (-2, -1))
