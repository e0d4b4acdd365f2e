"""Reflections: the residual layer whose W is orthogonal, so that no slack is left anywhere.

New here: SLL and CPL are 1-Lipschitz, but shrink most directions. With QᵀQ = I the condition holds
with equality, and with ReLU the Jacobian I − 2QJQᵀ is orthogonal for every pattern J of units. It
contains MaxMin: Uᵀ·MaxMin(Ux) is such a reflection with half as many units.

    python derivations/reflection.py
"""

import sys

from sympy import Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, lemmas, main

X = MatrixSymbol("X", m, n)
cayley, tall = lemmas.orthogonal("Q", X), lemmas.orthogonal("Q", X, "tall")
Q = cayley.symbol
shared = {
    "source": "sdplip",
    "condition": conditions.residual,
    "free": [Free(X)],
    "ansatz": {"H": Identity(m), "G": -2 * Q, "W": Q, "Lam": 2 * Identity(n), "rho": 1},
    "controls": {"step above 2": {"G": -3 * Q}, "plus instead of minus": {"G": 2 * Q}},
}

derivation = Derivation(
    name="reflection",
    title="Reflection layers",
    claim="x ↦ x − 2Qσ(Qᵀx + b) with Q = cayley(X) is 1-Lipschitz for every X and every σ with "
    "slopes in [0, 1].",
    definitions=[cayley],
    argument=lambda s: s.simplify().drop_zeros().conclude(),
    **shared,
)
tight = Derivation(
    name="reflection-tight",
    title="Reflection layers leave no slack",
    claim="For X with at least as many rows as columns M is zero: with ReLU the Jacobian "
    "I − 2QJQᵀ is orthogonal for every pattern J of units.",
    definitions=[tall],
    argument=lambda s: s.simplify().drop_zeros(),
    sizes=[(1, 1, 1), (2, 2, 1), (3, 1, 1), (3, 2, 1)],
    **shared,
)
derivations = [derivation, tight]

if __name__ == "__main__":
    sys.exit(main(*derivations))
