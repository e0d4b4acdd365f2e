"""AOL: almost-orthogonal layers, T from Gershgorin's discs.

python derivations/aol.py
"""

import sys

from sympy import MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, p
from sdplip.derive import Derivation, Free, lemmas, main

W = MatrixSymbol("W", p, m)
dominance = lemmas.diagonal_dominance("T", W.T * W)
root = lemmas.root("R", dominance)
R = root.symbol

derivation = Derivation(
    name="aol",
    title="AOL: almost-orthogonal layers",
    claim="x ↦ W T^(−1/2) x with T = diag(Σ_j |WᵀW|_ij) is 1-Lipschitz for every W.",
    source="[AOL] Theorem 1",
    condition=conditions.linear,
    free=[Free(W, "direction")],
    definitions=[dominance, root],
    ansatz={"D": W * R.I, "rho": 1},
    argument=lambda s: s.simplify().congruence(R).conclude(),
    controls={"no division": {"D": W}, "twice as long": {"D": 2 * W * R.I}},
)

if __name__ == "__main__":
    sys.exit(main(derivation))
