"""Cosines and sines of rational angles with a proven error."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np

from .._arrays import Array

PI = Fraction(314159265358979323846264338327950288419716939937510, 10**50)


@cache
def table(n: int) -> tuple[Array, Array]:
    """cos(2πj/n) and sin(2πj/n) for j < n, off by less than 2⁻⁵³."""
    cos = [_cosine(Fraction(j, n)) for j in range(n)]
    sin = [_cosine(Fraction(j, n) - Fraction(1, 4)) for j in range(n)]
    return np.array(cos), np.array(sin)


def _cosine(turns: Fraction) -> float:
    """cos(2π·turns) from its series, in rational arithmetic rounded to 2⁻¹¹⁰."""
    turns = min(turns % 1, 1 - turns % 1)
    if turns > Fraction(1, 4):
        return -_cosine(Fraction(1, 2) - turns)
    square = Fraction(round((2 * PI * turns) ** 2 * 2**110), 2**110)
    total = term = Fraction(1)
    # Angles are at most π/2: what follows the 16th term is below 1e-28.
    for j in range(1, 17):
        term = Fraction(round(-term * square / (2 * j * (2 * j - 1)) * 2**110), 2**110)
        total += term
    return float(total)
