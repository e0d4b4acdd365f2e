"""A network of convolutions on a torus: one small system per spatial frequency.

Why the condition on a torus bounds a network with zero padding. Take two inputs; write Δx, Δz for
the differences of the input and of every layer of units, set to zero outside of the image. If the
torus is so large that no tap reaches around it from one pixel of the image to another, then the
convolutions on the torus agree with those of the network at every pixel that the network has. Under
M ⪰ 0 on the torus, ρ‖Δx‖² ≥ ‖Δy‖² − Σ 2λ(Δz − αΔv)(Δz − βΔv), summed over the torus. Inside of the
image each product is ≤ 0 by the slopes; outside Δz = 0 leaves αβ(Δv)² ≤ 0, if αβ ≤ 0: where Δv can
be nonzero outside, the slopes are widened to include 0. Between two convolutions without units,
the restriction to the image is itself such a layer, with slopes [0, 1]: it keeps or deletes.
Hence ρ‖Δx‖² ≥ ‖Δy‖² over the torus, which is no less than over the image. Circular padding makes
the image the torus, and nothing is widened. Averaging over shifts shows that multipliers need not
depend on the place, and shifts are diagonal in frequency.

With strides, a shift of the coarsest grid is what is left of invariance: a layer f times finer has
f² phases there, and each phase its own multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .._arrays import Array
from .._stages import (
    Activate,
    Add,
    Convolve,
    Head,
    Pair,
    Pool,
    Shape,
    Stage,
    chain_shapes,
)
from ..convolutional import ConvSystem
from ..errors import InvalidInput
from .rigorous import UNIT, Ball
from .waves import table

Kernel = dict[tuple[int, int], Ball]
"""Σ_τ K(τ) x(P + τ) by τ, on the coarsest grid; rows and columns are channels times phases."""

WIDEST = 4096
"""The most inputs and units per pixel of the coarsest grid."""
MOST = 1 << 18
"""The most pixels of the coarsest grid."""


@dataclass(frozen=True)
class Torus:
    """The system of every frequency: [v; y] = W(ω)[x; z], W(ω) = Σ_τ W_τ exp(iω·τ).

    Attributes:
        size: of the torus in pixels of the coarsest grid.
        taps, weights: τ (T, 2) and W_τ, a Ball (T, n + p, m + n), with m inputs, n units and p
            outputs per coarse pixel.
        alpha, beta: (n,) slopes, widened where the torus needs it.
        layers: the units of every layer, which depend on earlier layers only.
        head: (q, p, pixels): outputs are Σ_c head[:, c] y_c; None is y itself.
        mean: the outputs see the frequency 0 only: a head that weighs all pixels alike.
    """

    size: Pair
    taps: NDArray[np.intp]
    weights: Ball
    inputs: int
    alpha: Array
    beta: Array
    layers: list[NDArray[np.intp]]
    head: Array | None
    mean: bool

    @property
    def units(self) -> int:
        return len(self.alpha)

    @property
    def outputs(self) -> int:
        return self.weights.shape[1] - self.units

    @property
    def multipliers(self) -> int:
        """How many there are: one per unit, and with a head its scales."""
        return self.units + (0 if self.head is None else self.outputs)

    def live(self) -> NDArray[np.bool_]:
        """Mask (n,) of the units on a path from an input to an output, at any frequency."""
        W, n, m = self.weights, self.units, self.inputs
        met = (abs(W.mid) + W.rad).max(0) > 0
        active = (self.alpha != 0) | (self.beta != 0)
        forward, backward = met[:n, :m].any(1) & active, met[n:, m:].any(0) & active
        for _ in self.layers:
            forward |= met[:n, m:] @ forward & active
            backward |= met[:n, m:].T @ backward & active
        return forward & backward

    def pruned(self) -> Torus:
        """The same map without the units that are not live."""
        live = self.live()
        rows = np.append(np.flatnonzero(live), self.units + np.arange(self.outputs))
        columns = np.append(np.arange(self.inputs), self.inputs + np.flatnonzero(live))
        place = np.cumsum(live) - 1
        layers = [place[layer[live[layer]]] for layer in self.layers]
        return replace(
            self,
            weights=self.weights[:, rows][:, :, columns],
            alpha=self.alpha[live],
            beta=self.beta[live],
            layers=[layer for layer in layers if len(layer)],
        )

    def frequencies(self) -> NDArray[np.intp]:
        """(F, 2) whole numbers k, ω = 2πk/size: one of each pair ω, −ω, whose M are conjugate."""
        height, width = self.size
        k = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
        k = k.reshape(-1, 2)
        mirror = -k % np.asarray(self.size)
        return k[k[:, 0] * width + k[:, 1] <= mirror[:, 0] * width + mirror[:, 1]]

    def waves(self, k: NDArray[np.intp]) -> tuple[Ball, Ball]:
        """cos ω·τ and sin ω·τ (F, T), enclosed, for frequencies k (F, 2)."""
        turns = [k[:, [axis]] * self.taps[:, axis] % n for axis, n in enumerate(self.size)]
        (c, s), (c_, s_) = (
            [Ball(wave[turn], UNIT) for wave in table(n)]
            for turn, n in zip(turns, self.size, strict=True)
        )
        return c * c_ + s * s_ * -1.0, s * c_ + c * s_


@dataclass(frozen=True)
class _Signal:
    """A feature map as a sum over sources: 0 is the input, k the k-th layer of units.

    A kernel of None is the identity; what may be nonzero outside of the image is in `outside`.
    """

    shape: Shape
    fine: Pair
    inside: Mapping[int, Kernel | None]
    outside: Mapping[int, Kernel | None] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.shape[0] * self.fine[0] * self.fine[1]

    @property
    def total(self) -> dict[int, Kernel]:
        return _sum(self.inside, self.outside, self.width)


@dataclass(frozen=True)
class _Layer:
    kernels: Mapping[int, Kernel]
    alpha: Array
    beta: Array


def torus(conv: ConvSystem) -> Torus:
    """The network on the smallest torus that is valid, of even sides if padding is with zeros.

    Raises:
        InvalidInput: circular and zero padding that no torus serves at once, sums of paths with
            different strides, or too many units per pixel of the coarsest grid.
    """
    fine = _strides(conv.stages)
    width = conv.channels * math.prod(fine)
    _check_width(width)
    size = _smallest(conv, fine)
    if math.prod(size) > MOST:
        raise InvalidInput(
            f"The torus has {size[0]} x {size[1]} pixels, and a frequency for each; at most {MOST} "
            "are possible. Use smaller images."
        )
    layers: list[_Layer] = []
    last = _chain(conv.stages, _Signal(conv.start, fine, {0: None}), size, layers)
    head: Array | None = None
    mean = False
    if isinstance(conv.stages[-1], Head):
        head = conv.stages[-1].weight.reshape(-1, last.width, math.prod(last.shape[1:]))
        mean = head.shape[2] > 1 and bool((head == head[:, :, :1]).all())
    if mean:
        last = _restricted(last, layers)
    total, outputs = last.total, last.width
    if head is not None and (mean or head.shape[2] == 1):
        # The sum over a torus is its frequency 0 times the root of its size, which may round.
        root = math.sqrt(math.prod(size))
        weight = Ball(head[:, :, 0])
        if mean and head.any():
            weight = weight * Ball(root, UNIT * root)
        total = {k: _product({(0, 0): weight}, kernel) for k, kernel in total.items()}
        head, outputs = None, weight.shape[0]
    ends = [0, *np.cumsum([width, *(len(layer.alpha) for layer in layers), outputs]).tolist()]
    columns, rows = ends[-2], ends[-1] - width
    _check_width(columns)
    blocks = [layer.kernels for layer in layers] + [total]
    taps = sorted({tau for row in blocks for kernel in row.values() for tau in kernel} | {(0, 0)})
    mid, rad = np.zeros((2, len(taps), rows, columns))
    for k, row in enumerate(blocks):
        for source, kernel in row.items():
            for tau, block in kernel.items():
                place = np.s_[
                    taps.index(tau),
                    ends[k + 1] - width : ends[k + 2] - width,
                    ends[source] : ends[source + 1],
                ]
                mid[place], rad[place] = block.mid, block.rad
    return Torus(
        size=size,
        taps=np.asarray(taps),
        weights=Ball(mid, rad),
        inputs=width,
        alpha=np.concatenate([np.zeros(0), *(layer.alpha for layer in layers)]),
        beta=np.concatenate([np.zeros(0), *(layer.beta for layer in layers)]),
        layers=[np.arange(a, b) - width for a, b in pairwise(ends[1:-1])],
        head=head,
        mean=mean,
    )


def _chain(stages: Sequence[Stage], signal: _Signal, size: Pair, layers: list[_Layer]) -> _Signal:
    """The signal after these stages; their units are appended to `layers`."""
    for stage in stages:
        match stage:
            case Convolve():
                signal = _convolve(stage, _restricted(signal, layers), size)
            case Pool():
                average = stage.convolve(signal.shape[0])
                signal = _convolve(average, _restricted(signal, layers), size)
            case Activate():
                repeats = signal.width // signal.shape[0]
                low, high = (np.repeat(s, repeats) for s in stage.slopes(signal.shape[0]))
                if signal.outside:
                    low, high = np.minimum(low, 0), np.maximum(high, 0)
                layers.append(_Layer(signal.total, low, high))
                signal = replace(signal, inside={len(layers): None}, outside={})
            case Add():
                body = _chain(stage.body, signal, size, layers)
                skip = _chain(stage.skip, signal, size, layers)
                signal = replace(
                    body,
                    inside=_sum(body.inside, skip.inside, body.width),
                    outside=_sum(body.outside, skip.outside, body.width),
                )
    return signal


def _restricted(signal: _Signal, layers: list[_Layer]) -> _Signal:
    """The signal, its restriction to the image done by a layer of its own where it matters."""
    if not signal.outside:
        return signal
    kernels = _sum(signal.outside, {}, signal.width)
    layers.append(_Layer(kernels, np.zeros(signal.width), np.ones(signal.width)))
    return replace(signal, inside={**signal.inside, len(layers): None}, outside={})


def _convolve(stage: Convolve, signal: _Signal, size: Pair) -> _Signal:
    fine = (signal.fine[0] // stage.stride[0], signal.fine[1] // stage.stride[1])
    shape = stage.shape(signal.shape)
    kernel = _polyphase(stage, signal.fine, fine)
    sources = {source: _product(kernel, first) for source, first in signal.inside.items()}
    spills = False
    for axis in range(2):
        side, n = size[axis] * signal.fine[axis], signal.shape[1 + axis]
        outputs = np.arange(shape[1 + axis], size[axis] * fine[axis])[:, None]
        taps = np.arange(stage.weight.shape[2 + axis]) - stage.padding[2 * axis]
        spills |= bool(((outputs * stage.stride[axis] + taps) % side < n).any())
    out = _Signal(shape, fine, sources)
    return replace(out, inside={}, outside=sources) if spills else out


def _check_width(columns: int) -> None:
    if columns > WIDEST:
        raise InvalidInput(
            f"The network has {columns} inputs and units per pixel of its coarsest grid, strides "
            f"multiply them; at most {WIDEST} are possible. Use fewer channels or strides."
        )


def _polyphase(stage: Convolve, fine: Pair, out: Pair) -> Kernel:
    """The convolution between the phases of a finer and a coarser grid."""
    p, c, *taps = stage.weight.shape
    rows, columns = p * math.prod(out), c * math.prod(fine)
    _check_width(max(rows, columns))
    kernel: dict[tuple[int, int], Array] = {}
    for phase in np.ndindex(*out):
        for tap in np.ndindex(*taps):
            reached = [phase[a] * stage.stride[a] + tap[a] - stage.padding[2 * a] for a in range(2)]
            tau = (reached[0] // fine[0], reached[1] // fine[1])
            block = kernel.setdefault(tau, np.zeros((p, *out, c, *fine)))
            met = (reached[0] % fine[0], reached[1] % fine[1])
            block[:, *phase, :, *met] = stage.weight[:, :, *tap]
    return {tau: Ball(block.reshape(rows, columns)) for tau, block in kernel.items()}


def _product(kernel: Kernel, first: Kernel | None) -> Kernel:
    if first is None:
        return kernel
    total: Kernel = {}
    # A product with zeros has a radius.
    for (a, b), K in [*kernel.items()] if any(K.mid.any() for K in kernel.values()) else ():
        for (c, d), L in first.items():
            tau = (a + c, b + d)
            total[tau] = total[tau] + K @ L if tau in total else K @ L
    return total


def _sum(
    one: Mapping[int, Kernel | None], other: Mapping[int, Kernel | None], width: int
) -> dict[int, Kernel]:
    total: dict[int, Kernel] = {}
    for source, given in [*one.items(), *other.items()]:
        kernel = {(0, 0): Ball(np.eye(width))} if given is None else given
        known = total.setdefault(source, {})
        total[source] = known | {t: known[t] + K if t in known else K for t, K in kernel.items()}
    return total


def _strides(stages: Sequence[Stage]) -> Pair:
    """The product of the strides per axis, which is the same on every path."""
    height, width = 1, 1
    for stage in stages:
        step = (1, 1)
        if isinstance(stage, Convolve):
            step = stage.stride
        elif isinstance(stage, Pool):
            step = stage.size
        elif isinstance(stage, Add):
            step = _strides(stage.body)
            if step != (other := _strides(stage.skip)):
                raise InvalidInput(
                    f"Add: the body has the strides {step} in all, but the skip {other}: together "
                    "they are no convolution. Verify the unrolled network."
                )
        height, width = height * step[0], width * step[1]
    return height, width


def _smallest(conv: ConvSystem, fine: Pair) -> Pair:
    """The sides of the torus: no tap reaches around it from the image to the image."""
    needs: list[list[tuple[Fraction, bool]]] = [[], []]
    _needs(conv.stages, conv.start, fine, needs)
    sides = []
    for needed in needs:
        exact = {side for side, is_exact in needed if is_exact}
        least = math.ceil(max(side for side, _ in needed))
        if exact and (len(exact) > 1 or least > min(exact)):
            raise InvalidInput(
                "The network mixes circular padding with zero padding or with images that it cuts: "
                "no torus serves both. Use padding_mode='zeros' throughout."
            )
        sides.append(int(exact.pop()) if exact else least + least % 2)
    return sides[0], sides[1]


def _needs(
    stages: Sequence[Stage], shape: Shape, fine: Pair, needs: list[list[tuple[Fraction, bool]]]
) -> None:
    """Appends per axis the sides of the torus that are needed, and whether exactly these are."""
    for axis in range(2):
        needs[axis].append((Fraction(shape[1 + axis], fine[axis]), False))
    for given, before in zip(stages, chain_shapes(stages, shape), strict=False):
        stage = given.convolve(before[0]) if isinstance(given, Pool) else given
        if isinstance(stage, Add):
            for chain in (stage.body, stage.skip):
                _needs(chain, before, fine, needs)
            step = _strides(stage.body)
            fine = (fine[0] // step[0], fine[1] // step[1])
        elif isinstance(stage, Convolve):
            after = stage.shape(before)
            for axis in range(2):
                n, count, first = before[1 + axis], after[1 + axis], stage.padding[2 * axis]
                if stage.padding_mode == "circular":
                    needs[axis].append((Fraction(n, fine[axis]), True))
                else:
                    reach = (count - 1) * stage.stride[axis] + stage.weight.shape[2 + axis] - first
                    needs[axis].append((Fraction(max(n + first, reach), fine[axis]), False))
                coarse = fine[axis] // stage.stride[axis]
                needs[axis].append((Fraction(count, coarse), False))
            fine = (fine[0] // stage.stride[0], fine[1] // stage.stride[1])
