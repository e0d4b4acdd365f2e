"""Activations that act on groups of units and keep the norm of gradients: sorting, reflecting.

They are not elementwise, so no slope in [0, 1] per unit describes them, and residual, sandwich and
equilibrium layers refuse them. What holds for every group g of units is

    ‖Δz_g‖₂ ≤ ‖Δv_g‖₂, and for sorting also Σ Δz_g = Σ Δv_g,

hence the valid multiplier is one number λ_g ≥ 0 per group, with the constraint
2λ_g (‖Δv_g‖² - ‖Δz_g‖²) ≥ 0. This is `sdplip.conditions.lipschitz` with α = -1, β = 1 and Λ equal
within each group; different entries of Λ within a group prove nothing. (Sorting admits any multiple
of (Σ Δz_g - Σ Δv_g)·(a Σ Δz_g + b Σ Δv_g) besides.)

Sources: Anil, Lucas, Grosse, Sorting out Lipschitz function approximation (ICML 2019) for MaxMin
and GroupSort; Singla, Singla, Feizi, Improved deterministic l2 robustness (ICLR 2022) for
Householder; Pauli et al., Novel quadratic constraints for extending LipSDP beyond slope-restricted
activations (ICLR 2024) for the multipliers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._tensors import full_precision
from ..errors import InvalidInput, ShapeError
from ._base import check_finite, check_size, wide
from ._part import Nonexpansive, Part, size_along


class MaxMin(Nonexpansive):
    """Unit i and unit i + C/2 become their maximum and their minimum.

    1-Lipschitz in ℓ₂ and ℓ∞. The condition it satisfies is that of the module's docstring.

    Args:
        dim: the channels' dimension, -3 for images (batched or not) and -1 for vectors. Counted
            from the end, it means the same under torch.func.vmap.

    Raises:
        ShapeError: on an odd number of channels.
    """

    def __init__(self, dim: int = -3) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        first, second = _halves("MaxMin", x, self.dim)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class GroupSort(Nonexpansive):
    """Every `size` neighbouring units in ascending order; size=None sorts all of them.

    1-Lipschitz in ℓ₂ and ℓ∞, since sorting is in every norm that ignores the order. The condition
    it satisfies is that of the module's docstring.

    Args:
        size: of the groups, at least 2.
        dim: the channels' dimension, -3 for images (batched or not) and -1 for vectors.

    Raises:
        ShapeError: on channels that are no multiple of size.
    """

    def __init__(self, size: int | None = 2, *, dim: int = -3) -> None:
        super().__init__()
        if size is not None and size < 2:
            raise InvalidInput(
                f"GroupSort: size = {size}, but must be at least 2, or None for all units."
            )
        self.size, self.dim = size, dim

    def forward(self, x: Tensor) -> Tensor:
        channels = size_along("GroupSort", x, self.dim)
        size = self.size or channels
        if channels % size:
            raise ShapeError(
                f"GroupSort: {channels} channels do not divide into groups of {size}. "
                "Choose another size or width."
            )
        dim = self.dim % x.ndim
        return x.unflatten(dim, (-1, size)).sort(dim=dim + 1).values.flatten(dim, dim + 1)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}"


class Householder(Part):
    """v if uᵀv > 0, else its reflection v - 2uuᵀv, for v = (unit i, unit i + C/2).

    u = (cos θ, sin θ) is a unit vector for every learned angle θ_i, and θ = -π/4 at first, where
    this is MaxMin. Continuous and made of reflections, it is 1-Lipschitz in ℓ₂; √2 in ℓ∞. The
    condition it satisfies is that of the module's docstring, without the sum.

    Args:
        channels: even.
        dim: the channels' dimension, -3 for images (batched or not) and -1 for vectors.

    Raises:
        ShapeError: on another number of channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int = -3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("Householder", "channels", channels)
        if channels % 2:
            raise InvalidInput(f"Householder: channels = {channels}, but must be even.")
        self.channels, self.dim = channels, dim
        self.angle = nn.Parameter(torch.empty(channels // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.angle, -math.pi / 4)

    def lipschitz_in(self, norm: float) -> float:
        """
        Raises:
            InvalidInput: an angle that is NaN or Inf, or on the meta device.
        """
        check_finite("Householder", {"angle": self.angle})
        return 1.0 if norm == 2 else math.sqrt(2)

    def forward(self, x: Tensor) -> Tensor:
        if size_along("Householder", x, self.dim) != self.channels:
            raise ShapeError(
                f"Householder: the input has {x.shape[self.dim]} channels, but channels = "
                f"{self.channels}."
            )
        first, second = _halves("Householder", x, self.dim)
        with full_precision(x):
            after = x.ndim - 1 - self.dim % x.ndim
            angle = wide(self.angle).reshape(-1, *[1] * after)
            cos, sin = angle.cos(), angle.sin()
            back = 2 * torch.relu(-(cos * first + sin * second))
            turned = torch.cat([first + back * cos, second + back * sin], self.dim)
        return turned.to(x.dtype)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, dim={self.dim}"


def _halves(owner: str, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if size_along(owner, x, dim) % 2:
        raise ShapeError(
            f"{owner}: the input has {x.shape[dim]} channels, but pairs need an even number."
        )
    first, second = x.chunk(2, dim)
    return first, second
