"""Orthogonal layers: the Cayley map makes rows or columns orthonormal for every free matrix.

python derivations/orthogonal.py
"""

import sys

from sympy import MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, p
from sdplip.derive import Derivation, Free, lemmas, main

X = MatrixSymbol("X", p, m)
cayley, tall = lemmas.orthogonal("Q", X), lemmas.orthogonal("Q", X, "tall")
Q = cayley.symbol
shared = {
    "source": "Trockman, Kolter (ICLR 2021); Wang, Manchester (ICML 2023)",
    "condition": conditions.linear,
    "free": [Free(X)],
    "ansatz": {"D": Q, "rho": 1},
    "controls": {"twice as long": {"D": 2 * Q}, "shifted": {"D": Q + X}},
}

derivation = Derivation(
    name="orthogonal",
    title="Orthogonal layers by the Cayley map",
    claim="x ↦ Qx with Q = cayley(X) is 1-Lipschitz for every X.",
    definitions=[cayley],
    argument=lambda s: s.simplify().conclude(),
    **shared,
)
isometry = Derivation(
    name="isometry",
    title="Orthogonal layers keep distances",
    claim="QᵀQ = I, and x ↦ Qx keeps distances, for Q = cayley(X) and every X with at least as "
    "many rows as columns: M is zero.",
    definitions=[tall],
    argument=lambda s: s.simplify().drop_zeros(),
    sizes=[(1, 1, 1), (2, 1, 2), (2, 1, 3), (1, 1, 3)],
    **shared,
)
derivations = [derivation, isometry]

if __name__ == "__main__":
    sys.exit(main(*derivations))
