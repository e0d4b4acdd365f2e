"""For checker.py: the slopes that the units of a network have over a region of inputs.

Both pre-activations of a unit lie in some interval [l, u] for two inputs of the region, so that
their quotient is a mean of slopes between l and u. These come from intervals of all earlier units,
and from a line below and one above each of these between its own l and u, inserted from the last
level to the first (CROWN: Zhang et al., NeurIPS 2018). All of it is rounded outward; functions of
NumPy and `math` are taken to be right to `ERROR`, hundreds of times what is documented. Why a line
or a slope is a bound is said where it is made. Which of many lines is made, and the grid of slopes,
are as in sdplip, since the multipliers of a certificate are for these slopes.

It imports the standard library and NumPy; checker.py gives it the levels and the table of slopes.
"""

# mypy: ignore-errors
from math import erf, inf, pi, sqrt
from types import SimpleNamespace

import numpy as np

U, ERROR, GRID, CELLS, TINY = 2.0**-53, 1e-13, 2.0**24, 64, 1e-300
STRAIGHT = ("relu", "leaky_relu", "identity", "abs")
"""Two half-lines that meet in 0."""
RISING = ("softplus", "celu")
"""σ′ is continuous and rises: σ is convex."""
PEAKED = ("tanh", "sigmoid", "atan", "asinh", "erf", "softsign")
"""σ′ falls with |v|, so that σ is convex below 0 and concave above; σ(v) + σ(−v) = 2σ(0)."""
BENT = {"silu": 0.501, "gelu": 0.799, "gelu_tanh": 0.82, "mish": 0.7, "sin": 1.0, "cos": 1.0}
BENT |= {"hardswish": 0.34, "selu": 1.7581, "tanhshrink": 0.771, "logsigmoid": 0.25}
BENT |= {"hardsigmoid": 1e-12}
"""The others, by the most that σ′ changes per unit of v, but for jumps that are `apart`."""
ERF = np.vectorize(erf, otypes=[float])


def need(holds, message):
    if not holds:
        raise ValueError(message)


def evaluate(family, numbers, v):
    """σ(v) and σ′(v), at a kink either slope."""
    p, q = (*numbers, 1.0, 1.0)[:2]
    down, t, s = np.minimum(v, 0), np.tanh(v), 1 / (1 + np.exp(-v))
    match family:
        case "relu":
            return np.maximum(v, 0), 1.0 * (v > 0)
        case "leaky_relu":
            p = numbers[0] if numbers else 0.01
            return np.where(v > 0, v, p * v), np.where(v > 0, 1.0, p)
        case "identity":
            return v, np.ones_like(v)
        case "abs":
            return abs(v), np.sign(v)
        case "softplus":
            return np.logaddexp(p * v, 0) / p, 1 / (1 + np.exp(-p * v))
        case "celu":
            return np.where(v > 0, v, p * np.expm1(down / p)), np.exp(down / p)
        case "tanh":
            return t, 1 - t * t
        case "sigmoid":
            return s, s * (1 - s)
        case "atan":
            return np.arctan(v), 1 / (1 + v * v)
        case "asinh":
            return np.arcsinh(v), 1 / np.sqrt(1 + v * v)
        case "erf":
            return ERF(v), 2 / sqrt(pi) * np.exp(-v * v)
        case "softsign":
            return v / (1 + abs(v)), 1 / (1 + abs(v)) ** 2
        case "silu":
            return v * s, s * (1 + v * (1 - s))
        case "gelu":
            below = 0.5 + ERF(v / sqrt(2)) / 2
            return v * below, below + v * np.exp(-v * v / 2) / sqrt(2 * pi)
        case "gelu_tanh":
            c, t = sqrt(2 / pi), np.tanh(sqrt(2 / pi) * (v + 0.044715 * v**3))
            slope = 0.5 + t / 2 + v * (1 - t * t) / 2 * c * (1 + 0.134145 * v * v)
            return v * (0.5 + t / 2), slope
        case "mish":
            t = np.tanh(np.logaddexp(v, 0))
            return v * t, t + v * (1 - t * t) * s
        case "hardswish":
            ramp = np.where(v > 3, 1.0, np.where(v < -3, 0.0, v / 3 + 0.5))
            return v * np.clip(v + 3, 0, 6) / 6, ramp
        case "hardsigmoid":
            return np.clip(v + 3, 0, 6) / 6, (abs(v) < 3) / 6
        case "sin":
            return np.sin(v), np.cos(v)
        case "cos":
            return np.cos(v), -np.sin(v)
        case "selu":
            a, b = 1.6732632423543772, 1.0507009873554805
            value = np.where(v > 0, v, a * np.expm1(down))
            return b * value, b * np.where(v > 0, 1.0, a * np.exp(down))
        case "tanhshrink":
            return v - t, t * t
        case "logsigmoid":
            return -np.logaddexp(-v, 0), 1 / (1 + np.exp(v))
        case "elu":
            return np.where(v > 0, v, p * np.expm1(down)), np.where(v > 0, 1.0, p * np.exp(down))
        case "hardtanh":
            return np.clip(v, p, q), 1.0 * ((v > p) & (v < q))
        case "softshrink":
            return np.sign(v) * np.maximum(abs(v) - p, 0), 1.0 * (abs(v) > p)


def function(name, known):
    """What is needed of σ; `known` has the slopes of all by name."""
    family, _, rest = ("celu(1.0)" if name == "elu" else name).partition("(")
    numbers = [float(text) for text in rest[:-1].split(",")] if rest else []
    low, high = known[family + "()"](*numbers) if rest else known[name]
    p, q = (*numbers, 0.0, 0.0)[:2]
    bends = {"elu": (abs(p), inf), "hardtanh": (0.0, q - p), "softshrink": (0.0, 2 * p)}
    apart = 6.0 if family.startswith("hard") else inf
    bends = bends.get(family, (BENT.get(family, inf), apart))
    kinds = zip((STRAIGHT, RISING, PEAKED), ("straight", "rising", "peaked"), strict=True)
    kind = next((kind for names, kind in kinds if family in names), "bent")
    need(kind != "bent" or bends[0] < inf, f"{name} is not supported over regions")
    at = {"f": lambda v: evaluate(family, numbers, v)[0], "bends": bends, "kind": kind}
    at |= {"slope": lambda v: evaluate(family, numbers, v)[1], "low": low, "high": high}
    return SimpleNamespace(**at)


def enclosed(s, v):
    """A lower and an upper bound of σ(v)."""
    y = s.f(v)
    error = 4 * U * abs(y) if s.kind == "straight" else ERROR * (1 + abs(y))
    return y - error, y + error


def slope_range(s, low, high):
    """Bounds of σ′ between low and high, on a grid: machines that round differently agree."""
    if s.kind == "straight":
        left, right = s.slope(np.array([-1.0, 1.0]))
        first, last = np.where(low >= 0, right, left), np.where(high <= 0, left, right)
        return np.minimum(first, last), np.maximum(first, last)
    if s.kind == "rising":
        a, b = s.slope(low), s.slope(high)
    elif s.kind == "peaked":
        a, b = s.slope(np.maximum(abs(low), abs(high))), s.slope(np.clip(0.0, low, high))
    else:
        at = np.clip(low + (high - low) / CELLS * np.arange(CELLS + 1)[:, None], low, high)
        at[CELLS] = high
        # Of the widest cell, for rounding; it has at most one jump, either side of which is at one
        # of its ends.
        (change, apart), cell = s.bends, np.diff(at, axis=0).max(0) * (1 + 4 * U)
        at = s.slope(at)
        a, b = at.min(0) - change * cell, at.max(0) + change * cell
        a, b = (np.where(cell < apart, end, np.nan) for end in (a, b))
        if change == 0:
            return np.fmax(a, s.low), np.fmin(b, s.high)
    a, b = np.floor((a - ERROR) * GRID) / GRID, np.ceil((b + ERROR) * GRID) / GRID
    return np.fmax(a, s.low), np.fmin(b, s.high)


def value_range(s, low, high):
    """Bounds of σ between low and high."""
    (first, first_top), (last, last_top) = enclosed(s, low), enclosed(s, high)
    if s.low >= 0:
        return first, last_top
    # σ falls no faster than `down` and rises no faster than `up`, from one end and to the other.
    (a, b), span = slope_range(s, low, high), high - low
    down, up = np.minimum(a, 0.0), np.maximum(b, 0.0)
    width = np.where(up > down, up - down, 1.0)
    to_low = np.clip((up * span - last + first) / width, 0.0, span)
    to_high = np.clip((last_top - first_top - down * span) / width, 0.0, span)
    error = 32 * U * (abs(first) + abs(last) + (up - down) * span)
    ends = first + down * to_low - error, first_top + up * to_high + error
    return np.nan_to_num(ends[0], nan=-inf), np.nan_to_num(ends[1], nan=inf)


def over_the_peak(s, low, high):
    """A line above a peaked σ where low ≤ 0 ≤ high: the tangent in d ≥ 0, if it is above σ(low).

    Right of 0, σ is concave and below its tangents; left of 0 it is convex, and below the line if
    it is so at low and at 0. Without such d, a line from (low, σ(low)) over (high, σ(high))."""
    start, near, far = enclosed(s, low)[1], np.zeros_like(low), np.maximum(high, 0.0)
    possible = s.f(far) + s.slope(far) * (low - far) >= start
    for _ in range(20):
        middle = (near + far) / 2
        passes = s.f(middle) + s.slope(middle) * (low - middle) >= start
        near, far = np.where(passes | ~possible, near, middle), np.where(passes, middle, far)
    slope, end = s.slope(far), enclosed(s, far)[1]
    chord = (end - start) / np.where(far > low, far - low, 1.0)
    slope = np.where(possible, slope, np.maximum(np.minimum(chord, slope - ERROR), 0.0))
    return slope, np.maximum(end - slope * far + ERROR * (high - low), start - slope * low)


def lines(s, low, high):
    """Slopes and offsets of a line below and of a line above σ between low and high."""
    (a, b), span = slope_range(s, low, high), high - low
    middle = np.clip(low + span / 2, low, high)
    first, last, at, touch = *(enclosed(s, v) for v in (low, high, middle)), s.slope(middle)
    # From one of the ends at the least or at the largest slope: whichever is closer in the middle.
    fall, rise = a * span / 2, b * span / 2
    back, ahead = last[0] - rise > first[0] + fall, last[1] - fall < first[1] + rise
    slopes = [np.where(back, b, a), np.where(ahead, a, b)]
    offsets = [np.where(back, last[0] - b * high, first[0] - a * low)]
    offsets += [np.where(ahead, last[1] - a * high, first[1] - b * low)]
    convex = (s.kind == "straight" and s.slope(np.ones(1))[0] == s.high) | np.zeros(len(low), bool)
    concave = np.zeros(len(low), bool)
    if s.kind == "peaked":
        convex, concave = high <= 0, low >= 0
        slopes[1], offsets[1] = over_the_peak(s, low, high)
        # σ(v) = 2σ(0) − σ(−v).
        slopes[0], mirrored = over_the_peak(s, -high, -low)
        offsets[0] = 2 * s.f(np.zeros(1)) - mirrored
    convex |= s.kind == "rising"
    # On one side a tangent, on the other a chord, clipped to slopes that there are.
    chord = np.clip((last[0] - first[0]) / np.where(span > 0, span, 1.0), a, b)
    for k, sign, extreme in ((0, -1, np.minimum), (1, 1, np.maximum)):
        tangents, chords = (convex, concave) if k == 0 else (concave, convex)
        through = extreme(first[k] - chord * low, last[k] - chord * high)
        offsets[k] = np.where(chords, through, offsets[k])
        offsets[k] = np.where(tangents, at[k] - touch * middle + sign * ERROR * span, offsets[k])
        slopes[k] = np.where(tangents, touch, np.where(chords, chord, slopes[k]))
        size = np.maximum(abs(low), abs(high)) * max(1.0, abs(s.low), abs(s.high))
        offsets[k] += sign * 32 * U * (size + abs(at[0]) + abs(first[0]) + abs(last[0]))
    # Constants where an end is infinite.
    known = np.isfinite(span) & np.isfinite(offsets[0]) & np.isfinite(offsets[1])
    ends = value_range(s, low, high)
    slopes = [np.where(known, slope, 0.0) for slope in slopes]
    return slopes, [np.where(known, t, end) for t, end in zip(offsets, ends, strict=True)]


def inputs(region, m):
    """The centre, the reach per coordinate and the ℓ₂ radius of a box or a ball."""
    need({*region} in ({"lower", "upper"}, {"centre", "radius"}), "the region is none")
    for key, value in region.items():
        entries = [value] if key == "radius" else value
        need(len(entries) == (1 if key == "radius" else m), "the region has another dimension")
        need(all(type(v) is float for v in entries), "the region is not of decimals")
    if "radius" in region:
        need(region["radius"] >= 0, "the region is empty")
        return np.array(region["centre"]), np.zeros(m), region["radius"]
    low, high = np.array(region["lower"]), np.array(region["upper"])
    need((low <= high).all(), "the region is empty")
    centre = low / 2 + high / 2
    half = np.maximum(high - centre, centre - low)
    return centre, half * (1 + 8 * U) + TINY, 0.0


def slopes(net, groups, region, known):
    """α and β of every unit over the region; `groups` are levels of units."""
    need(groups is not None, "regions of networks with cycles are not supported; use sdplip check")
    A, B, b, names, (m, n, _) = net["A"], net["B"], net["b"], np.array(net["names"]), net["sizes"]
    x, half, radius = inputs(region, m)
    largest, off = abs(x) + half + radius, 4 * (n + m + 16) * U
    extended = radius > 0 or (half > TINY + 1e-15 * abs(x)).any()
    v, z, around, found = np.zeros((2, n)), np.zeros((2, n)), np.zeros((4, n)), np.zeros((2, n))

    def image(rows, shift, error):
        """At least rows @ x + shift + error over the region."""
        # Squares of tiny numbers are lost in a norm.
        reach = abs(rows) @ half + radius * (np.linalg.norm(rows, axis=1) + m * 1e-160)
        error = error + off * (abs(rows) @ abs(x) + reach + abs(shift)) + (n + m + 1) * TINY
        return (rows @ x + shift) + (reach + error * (1 + off))

    for k, level in enumerate(groups):
        # What is above v, and above −v: on_z @ z + on_x @ x + shift.
        sign = np.repeat([1.0, -1.0], len(level))[:, None]
        on_z, on_x = sign * np.tile(A[level], (2, 1)), sign * np.tile(B[level], (2, 1))
        shift, error = sign[:, 0] * np.tile(b[level], 2), 0.0
        middle = z[0] / 2 + z[1] / 2
        half_z = np.maximum(z[1] - middle, middle - z[0]) * (1 + 8 * U) + TINY
        spread = abs(on_z) @ half_z
        rounding = off * (abs(on_z) @ abs(middle) + spread + abs(shift))
        top = image(on_x, shift + on_z @ middle, spread + rounding)
        v_most, z_most = abs(v).max(0), abs(z).max(0)
        for earlier in reversed(groups[:k] if extended else []):
            g = on_z[:, earlier]
            s, t = (np.where(g > 0, around[i + 2, earlier], around[i, earlier]) * g for i in (0, 1))
            size = abs(A[earlier]) @ z_most + abs(B[earlier]) @ largest + abs(b[earlier])
            error += off * (abs(s) @ (size + v_most[earlier]) + abs(t).sum(1) + abs(shift))
            error += off * (abs(on_z) @ z_most + abs(on_x) @ largest)
            error += TINY * (1 + v_most.sum() + z_most.sum() + largest.sum())
            shift = shift + t.sum(1) + s @ b[earlier]
            on_x, on_z = on_x + s @ B[earlier], on_z + s @ A[earlier]
            on_z[:, earlier] = 0
        if k and extended:
            top = np.fmin(top, image(on_x, shift, error))
        v[:, level] = np.where(np.isnan(top), inf, top).reshape(2, -1)[::-1] * [[-1.0], [1.0]]
        for name in {*net["names"]}:
            units, s = level[names[level] == name], function(name, known)
            low, high = v[:, units]
            found[:, units], z[:, units] = slope_range(s, low, high), value_range(s, low, high)
            (s_low, s_high), (t_low, t_high) = lines(s, low, high)
            around[:, units] = s_low, t_low, s_high, t_high
    return {"alpha": found[0], "beta": found[1]}
