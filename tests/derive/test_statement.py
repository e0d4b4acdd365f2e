"""Operations on a condition: each keeps original = outerᵀ·matrix·outer + Σ squares, or refuses."""

import random

import pytest
import sympy as sp
from derive_cases import located, rational, stacked
from hypothesis import given
from hypothesis import strategies as st
from sympy import Identity, MatrixSymbol, Symbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import A, B, C, Lam, alpha, beta, m, n, p, rho
from sdplip.derive import lemmas, s_procedure, statement
from sdplip.derive.algebra import grid
from sdplip.errors import DerivationError, InvalidInput, ShapeError
from sdplip.lmi import LMI

X, W, S, P, Q = (MatrixSymbol(name, n, n) for name in "XWSPQ")
t = Symbol("t", positive=True)
ZERO, ONE = ZeroMatrix(n, n), Identity(n)
SIZES = {n: 2}
FACTS = {"P": ["diagonal", "positive"], "Q": ["diagonal", "invertible"], "S": ["symmetric"]}
STRUCTURE = {"P": "diagonal", "Q": "diagonal", "S": "symmetric"}


def begin(rows, definitions=()):
    lmi = LMI("case", sp.BlockMatrix(rows), "M ⪰ 0", "a test", STRUCTURE)
    return statement(lmi, definitions, FACTS)


def three():
    return begin([[P, X, ZERO], [X.T, S, W.T], [ZERO, W, t * P**2]])


def values(seed):
    rng = random.Random(seed)
    half = rational(rng, 2, 2)
    return {
        "X": rational(rng, 2, 2),
        "W": rational(rng, 2, 2),
        "S": sp.ImmutableMatrix(half + half.T),
        "P": sp.ImmutableMatrix(sp.diag(*rational(rng, 2, 1, 1))),
        "Q": sp.ImmutableMatrix(sp.diag(rng.choice([-2, 3]), sp.Rational(-1, rng.randint(1, 3)))),
        "t": sp.Rational(rng.randint(1, 5), 3),
    }


def rebuilt(s, sizes, at):
    """outerᵀ · matrix · outer + Σ squares, the matrix left out once it is concluded."""
    outer = stacked(s.outer, sizes, at)
    total = outer.T * stacked(s.blocks, sizes, at) * outer
    if s.concluded:
        total = 0 * stacked(s.original, sizes, at)
    for square in s.squares:
        row = stacked([square.row], sizes, at)
        total += row.T * located(square.weight, sizes, at) * row
    return sp.ImmutableMatrix(total)


diagonals = st.sampled_from([P, Q, P.I, Q**2, 2 * ONE, P * Q])
entries = st.sampled_from([X, W.T, ONE, ZERO, X * Q, P])
weights = st.sampled_from([ONE, P, 3 * P.I, X.T * P * X, t * (ONE + W.T * W)])


def operations(s):
    """Every operation on a statement of k blocks with arguments that may suit it."""
    k = len(s.sizes)
    return st.one_of(
        st.just(("simplify", ())),
        st.permutations(range(k)).map(lambda order: ("permute", (order,))),
        st.tuples(*[diagonals] * k).map(lambda d: ("congruence", d)),
        st.integers(0, k - 1).map(lambda pivot: ("schur", (pivot,))),
        st.tuples(st.tuples(*[entries] * k), weights).map(lambda a: ("subtract", a)),
        st.just(("drop_zeros", ())),
    )


@given(st.data(), st.integers(0, 2**16))
def test_every_chain_keeps_the_identity(data, seed):
    s, at = three(), values(seed)
    original = stacked(s.blocks, SIZES, at)
    for _ in range(3):
        name, arguments = data.draw(operations(s))
        if name == "schur" and len(s.sizes) == 1:
            continue
        try:
            s = getattr(s, name)(*arguments)
        except DerivationError:
            continue
        assert stacked(s.original, SIZES, at) == original
        assert rebuilt(s, SIZES, at) == original, [step.name for step in s.steps]
        if s.concluded:
            break


@given(st.integers(0, 2**16))
def test_every_square_is_one(seed):
    """The weights of the squares of a chain are positive semidefinite on instances."""
    rows = [[P + ONE, P], [P, P + X.T * P * X]]
    s = begin(rows).subtract([ONE, ZERO], ONE).schur(0).conclude()
    at = values(seed)
    assert rebuilt(s, SIZES, at) == stacked(s.original, SIZES, at)
    for square in s.squares:
        assert located(square.weight, SIZES, at).is_positive_semidefinite


CHAINS = {
    "simplify": (lambda s: s.simplify(), "equivalent"),
    "permute": (lambda s: s.permute([2, 0, 1]), "equivalent"),
    "congruence": (lambda s: s.congruence(P, Q, ONE), "equivalent"),
    "Schur complement": (lambda s: s.schur(0), "equivalent"),
    "subtract": (lambda s: s.subtract([ONE, X, ZERO], P), "sufficient"),
    "restrict": (lambda s: s.restrict([ONE], [X], [ZERO]), "necessary"),
    "limit": (lambda s: s.limit(t, 0), "necessary"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_each_step_is_recorded_with_its_direction(name):
    act, direction = CHAINS[name]
    before = three()
    after = act(before)
    (step,) = after.steps
    assert (step.name, step.direction) == (name, direction)
    assert (step.before, step.after) == (before.matrix, after.matrix)
    assert step.reason
    assert after.direction == direction
    assert before.steps == ()


def test_one_step_that_is_not_equivalent_marks_the_chain():
    s = three().subtract([ONE, ZERO, ZERO], P).simplify()
    assert s.direction == "sufficient"
    assert s.limit(t).direction == "necessary"


@given(st.integers(0, 2**16))
def test_restriction_and_limit_are_what_they_say(seed):
    at = values(seed)
    V = stacked([[ONE], [X], [W]], SIZES, at)
    whole = stacked(three().blocks, SIZES, at)
    restricted = three().restrict([ONE], [X], [W])
    assert stacked(restricted.blocks, SIZES, at) == V.T * whole * V
    limit = stacked(three().limit(t, 0).blocks, SIZES, at)
    assert limit == stacked(three().blocks, SIZES, {**at, "t": sp.Integer(0)})


REFUSED = {
    "schur of what is not known to be invertible": (lambda s: s.schur(1), "schur"),
    "schur with what is no inverse": (lambda s: s.schur(0, P), "schur"),
    "schur of a pivot of unknown sign": (lambda _: begin([[Q, X], [X.T, P]]).schur(0), "schur"),
    "schur of a negative pivot": (lambda _: begin([[-P, X], [X.T, P]]).schur(0), "schur"),
    "schur of a semidefinite pivot": (
        lambda _: begin([[X.T * X, X], [X.T, P]]).schur(0),
        "schur",
    ),
    "congruence with a singular matrix": (lambda s: s.congruence(P, X, ONE), "congruence"),
    "congruence with zero": (lambda s: s.congruence(P, ZERO, ONE), "congruence"),
    "subtract a negative weight": (lambda s: s.subtract([ONE, X, ZERO], -P), "subtract"),
    "subtract a weight of unknown sign": (lambda s: s.subtract([ONE, X, ZERO], S), "subtract"),
    "drop what is not zero": (lambda s: s.drop_zeros(), "drop_zeros"),
    "factor what is no square": (lambda s: s.factor([P, X, ZERO], P.I), "factor"),
    "conclude with blocks beside the diagonal": (lambda s: s.conclude(), "conclude"),
    "conclude what may be negative": (
        lambda _: begin([[P, ZERO], [ZERO, S]]).conclude(),
        "conclude",
    ),
    "conclude a difference": (lambda _: begin([[P - ONE]]).conclude(), "conclude"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_steps_are_named(case):
    act, step = REFUSED[case]
    with pytest.raises(DerivationError, match=rf"case, step 1 \({step}\): "):
        act(three())


def test_the_error_carries_the_steps_before_it():
    with pytest.raises(DerivationError, match=r"step 2 \(schur\)") as caught:
        three().permute([1, 0, 2]).schur(0)
    assert [step.name for step in caught.value.steps] == ["permute"]


@pytest.mark.parametrize(
    "weaker",
    [
        lambda s: s.restrict([ONE], [ZERO], [ZERO]),
        lambda s: s.limit(t, 0).restrict([ONE], [ZERO], [ZERO]),
    ],
    ids=["restrict", "limit"],
)
def test_a_necessary_condition_concludes_nothing(weaker):
    with pytest.raises(DerivationError, match="proves nothing about the original"):
        weaker(three()).conclude()


@pytest.mark.parametrize("end", ["conclude", "drop_zeros"])
def test_a_restriction_to_zero_concludes_nothing(end):
    with pytest.raises(DerivationError):
        getattr(three().restrict([ZERO], [ZERO], [ZERO]), end)()


def test_wrong_counts_are_refused():
    with pytest.raises(ShapeError, match="congruence: 1 blocks, but 3"):
        three().congruence(P)
    with pytest.raises(InvalidInput, match="permute"):
        three().permute([0, 0, 1])


def test_nothing_is_substituted_after_a_step():
    with pytest.raises(DerivationError, match="Substitute first"):
        three().simplify().substitute(X=ZERO)


def test_a_lemma_concludes_its_own_matrix_only():
    d = lemmas.diagonal_dominance("T", X.T * X)
    T = d.symbol
    assert begin([[2 * T - 2 * X.T * X]], [d]).conclude().squares[0].by == "T"
    for wrong in (T - 2 * X.T * X, T - X * X.T, X.T * X - T, T / 2 - X.T * X):
        with pytest.raises(DerivationError, match="conclude"):
            begin([[wrong]], [d]).conclude()


def units():
    """2(Δz − αΔv)ᵀΛ(βΔv − Δz) for Δv = BΔx + AΔz, as a grid over (Δx, Δz)."""
    low, high = (-alpha * B, ONE - alpha * A), (beta * B, beta * A - ONE)
    return tuple(
        tuple(low[i].T * Lam * high[j] + high[i].T * Lam * low[j] for j in range(2))
        for i in range(2)
    )


def test_s_procedure_gives_the_general_condition():
    D = conditions.D
    goal = ((rho * Identity(m) - D.T * D, -D.T * C), (-C.T * D, -C.T * C))
    s = s_procedure("general", goal, [units()], "‖Δy‖² ≤ ρ‖Δx‖²", conditions.lipschitz.structure)
    assert s.algebra.zero(s.algebra.add(s.blocks, grid(conditions.lipschitz.matrix), -1))
    assert s.direction == "sufficient"


def test_s_procedure_without_its_factor_gives_another():
    goal = ((rho * Identity(m), ZeroMatrix(m, n)), (ZeroMatrix(n, m), ZeroMatrix(n, n)))
    s = s_procedure("half", goal, [units(), units()], "no", conditions.lipschitz.structure)
    plain = conditions.lipschitz.substitute(C=ZeroMatrix(p, n), D=ZeroMatrix(p, m))
    assert not s.algebra.zero(s.algebra.add(s.blocks, grid(plain.matrix), -1))
