"""Orthogonal layers: the Cayley map makes QᵀQ = I for every free matrix.

python derivations/orthogonal.py
"""

import sys

from sympy import Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, p
from sdplip.derive import Derivation, Free, lemmas, main

X = MatrixSymbol("X", p, m)
cayley = lemmas.orthogonal("Q", X, "tall")
lying = lemmas.orthogonal("Q", X, "lying")
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
    claim="x ↦ Qx keeps distances, QᵀQ = I, for Q = cayley(X) and every X with at least as many "
    "rows as columns.",
    definitions=[cayley],
    argument=lambda s: s.simplify().drop_zeros(),
    sizes=[(1, 1, 1), (2, 1, 2), (2, 1, 3), (1, 1, 3)],
    **shared,
)
wide = Derivation(
    name="orthogonal-wide",
    title="Orthogonal layers with fewer outputs than inputs",
    claim="x ↦ Qx with QQᵀ = I is 1-Lipschitz: I − QᵀQ is a projection.",
    definitions=[lying],
    argument=lambda s: s.subtract([Identity(m) - Q.T * Q], Identity(m)).drop_zeros(),
    sizes=[(1, 1, 1), (2, 1, 2), (2, 1, 1), (3, 1, 2)],
    **shared,
)
derivations = [derivation, wide]

if __name__ == "__main__":
    sys.exit(main(*derivations))
