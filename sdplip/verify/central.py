"""A start near the central path for deep chains, by a first-order method linear in the depth."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from scipy.linalg import lapack

from .._arrays import Array
from .descent import Layers

LEAST = 1e-150
RATE = 0.1
"""Of Adam at first; it falls linearly to a fiftieth."""


def central(
    layers: Layers, steps: int, deadline: float | None = None
) -> tuple[float, Array] | None:
    """(ρ, λ), ρ about half above the optimum, by Adam on 2d log ρ − log det M.

    d is the order of M. Where M ⪰ 0 does not force λ ≥ 0, d counts λ too, and Σ log λ is lowered
    with log det M. The variables are those of `descent`, log T_k and a_k, and one more for
    ρ = 1 + e^room times the least, so that all their values are strictly feasible.

    Args:
        deadline: in `time.monotonic`; then the best point so far is taken.

    Returns:
        None where rounding leaves no strictly feasible point.
    """
    free = np.zeros(sum(map(len, layers.places)) + len(layers.places) + 1)
    best = point = _Point(layers, free)
    first, second = np.zeros_like(free), np.zeros_like(free)
    for step in range(1, steps + 1):
        late = deadline is not None and time.monotonic() > deadline
        if late or point.value == math.inf:
            break
        slope = point.gradient() / (2 * point.order)
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        length = RATE * (1.02 - (step - 1) / steps) / (1 - 0.9**step)
        free = free - length * first / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
        point = _Point(layers, free)
        best = point if point.value < best.value else best
    if best.value == math.inf:
        return None
    return math.exp(best.log_rho), layers.gather([np.exp(v) for v in best.logs[::-1]])


class _Point:
    """The potential at `free`, and what its gradient needs of every layer, the last one first.

    Its value is infinite where rounding leaves no factor. With Q_k as in `descent`, divided by
    their norms: deep gains leave the range of float64.
    """

    def __init__(self, layers: Layers, free: Array) -> None:
        self.layers, self.free = layers, free
        widths = [len(place) for place in layers.places]
        self.signed = any((a * b).any() for a, b in zip(layers.alpha, layers.beta, strict=True))
        *scales, rooms = np.split(free, np.cumsum(widths))
        self.value = math.inf
        self.logs: list[Array] = []
        self.parts: list[tuple[Any, ...]] = []
        C = layers.weights[-1]
        Q, size, log_det = C.T @ C, 0.0, 0.0
        for k in range(len(widths) - 1, -1, -1):
            norm = float(np.linalg.norm(Q)) or 1.0
            Q, size = Q / norm, size + math.log(norm)
            W, low, high = layers.weights[k], layers.alpha[k], layers.beta[k]
            root = np.exp(-scales[k] / 2)
            top, v = _top(root[:, None] * Q * root)
            lam = (1 + math.exp(rooms[k])) / 2 * max(top, LEAST) / root**2
            factor, failed = lapack.dpotrf(np.diag(2 * lam) - Q, lower=1)
            if failed:
                return
            log_det += 2 * float(np.log(factor.diagonal()).sum()) + len(lam) * size
            self.logs.append(np.log(lam) + size)
            half = lapack.dtrtri(factor, lower=1)[0]
            side = half @ ((lam * (low + high))[:, None] * W)
            V, inverse = half.T @ side, half.T @ half
            self.parts.append(((norm, top), lam, root * v, v, V, inverse))
            Q = side.T @ side
            if self.signed:
                Q -= 2 * W.T @ ((lam * low * high)[:, None] * W)
        self.norm = float(np.linalg.norm(Q)) or 1.0
        Q, size = Q / self.norm, size + math.log(self.norm)
        self.top, self.v = _top(Q)
        self.top = max(self.top, LEAST)
        self.rho = self.top * (1 + math.exp(rooms[-1]))
        factor, failed = lapack.dpotrf(self.rho * np.eye(len(Q)) - Q, lower=1)
        if failed:
            return
        half = lapack.dtrtri(factor, lower=1)[0]
        self.inverse = half.T @ half
        self.log_rho = math.log(self.rho) + size
        log_det += 2 * float(np.log(factor.diagonal()).sum()) + len(Q) * size
        self.order = len(Q) + sum(widths) * (2 if self.signed else 1)
        log_det += sum(v.sum() for v in self.logs) * self.signed
        value = 2 * self.order * self.log_rho - log_det
        self.value = value if math.isfinite(value) else math.inf

    def gradient(self) -> Array:
        """By the recursion for the derivative in Q_k, from the first layer to the last."""
        share = 2 * self.order - self.rho * self.inverse.trace()
        inner = share / self.top * np.outer(self.v, self.v) + self.inverse
        layers, norm = self.layers, self.norm
        scales, rooms = [], []
        for k, part in enumerate(reversed(self.parts)):
            (own, top), lam, w, v, V, inverse = part
            W, low, high = layers.weights[k], layers.alpha[k], layers.beta[k]
            left = V @ (inner / norm)
            after = left @ V.T + inverse
            slope = 2 * (low + high) * (left * W).sum(axis=1) - 2 * after.diagonal()
            if self.signed:
                slope -= 2 * low * high * ((W @ inner / norm) * W).sum(axis=1) + 1 / lam
            slope *= lam
            rooms.append(float(slope.sum()))
            if top > LEAST:
                after += rooms[-1] / top * np.outer(w, w)
                slope -= rooms[-1] * v * v
            scales.append(slope)
            inner, norm = after, own
        chances = 1 / (1 + np.exp(-self.free[-len(rooms) - 1 :]))
        return np.concatenate([*scales, chances * [*rooms, share]])


def _top(Q: Array) -> tuple[float, Array]:
    """The largest eigenvalue and its vector."""
    n = len(Q)
    values, vectors = lapack.dsyevr(Q, range="I", il=n, iu=n)[:2]
    return float(values[0]), vectors[:, 0]
