"""Enclosures contain the exact result; positive definiteness is never claimed wrongly."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdplip import conditions
from sdplip.verify import rigorous
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


def test_diagonal_matrices_scale_exactly_where_they_can(rng):
    """Products with Λ round once per entry, whatever the size."""
    X, lam = rng.normal(size=(5, 5)), rng.uniform(1, 2, size=5)
    diagonal = Ball.lmi_ops().diagonal(Ball(lam))
    for product, truth in (
        (diagonal @ Ball(X), exact(lam)[:, None] * exact(X)),
        (Ball(X) @ diagonal, exact(X) * exact(lam)),
        (diagonal @ diagonal, np.diag(exact(lam) * exact(lam))),
        (diagonal + diagonal, np.diag(exact(lam) + exact(lam))),
        (diagonal * 3.0, np.diag(exact(lam) * 3)),
        (diagonal * Ball(X), exact(np.diag(lam)) * exact(X)),
        (diagonal + Ball(X), exact(np.diag(lam)) + exact(X)),
    ):
        assert_contains(product, truth)
        assert (product.rad <= 4 * rigorous.UNIT * abs(product.mid) + 1e-299).all()


def test_zeros_round_nothing(rng):
    """A product of sparse matrices has the error of the terms it has."""
    X, Y = np.zeros((200, 200)), np.zeros((200, 200))
    X[:, :2], Y[:2] = rng.normal(size=(200, 2)), rng.normal(size=(2, 200))
    product = Ball(X) @ Ball(Y)
    assert (product.rad <= 6 * rigorous.UNIT * (abs(X) @ abs(Y)) + 1e-290).all()
    assert_contains(product[:3, :3], exact(X[:3]).dot(exact(Y[:, :3])))


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


def shifted(S, lowest):
    """S with its least eigenvalue moved to `lowest`, within 1e-15·n."""
    return S + (lowest - np.linalg.eigvalsh(S)[0]) * np.eye(len(S))


def block_tridiagonal(rng, n, width):
    """Random ⪰ 0 of bandwidth `width`, its rows in random order."""
    L = np.tril(np.triu(rng.normal(size=(n, n)), -width)) / width**0.5
    order = rng.permutation(n)
    return (L @ L.T)[np.ix_(order, order)]


@pytest.mark.parametrize("n", [20, 150, 400])
@pytest.mark.parametrize("kind", ["dense", "tridiagonal"])
def test_thin_margins_are_decided_and_never_wrongly(n, kind):
    rng = np.random.default_rng(n)
    if kind == "dense":
        Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        S = (Q * rng.uniform(0.5, 1, size=n)) @ Q.T
    else:
        S = block_tridiagonal(rng, n, 8)
    S = (S + S.T) / 2
    assert (rigorous._bands(S) is not None) == (kind == "tridiagonal" and n > 100)
    for margin in (1e-12, 1e-11, 1e-9):
        assert positive_definite(Ball(shifted(S, margin)))
        assert not positive_definite(Ball(shifted(S, -margin)))
        assert not positive_definite(Ball(shifted(S, margin), 1.1 * margin / n**0.5))


def test_what_the_cheap_criterion_leaves_open_is_decided(rng):
    S = rng.normal(size=(300, 400))
    S = shifted(S @ S.T / 400, 1e-12)
    S = (S + S.T) / 2
    assert not rigorous._by_rump(S, 0.0)
    assert positive_definite(Ball(S))


@given(SEEDS, st.integers(1, 5), st.integers(0, 12))
def test_products_are_subtracted_within_the_stated_error(seed, n, digits):
    rng = np.random.default_rng(seed)
    X, Y = (rng.normal(size=(n, 2 * n)) for _ in range(2))
    X, Y = (Z / (1 + np.linalg.norm(Z, axis=1)[:, None]) for Z in (X, Y))
    S = np.round(X @ Y.T, digits)
    rest, error = rigorous._minus_product(S, X, Y)
    gap = abs(exact(S) - exact(X).dot(exact(Y).T) - exact(rest))
    assert max(gap.sum(axis=0).max(), gap.sum(axis=1).max()) <= Fraction(error)
    assert error <= 1e-15 * 10.0**-digits * n + 1e-20


@given(SEEDS, st.integers(2, 5))
def test_blocks_are_a_permutation_of_the_whole(seed, width):
    rng = np.random.default_rng(seed)
    S = block_tridiagonal(rng, 70, width)
    order, size = rigorous._bands(S)
    diagonal, below = rigorous._blocks(S, order, size)
    assert (assembled(diagonal, below) == S[np.ix_(order, order)]).all()


def assembled(diagonal, below):
    """The whole matrix of blocks on the diagonal and below it."""
    ends = np.cumsum([len(block) for block in diagonal])
    whole = np.zeros((ends[-1], ends[-1]))
    for k, block in enumerate(diagonal):
        own = slice(ends[k] - len(block), ends[k])
        whole[own, own] = block
        if k:
            before = slice(own.start - len(diagonal[k - 1]), own.start)
            whole[own, before], whole[before, own] = below[k - 1], below[k - 1].T
    return whole


@given(SEEDS, st.floats(-13, -1), st.booleans())
def test_blocks_of_any_sizes_are_decided_as_the_whole(seed, exponent, wide):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=rng.integers(1, 6))
    diagonal = [rng.normal(size=(n, n)) for n in sizes]
    diagonal = [K @ K.T for K in diagonal]
    below = [rng.normal(size=shape) for shape in zip(sizes[1:], sizes, strict=False)]
    values, vectors = np.linalg.eigh(assembled(diagonal, below))
    margin, radii = 10.0**exponent, [np.ones(K.shape) for K in below]
    # How far the lowest eigenvalue may fall for a radius of one below the diagonal.
    reach = abs(vectors[:, 0]) @ assembled([0 * K for K in diagonal], radii) @ abs(vectors[:, 0])
    for sign in (1, -1):
        moved = [Ball(K + (sign * margin - values[0]) * np.eye(len(K))) for K in diagonal]
        balls = [Ball(K, wide * margin * R) for K, R in zip(below, radii, strict=True)]
        shown = rigorous.tridiagonal_definite(moved, balls)
        if sign < 0 or (wide and reach > 1.001):
            assert not shown
        elif exponent > -11.5 and not (wide and below):
            assert shown


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
