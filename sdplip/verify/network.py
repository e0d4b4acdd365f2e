"""A system for many inputs at once: its units, its Jacobian applied and its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._arrays import Array
from ..activations import elementwise
from ..system import System


class Network:
    """Floating-point evaluation in NumPy, for searches: k inputs at a time, by rows.

    Units are reordered by level; `B`, `C` and everything (k, n) is in that order.
    """

    def __init__(self, system: System) -> None:
        order = np.arange(system.units)
        if system.levels is not None:
            order = np.concatenate([order[:0], *system.levels])
        self.system, self.outputs = system, system.outputs
        B, C, self.b = system.B[order], system.C[:, order], system.b[order]
        # Of deep networks, most of B and C is zero.
        self.fed, self.seen = _span(B.any(axis=1)), _span(C.any(axis=0))
        self.B, self.C = B[self.fed].copy(), C[:, self.seen].copy()
        self.D = system.D if system.D.any() else None
        names = system.activation[order]
        self.kinds = [(elementwise(str(name)), names == name) for name in np.unique(names)]
        self.levels: list[tuple[slice, slice, Array]] = []
        start, place = 0, np.argsort(order)
        for level, fed, block in system.feeds or ():
            here = slice(start, start := start + len(level))
            before = slice(place[fed].min(initial=start), place[fed].max(initial=-1) + 1)
            whole = np.zeros((len(level), max(before.stop - before.start, 0)))
            whole[:, place[fed] - before.start] = block
            self.levels.append((here, before, whole))

    @property
    def cost(self) -> float:
        """Multiplications of one evaluation, about."""
        inner = sum(block.size for _, _, block in self.levels)
        if self.system.levels is None:
            inner = 2 * self.system.units**3
        direct = 0 if self.D is None else self.D.size
        return inner + self.B.size + self.C.size + direct + 1.0

    def level_means(self, v: Array) -> Array:
        """(k, n) with the mean of v over each level in place of its entries."""
        means = np.empty_like(v)
        whole = [slice(None)] if self.system.levels is None else []
        for here in whole or [here for here, _, _ in self.levels]:
            means[:, here] = v[:, here].mean(axis=1, keepdims=True)
        return means

    def sigma(self, v: Array, units: slice = slice(None)) -> tuple[Array, Array]:
        """σ(v) and a slope of σ at v, for all or a range of units."""
        kinds = [(kind, where[units]) for kind, where in self.kinds if where[units].any()]
        value, slope = np.empty_like(v), np.empty_like(v)
        for kind, where in kinds:
            columns = slice(None) if len(kinds) == 1 else where
            at = torch.from_numpy(np.ascontiguousarray(v[:, columns]))
            value[:, columns] = kind(at).numpy()
            slope[:, columns] = kind.derivative(at).numpy()
        return value, slope

    def preactivations(self, x: Array) -> Array:
        """Az + Bx + b at x (k, m); (k, n)."""
        v = np.tile(self.b, (len(x), 1))
        v[:, self.fed] += x @ self.B.T
        if self.system.levels is None:
            return np.asarray(v + self.system.hidden(torch.from_numpy(x)).numpy() @ self.system.A.T)
        z = np.zeros_like(v)
        for here, before, block in self.levels:
            v[:, here] += z[:, before] @ block.T
            z[:, here] = self.sigma(v[:, here], here)[0]
        return v

    def push(self, slope: Array, w: Array) -> tuple[Array, Array]:
        """Pre-activations and units (k, n) of the linearised system with slopes (k, n), at w."""
        v = np.zeros_like(slope)
        v[:, self.fed] += w @ self.B.T
        if self.system.levels is None:
            z = np.asarray(np.linalg.solve(self._inner(slope), (slope * v)[..., None]))[..., 0]
            return v + z @ self.system.A.T, z
        z = np.zeros_like(slope)
        for here, before, block in self.levels:
            v[:, here] += z[:, before] @ block.T
            z[:, here] = slope[:, here] * v[:, here]
        return v, z

    def pull(self, slope: Array, on_z: Array, on_v: Array | float = 0.0) -> tuple[Array, Array]:
        """Whole sensitivities (k, n) to units and pre-activations, from the direct ones."""
        on_v = np.broadcast_to(on_v, slope.shape)
        if self.system.levels is None:
            inner = self._inner(slope).swapaxes(1, 2)
            on_z = np.asarray(np.linalg.solve(inner, (on_z + on_v @ self.system.A)[..., None]))[
                ..., 0
            ]
            return on_z, slope * on_z + on_v
        on_z, on_v = on_z.copy(), on_v.copy()
        for here, before, block in reversed(self.levels):
            on_v[:, here] += slope[:, here] * on_z[:, here]
            on_z[:, before] += on_v[:, here] @ block
        return on_z, on_v

    def output(self, z: Array, w: Array) -> Array:
        """Cz + Dw, (k, p)."""
        y = z[:, self.seen] @ self.C.T
        return y if self.D is None else y + w @ self.D.T

    def output_adjoint(self, u: Array) -> Array:
        """Cᵀu, (k, n)."""
        on_z = np.zeros((len(u), len(self.b)))
        on_z[:, self.seen] = u @ self.C
        return on_z

    def input_adjoint(self, on_v: Array, u: Array | None = None) -> Array:
        """Bᵀ on_v + Dᵀu, (k, m)."""
        x = on_v[:, self.fed] @ self.B
        return x if u is None or self.D is None else x + u @ self.D

    def _inner(self, slope: Array) -> Array:
        return np.eye(len(self.b)) - slope[:, :, None] * self.system.A


def _span(mask: Any) -> slice:
    """From the first to the last that is set."""
    where = np.flatnonzero(mask)
    return slice(where[0], where[-1] + 1) if where.size else slice(0, 0)
