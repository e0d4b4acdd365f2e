"""Products x · g(x) that are one activation: SiLU, GELU, Mish, Hardswish, Softsign, written out.

A product of two tensors that depend on the input has no bounded slopes in general. It has where one
factor is p + q·g(s·x), with g a unit found before, and the other is that same x. Constants of the
exporters are rounded to float32; the scale s is read off, so the function is exactly the known one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._elementwise import parametrised
from ..errors import InvalidInput
from .values import Affine

CUBIC = 0.044715
"""Of GELU's form by tanh; a relative 1e-6 is allowed, which the proof of its slopes covers."""
CENTRE = 8
"""Above every constant that is taken off an offset, whose rounding is allowed for."""


@dataclass(frozen=True)
class Gate:
    """offset + factor · σ(inner), entry by entry, with one σ for all."""

    name: str
    inner: Affine
    factor: Tensor
    offset: Tensor


def product(x: Affine, y: Affine) -> Affine:
    """x · y, entry by entry.

    Raises:
        InvalidInput: no form of product known to have bounded slopes.
    """
    if x.shape != y.shape:
        shape = torch.broadcast_shapes(x.shape, y.shape)
        x, y = (v.linear(lambda t: t.expand(shape)) for v in (x, y))
    for gate, other in ((y, x), (x, y)):
        if (found := _gate(gate)) and (fused := _fused(found, other)):
            return fused
    if (scale := _ratio(y, x)) is not None:
        return _scaled(x.activate("square"), scale)
    raise InvalidInput(
        f"{x.network.where} multiplies two tensors that depend on the input, which has no bounded "
        "slopes in general; SiLU, GELU, Mish and Hardswish written as products are known."
    )


def quotient(x: Affine, y: Affine) -> Affine:
    """x / y, entry by entry, where that is Softsign: y = p + q |s·x|.

    Raises:
        InvalidInput: any other quotient.
    """
    gate = _gate(y) if x.shape == y.shape else None
    if gate and gate.name == "abs" and bool(((gate.offset > 0) & (gate.factor > 0)).all()):
        s = _ratio(gate.inner, x)
        if s is not None:
            return _activated("softsign", x, gate.factor * s / gate.offset, 1 / (gate.factor * s))
    raise InvalidInput(
        f"{x.network.where} divides by a tensor that depends on the input, which has no bounded "
        "slopes in general; Softsign is known."
    )


def _gate(y: Affine) -> Gate | None:
    rows = y.data.reshape(len(y.columns), -1)
    single = rows != 0
    if not (single.sum(0) == 1).all():
        return None
    place = single.to(torch.uint8).argmax(0)
    unit = y.columns[place]
    block = y.network.block_of(int(unit.min()))
    if block is None or int(unit.max()) >= block.first + len(block.offset):
        return None
    unit = unit - block.first
    names = set(block.names[unit.numpy()].tolist())
    if len(names) > 1 or block.slopes:
        return None
    inner = Affine(
        y.network,
        block.columns,
        block.data[:, unit].reshape(-1, *y.shape),
        block.offset[unit].reshape(y.shape),
    )
    factor = rows.gather(0, place[None])[0].reshape(y.shape)
    return Gate(names.pop(), inner, factor, y.offset)


def _fused(gate: Gate, x: Affine) -> Affine | None:
    """x · gate, where that is one activation of x."""
    inner, low = gate.inner, not gate.offset.any()
    centred = torch.equal(gate.offset, gate.factor)
    if gate.name == "sigmoid" and low and (s := _ratio(inner, x)) is not None:
        return _activated("silu", x, s, gate.factor / s)
    if gate.name == "erf" and centred and (s := _ratio(inner, x)) is not None:
        return _activated("gelu", x, math.sqrt(2) * s, math.sqrt(2) * gate.factor / s)
    if gate.name == "tanh" and low and (soft := _gate(inner)) and soft.name == "softplus":
        plain = not soft.offset.any() and bool((soft.factor == 1).all())
        if plain and (s := _ratio(soft.inner, x)) is not None:
            return _activated("mish", x, s, gate.factor / s)
    if gate.name == "tanh" and centred and (s := _cubic_scale(inner, x)) is not None:
        return _activated("gelu_tanh", x, s, 2 * gate.factor / s)
    for high in (1.0, 6.0):
        if gate.name == parametrised("hardtanh", 0.0, high) and low:
            s = _ratio(inner.plus(torch.tensor(-high / 2).double()), x)
            if s is not None:
                return _activated("hardswish", x, 6 * s / high, gate.factor * high**2 / (6 * s))
    if gate.name == "hardsigmoid" and low and (s := _ratio(inner, x)) is not None:
        return _activated("hardswish", x, s, gate.factor / s)
    if gate.name == "square" and low and (s := _ratio(inner, x)) is not None:
        return _activated("cube", x, torch.ones_like(s), gate.factor * s**2)
    return None


def _cubic_scale(inner: Affine, x: Affine) -> Tensor | None:
    """The s with inner = √(2/π) (s·x + 0.044715 (s·x)³), where there is one."""
    names = {b.first: b for b in inner.network.blocks if set(b.names) == {"cube"}}
    is_cube = torch.tensor(
        [(b := inner.network.block_of(int(c))) is not None and b.first in names
         for c in inner.columns]
    )  # fmt: skip
    if not is_cube.any():
        return None
    none = torch.zeros_like(inner.offset)
    cube = _gate(Affine(inner.network, inner.columns[is_cube], inner.data[is_cube], none))
    rest = Affine(inner.network, inner.columns[~is_cube], inner.data[~is_cube], inner.offset)
    if cube is None or (s := _ratio(rest, x)) is None or (t := _ratio(cube.inner, x)) is None:
        return None
    s = s * math.sqrt(math.pi / 2)
    wanted = math.sqrt(2 / math.pi) * CUBIC * s**3
    return s if ((cube.factor * t**3 - wanted).abs() <= 1e-6 * wanted).all() else None


def _ratio(y: Affine, x: Affine) -> Tensor | None:
    """The s > 0, entry by entry, with y = s·x up to rounding; None where there is none."""
    if y.shape != x.shape:
        return None
    columns = torch.cat([y.columns, x.columns]).unique()
    ys, xs = (torch.cat([v.widened(columns), v.offset[None]]) for v in (y, x))
    size = xs.square().sum(0)
    s = torch.where(size > 0, (ys * xs).sum(0) / size.clamp(min=1e-300), 1.0)
    allowed = 1e-14 * ys.abs()
    allowed[-1] += 1e-14 * CENTRE
    return s if (((ys - s * xs).abs() <= allowed) & (s > 0)).all() else None


def _activated(name: str, x: Affine, inner: Tensor, outer: Tensor) -> Affine:
    return _scaled(_scaled(x, inner).activate(name), outer)


def _scaled(x: Affine, factor: Tensor) -> Affine:
    return x.linear(lambda t: t * factor)
