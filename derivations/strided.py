"""Residual layers with a general H: other channels and sizes of images behind than in front.

The residual layer on V, behind a semi-orthogonal map H. Its off-diagonal block vanishes for W = HᵀV
as it does for H = I. `SLLConv2d` and `CPLConv2d` use it with a stride or a change of channels, H
being the semi-orthogonal map of patches that do not overlap.

    python derivations/strided.py
"""

import sys

from sympy import Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, lemmas, main

X, V = MatrixSymbol("X", p, m), MatrixSymbol("V", p, n)
cayley, dominance = lemmas.orthogonal("Q", X), lemmas.diagonal_dominance("T", V.T * V)
Q, T = cayley.symbol, dominance.symbol

derivation = Derivation(
    name="strided",
    title="Residual layers behind a semi-orthogonal map",
    claim="x ↦ Qx − 2VT⁻¹σ(VᵀQx + b) with Q = cayley(X) and T_i = Σ_j |VᵀV|_ij is 1-Lipschitz for "
    "every X and V and every σ with slopes in [0, 1].",
    source="sdplip; [ARAUJO] Theorem 3 for Q = I",
    condition=conditions.residual,
    free=[Free(X), Free(V)],
    definitions=[cayley, dominance],
    ansatz={"H": Q, "G": -2 * V * T.I, "W": Q.T * V, "Lam": 2 * T.I, "rho": 1},
    argument=lambda s: s.simplify().congruence(Identity(m), T / 2).conclude(),
    controls={
        "step above 2": {"G": -3 * V * T.I, "Lam": 3 * T.I},
        "plus instead of minus": {"G": 2 * V * T.I},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
