"""Theorems are proved where something was checked, and say what they assume."""

import pytest
from sympy import Identity, MatrixSymbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m
from sdplip.derive import Identities, Rule, Theorem, statement
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
