"""Theorems are proved where something was checked, and say what they assume."""

import copy
import pickle

import pytest
from derive_cases import shipped
from sympy import Identity, MatrixSymbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, Identities, Rule, Theorem, statement
from sdplip.errors import DerivationError, InvalidInput

prose = {"name": "x", "title": "x", "claim": "x", "source": "a test"}
THEOREM = {**prose, "argument": ["It is clear."]}
x = MatrixSymbol("x", 1, 1)


@pytest.mark.parametrize(
    "theorem",
    [
        lambda: Theorem(**THEOREM, identities={}),
        lambda: Theorem(**THEOREM, identities={"none": Identities((), {})}),
        lambda: Theorem(
            **THEOREM, identities={"1 = 2": Identities(((Identity(1), 2 * Identity(1)),), {})}
        ),
        lambda: Theorem(
            **THEOREM,
            identities={},
            statement=lambda: statement(conditions.linear).restrict([ZeroMatrix(m, m)]),
        ),
    ],
    ids=["no identities", "an empty identity", "a false identity", "a necessary chain"],
)
def test_theorems_without_a_ground_are_not_proved(theorem):
    try:
        proof = theorem().prove()
    except (InvalidInput, DerivationError):
        return
    assert not proof.proved


def test_a_theorem_says_what_it_assumes():
    found = Identities(((x, 2 * x),), {}, (Rule(x, 0 * x, "because"),))
    proof = Theorem(**THEOREM, identities={"x = 2x": found}).prove()
    assert "because" in str(proof.document["goals"])


W = MatrixSymbol("W", m, n)


def linear(**changes):
    given = {
        "name": "zero",
        "title": "Zero",
        "claim": "1-Lipschitz",
        "source": "a test",
        "condition": conditions.linear,
        "free": [Free(W)],
        "ansatz": {"D": ZeroMatrix(p, m), "rho": 1},
    }
    return Derivation(**given | changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"condition": "linear"}, "condition has 'linear', but must have an LMI"),
        ({"free": [W]}, r"free has W, but must have Free"),
        ({"definitions": [W]}, "definitions has W, but must have what functions of lemmas"),
        ({"argument": None}, "argument has None, but must have a function"),
    ],
)
def test_what_is_of_another_kind_is_named(changes, message):
    with pytest.raises(InvalidInput, match=f"zero: {message}"):
        linear(**changes)


def test_an_argument_that_forgets_to_return_is_told_so():
    assert linear().prove(quick=True).proved
    proof = linear(argument=lambda s: None).prove(quick=True)
    assert proof.status == "undecided" and "zero: the argument gives None" in proof.broken


def test_a_derivation_says_why_it_is_not_pickled_and_its_proof_is():
    derivation = shipped("aol").derivation
    for value in (derivation, [derivation]):
        with pytest.raises(InvalidInput, match=r"'aol' cannot be pickled.*Pickle what prove"):
            pickle.dumps(value)
    assert copy.deepcopy(derivation) is copy.copy(derivation) is derivation
    proof = derivation.prove(quick=True)
    assert pickle.loads(pickle.dumps(proof)) == proof
