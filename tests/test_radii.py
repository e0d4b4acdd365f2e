"""The one rule of margins and bounds: never more than the exact quotient, and close to it."""

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from sdplip._radii import least_quotient

NUMBERS = st.floats(1e-100, 1e100)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_it_is_rounded_down(pairs):
    margins, bounds = torch.tensor(pairs, dtype=torch.float64).T
    exact = min(Fraction(margin) / Fraction(bound) for margin, bound in pairs)
    found = Fraction(float(least_quotient(margins, bounds)))
    assert exact * (1 - Fraction(1, 10**14)) < found < exact


def test_what_has_no_margin_or_no_bound():
    inf, nan = math.inf, math.nan
    margins = [[1.0, 2.0], [inf, 1.0], [0.0, 1.0], [-1.0, 1.0], [1.0, inf], [1.0, 1.0], [nan, 1.0]]
    bounds = [[0.0, 0.0], [0.0, inf], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 4.0], [1.0, 1.0]]
    found = least_quotient(*(torch.tensor(rows, dtype=torch.float64) for rows in (margins, bounds)))
    torch.testing.assert_close(
        found, torch.tensor([inf, 0.0, 0.0, 0.0, inf, 0.25, 0.0], dtype=torch.float64)
    )
