"""Normal forms: the same matrix in exact numbers, and two engines that agree."""

import random

import pytest
import sympy as sp
from derive_cases import explicit, rational
from hypothesis import given
from hypothesis import strategies as st
from sympy import DiagMatrix, Identity, MatrixSymbol, Symbol, ZeroMatrix

from sdplip.derive import Algebra, Rule
from sdplip.derive.algebra import block, grid, identity, transpose
from sdplip.derive.trees import tree
from sdplip.derive.words import Words
from sdplip.errors import InvalidInput

N = 3
X, Y, S, D, E = (MatrixSymbol(name, N, N) for name in "XYSDE")
W, V = MatrixSymbol("W", 2, N), MatrixSymbol("V", N, 2)
q = MatrixSymbol("q", N, 1)
t = Symbol("t", positive=True)
FACTS = {
    "S": ["symmetric"],
    "D": ["diagonal", "invertible"],
    "E": ["diagonal", "positive"],
    "diag(q)": ["diagonal", "positive"],
}


def values(seed):
    """Exact values of every symbol that satisfy `FACTS`."""
    rng = random.Random(seed)
    full = rational(rng, N, N)
    signs = [sp.Rational(rng.choice([-3, -1, 2, 5]), rng.randint(1, 3)) for _ in range(N)]
    return {
        X: rational(rng, N, N),
        Y: rational(rng, N, N),
        S: sp.ImmutableMatrix(full + full.T),
        D: sp.ImmutableMatrix(sp.diag(*signs)),
        E: sp.ImmutableMatrix(sp.diag(*rational(rng, N, 1, 1))),
        W: rational(rng, 2, N),
        V: rational(rng, N, 2),
        q: rational(rng, N, 1, 1),
        t: sp.Rational(rng.randint(1, 5), 2),
    }


ATOMS = [X, Y, S, D, E, DiagMatrix(q), D.I, E.I, DiagMatrix(q).I, X.T, W.T * W, V * W, Identity(N)]


def combine(inner):
    """Sums, products, transposes, powers and multiples of square expressions."""
    numbers = st.integers(-3, 3).filter(bool).map(lambda k: sp.Rational(k, 2))
    return st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
        inner.map(sp.Transpose),
        inner.map(lambda x: x**2),
        st.tuples(numbers, inner).map(lambda p: p[0] * p[1]),
        inner.map(lambda x: t * x),
        inner.map(lambda x: W.T * (W * x)),
    )


expressions = st.recursive(st.sampled_from(ATOMS), combine, max_leaves=6)
seeds = st.integers(0, 2**16)


def both(left, right, facts=FACTS, rules=()):
    """Whether the two sides are equal, by either engine."""
    words = Words(
        {name: list(known) for name, known in facts.items()},
        [[tree(r.left), tree(r.right)] for r in rules],
    )
    minus = ["mul", ["num", "-1"], tree(right)]
    return Algebra(facts, rules).equal(left, right), words.zero(tree(left), minus)


@given(expressions, seeds)
def test_normal_form_is_the_same_matrix(expr, seed):
    at = values(seed)
    assert explicit(Algebra(FACTS).normal(expr), at) == explicit(expr, at)


@given(expressions)
def test_normal_form_is_its_own(expr):
    algebra = Algebra(FACTS)
    once = algebra.normal(expr)
    assert algebra.terms(once) == algebra.terms(expr)
    assert algebra.assemble(algebra.terms(once), expr.shape) == once


LAWS = {
    "distributive": lambda a, b, c: ((a + b) * c, a * c + b * c),
    "transposed product": lambda a, b, c: (sp.Transpose(a * b) * c, b.T * a.T * c),
    "diagonals commute": lambda a, b, c: (a * (D * E) * b, a * (E * D) * b),
    "inverse": lambda a, b, c: (a * D * D.I * b, a * b),
    "inverse of a product": lambda a, b, c: (a * (D * E).I * b, a * E.I * D.I * b),
    "square of a sum": lambda a, b, c: ((a + b) ** 2, a**2 + a * b + b * a + b**2),
    "scalars come out": lambda a, b, c: ((t * a) * (2 * b), 2 * t * (a * b)),
}


@pytest.mark.parametrize("law", LAWS)
@given(expressions, expressions, expressions)
def test_engines_agree_on_true_identities(law, a, b, c):
    left, right = LAWS[law](a, b, c)
    assert both(left, right) == (True, True)


@given(expressions, expressions, seeds)
def test_engines_agree_and_never_call_different_matrices_equal(a, b, seed):
    first, second = both(a, b)
    assert first == second
    at = values(seed)
    if explicit(a, at) != explicit(b, at):
        assert not first


@given(expressions, st.sampled_from([X, S, W.T * W, Identity(N), D * X]), seeds)
def test_engines_agree_on_false_identities(a, more, seed):
    assert both(a, a + more) == (False, False)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (X * Y, Y * X),
        (X.T, X),
        (D * X, X * D),
        (X.T * X, X * X.T),
        (S * X, (S * X).T),
        (D * S, S * D),
        (D, D.I),
        (DiagMatrix(q), DiagMatrix(q).I),
    ],
    ids=str,
)
def test_what_need_not_be_equal_is_not(left, right):
    assert both(left, right) == (False, False)


def orthonormal(seed):
    """An exact 4 × 3 matrix with orthonormal columns, by the Cayley map."""
    rng = random.Random(seed)
    A, B = rational(rng, N, N), rational(rng, 1, N)
    skew = A - A.T + B.T * B
    inverse = (sp.eye(N) + skew).inv()
    return sp.ImmutableMatrix(sp.Matrix.vstack(2 * inverse - sp.eye(N), -2 * B * inverse))


@given(st.lists(st.sampled_from("QTXS"), min_size=1, max_size=6), seeds)
def test_rules_keep_the_matrix(word, seed):
    """QᵀQ = I inside products of anything that fits."""
    Q = MatrixSymbol("Q", 4, N)
    algebra = Algebra(FACTS, [Rule(Q.T * Q, Identity(N), "orthonormal")])
    expr = Identity(N)
    for letter in word:
        expr = expr * {"Q": Q.T * Q, "T": Q.T * (Q * X * Q.T) * Q, "X": X, "S": S + Q.T * Q}[letter]
    at = {**values(seed), Q: orthonormal(seed)}
    normal = algebra.normal(expr)
    assert not normal.atoms(MatrixSymbol) & {Q}
    assert explicit(normal, at) == explicit(expr, at)


@pytest.mark.parametrize("engine", ["sympy", "words"])
def test_rules_that_do_not_end_are_an_error(engine):
    rules = [Rule(X, Y, "there"), Rule(Y, X, "and back")]
    with pytest.raises(InvalidInput, match="not come to an end"):
        if engine == "sympy":
            Algebra(rules=rules).terms(X)
        else:
            Words({}, [[tree(r.left), tree(r.right)] for r in rules]).zero(tree(X))


def test_the_inverse_of_what_may_be_singular_is_refused():
    with pytest.raises(InvalidInput, match="X is inverted"):
        Algebra(FACTS).terms(X.I)
    with pytest.raises(InvalidInput, match="X is inverted"):
        Words({}, []).zero(tree(X.I))
    with pytest.raises(InvalidInput, match="needs a name"):
        Algebra(FACTS).terms((D + E).I)


def test_unknown_facts_and_bad_rules_are_refused():
    with pytest.raises(InvalidInput, match="X is declared orthogonal"):
        Algebra({"X": ["orthogonal"]})
    with pytest.raises(InvalidInput, match="must start from one product"):
        Algebra(rules=[Rule(X + Y, X, "no")])


def test_what_is_no_polynomial_is_refused():
    with pytest.raises(InvalidInput, match="no polynomial"):
        Algebra().terms(sp.HadamardProduct(X, Y))


@given(seeds)
def test_products_of_blocks_are_products_of_matrices(seed):
    at = values(seed)
    left = ((X, V), (W, ZeroMatrix(2, 2)))
    algebra = Algebra(FACTS)
    product = algebra.product(transpose(left), left)
    whole = sp.BlockMatrix([[explicit(e, at) for e in row] for row in left]).as_explicit()
    found = sp.BlockMatrix([[explicit(e, at) for e in row] for row in product]).as_explicit()
    assert found == whole.T * whole
    assert grid(block(left)) == left
    assert algebra.product(identity([N, 2]), left) == tuple(
        tuple(algebra.normal(e) for e in row) for row in left
    )
