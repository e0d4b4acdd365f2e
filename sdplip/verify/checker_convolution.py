"""For checker.py: networks of convolutions, by one condition for every frequency of a torus.

On a torus networks of convolutions are diagonal in frequency: differences of two inputs x, of units
z and of outputs y obey [v; y] = W(ω)[x; z], and if M(ω) ≻ 0 for all ω (`condition` of checker.py),
then ‖y‖ ≤ bound·‖x‖ over the torus. Why this holds for images, x and z being 0 outside of them:
(1) The torus is so large that pixels of an image read there what they read in the network (`fits`).
(2) A unit has its slopes inside of the image. Outside z = 0, whereas v need not be 0 where a
convolution `spills`: there, 0 becomes one of the slopes. (3) What spills reaches the next
convolution through a layer that keeps the image and deletes the rest, with slopes in [0, 1].
(4) Over the torus ‖y‖ is no smaller than over the image. (5) A head y ↦ Σ_c H_c y_c enters by
scales t, as Σ_c t_c²‖y_c‖², if Σ_c H_c H_cᵀ/t_c² ≺ I; one that weighs all pixels alike sees the
frequency 0 only, the sum over a restricted image. Where strides make layers finer than the last, by
`fine`, their pixels within one of its pixels count as channels. Multipliers are one per channel.

W is kept real, with 2 x 2 blocks [re, −im; im, re]. This file imports the standard library and
NumPy; checker.py gives it `condition` and `definite`.
"""

# mypy: ignore-errors
from decimal import Decimal, localcontext
from functools import cache
from itertools import product
from math import lcm, log2, prod, sqrt

import numpy as np

U, TINY, LARGE, WIDEST, CHUNK = 2.0**-53, 1e-150, 1e40, 4096, 1 << 22
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")


def need(holds, message):
    if not holds:
        raise ValueError(message)


def torus(net):
    """Its sides in pixels of the last layer: the image's if padding is circular, or else even."""
    sides = []
    for a in (0, 1):
        exact = {s.shape[1 + a] // s.fine[a] for s in net["linear"] if s.mode == "circular"}
        least = -(-net["start"][1 + a] // net["fine"][a])
        tried = exact or range(least + least % 2, 4 * least + 2**10, 2)
        sides.append(next((n for n in tried if all(fits(s, a, n) for s in net["linear"])), 0))
    need(0 < prod(sides) <= 1 << 18, "no torus serves all paddings, or it is too large")
    return sides


def reads(stage, a, side, pixels):
    """The place on the torus that each tap of these output pixels reads, along an axis."""
    taps = np.arange(stage.K.shape[2 + a]) - stage.pads[a]
    return pixels[:, None] * stage.step[a] + taps, side * stage.fine[a], stage.shape[1 + a]


def fits(stage, a, side):
    q, around, n = reads(stage, a, side, np.arange(stage.after[a]))
    if stage.mode == "circular":
        same = around == n and (q >= -n).all() and (q < 2 * n).all()
    else:
        same = ((q >= 0) & (q < n) | (q % around >= n)).all()
    return same and n <= around and stage.after[a] <= side * stage.coarse[a]


def spills(stage, a, side):
    q, around, n = reads(stage, a, side, np.arange(stage.after[a], side * stage.coarse[a]))
    return (q % around < n).any()


def taps(stage):
    """τ and K_τ of Σ_τ K_τ x(P + τ), on the last layer's grid: by (channel, phase) both."""
    (p, c, *kernel), found = stage.K.shape, {}
    for phase in product(*map(range, stage.coarse)):
        for tap in product(*map(range, kernel)):
            at = [phase[a] * stage.step[a] + tap[a] - stage.pads[a] for a in (0, 1)]
            tau, met = zip(*(divmod(at[a], stage.fine[a]) for a in (0, 1)), strict=True)
            block = found.setdefault(tau, np.zeros((p, *stage.coarse, c, *stage.fine)))
            block[:, *phase, :, *met] = stage.K[:, :, *tap]
    return np.array([*found]), np.stack(
        [b.reshape(-1, c * prod(stage.fine)) for b in found.values()]
    )


@cache
def cosines(n):
    """cos(2πj/n) for j < n, off by less than U: the series, in 50 decimals."""
    values = []
    with localcontext(prec=50):
        for j in range(n):
            square = (2 * PI * min(j, n - j) / n) ** 2
            total = term = Decimal(1)
            for i in range(1, 33):  # what follows is below π⁶⁶/66!
                term *= -square / (2 * i * (2 * i - 1))
                total += term
            values.append(float(total))
    return np.array(values)


class Walk:
    """All [B A] and [D C], as matrices on (x, z), at frequencies k (F, 2).

    If k is None, bounds of the magnitudes at all of them; `cost` is then the most roundings made in
    succession (checker.py says what follows), and how many bits numbers may grow by between units.
    """

    def __init__(self, net, sides, width, scales, k):
        self.sides, self.k, self.width, self.cost = sides, k, width, np.zeros(2)
        self.layers, self.slopes, self.filled, H = [], [], 0, net["head"]
        self.signal = self.source(net["inputs"])
        self.follow(net["stages"])
        if net["mean"]:
            self.restrict()
        rows, cost = self.total()
        if scales is not None:
            rows = np.repeat(scales, 2)[:, None] * rows
        elif H is not None:
            H = H[:, :, 0] * (sqrt(prod(sides)) if net["mean"] else 1.0)
            rows = np.kron(abs(H) if k is None else H, np.eye(2)) @ rows
        if net["mean"] and k is not None:
            rows = rows * ~k.any(1)[:, None, None]
        self.cost = np.maximum(self.cost, cost + (0 if H is None else 2 + H.shape[1]))
        parts, count = [*self.layers, rows], 1 if k is None else len(k)
        W = np.concatenate([np.broadcast_to(X, (count, *X.shape[1:])) for X in parts], 1)
        self.units, self.outputs = np.split(W, [W.shape[1] - rows.shape[1]], 1)

    def source(self, count):
        """A signal of variables of its own: what it is inside, what it spills, and its cost."""
        start, self.filled = self.filled, self.filled + count
        need(self.filled <= self.width, "the certificate has other sizes")
        return np.eye(2 * count, 2 * self.width, 2 * start)[None], None, np.zeros(2)

    def layer(self, rows, low, high, cost):
        """Units with these pre-activations; their values as a signal."""
        self.layers.append(rows)
        self.slopes.append((low, high))
        self.cost = np.maximum(self.cost, cost)
        return self.source(len(low))

    def total(self):
        inside, outside, cost = self.signal
        return (inside if outside is None else inside + outside), cost + 1

    def restrict(self):
        inside, outside, cost = self.signal
        if outside is not None:
            n = outside.shape[1] // 2
            inside = inside + self.layer(outside, np.zeros(n), np.ones(n), cost)[0]
        self.signal = (inside, None, cost + 1)

    def symbol(self, stage):
        """Σ_τ K_τ exp(iω·τ), and its cost."""
        tau, K = taps(stage)
        if self.k is None:
            wave, K = np.ones((1, 4, len(tau))), abs(K)
        else:
            n = 4 * lcm(*self.sides)
            turn = sum(self.k[:, [a]] * tau[:, a] * (n // self.sides[a]) for a in (0, 1))
            c, s = (cosines(n)[(turn - shift) % n] for shift in (0, n // 4))
            wave = np.stack([c, -s, s, c], 1)
        S = wave.reshape(-1, len(tau)) @ K.reshape(len(tau), -1)
        S = S.reshape(-1, 2, 2, *K.shape[1:]).transpose(0, 3, 1, 4, 2)
        bits = log2(max(1.0, 2 * abs(K).sum((0, 2)).max()))
        return S.reshape(len(S), 2 * K.shape[1], -1), [len(tau) + 1, bits]

    def follow(self, stages):
        for stage in stages:
            if stage.kind == "linear":
                self.restrict()
                (S, own), (X, _, cost) = self.symbol(stage), self.signal
                Y, cost = S @ X, cost + own + [(X[0] != 0).sum(0).max(), 0]
                wide = any(spills(stage, a, self.sides[a]) for a in (0, 1))
                self.signal = (np.zeros_like(Y[:1]), Y, cost) if wide else (Y, None, cost)
            elif stage.kind == "units":
                rows, cost = self.total()
                low, high = (np.repeat(s, rows.shape[1] // 2 // len(s)) for s in stage.slopes)
                if self.signal[1] is not None:
                    low, high = np.minimum(low, 0), np.maximum(high, 0)
                self.signal = self.layer(rows, low, high, cost)
            else:
                start, ends = self.signal, []
                for side in (stage.body, stage.skip):
                    self.signal = start
                    self.follow(side)
                    ends.append(self.signal)
                inside, outside, cost = zip(*ends, strict=True)
                outside = [part for part in outside if part is not None]
                cost = np.maximum(*cost) + 1
                self.signal = (sum(inside), sum(outside) if outside else None, cost)


def head_holds(H, scales, definite):
    """Whether Σ_c H_c H_cᵀ / t_c² ≺ I."""
    X = (H / scales[:, None]).reshape(len(H), -1)
    error = 1.01 * (X.shape[1] + 8) * U * (abs(X) @ abs(X).T + np.eye(len(X))) + TINY
    return abs(X).max() < LARGE and definite(np.eye(len(X)) - X @ X.T, error)


def holds(net, claim, condition, definite):
    """Whether its multipliers, of all layers in order and then of a head, prove the claim."""
    everywhere = claim["region"] is None and claim["classes"] is None
    need(
        everywhere and claim["norm"] == "2", "only norm 2 of all outputs, everywhere, is supported"
    )
    sides, H, m, lam = torus(net), net["head"], net["inputs"], np.array(claim["multipliers"])
    scales, width = None, m + len(lam)
    if H is not None and not net["mean"] and H.shape[2] > 1:
        width -= H.shape[1]
        scales = lam[max(width - m, 0) :]
        if not ((scales > 0).all() and head_holds(H, scales, definite)):
            return False
    need(width <= WIDEST, "the certificate has too many multipliers")
    top = Walk(net, sides, width, scales, None)
    (R,), (F,), (low, high) = top.units, top.outputs, np.hstack([np.zeros((2, 0)), *top.slopes])
    active, met = (low != 0) | (high != 0), R[::2, 2 * m :: 2] != 0
    kept, seen = R[::2, : 2 * m].any(1) & active, F[:, 2 * m :: 2].any(0) & active
    for _ in top.layers:  # Only units between input and output matter.
        kept, seen = kept | met @ kept & active, seen | met.T @ seen & active
    kept &= seen
    lam = lam[: len(kept)][kept]
    if top.filled != width or not (lam > 0).all():
        return False
    if not (kept.any() or F[:, : 2 * m].any()):
        return True
    low, high, lam = (np.repeat(v, 2) for v in (low[kept], high[kept], lam))
    rows = np.flatnonzero(np.repeat(kept, 2))
    columns = np.append(np.arange(2 * m), 2 * m + rows)
    R, F = R[rows][:, columns], F[:, columns]
    k = 2 * top.cost[0] + 10 + (F != 0).sum(0).max() + (R != 0).sum(0).max(initial=0)
    error = 1.01 * k * U * condition(R, F, low, high, lam, claim["bound"], 1)
    error += TINY * lam.max(initial=1)
    largest = max(
        np.max(abs(v), initial=0) for v in (R, F, low, high, claim["bound"], np.sqrt(lam))
    )
    if not (largest < LARGE and top.cost[1] < 100):
        return False
    waves = np.array([*product(*map(range, sides))])
    mirror = -waves % sides @ [sides[1], 1]
    waves = waves[waves @ [sides[1], 1] <= mirror]  # at −ω stands the conjugate
    for part in np.array_split(waves, -(-len(waves) * 4 * width**2 // CHUNK)):
        at = Walk(net, sides, width, scales, part)
        for V, Y in zip(at.units[:, rows][:, :, columns], at.outputs[:, :, columns], strict=True):
            if not definite(condition(V, Y, low, high, lam, claim["bound"], -1), error):
                return False
    return True
