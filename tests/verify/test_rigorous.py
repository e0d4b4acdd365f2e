"""Enclosures contain the exact result; positive definiteness is never claimed wrongly."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdplip import conditions
from sdplip.verify.rigorous import Ball, positive_definite

SEEDS = st.integers(0, 10**6)


def exact(matrix):
    return np.vectorize(Fraction, otypes=[object])(matrix)


def assert_contains(ball, truth):
    for mid, rad, value in zip(ball.mid.flat, ball.rad.flat, truth.flat, strict=True):
        assert abs(Fraction(float(mid)) - value) <= Fraction(float(rad))


@given(SEEDS, st.integers(-30, 30))
def test_arithmetic_encloses_exact_rationals(seed, power):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(3, 4)) * 10.0**power, rng.normal(size=(4, 2))
    Z = rng.normal(size=(3, 2)) * 10.0 ** (power - 3)
    product = Ball(X) @ Ball(Y) @ Ball(Y.T) + Ball(Z) @ Y.T
    truth = exact(X).dot(exact(Y)).dot(exact(Y.T)) + exact(Z).dot(exact(Y.T))
    assert_contains(product, truth)
    assert_contains(Ball(X) * Ball(X) * 3.0, exact(X) * exact(X) * 3)


def test_underflow_is_enclosed():
    """1e-200 squared is 0 in floating point, but not in fact."""
    tiny = np.full((2, 2), 1e-200)
    for product in (Ball(tiny) * Ball(tiny), Ball(tiny) @ Ball(tiny)):
        assert not product.mid.any()
        assert (product.upper > 0).all() and (product.lower < 0).all()


@given(SEEDS)
def test_the_condition_on_balls_encloses_the_exact_condition(seed):
    rng = np.random.default_rng(seed)
    n, m, p = 3, 2, 2
    shapes = {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m), "Lam": n, "alpha": n, "beta": n}
    values = {k: rng.normal(size=s) for k, s in shapes.items()}
    M = conditions.lipschitz(**{k: Ball(v) for k, v in values.items()}, rho=Ball(1.7))
    E = {k: exact(v) for k, v in values.items()}
    L, a, b = (np.diag(E[k]) for k in ("Lam", "alpha", "beta"))
    S, Q = (a + b).dot(L), a.dot(b).dot(L)
    rho = Fraction(1.7) * np.array([[Fraction(i == j) for j in range(m)] for i in range(m)])
    top = rho - E["D"].T.dot(E["D"]) + 2 * E["B"].T.dot(Q).dot(E["B"])
    corner = -E["D"].T.dot(E["C"]) - E["B"].T.dot(S) + 2 * E["B"].T.dot(Q).dot(E["A"])
    low = (
        2 * L - S.dot(E["A"]) - E["A"].T.dot(S) + 2 * E["A"].T.dot(Q).dot(E["A"])
        - E["C"].T.dot(E["C"])
    )  # fmt: skip
    assert_contains(M, np.block([[top, corner], [corner.T, low]]))


@given(SEEDS, st.integers(1, 12), st.floats(-12, -1))
def test_definiteness_is_decided_on_the_safe_side(seed, n, exponent):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = 10.0 ** rng.uniform(-3, 3, size=n)
    for lowest, expected in ((10.0**exponent, True), (-(10.0**exponent), False)):
        values[0] = lowest * values.max()
        matrix = (Q * values) @ Q.T
        answer = positive_definite(Ball((matrix + matrix.T) / 2))
        # Close to zero 'not shown' is always allowed, a false proof never.
        assert answer is expected or (expected and exponent < -9)


def test_definiteness_is_exact_about_two_by_two():
    """[[1, 1], [1, 1 + e]] has the determinant e: definite for e > 0 only."""
    assert positive_definite(Ball([[1.0, 1.0], [1.0, 1.0 + 1e-12]]))
    assert not positive_definite(Ball([[1.0, 1.0], [1.0, 1.0]]))
    assert not positive_definite(Ball([[1.0, 1.0], [1.0, 1.0 - 1e-15]]))


def test_the_radius_counts():
    matrix = np.diag([1.0, 0.1])
    assert positive_definite(Ball(matrix, 0.04))
    assert not positive_definite(Ball(matrix, 0.4))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_proof_from_nonsense(bad):
    assert not positive_definite(Ball([[bad]]))
    assert not positive_definite(Ball([[1.0]], bad))


@pytest.mark.parametrize("scale", [1e-100, 1e-20, 1e15, 1e100])
def test_scale_does_not_matter(scale, rng):
    X = rng.normal(size=(5, 5))
    matrix = (X @ X.T + 0.1 * np.eye(5)) * scale
    assert positive_definite(Ball((matrix + matrix.T) / 2))
    assert not positive_definite(Ball(-matrix))
