"""False claims that once looked proved, each beside the true one that it imitates."""

import pytest
import sympy as sp
from sympy import DiagMatrix, Identity, MatrixSymbol, OneMatrix, Rational, Symbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import eta, m, n, p
from sdplip.derive import Derivation, Free, lemmas
from sdplip.errors import DerivationError, InvalidInput
from sdplip.lmi import Absolute

W, Y = MatrixSymbol("W", m, n), MatrixSymbol("Y", m, m)
T, U, V = (MatrixSymbol(name, n, n) for name in "TUV")
B, C = MatrixSymbol("B", n, m), MatrixSymbol("C", p, n)
q, v, w = (MatrixSymbol(name, n, 1) for name in "qvw")
E, ones = DiagMatrix(eta), OneMatrix(n, 1)
INF = float("inf")
prose = {"name": "x", "title": "x", "claim": "x", "source": "a test"}
network = [Free(B, "bounded"), Free(C, "bounded")]


def residual(d, free=None, **more):
    ansatz = {"H": Identity(m), "G": -2 * W * d.symbol.I, "Lam": 2 * d.symbol.I, "rho": 1}
    plain = {"condition": conditions.residual, "free": free or [Free(W)]}
    plain |= {"definitions": [d], "ansatz": ansatz}
    plain["argument"] = lambda s: s.simplify().drop_zeros().congruence(d.symbol / 2).conclude()
    return Derivation(**prose, **plain | more)


def measure(ansatz, free=(), definitions=()):
    return Derivation(
        **prose,
        condition=conditions.measure,
        free=[*network, *free],
        definitions=definitions,
        ansatz=ansatz,
        norm=INF,
    )


def scaled(wrong):
    """q of any sign in T_i = Σ_j |WᵀW|_ij q_j / q_i."""
    domain = "matrix" if wrong else "ratios"
    return residual(lemmas.diagonal_dominance("T", W.T * W, q), [Free(W), Free(q, domain)])


def slopes(wrong):
    d = lemmas.diagonal_dominance("T", W.T * W)
    return residual(d, slopes=(-1.0, 1.0) if wrong else (0.0, 1.0))


def narrow(wrong):
    """Slopes in [0, b] in the condition, [0, 1] in the layer."""
    b = Symbol("b", positive=True) if wrong else sp.Integer(1)
    d = lemmas.diagonal_dominance("T", W.T * W)
    T = d.symbol
    return Derivation(
        **prose,
        condition=conditions.lipschitz,
        free=[Free(W), *([Free(b, "constant", default=1.0, high=2.0)] if wrong else [])],
        definitions=[d],
        ansatz={
            "A": ZeroMatrix(n, n), "B": W.T, "C": -2 * W * T.I / b, "D": Identity(m),
            "alpha": ZeroMatrix(n, n), "beta": b * Identity(n), "Lam": 2 * T.I / b**2, "rho": 1,
        },
        argument=lambda s: s.simplify().drop_zeros().congruence(b * T / 2).conclude(),
    )  # fmt: skip


def norm(wrong):
    X = MatrixSymbol("X", p, m)
    d = lemmas.orthogonal("Q", X)
    return Derivation(
        **prose,
        condition=conditions.linear,
        free=[Free(X)],
        definitions=[d],
        ansatz={"D": d.symbol, "rho": 1},
        norm=INF if wrong else 2,
    )


def tall(wrong):
    """I − QᵀQ = 0 for as many rows as columns, but not for fewer."""
    X = MatrixSymbol("X", n, m)
    d = lemmas.orthogonal("Q", X, "any" if wrong else "tall")
    H = 100 * (Identity(m) - d.symbol.T * d.symbol)
    zero = {"G": ZeroMatrix(m, n), "W": ZeroMatrix(m, n), "Lam": Identity(n), "rho": 1}
    return Derivation(
        **prose,
        condition=conditions.residual,
        free=[Free(X)],
        definitions=[d],
        ansatz={"H": H, **zero},
    )


def weights(wrong):
    """η < 0 turns every row around: A = I/2 is said to have measure −1."""
    sign = -1 if wrong else 1
    return measure(
        {"A": sign * Identity(n) / 2, "c": -sign if wrong else 1 - Rational(1, 2), "eta": sign * v},
        [Free(v, "weights")],
    )


def shift(wrong):
    """|3T + U/100| may be 0 where |3T| + |U/100| is not."""
    inside = 3 * T + U / 100 if wrong else 3 * T
    A = E * T * E.I - DiagMatrix(Absolute(inside) * ones)
    return measure({"A": A, "c": 0}, [Free(T), Free(U), Free(eta, "weights")])


def letters(wrong):
    """A constant that is called as row i of η is."""
    k = Symbol("eta_i" if wrong else "k", positive=True)
    A = k * E.I / 2 if wrong else -k * E.I
    given = [Free(k, "constant", default=0.001, high=0.1), Free(eta, "weights")]
    return measure({"A": A, "c": Rational(1, 2)}, given)


def full_times_vector(wrong):
    """(Xv)_i is not X_ii v_i for X = I + [η]T[η]⁻¹ − T, whose diagonal is 1."""
    X = Identity(n) + DiagMatrix(w) * T * DiagMatrix(w).I - T
    free = [Free(T), Free(v, "weights"), Free(w, "weights")]
    return measure({"A": -Identity(n), "c": 0, "eta": X * v if wrong else v}, free)


def named(wrong):
    """A full matrix that is called as the diagonal matrix of q is."""
    X = MatrixSymbol("diag(q)", n, n) if wrong else DiagMatrix(q)
    zero = {"H": ZeroMatrix(p, m), "G": ZeroMatrix(p, n), "W": ZeroMatrix(m, n), "rho": 1}
    return Derivation(
        **prose,
        condition=conditions.residual,
        free=[Free(q, "weights"), *([Free(X)] if wrong else [])],
        ansatz={**zero, "Lam": X},
    )


def circular(wrong):
    """T ⪰ 2T."""
    S = 2 * MatrixSymbol("T", m, m) if wrong else Y.T * Y
    d = lemmas.diagonal_dominance("T", S)
    r = lemmas.root("R", d)
    return Derivation(
        **prose,
        condition=conditions.linear,
        free=[Free(Y)],
        definitions=[d, r],
        ansatz={"D": r.symbol if wrong else Y * r.symbol.I, "rho": 0 if wrong else 1},
        argument=lambda s: (s if wrong else s.congruence(r.symbol)).simplify().conclude(),
    )


def matrix_for_scalar(wrong):
    d = lemmas.spectral("T", W)
    return Derivation(
        **prose,
        condition=conditions.linear,
        free=[Free(W)],
        definitions=[d],
        ansatz={"D": W if wrong else ZeroMatrix(m, n), "rho": d.symbol if wrong else 1},
    )


def by_hand(wrong):
    """A definition with a lemma's name that computes something else."""
    honest = lemmas.spectral("T", W)
    other = {"code": "dominant", "exact": lambda W: sp.eye(W.cols)}
    values = vars(honest) | (other if wrong else {})
    return residual(type(honest)(**values))


def stacked(wrong):
    """Both matrices are the top one."""
    X, Z = MatrixSymbol("X", m, n), MatrixSymbol("Z", m, n)
    P, Q = lemmas.stacked("P", "Q", X, Z)
    Q = lemmas.stacked("Q", "R", X, Z)[0] if wrong else Q
    return Derivation(
        **prose,
        condition=conditions.residual,
        free=[Free(X), Free(Z)],
        definitions=[P, Q],
        ansatz={
            "H": ZeroMatrix(m, m), "G": P.symbol, "W": 2 * Q.symbol, "Lam": Identity(n) / 2,
            "rho": 1,
        },
        argument=lambda s: s.simplify().schur().conclude(),
    )  # fmt: skip


def sums(wrong):
    """Σ_j |X_ij| w_j + ε > 0 needs w ≥ 0."""
    eps = Symbol("eps", positive=True)
    d = lemmas.row_sums("s", T, w, eps)
    free = [Free(T), Free(w, "matrix" if wrong else "weights"), Free(eps, "constant")]
    return measure({"A": -DiagMatrix(d.symbol), "c": 0}, [*free, Free(eta, "weights")], [d])


def assumed(wrong):
    """An argument that assumes QᵀQ = I of a free matrix."""
    return Derivation(
        **prose,
        condition=conditions.linear,
        free=[Free(W)],
        ansatz={"D": W if wrong else Identity(n), "rho": 1},
        argument=lambda s: s.simplify(orthogonal=[W] if wrong else []).drop_zeros(),
    )


def beyond_one(wrong):
    """A c above 1 makes any B feasible."""
    A = ZeroMatrix(n, n)
    ansatz = {"A": A, "B": 100 * Identity(n), "C": Identity(n), "D": A, "alpha": A}
    ansatz |= {"beta": Identity(n), "eta": ones if wrong else 101 * ones}
    ansatz |= {"c": 1000 if wrong else 1, "gamma": 1 if wrong else 101}
    return Derivation(
        **prose,
        condition=conditions.linf,
        free=[Free(MatrixSymbol("Z", n, n))],
        ansatz=ansatz,
        norm=INF,
    )


def other_weights(wrong):
    """Λ that is not diagonal."""
    zero = {"H": ZeroMatrix(p, m), "G": ZeroMatrix(p, n), "W": ZeroMatrix(m, n), "rho": 1}
    Lam = V.T * V if wrong else 2 * Identity(n)
    return Derivation(
        **prose, condition=conditions.residual, free=[Free(V)], ansatz={**zero, "Lam": Lam}
    )


def beforehand(wrong):
    """The slopes [0, b] put into the condition before it is given, under its old name."""
    d = lemmas.diagonal_dominance("T", W.T * W)
    T, b = d.symbol, Symbol("b", positive=True) if wrong else sp.Integer(1)
    range_ = {"alpha": ZeroMatrix(n, n), "beta": b * Identity(n)}
    condition, ansatz = conditions.lipschitz, {"A": ZeroMatrix(n, n), "B": W.T, "D": Identity(m)}
    ansatz |= {"C": -2 * W * T.I / b, "Lam": 2 * T.I / b**2, "rho": 1}
    if wrong:
        condition = condition.substitute(**range_)
    return Derivation(
        **prose,
        condition=condition,
        free=[Free(W), *([Free(b, "constant", default=1.0, high=2.0)] if wrong else [])],
        definitions=[d],
        ansatz=ansatz if wrong else ansatz | range_,
        argument=lambda s: s.simplify().drop_zeros().congruence(b * T / 2).conclude(),
    )


def coupled_beforehand(wrong):
    """A full Λ = CᵀC/2 + I, put into the condition before its sign and shape are asked for."""
    X, U = MatrixSymbol("X", n, m), MatrixSymbol("U", p, n)
    d = lemmas.orthogonal("Q", X, "tall")
    coupled = U * (Identity(n) - d.symbol * d.symbol.T)
    given = {"C": coupled, "Lam": coupled.T * coupled / 2 + Identity(n)}
    plain = {"C": ZeroMatrix(p, n), "Lam": Identity(n)}
    ansatz = {"A": ZeroMatrix(n, n), "B": d.symbol, "D": ZeroMatrix(p, m), "rho": 1}
    ansatz |= {"alpha": ZeroMatrix(n, n), "beta": Identity(n)}
    return Derivation(
        **prose,
        condition=conditions.lipschitz.substitute(**given) if wrong else conditions.lipschitz,
        free=[Free(X), *([Free(U)] if wrong else [])],
        definitions=[d],
        ansatz=ansatz if wrong else ansatz | plain,
        argument=lambda s: s.simplify().schur(1).conclude(),
    )


CASES = [
    scaled, slopes, narrow, norm, tall, weights, shift, letters, full_times_vector, named, circular,
    matrix_for_scalar, by_hand, stacked, sums, assumed, beyond_one, other_weights, beforehand,
    coupled_beforehand,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_false_claims_are_not_proved(case):
    try:
        proof = case(True).prove(quick=True)
    except (InvalidInput, DerivationError):
        return
    assert proof.status in ("refuted", "undecided"), proof.broken


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_the_true_claims_beside_them_are_proved(case):
    proof = case(False).prove(quick=True)
    assert proof.proved, proof.broken
