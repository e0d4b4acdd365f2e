"""Wrong layers from the literature and its code come back with a counterexample that replays."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from sympy import DiagMatrix, Identity, MatrixSymbol, OneMatrix, Rational, Symbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Counterexample, Derivation, Free, lemmas
from sdplip.derive.library import find
from sdplip.errors import InvalidInput
from sdplip.lmi import Absolute

W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
TEXT = {"title": "wrong", "claim": "1-Lipschitz", "source": "tests"}


def residual(name, definition, step=2, free=()):
    T = definition.symbol
    return Derivation(
        name=name,
        **TEXT,
        condition=conditions.residual,
        free=[Free(W), *free],
        definitions=[definition],
        ansatz={"H": Identity(m), "G": -step * W * T.I, "Lam": step * T.I, "rho": 1},
        argument=lambda s: s.simplify().drop_zeros().congruence(T / 2).conclude(),
    )


def misplaced_epsilon():
    """q⁻¹ = 1/(q + ε), as published code had it."""
    eps = Symbol("eps", positive=True)
    value = DiagMatrix(Absolute(W.T * W) * q) * DiagMatrix(q + eps * OneMatrix(n, 1)).I
    free = [Free(q, "ratios"), Free(eps, "constant")]
    return residual("sll-eps", lemmas.diagonal("T", value), free=free)


def without_absolute_values():
    V = MatrixSymbol("W", p, m)
    sums = lemmas.diagonal("T", DiagMatrix(V.T * V * OneMatrix(m, 1)))
    root = lemmas.root("R", sums)
    return Derivation(
        name="aol-signed",
        **TEXT,
        condition=conditions.linear,
        free=[Free(V)],
        definitions=[sums, root],
        ansatz={"D": V * root.symbol.I, "rho": 1},
        argument=lambda s: s.simplify().congruence(root.symbol).conclude(),
    )


def long_step():
    return residual("cpl-long", lemmas.spectral("T", W), step=Rational(5, 2))


def _with(name, **changes):
    (_, (derivation, *_)) = find(name)
    return dataclasses.replace(derivation, ansatz=derivation.ansatz | changes, controls={})


def _symbols(name):
    return {f.name: f.symbol for f in find(name)[1][0].free}


def lben(square, skew):
    s = _symbols("lben")
    L, unit = DiagMatrix(s["lam"]), Identity(n)
    V, S, B, C = s["V"], s["S"], s["B"], s["C"]
    half = (C.T * C + L * B * B.T * L) / (2 * s["gamma"])
    inner = half + square * V.T * V + s["eps"] * unit + skew * (S - S.T)
    return _with("lben", A=unit - L.I * inner)


def negative_gram():
    return lben(square=-1, skew=1)


def forgetful_shift():
    """Shifts by Σ_j |T_ij|/2, as code that leaves out part of the row does."""
    s = _symbols("nemon")
    E, T = DiagMatrix(s["eta"]), s["T"]
    shift = DiagMatrix(Absolute(T) * OneMatrix(n, 1)) / 2
    return _with("nemon", A=s["c"] * Identity(n) + E * T * E.I - shift)


def absolute_value():
    """SLL with |·|, whose slopes are ±1."""
    dominance = lemmas.diagonal_dominance("T", W.T * W, q)
    T = dominance.symbol
    return Derivation(
        name="sll-abs",
        **TEXT,
        condition=conditions.lipschitz,
        free=[Free(W), Free(q, "ratios")],
        definitions=[dominance],
        ansatz={
            "A": ZeroMatrix(n, n),
            "B": W.T,
            "C": -2 * W * T.I,
            "D": Identity(m),
            "Lam": 2 * T.I,
            "alpha": -Identity(n),
            "beta": Identity(n),
            "rho": 1,
        },
        argument=lambda s: s.simplify().drop_zeros().congruence(T / 2).conclude(),
        slopes=(-1, 1),
    )


def coupled_multipliers():
    """'LipSDP-Network': every step holds, but Λ = I/4 + CᵀC/2 couples the units."""
    C, X = MatrixSymbol("C", p, n), MatrixSymbol("X", n, m)
    Q = lemmas.orthogonal("Q", X)
    coupled = Identity(n) / 4 + C.T * C / 2
    Y = lemmas.inverse("Y", coupled)
    return Derivation(
        name="coupled",
        **TEXT,
        condition=conditions.lipschitz,
        free=[Free(C), Free(X)],
        definitions=[Q, Y],
        ansatz={
            "A": ZeroMatrix(n, n),
            "B": Y.symbol * Q.symbol / 2,
            "D": ZeroMatrix(p, m),
            "Lam": coupled,
            "alpha": ZeroMatrix(n, n),
            "beta": Identity(n),
            "rho": Rational(1, 2),
        },
        argument=lambda s: s.simplify().schur(pivot=1).conclude(),
    )


WRONG = {
    misplaced_epsilon: "neither what a lemma gives",
    without_absolute_values: "neither what a lemma gives",
    long_step: "neither what a lemma gives",
    negative_gram: "nor a sum of squares",
    forgetful_shift: "may be negative",
    absolute_value: "drop_zeros",
    coupled_multipliers: "is not diagonal",
}
every = pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)


def constant(values):
    """The Lipschitz constant for the worst biases, from the file's fractions alone."""
    A, B, C, D = (
        np.array([[float(Fraction(x)) for x in row] for row in values[k]]) for k in "ABCD"
    )
    n = len(values["b"])
    A, B, C = A.reshape(n, n), B.reshape(n, D.shape[1]), C.reshape(len(D), n)
    slopes = zip(values["alpha"], values["beta"], strict=True)
    largest = 0.0
    for pattern in itertools.product(*([float(Fraction(s)) for s in pair] for pair in slopes)):
        J = np.diag(pattern) if n else np.zeros((0, 0))
        if n == 0 or abs(np.linalg.det(np.eye(n) - J @ A)) > 1e-9:
            K = D + C @ np.linalg.solve(np.eye(n) - J @ A, J @ B)
            largest = max(largest, np.linalg.norm(K, 2 if values["norm"] == "2" else np.inf))
    return largest


@every
def test_is_refused_with_a_valid_counterexample(wrong, tmp_path):
    proof = wrong().prove()
    assert proof.status == "refuted"
    assert WRONG[wrong] in proof.broken
    proof.counterexample.save(tmp_path / "counterexample.json")
    values = json.loads((tmp_path / "counterexample.json").read_text())
    again = Counterexample.from_json(values)
    assert again.holds()
    claim = float(again.claim) if again.norm == math.inf else math.sqrt(again.claim)
    found = constant(values)
    assert found > claim * 1.001
    assert found == pytest.approx(again.constant, rel=1e-9)
    ratio = float(again.ratio()) if again.norm == math.inf else math.sqrt(again.ratio())
    assert claim < ratio <= found * (1 + 1e-9)


@every
def test_a_counterexample_that_was_changed_does_not_hold(wrong):
    values = wrong().prove().counterexample.to_json()
    lax = values | {"claim": str(Fraction(values["ratio"]) + 1)}
    assert not Counterexample.from_json(lax).holds()
    moved = values | {"z": [values["z"][0], [str(Fraction(x) + 1) for x in values["z"][1]]]}
    if values["b"]:
        with pytest.raises(InvalidInput, match="does not solve"):
            Counterexample.from_json(moved).holds()
    for key in ("A", "x", "claim", "norm", "kind"):
        with pytest.raises(InvalidInput):
            Counterexample.from_json({k: v for k, v in values.items() if k != key})
        with pytest.raises(InvalidInput):
            Counterexample.from_json(values | {key: "1/0"})


def test_the_sign_of_S_does_not_matter():
    assert lben(square=1, skew=-1).prove(quick=True).proved
