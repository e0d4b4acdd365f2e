"""Lower bounds of the Lipschitz constant: gains of Jacobians that the network really has."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from .._arrays import Array, finite
from .._modes import own_modes
from ..activations import activation
from ..errors import InvalidInput, ShapeError
from ..system import UNKNOWN, System
from .exact import exact_gain
from .local import preactivations
from .network import Network
from .ranges import slope_range
from .region import Region, check_region
from .rigorous import TINY, UNIT, Ball

EFFORT = 1e10
"""Floating-point operations of a search, about: a second of one core."""

EXACT_OUTPUTS = 256
"""Up to this many, a Jacobian is formed; above, its norm comes from power iterations."""

EXACT_SIZE = 200_000
"""Up to this many weights, a gain lost to rounding errors is computed exactly instead."""

CYCLIC_SLACK = 1e-6
"""Taken off where equilibria are only known in floating point, to 1e-12 and their conditioning."""


@own_modes
def lower_bound(
    system: System,
    norm: float = 2,
    *,
    points: Any = None,
    region: Region | None = None,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    deadline: float | None = None,
) -> float | None:
    """The largest gain ‖J(x)w‖ / ‖w‖ of a Jacobian that was found; None if σ is unknown, or
    equilibria with it cannot be computed.

    Random points climb the norm of their Jacobian, whose slopes are averaged over ever narrower
    intervals of pre-activations, so that kinks have a gradient, too. The best gains are then
    enclosed in rounding-safe arithmetic: where the sign of a pre-activation is in doubt, with every
    slope that it may have. So the result is at most the true constant; of a system with a cycle,
    whose equilibria are floating-point numbers, points near a kink are left out and `CYCLIC_SLACK`
    is taken off instead.

    Args:
        norm: 2 or inf, on input and output alike.
        points: (k, m) inputs to start from in addition, such as data.
        region: only points and directions inside it.
        samples, steps: random points and their steps; None fits them to the size of the system.
        seed: of the random starts.
        deadline: in `time.monotonic`; then the search ends with what it has.

    Raises:
        ShapeError: points or a region of another dimension.
        NotConverged: an equilibrium was not found.
    """
    if not _evaluates(system):
        return None
    with np.errstate(all="ignore"):
        search = _Search(system, norm, region, seed, math.inf if deadline is None else deadline)
        x, w, gain = search.climb(_data(points, system.inputs), samples, steps)
        found = max(_attained(system, norm, *pair) for pair in zip(x, w, strict=True))
        small = (system.coupling != 0).sum() + np.count_nonzero(system.B) < EXACT_SIZE
        if system.levels is not None and small and found < (1 - 1e-9) * gain:
            found = max(found, exact_gain(system, norm, x[0], w[0]))
        return found


def _evaluates(system: System) -> bool:
    if (system.activation == UNKNOWN).any():
        return False
    try:
        # Around cycles it is evaluated by proximal maps, which not all have.
        for name in np.unique(system.activation) if system.levels is None else ():
            activation(str(name))
    except InvalidInput:
        return False
    return True


def _data(points: Any, inputs: int) -> Array:
    if points is None:
        return np.zeros((0, inputs))
    data = finite("points", points)
    if data.ndim != 2 or data.shape[1] != inputs:
        raise ShapeError(f"points has shape {data.shape}, but must be (k, {inputs}).")
    return data


class _Search:
    """Points x and directions w (k, m) of large ‖J(x)w‖ / ‖w‖."""

    def __init__(
        self, system: System, norm: float, region: Region | None, seed: int, deadline: float
    ) -> None:
        self.system, self.norm, self.region, self.deadline = system, norm, region, deadline
        self.rng = np.random.default_rng(seed)
        self.net = Network(system)
        self.free = np.ones(system.inputs)
        if region is not None:
            check_region(region, system.inputs)
            low, high = region.limits
            # Pairs of the region differ in these coordinates alone.
            self.free = ((high > low) & (region.radius != 0)).astype(float)

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def climb(
        self, data: Array, samples: int | None, steps: int | None
    ) -> tuple[Array, Array, float]:
        """The best points, best first, their directions and the best gain."""
        net, n, m = self.net, self.system.units, self.system.inputs
        # Long ascents find more than many; a cycle costs an equilibrium and two solves per step.
        most = np.clip(2000 // (n + m), 24, 64), min(100 * len(net.levels), 300)
        if self.system.levels is None:
            most = 8, 25
        flops = 20.0 * net.cost
        samples = samples or int(np.clip(EFFORT / flops / max(most[1], 1), 4, most[0]))
        steps = steps or int(np.clip(EFFORT / flops / samples, min(8, most[1]), most[1]))
        start, scale = self._starts(data, samples)
        x, w = self._ascend(start, scale, steps)
        x, w, scale = np.tile(x, (2, 1)), np.tile(w, (2, 1)), np.tile(scale, (2, 1))
        x[: len(start)] = start
        gains, w = self.gains(x, w, 6)
        for shrink in (1.0, 0.3, 0.1, 0.03):
            if self.late:
                break
            best = int(gains.argmax())
            step = shrink * scale[best] / m**0.5
            cloud = self.project(x[best] + step * self.rng.normal(size=(samples, m)))
            more, directions = self.gains(cloud, np.tile(w[best], (samples, 1)), 6)
            x, w = np.concatenate([x, cloud]), np.concatenate([w, directions])
            gains = np.concatenate([gains, more])
            scale = np.concatenate([scale, np.tile(scale[best], (samples, 1))])
        top = np.argsort(-gains)[:3]
        return x[top], self._directions(x[top], w[top]), float(gains[top[0]])

    def _starts(self, data: Array, samples: int) -> tuple[Array, Array]:
        """Points (k, m) and how far the search may step from each (k, m): half of them the best
        of more, data among them."""
        x, scale = self._random(4 * samples)
        if len(data):
            spread = np.full_like(data, data.std() or 1.0) if self.region is None else scale[0]
            x = np.concatenate([x, self.project(data)])
            scale = np.concatenate([scale, np.broadcast_to(spread, data.shape)])
        gains = np.zeros(len(x))
        for part in np.array_split(np.arange(len(x)), -(-len(x) // 256)):
            if self.late:
                break
            gains[part] = self.gains(x[part], None, 2)[0]
        best = np.argsort(-gains, kind="stable")
        others = self.rng.permutation(best[samples // 2 :])
        chosen = np.concatenate([best[: samples // 2], others])[:samples]
        return x[chosen], scale[chosen]

    def _random(self, count: int) -> tuple[Array, Array]:
        shape = (count, self.system.inputs)
        if self.region is None:
            # The scale at which biases and inputs compete, in both directions.
            weight, bias = np.linalg.norm(self.system.B, axis=1), abs(self.system.b)
            ratios = bias[weight > 0] / weight[weight > 0]
            reach = float(np.clip(np.median(ratios), 1.0, 1e6)) if ratios.size else 1.0
            scale = np.tile(reach * np.logspace(-1.5, 1, count)[:, None], (1, shape[1]))
            return scale * self.rng.normal(size=shape), scale
        low, high = self.region.limits
        half = np.tile(high / 2 - low / 2, (count, 1))
        middle = low / 2 + high / 2
        return self.project(middle + half * self.rng.uniform(-1, 1, size=shape)), half / 2

    def _ascend(self, x: Array, scale: Array, steps: int) -> tuple[Array, Array]:
        """Adam on log‖J(x)w‖, with slopes averaged ever less; w by a power step each."""
        w = self.rng.normal(size=x.shape) * self.free
        first, second = np.zeros_like(x), np.zeros_like(x)
        for t in range(1, steps + 1):
            if self.late:
                break
            width = 3.0 * 0.01 ** ((t - 1) / max(steps - 1, 1))
            gradient, w = self._gradient(x, w, width)
            gradient = np.nan_to_num(gradient * scale, posinf=0.0, neginf=0.0)
            first += 0.1 * (gradient - first)
            second += 0.01 * (gradient**2 - second)
            pace = np.sqrt(second / (1 - 0.99**t)) + 1e-12
            x = self.project(x + 0.1 * scale * first / (1 - 0.9**t) / pace)
        return x, w

    def project(self, x: Array) -> Array:
        """The nearest points of the region."""
        if self.region is None:
            return x
        if self.region.radius is None:
            return np.clip(x, *self.region.limits)
        centre = np.array(self.region.centre)
        away = x - centre
        # Inside by more than the rounding of the norm.
        most = self.region.radius * (1 - 1e-9)
        size = np.linalg.norm(away, axis=1, keepdims=True)
        return centre + away * np.minimum(1.0, most / np.maximum(size, 1e-300))

    def _gradient(self, x: Array, w: Array, width: float) -> tuple[Array, Array]:
        """∂ log‖J(x)w‖ / ∂x with slopes averaged over v ± width·mean|v|, and the next w."""
        net = self.net
        v = net.preactivations(x)
        half = width * net.level_means(abs(v)) + 1e-300
        (low, low_slope), (high, high_slope) = net.sigma(v - half), net.sigma(v + half)
        slope, bend = (high - low) / (2 * half), (high_slope - low_slope) / (2 * half)
        moved, z = net.push(slope, w)
        u = self._ascent(net.output(z, w))
        on_z, on_v = net.pull(slope, net.output_adjoint(u))
        w = self._input_direction(net.input_adjoint(on_v, u))
        # σ bends at v, which changes the gain of this unit and, through z, of those behind it.
        on_v = net.pull(net.sigma(v)[1], np.zeros_like(v), bend * moved * on_z)[1]
        return net.input_adjoint(on_v), w

    def gains(self, x: Array, w: Array | None, rounds: int) -> tuple[Array, Array]:
        """‖J(x)w‖ / ‖w‖ (k,) after rounds of power iteration, and w."""
        net = self.net
        slope = net.sigma(net.preactivations(x))[1]
        w = self.rng.normal(size=x.shape) * self.free if w is None else w
        for _ in range(rounds):
            u = self._ascent(net.output(net.push(slope, w)[1], w))
            on_v = net.pull(slope, net.output_adjoint(u))[1]
            w = self._input_direction(net.input_adjoint(on_v, u))
        y = net.output(net.push(slope, w)[1], w)
        gains = np.linalg.norm(y, self.norm, axis=1) / np.linalg.norm(w, self.norm, axis=1)
        return np.nan_to_num(gains, nan=0.0, posinf=0.0), w

    def _ascent(self, y: Array) -> Array:
        """∂ log‖y‖ / ∂y."""
        if self.norm == 2:
            return y / np.maximum(np.square(y).sum(axis=1, keepdims=True), 1e-300)
        top = abs(y).argmax(axis=1)[:, None]
        return (np.arange(y.shape[1]) == top) / np.where(y == 0, 1.0, y)

    def _input_direction(self, gradient: Array) -> Array:
        """The w of norm 1 along which a gradient rises most."""
        gradient = np.nan_to_num(gradient) * self.free
        if self.norm != 2:
            return np.sign(gradient)
        return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-300)

    def _directions(self, x: Array, w: Array) -> Array:
        """The best w for each x."""
        net = self.net
        if net.outputs > EXACT_OUTPUTS:
            return self.gains(x, w, 40)[1]
        best = []
        for slope in net.sigma(net.preactivations(x))[1]:
            slopes = np.tile(slope, (net.outputs, 1))
            u = np.eye(net.outputs)
            on_v = net.pull(slopes, net.output_adjoint(u))[1]
            J = net.input_adjoint(on_v, u) * self.free
            if self.norm == 2:
                best.append(np.linalg.svd(np.nan_to_num(J), full_matrices=False)[2][0])
            else:
                best.append(np.sign(J[abs(J).sum(axis=1).argmax()]))
        return np.stack(best) * self.free


def _attained(system: System, norm: float, x: Array, w: Array) -> float:
    """At most ‖J(x)w‖ / ‖w‖, for J one of the limits of Jacobians at x."""
    if not (w.any() and np.isfinite(w).all() and np.isfinite(x).all()):
        return 0.0
    if system.levels is None:
        return _attained_in_floats(system, norm, x, w)
    a, b = slope_range(system.activation, *preactivations(system, Region.ball(x, 0.0)))
    S = Ball((a + b) / 2, (b - a) * (0.5 + 4 * UNIT))[:, None]
    column = Ball(w[:, None])
    mid, rad = np.zeros((system.units, 1)), np.zeros((system.units, 1))
    for level, fed, block in system.feeds or ():
        rows = S[level] * (system.B[level] @ column + block @ Ball(mid[fed], rad[fed]))
        mid[level], rad[level] = rows.mid, rows.rad
    # Wide enough for rows that are differences rounded to float64.
    C, D = (Ball(X, UNIT * abs(X)) for X in (system.C, system.D))
    y = C @ Ball(mid, rad) + D @ column
    least = np.maximum(abs(y.mid) - y.rad, 0.0)[:, 0]
    slack = 4 * (system.inputs + system.outputs + 8) * UNIT
    gain = np.linalg.norm(least, norm) / (np.linalg.norm(w, norm) + TINY) * (1 - slack)
    return float(gain) if math.isfinite(gain) else 0.0


def _attained_in_floats(system: System, norm: float, x: Array, w: Array) -> float:
    net = Network(system)
    v = net.preactivations(x[None])
    room = 1e-7 * np.maximum(1.0, abs(v))
    a, b = slope_range(system.activation, (v - room)[0], (v + room)[0])
    if (b - a > 1e-4).any():
        return 0.0
    y = net.output(net.push(net.sigma(v)[1], w[None])[1], w[None])[0]
    gain = np.linalg.norm(y, norm) / (np.linalg.norm(w, norm) + TINY)
    return float(gain * (1 - CYCLIC_SLACK)) if math.isfinite(gain) else 0.0
