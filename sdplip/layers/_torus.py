"""Convolutions on a torus by their symbols: one complex matrix per frequency of rfft2.

There a product of operators is a product of matrices and an adjoint is an adjoint, so that a closed
form for matrices (*batch, ·, ·) is one for convolutions: the batch is the frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._geometry import Pair


def symbol(K: Tensor, origin: Pair, size: Pair) -> Tensor:
    """The symbol (h, w//2 + 1, rows, columns) of (Kx)(p) = Σ_t K(t) x(p + t - origin) on a torus.

    Args:
        K: (rows, columns, k₁, k₂), real. Taps beyond the torus wrap around it.
        size: (h, w).
    """
    angle = _angles(K.shape[-2], origin[0], size[0], size[0], K.device)[:, None, :, None]
    angle = angle + _angles(K.shape[-1], origin[1], size[1], size[1] // 2 + 1, K.device)[:, None]
    angle = angle.flatten(2).flatten(0, 1)
    taps = K.flatten(2).permute(2, 0, 1).flatten(1)
    parts = (wave.to(K.dtype) @ taps for wave in (angle.cos(), angle.sin()))
    return torch.complex(*parts).view(size[0], size[1] // 2 + 1, *K.shape[:2])


def _angles(taps: int, origin: int, size: int, count: int, device: torch.device) -> Tensor:
    """(count, taps): 2π·f·(t - origin) / size, reduced to one turn before it is rounded."""
    frequency = torch.arange(count, device=device)[:, None]
    turns = (frequency * (torch.arange(taps, device=device) - origin)).remainder(size)
    return turns.double() * (2 * math.pi / size)


def polyphase(K: Tensor, origin: Pair, rows: int, columns: int) -> tuple[Tensor, Pair]:
    """A strided convolution between images of two resolutions, as one between their phases.

    Seen from a coarse grid of which a pixel holds rows² pixels of the smaller image and columns² of
    the larger one (`torch.nn.PixelUnshuffle`), x ↦ Σ_t K(t) x(rq + t - origin) with
    r = columns / rows is a convolution of stride 1 with more channels.

    Args:
        K: (p, m, k₁, k₂).

    Returns:
        The kernel (p·rows², m·columns², ·, ·) and its origin.
    """
    first, top = _phases(K.shape[-2], origin[0], rows, columns, K)
    second, left = _phases(K.shape[-1], origin[1], rows, columns, K)
    split = torch.einsum("pmtu,ijdt,kleu->pikmjlde", K, first, second)
    return split.flatten(3, 5).flatten(0, 2), (top, left)


def _phases(taps: int, origin: int, rows: int, columns: int, like: Tensor) -> tuple[Tensor, int]:
    """(rows, columns, shifts, taps): 1 where tap t of output phase i meets input phase j of the
    coarse pixel at that shift; and the shift that is zero."""
    i = torch.arange(rows, device=like.device)[:, None]
    place = i * (columns // rows) + torch.arange(taps, device=like.device) - origin
    shift, phase = place.div(columns, rounding_mode="floor"), place.remainder(columns)
    least, most = (-origin) // columns, (columns - columns // rows + taps - 1 - origin) // columns
    met = like.new_zeros(rows, columns, most - least + 1, taps)
    met[i, phase, shift - least, torch.arange(taps, device=like.device)] = 1
    return met, -least


def bounded(
    kernels: Sequence[Tensor], counts: Sequence[int], limit: float | Tensor
) -> list[Tensor]:
    """The kernels, shrunk together so that no frequency's matrix exceeds `limit` in Frobenius norm.

    Args:
        kernels: blocks of one operator.
        counts: taps of each, times the rows² of `polyphase`: Σ count·‖K‖_F² bounds the square.
    """
    sizes = [c * K.double().square().sum() for K, c in zip(kernels, counts, strict=True)]
    # The floor is inside of the root, which has no slope at zero.
    floor = torch.as_tensor(limit, dtype=torch.float64, device=kernels[0].device).square()
    factor = (floor / torch.maximum(torch.stack(sizes).sum(), floor)).sqrt()
    return [(K.double() * factor).to(K.dtype) for K in kernels]
