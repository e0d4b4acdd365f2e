"""Plain modules that layers fold into: torch.nn ones with constant weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Activation
from ..errors import InvalidInput
from ._geometry import Geometry
from .containers import Residual


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """nn.Linear with these numbers."""
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias is not None, weight.device, weight.dtype)
    return _filled(layer, weight, bias)


def summed(
    skip: nn.Module | None, inner: nn.Module, sigma: Activation, outer: nn.Module
) -> Residual:
    """x ↦ skip(x) + outer(σ(inner(x))).

    Raises:
        InvalidInput: σ is none of torch.nn.
    """
    return Residual(nn.Sequential(inner, sigma.module(), outer), skip)


def convolution(g: Geometry, K: Tensor, bias: Tensor | None = None) -> nn.Module:
    """The map of `Geometry.convolve` with this kernel."""
    native = g.mode == "zeros" and g.before == g.after
    layer = nn.Conv2d(
        K.shape[1] * g.groups,
        len(K),
        g.kernel_size,
        g.stride,
        g.before if native else 0,
        g.dilation,
        g.groups,
        bias is not None,
        device=K.device,
        dtype=K.dtype,
    )
    _filled(layer, K, bias)
    if native:
        return layer
    pad = nn.CircularPad2d if g.mode == "circular" else nn.ZeroPad2d
    return nn.Sequential(pad(_ends(g.before, g.after)), layer)


def adjoint(g: Geometry, K: Tensor, bias: Tensor | None = None) -> nn.Module:
    """The map of `Geometry.transpose` with this kernel, to images of stride times the size, and for
    stride 1 to those that become the input's size.

    On a torus the input is continued beyond its ends. Unlike `transpose` this needs images at least
    as large as what it is continued by.

    Raises:
        InvalidInput: a stride and padding that give no image of stride times the size.
    """
    reach, total, left = [], [], []
    for k, s, d, b, a in zip(g.kernel_size, g.stride, g.dilation, g.before, g.after, strict=True):
        reach.append(d * (k - 1))
        total.append(b + a)
        left.append(s + total[-1] - reach[-1] - 1 if s > 1 else 0)
    if not all(0 <= rest < s for rest, s in zip(left, g.stride, strict=True)):
        raise InvalidInput(
            f"fold: a transposed convolution with kernel_size = {g.kernel_size}, stride = "
            f"{g.stride} and padding = {g.before} gives no image of stride times the size. "
            "Use padding='same'."
        )
    circular, native = g.mode == "circular", g.mode == "zeros" and g.before == g.after
    layer = nn.ConvTranspose2d(
        len(K),
        K.shape[1] * g.groups,
        g.kernel_size,
        g.stride,
        g.before if native else 0,
        [s - 1 for s in g.stride] if circular else left,  # type: ignore[arg-type]
        g.groups,
        bias is not None,
        g.dilation,
        device=K.device,
        dtype=K.dtype,
    )
    _filled(layer, K, bias)
    if native:
        return layer
    if not circular:
        return nn.Sequential(layer, nn.ZeroPad2d([-n for n in _ends(g.before, g.after)]))  # type: ignore[arg-type]
    axes = list(zip(reach, total, g.stride, g.before, strict=True))
    missing = tuple(r - t if s == 1 else 0 for r, t, s, _ in axes)
    ahead = tuple(math.ceil((r - b) / s) for r, _, s, b in axes)
    behind = tuple(math.ceil(b / s) for _, _, s, b in axes)
    start = tuple(-s * p - b for p, (_, _, s, b) in zip(ahead, axes, strict=True))
    stop = tuple(b - s * p - r for p, (r, _, s, b) in zip(behind, axes, strict=True))
    return nn.Sequential(
        *([nn.ZeroPad2d(_ends((0, 0), missing))] if any(missing) else []),
        nn.CircularPad2d(_ends(ahead, behind)),
        layer,
        nn.ZeroPad2d(_ends(start, stop)),
    )


def _ends(before: Sequence[int], after: Sequence[int]) -> tuple[int, int, int, int]:
    return before[1], after[1], before[0], after[0]


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
