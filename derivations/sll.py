"""SLL: the residual layer with T from Gershgorin's discs in a q-scaled basis.

python derivations/sll.py
"""

import sys

from sympy import Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, lemmas, main

W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
dominance = lemmas.diagonal_dominance("T", W.T * W, q)
T = dominance.symbol

derivation = Derivation(
    name="sll",
    title="SLL: residual layer with scaled Gershgorin discs",
    claim="x ↦ x − 2WT⁻¹σ(Wᵀx + b) with T = diag(Σ_j |WᵀW|_ij q_j/q_i) is 1-Lipschitz for every W, "
    "every q > 0 and every σ with slopes in [0, 1].",
    source="[ARAUJO] Theorem 3 and its SDP-based Lipschitz layer",
    condition=conditions.residual,
    free=[Free(W), Free(q, "ratios")],
    definitions=[dominance],
    ansatz={"H": Identity(m), "G": -2 * W * T.I, "Lam": 2 * T.I, "rho": 1},
    argument=lambda s: s.simplify().drop_zeros().congruence(T / 2).conclude(),
    controls={
        "step without the factor 2": {"G": -W * T.I},
        "plus instead of minus": {"G": 2 * W * T.I},
        "T instead of its inverse": {"G": -2 * W * T},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
