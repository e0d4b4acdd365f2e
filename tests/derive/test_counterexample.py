"""Wrong ansätze come back with two inputs, in exact numbers, that break their claim."""

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from derive_cases import shipped
from sympy import DiagMatrix, Identity, MatrixSymbol, OneMatrix, Rational, Symbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Counterexample, Derivation, Free, lemmas
from sdplip.errors import InvalidInput
from sdplip.lmi import Absolute

W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
V, S = MatrixSymbol("V", n, n), MatrixSymbol("S", n, n)
prose = {"name": "wrong", "title": "wrong", "claim": "a wrong claim", "source": "a test"}
ones = OneMatrix(n, 1)


def residual(T, step=2, **more):
    """x ↦ x − step·W T⁻¹ σ(Wᵀx + b), claimed to be 1-Lipschitz."""
    G, Lam = -step * W * T.symbol.I, step * T.symbol.I
    plain = {"condition": conditions.residual, "free": [Free(W)], "definitions": [T]}
    plain["ansatz"] = {"H": Identity(m), "G": G, "Lam": Lam, "rho": 1}
    return Derivation(**prose, **plain | more)


def added_to_q():
    """T_i = Σ_j |WᵀW|_ij q_j / (q_i + 1), as an epsilon against division by zero."""
    T = DiagMatrix(Absolute(W.T * W) * q) * DiagMatrix(q + ones).I
    return residual(lemmas.diagonal("T", T), free=[Free(W), Free(q, "ratios")])


def no_absolute_value():
    D = MatrixSymbol("W", p, m)
    T = lemmas.diagonal("T", DiagMatrix(D.T * D * OneMatrix(m, 1)))
    R = lemmas.root("R", T)
    return Derivation(
        **prose,
        condition=conditions.linear,
        free=[Free(D)],
        definitions=[T, R],
        ansatz={"D": D * R.symbol.I, "rho": 1},
        argument=lambda s: s.simplify().congruence(R.symbol).conclude(),
    )


def signed_slopes():
    """SLL, stated for slopes in [−1, 1]."""
    T = lemmas.diagonal_dominance("T", W.T * W)
    return Derivation(
        **prose,
        condition=conditions.lipschitz,
        free=[Free(W)],
        definitions=[T],
        slopes=(-1.0, 1.0),
        ansatz={
            "A": ZeroMatrix(n, n),
            "B": W.T,
            "C": -2 * W * T.symbol.I,
            "D": Identity(m),
            "Lam": 2 * T.symbol.I,
            "alpha": -Identity(n),
            "beta": Identity(n),
            "rho": 1,
        },
    )


def coupled():
    """'LipSDP-Network': a full Λ = CᵀC/2 + εI makes M ⪰ 0 with ρ = ε where CB = 0."""
    X, U = MatrixSymbol("X", n, m), MatrixSymbol("U", p, n)
    eps = Symbol("eps", positive=True)
    Q = lemmas.orthogonal("Q", X, "tall")
    C = U * (Identity(n) - Q.symbol * Q.symbol.T)
    return Derivation(
        **prose,
        condition=conditions.lipschitz,
        free=[Free(X), Free(U), Free(eps, "constant", default=0.01, high=0.02)],
        definitions=[Q],
        ansatz={
            "A": ZeroMatrix(n, n),
            "B": Q.symbol,
            "C": C,
            "D": ZeroMatrix(p, m),
            "Lam": C.T * C / 2 + eps * Identity(n),
            "alpha": ZeroMatrix(n, n),
            "beta": Identity(n),
            "rho": eps,
        },
    )


def changed(name, **ansatz):
    """A shipped derivation with other entries in its ansatz."""
    found = shipped(name).derivation
    return replace(found, ansatz={**found.ansatz, **ansatz}, controls={})


def without_output():
    parts = shipped("lben")
    return parts.A(half=parts.L * parts.B * parts.B.T * parts.L / (2 * parts.gamma))


def nemon(shift):
    parts = shipped("nemon")
    c, E, T = parts.c, parts.E, parts.T
    return changed("nemon", A=c * Identity(n) + E * T * E.I - shift(parts))


WRONG = {
    "SLL divided by q + 1": added_to_q,
    "AOL without the absolute value": no_absolute_value,
    "CPL with step 5/2": lambda: residual(lemmas.spectral("T", W), Rational(5, 2)),
    "SLL with T = I": lambda: residual(lemmas.diagonal("T", Identity(n))),
    "LBEN with −VᵀV": lambda: changed("lben", A=shipped("lben").A(square=-V.T * V)),
    "LBEN without CᵀC": lambda: changed("lben", A=without_output()),
    "NEMON with half its shift": lambda: nemon(lambda parts: parts.shift / 2),
    "NEMON without its shift": lambda: nemon(lambda parts: ZeroMatrix(n, n)),
    "slopes in [−1, 1]": signed_slopes,
    "coupled multipliers": coupled,
}
every = pytest.mark.parametrize("case", WRONG)


@cache
def proof(case):
    return WRONG[case]().prove(quick=True)


def arrays(found):
    n, m = len(found.b), len(found.x[0])
    shapes = {"A": (n, n), "B": (n, m), "C": (len(found.D), n), "D": (len(found.D), m)}
    return (
        np.array([[float(t) for t in row] for row in getattr(found, k)]).reshape(shape)
        for k, shape in shapes.items()
    )


def true_constant(found):
    """The largest gain over all patterns of slopes; infinite where there is no equilibrium."""
    A, B, C, D = arrays(found)
    order = 2 if found.norm == 2 else np.inf
    largest = 0.0
    ranges = [(float(a), float(b)) for a, b in zip(found.alpha, found.beta, strict=True)]
    for pattern in itertools.product(*ranges):
        J = np.diag(pattern)
        inner = np.eye(len(A)) - J @ A
        if abs(np.linalg.det(inner)) < 1e-12:
            continue
        largest = max(largest, np.linalg.norm(D + C @ np.linalg.inv(inner) @ J @ B, order))
    return largest


@every
def test_wrong_claims_are_refuted(case):
    found = proof(case)
    assert found.status == "refuted", found.broken
    assert found.counterexample.holds()
    assert found.broken
    assert found.document["counterexample"] == found.counterexample.to_json()


@every
def test_the_claim_is_below_the_true_constant(case):
    """By NumPy, over all patterns of units."""
    found = proof(case).counterexample
    claim = float(found.claim) ** (0.5 if found.norm == 2 else 1)
    constant = true_constant(found)
    assert constant > claim * (1 + 1e-9)
    ratio = float(found.ratio()) ** (0.5 if found.norm == 2 else 1)
    assert claim < ratio <= constant * (1 + 1e-9)
    assert found.constant <= constant * (1 + 1e-9)


@every
def test_the_two_solutions_are_solutions(case):
    """In floating point, with the activation of the recorded slopes."""
    found = proof(case).counterexample
    A, B, C, D = arrays(found)
    b, low, high = (np.array([float(t) for t in getattr(found, k)]) for k in ("b", "alpha", "beta"))
    outputs = []
    for x, z in zip(found.x, found.z, strict=True):
        x, z = (np.array([float(t) for t in v]) for v in (x, z))
        v = A @ z + B @ x + b
        np.testing.assert_allclose(np.where(v >= 0, high * v, low * v), z, atol=1e-9)
        outputs.append(C @ z + D @ x)
    order = 2 if found.norm == 2 else np.inf
    apart = np.linalg.norm(outputs[0] - outputs[1], order)
    step = np.linalg.norm([float(s - t) for s, t in zip(*found.x, strict=True)], order)
    assert apart > float(found.claim) ** (0.5 if found.norm == 2 else 1) * step


@every
def test_survives_its_file(case, tmp_path):
    found = proof(case).counterexample
    found.save(tmp_path / "found.json")
    again = Counterexample.from_json(json.loads((tmp_path / "found.json").read_text()))
    assert again == found
    assert again.holds()


def exact(rows):
    return np.array([[Fraction(t) for t in row] for row in rows], dtype=object)


def test_the_network_is_the_ansatz_at_the_recorded_values():
    found = proof("SLL divided by q + 1").counterexample
    W, q = exact(found.values["W"]), exact(found.values["q"])[:, 0]
    gram = W.T @ W
    T = np.abs(gram) @ q / (q + 1)
    assert W.T.tolist() == found.B
    assert (-2 * W / T).tolist() == found.C
    assert np.eye(len(W)).tolist() == found.D
    assert found.claim == 1


def test_a_flipped_skew_part_is_harmless():
    """S − Sᵀ and Sᵀ − S are as free as each other."""
    assert changed("lben", A=shipped("lben").A(skew=S.T - S)).prove(quick=True).proved


@pytest.mark.parametrize("name", ["sll", "aol", "cpl", "spectral", "lben", "sandwich", "slopes"])
def test_no_valid_claim_is_refuted(name):
    """Even where the argument is too weak to show it."""
    found = replace(shipped(name).derivation, argument=lambda s: s.simplify(), controls={})
    assert found.prove(quick=True).status == "undecided"


def test_a_claim_that_needs_the_closed_form_exactly_is_not_refuted():
    """T = WᵀW for a single column: D vanishes, but not for any larger T."""
    w = MatrixSymbol("W", m, 1)
    T = lemmas.diagonal_dominance("T", w.T * w)
    found = Derivation(
        **prose,
        condition=conditions.linear,
        free=[Free(w)],
        definitions=[T],
        ansatz={"D": 10**9 * w * (T.symbol - w.T * w) * w.T, "rho": 1},
    )
    assert found.prove(quick=True).status == "undecided"


# --- files that are no counterexamples ---


def altered(**changes):
    return proof("SLL divided by q + 1").counterexample.to_json() | changes


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sdplip.derivation"},
        {"A": []},
        {"x": [["0"], ["1"], ["2"]]},
        {"z": "no"},
        {"b": None},
        {"alpha": []},
        {"norm": "1"},
        {"claim": "1/0"},
        {"claim": "nan"},
        {"D": [["x"]]},
        {"values": 3},
    ],
    ids=str,
)
def test_hostile_files_are_refused(change):
    with pytest.raises(InvalidInput, match="Not a counterexample"):
        Counterexample.from_json(altered(**change))


@pytest.mark.parametrize("key", ["A", "D", "b", "x", "z", "claim", "norm", "kind"])
def test_missing_keys_are_refused(key):
    with pytest.raises(InvalidInput, match="Not a counterexample"):
        Counterexample.from_json({k: v for k, v in altered().items() if k != key})


def test_what_solves_nothing_does_not_hold():
    values = altered()
    values["z"] = [[str(Fraction(t) + 1) for t in row] for row in values["z"]]
    with pytest.raises(InvalidInput, match="does not solve"):
        Counterexample.from_json(values).holds()
    same = altered(x=[altered()["x"][0]] * 2, z=[altered()["z"][0]] * 2)
    with pytest.raises(InvalidInput, match="both inputs are the same"):
        Counterexample.from_json(same).holds()


def test_a_larger_claim_holds_no_more():
    assert not Counterexample.from_json(altered(claim="1000000")).holds()
