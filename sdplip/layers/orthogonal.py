"""Orthogonal layers: QᵀQ = I or QQᵀ = I, by the Cayley map or the matrix exponential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidInput
from ._base import bounded, fill_normal, fill_uniform, wide
from ._conv import LinearConv
from ._geometry import Geometry, Pair
from ._linear import LinearLayer
from ._rotation import halves, rotated, worthwhile

Map = Literal["cayley", "matrix_exp"]


def witness(X: Tensor, map: Map = "cayley") -> dict[str, Tensor]:
    """D = Q(X) with orthonormal columns (or rows, where these are fewer), hence DᵀD ⪯ I.

    Args:
        X: (*batch, p, m), arbitrary.
        map: "cayley", Q = [(I + A)⁻¹(I - A); -2V(I + A)⁻¹] with X = [U; V], A = U - Uᵀ + VᵀV, or
            "matrix_exp", the first columns of exp [U - Uᵀ, -Vᵀ; V, 0].

    Returns:
        D (*batch, p, m), orthonormal to rounding in X's dtype, and rho.

    Source: Trockman, Kolter (ICLR 2021) and Wang, Manchester (ICML 2023) for the Cayley map of
    rectangular matrices; Lezcano-Casado, Martínez-Rubio (ICML 2019) for the exponential.
    """
    return {"D": semi_orthogonal(X, map), "rho": X.new_ones(())}


def semi_orthogonal(X: Tensor, map: Map = "cayley") -> Tensor:
    """Q(X) of `witness`."""
    lying = X.shape[-2] < X.shape[-1]
    Y = (X.mT if lying else X).double()
    Q = _refined(_MAPS[map](bounded(Y)))
    return (Q.mT if lying else Q).to(X.dtype)


class OrthogonalLinear(LinearLayer):
    """x ↦ Qx + b with Q orthogonal keeps distances (in_features ≤ out_features) or is a projection.

    Q has determinant 1 where it is square. It is computed in float64 for every dtype; in training,
    batches smaller than Q are multiplied without forming it (see `rotated`).

    Args:
        map: "cayley" (one solve of the smaller side) or "matrix_exp" (of the larger side).

    Raises:
        InvalidInput: another map.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        map: Map = "cayley",
    ) -> None:
        if map not in _MAPS:
            raise InvalidInput(
                f"OrthogonalLinear: map = {map!r}, but must be one of {', '.join(get_args(Map))}."
            )
        super().__init__(in_features, out_features, bias, device, dtype)
        self.map = map

    def reset_parameters(self) -> None:
        """Draw variance 1/k, k the larger side: a rectangular Q then spreads over all its entries,
        where 1/k for the smaller side would leave it close to [-I; 0]."""
        fill_normal(self.weight)
        fill_uniform(self.bias, fan_in=self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if self.map != "cayley" or not worthwhile(self, self.weight, x):
            return super().forward(x)
        y = rotated(self.weight, x)
        return y if self.bias is None else y + self.bias

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"map": self.map}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, map={self.map}"

    def _closed_form(self) -> dict[str, Tensor]:
        return witness(wide(self.weight), self.map)


class OrthogonalConv2d(LinearConv):
    """The convolution by an explicit kernel that is exactly orthogonal on tori is 1-Lipschitz for
    images of every size.

    The kernel is semi-orthogonal taps, then two-tap blocks: per axis, k - q blocks [I - P, P] of
    orthogonal projectors P of half the rank follow the taps of a patch of q = min(k, stride)
    pixels; see `orthogonal_kernel`. The symbol then has orthonormal rows (or columns, where the
    rows are more) at every frequency, so that the layer

    - keeps distances, or is the adjoint of a map that does, with circular padding "same" (the
      sides of images are multiples of the stride);
    - keeps them with zeros too, where it has no fewer rows than columns, stride 1 and padding by
      dilation·(k - 1) on all sides;
    - is 1-Lipschitz with zeros otherwise: the border of the image is cut off.

    Any kernel, also even and rectangular, any channels and groups. Dilation d takes the symbol at
    frequency ω to the one at dω, and changes nothing above. Where k < stride, the pixels that no
    patch meets are dropped. A projector of one channel is 0 or 1: depthwise kernels are shifts.

    Arguments as in nn.Conv2d.

    Attributes:
        weight: the free taps of the patch, (out_channels, in_channels / groups, q₁, q₂).
        projectors: the free matrices (groups, blocks, c, ⌊c / 2⌋) of the blocks, c the larger
            number of channels per group (with a stride: of the inputs), or None where there are
            none.

    Raises:
        InvalidInput: dilation together with a stride, for which patches would overlap.

    Source: Xiao et al. (ICML 2018) and Li et al. (NeurIPS 2019) for the blocks, Boissin et al.
    (ICML 2025) for strides by a patch. Stride by a patch R: D̂D̂ᴴ = RB̂B̂ᴴRᵀ = RRᵀ on the phases.
    """

    projectors: nn.Parameter | None

    def _create(
        self,
        rows: int,
        columns: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        g = self.geometry
        if g.dilation != (1, 1) and g.stride != (1, 1):
            raise InvalidInput(
                f"{type(self).__name__}: dilation = {g.dilation} with stride = {g.stride}, but the "
                "kernel is orthogonal for one of them only. Set the other to 1."
            )
        patch = patch_size(g)
        size, blocks = _blocks(rows // g.groups, columns, patch, g.kernel_size)
        shapes = {
            "weight": (rows, columns, *patch),
            "projectors": (g.groups, blocks, size, size // 2),
        }
        for name, shape in shapes.items():
            empty = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, empty if empty.numel() else None)

    def _fill(self) -> None:
        """Draw variance 1/k, k the larger side of the matrices, as `OrthogonalLinear`."""
        rows = self.weight.shape[0] // self.geometry.groups
        nn.init.normal_(self.weight, std=max(rows, self.weight[0].numel()) ** -0.5)
        if self.projectors is not None:
            nn.init.normal_(self.projectors, std=self.projectors.shape[-2] ** -0.5)

    def _closed_form(self) -> dict[str, Tensor]:
        g = self.geometry
        taps = wide(self.weight).unflatten(0, (g.groups, -1))
        free = None if self.projectors is None else wide(self.projectors)
        D = orthogonal_kernel(taps, free, g.kernel_size)
        return {"D": D.flatten(0, 1), "rho": D.new_ones(())}


class OrthogonalConvTranspose2d(OrthogonalConv2d):
    """The adjoint of `OrthogonalConv2d`, as nn.ConvTranspose2d."""

    transposed = True


def patch_size(geometry: Geometry) -> Pair:
    """The pixels per axis that patches cover which do not overlap."""
    height, width = map(min, geometry.kernel_size, geometry.stride)
    return height, width


def orthogonal_kernel(X: Tensor, N: Tensor | None, kernel_size: Pair) -> Tensor:
    """K whose symbol Σ_t K_t e^{iωt} on patches has orthonormal rows, or columns, at every ω.

    The taps Q(X) of one patch meet two-tap blocks B_t: K_t = Σ_s Q_{t-s} B_s, one per further tap
    and axis, the axes in turn. A block is [P, I - P] or [I - P, P], in turn to keep the kernel
    centred, with P = Q(N)Q(N)ᵀ: its symbol (I - P) + e^{iω}P is unitary as P² = P = Pᵀ. Blocks act
    on the larger side; where that is the rows, this is the transpose of a kernel with fewer rows.

    Args:
        X: (*batch, p, m, q₁, q₂). N: (*batch, blocks, c, ⌊c / 2⌋) as `OrthogonalConv2d.projectors`.

    Returns:
        (*batch, p, m, k₁, k₂) in X's dtype; the matrices are computed in float64.
    """
    p, m, *patch = X.shape[-4:]
    standing = p > m and patch == [1, 1]
    Q = semi_orthogonal(X.flatten(-3)).view(X.shape)
    K = Q if standing else Q.transpose(-3, -4)
    counts = [k - q for k, q in zip(kernel_size, patch, strict=True)]
    turns = sorted((turn, axis) for axis, count in enumerate(counts) for turn in range(count))
    P = _projectors(K, N, len(turns))
    for block, (turn, axis) in zip(P.unbind(-3), turns, strict=True):
        stay, move = _widened(K, axis, after=1), _widened(K, axis, before=1)
        if turn % 2 == 0:
            stay, move = move, stay
        K = move + (block @ (stay - move).flatten(-3)).view(move.shape)
    return K if standing else K.transpose(-3, -4)


def _projectors(K: Tensor, N: Tensor | None, blocks: int) -> Tensor:
    if N is None:
        return K.new_zeros(*K.shape[:-4], blocks, K.shape[-4], K.shape[-4])
    Q = semi_orthogonal(N.double())
    return (Q @ Q.mT).to(K.dtype)


def _blocks(rows: int, columns: int, patch: Pair, kernel_size: Pair) -> Pair:
    """How many channels blocks act on, and how many blocks there are."""
    size = max(rows, columns) if patch == (1, 1) else columns
    return size, sum(kernel_size) - sum(patch)


def _widened(K: Tensor, axis: int, before: int = 0, after: int = 0) -> Tensor:
    return F.pad(K, [0, 0, before, after] if axis == 0 else [before, after])


def _cayley(X: Tensor) -> Tensor:
    S, V = halves(X)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    R = torch.linalg.inv(identity + S + V.mT @ V)
    return torch.cat([2 * R - identity, -2 * V @ R], dim=-2)


def _matrix_exp(X: Tensor) -> Tensor:
    S, V = halves(X)
    corner = X.new_zeros(*X.shape[:-2], V.shape[-2], V.shape[-2])
    skew = torch.cat([torch.cat([S, V], dim=-2), torch.cat([-V.mT, corner], dim=-2)], dim=-1)
    return torch.matrix_exp(skew)[..., : X.shape[-1]]


def _refined(Q: Tensor) -> Tensor:
    """Q after one Newton–Schulz step, which squares its distance from orthogonality.

    The step is a correction of rounding errors: the derivative stays that of the exact map.
    """
    P = Q.detach()
    identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return Q + P @ (identity - P.mT @ P) / 2


_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"cayley": _cayley, "matrix_exp": _matrix_exp}
