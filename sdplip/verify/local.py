"""Local bounds: slopes tightened to the pre-activations that a region of inputs allows.

For every two inputs of the region both pre-activations of a unit lie in its interval, so their
difference quotient lies in the slope range over it, and the condition with these slopes holds for
the pair. All intervals are rounded outward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .._arrays import Array
from ..errors import CertificationError, InvalidInput, NotWellPosed
from ..system import UNKNOWN, System
from .ranges import Lines, lines, slope_range, value_range
from .region import Region, check_region
from .rigorous import TINY, UNIT, Ball, lengths

SWEEPS = 8
"""Of interval propagation around the cycles of an equilibrium network."""


def restrict(system: System, region: Region) -> System:
    """The system with the slopes that its units have over a region of inputs.

    The same arrays and units (a certificate's multipliers keep their index); activation "unknown",
    for what is left is known by its slopes. Intervals are propagated forward, and backward as
    linear bounds through every earlier unit [CROWN]; around cycles they start from a bound of how
    far the equilibrium moves from that of the region's centre, which also shows that the whole
    network is well-posed.

    Sources: [CROWN] Zhang et al., NeurIPS 2018.

    Raises:
        ShapeError: a region of another dimension.
        InvalidInput: no region; an unknown activation: its slopes cannot be told apart by place.
        NotWellPosed: a cycle with no proof of a single equilibrium everywhere.
        NotConverged: the equilibrium at the centre was not found.
    """
    low, high = preactivations(system, region)
    alpha, beta = slope_range(system.activation, low, high)
    unknown = np.full(system.units, UNKNOWN)
    return system.replaced(alpha=alpha, beta=beta, activation=unknown)


def preactivations(system: System, region: Region) -> tuple[Array, Array]:
    """Bounds (n,), (n,) of Az + Bx + b over the region; raises as `restrict`."""
    check_region(region, system.inputs)
    for i in np.flatnonzero(system.activation == UNKNOWN)[:1]:
        raise InvalidInput(
            f"Unit {i} has an unknown activation, so no interval of its values tightens its "
            "slopes. Give System(..., activation=NAME), or leave the region out."
        )
    inputs = _Inputs(region)
    # What overflows becomes an infinite interval.
    with np.errstate(all="ignore"):
        if system.levels is None:
            return _around_cycles(system, inputs)
        return _through_levels(system, inputs)


@dataclass(frozen=True)
class _Inputs:
    """The inputs: those within `half` of `centre` by coordinate and `radius` in ℓ₂."""

    region: Region

    @cached_property
    def centre(self) -> Array:
        if self.region.centre is not None:
            return np.array(self.region.centre)
        low, high = self.region.limits
        return low / 2 + high / 2

    @cached_property
    def half(self) -> Array:
        if self.region.centre is not None:
            return np.zeros(self.region.inputs)
        low, high = self.region.limits
        return _above(np.maximum(high - self.centre, self.centre - low))

    @cached_property
    def radius(self) -> float:
        return self.region.radius or 0.0

    @property
    def extended(self) -> bool:
        """Whether the region is more than a point."""
        return bool(self.radius > 0 or (self.half > TINY + 1e-15 * abs(self.centre)).any())

    @cached_property
    def largest(self) -> Array:
        return _above(abs(self.centre) + self.half + self.radius)

    def reach(self, rows: Array) -> Array:
        """At least max |rows @ (x − centre)|; (k,) from (k, m)."""
        size = abs(rows) @ self.half + self.radius * (lengths(rows) if self.radius else 0.0)
        return size * (1 + 4 * (rows.shape[1] + 8) * UNIT) + rows.shape[1] * TINY

    def image(self, rows: Array) -> Ball:
        """rows @ x; (k,) from (k, m)."""
        at = _apply(rows, Ball(self.centre))
        return Ball(at.mid, _above(at.rad + self.reach(rows)))


def _through_levels(system: System, inputs: _Inputs) -> tuple[Array, Array]:
    n = system.units
    low, high = np.full(n, -np.inf), np.full(n, np.inf)
    z_low, z_high = np.zeros(n), np.zeros(n)
    bounds = Lines(*(np.zeros(n) for _ in range(4)))
    for k, (level, fed, A) in enumerate(system.feeds or ()):
        names = system.activation[level]
        forward = _sum(inputs.image(system.B[level]), A, z_low[fed], z_high[fed])
        low[level], high[level] = _interval(forward + system.b[level])
        if k and inputs.extended:
            back = _backward(system, inputs, k, bounds, (low, high, z_low, z_high))
            low[level] = np.maximum(low[level], back[0])
            high[level] = np.minimum(high[level], back[1])
        z_low[level], z_high[level] = value_range(names, low[level], high[level])
        for whole, part in zip(bounds, lines(names, low[level], high[level]), strict=True):
            whole[level] = part
    return low, high


def _backward(
    system: System, inputs: _Inputs, k: int, bounds: Lines, box: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """Bounds of the pre-activations of level k: every z replaced by its lines, last level first.

    Coefficients are plain floating-point numbers; how far they and the constant are off, times the
    largest values they multiply, is collected in `error`.
    """
    feeds = system.feeds or []
    rows, read, block = feeds[k]
    v_size = np.maximum(abs(box[0]), abs(box[1]))
    z_size = np.maximum(abs(box[2]), abs(box[3]))
    # Upper bounds of v and of -v at once.
    sign = np.repeat([1.0, -1.0], len(rows))[:, None]
    on_z = np.zeros((2 * len(rows), system.units))
    on_z[:, read] = sign * np.tile(block, (2, 1))
    on_x = sign * np.tile(system.B[rows], (2, 1))
    constant = sign[:, 0] * np.tile(system.b[rows], 2)
    error = np.zeros(2 * len(rows))
    unit = 4 * (system.units + system.inputs + 16) * UNIT
    for level, used, A in reversed(feeds[:k]):
        g = on_z[:, level]
        if not g.any():
            continue
        low_slope, low_offset, high_slope, high_offset = (part[level] for part in bounds)
        h = np.where(g > 0, high_slope, low_slope) * g
        offset = np.where(g > 0, high_offset, low_offset) * g
        B, b = system.B[level], system.b[level]
        size = v_size[level] + abs(A) @ z_size[used] + abs(B) @ inputs.largest + abs(b)
        error += unit * (abs(h) @ size + abs(offset).sum(axis=1) + abs(constant))
        error += unit * (abs(on_z[:, used]) @ z_size[used] + abs(on_x) @ inputs.largest)
        # Coefficients that underflow.
        error += TINY * (v_size[level].sum() + z_size[used].sum() + inputs.largest.sum() + 1)
        on_z[:, used] += h @ A
        on_x += h @ B
        constant = constant + offset.sum(axis=1) + h @ b
    end = inputs.image(on_x) + constant
    top = _above(end.upper + _above(error * (1 + unit)))
    top = np.where(np.isnan(top), np.inf, top)
    return -top[len(rows) :], top[: len(rows)]


def _around_cycles(system: System, inputs: _Inputs) -> tuple[Array, Array]:
    names = system.activation
    z = system.hidden(torch.as_tensor(inputs.centre)).numpy()
    v = system.A @ z + system.B @ inputs.centre + system.b
    low, high = value_range(names, v, v)
    # σ(v) is exactly the equilibrium of the input v − Aσ(v); the others are this far from it.
    away = _sum(inputs.image(system.B) + system.b, system.A, low, high) + -v
    move = _above(abs(away.mid) + away.rad)
    if not np.isfinite(move).all():
        return np.full(system.units, -np.inf), np.full(system.units, np.inf)
    eta, spread = _displacement(system, move)
    v_low, v_high = -_above(-v + _above(move + spread)), _above(v + _above(move + spread))
    z_low, z_high = -_above(eta - low), _above(eta + high)
    for _ in range(SWEEPS):
        around = _interval(_sum(inputs.image(system.B) + system.b, system.A, z_low, z_high))
        v_low, v_high = np.maximum(v_low, around[0]), np.minimum(v_high, around[1])
        low, high = value_range(names, v_low, v_high)
        z_low, z_high = np.maximum(z_low, low), np.minimum(z_high, high)
    return v_low, v_high


def _displacement(system: System, move: Array) -> tuple[Array, Array]:
    """Bounds of |Δz| and |AΔz| where no unit's input changes by more than `move`; all (n,)."""
    from .bound import lipschitz

    n, eye = system.units, np.eye(system.units)
    zero, unknown = np.zeros((n, n)), np.full(n, UNKNOWN)
    shifted = replace(system, B=np.diag(move), C=eye, D=zero, c=np.zeros(n), activation=unknown)
    try:
        found = lipschitz(shifted, np.inf, lower=False)
        # Linear units have no multiplier; no unit moves by more than the bound.
        eta = np.array(found.multipliers)
        eta = _coarse(np.where(eta > 0, eta, found.bound))
        return eta, _above(abs(system.A) @ eta * (1 + 4 * n * UNIT))
    except (NotWellPosed, CertificationError):
        gain = lipschitz(replace(shifted, B=eye), 2, lower=False).bound * lengths(move)
        gain = _coarse(_above(gain))
        return np.full(n, gain), _above(gain * lengths(system.A))


def _coarse(value: Any) -> Any:
    """Rounded up to 12 bits, so that a solver's last digits do not matter to a later check."""
    mantissa, exponent = np.frexp(value)
    return np.ldexp(np.ceil(mantissa * 4096) / 4096, exponent)


def _sum(shift: Ball, A: Array, z_low: Array, z_high: Array) -> Ball:
    """A @ z + shift for z between its bounds."""
    middle = z_low / 2 + z_high / 2
    half = _above(np.maximum(z_high - middle, middle - z_low))
    return _apply(A, Ball(middle, half)) + shift


def _apply(matrix: Array, vector: Ball) -> Ball:
    return (Ball(matrix) @ vector[:, None])[:, 0]


def _interval(ball: Ball) -> tuple[Array, Array]:
    low, high = ball.lower, ball.upper
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def _above(value: Array) -> Array:
    """At least the exact value of what a few roundings gave."""
    return value + 8 * UNIT * abs(value) + TINY
