"""CPL: one gradient step on a convex potential, the residual layer with T = ‖W‖₂² I.

python derivations/cpl.py
"""

import sys

from sympy import Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, lemmas, main

W = MatrixSymbol("W", m, n)
norm = lemmas.spectral("T", W)
T = norm.symbol

derivation = Derivation(
    name="cpl",
    title="CPL: convex potential layers",
    claim="x ↦ x − 2WT⁻¹σ(Wᵀx + b) with T = ‖W‖₂² I is 1-Lipschitz for every W and every σ with "
    "slopes in [0, 1].",
    source="Meunier et al. (ICML 2022); [ARAUJO] Theorem 3",
    condition=conditions.residual,
    free=[Free(W)],
    definitions=[norm],
    ansatz={"H": Identity(m), "G": -2 * W * T.I, "Lam": 2 * T.I, "rho": 1},
    argument=lambda s: s.simplify().drop_zeros().congruence(T / 2).conclude(),
    controls={
        "step above 2": {"G": -3 * W * T.I, "Lam": 3 * T.I},
        "plus instead of minus": {"G": 2 * W * T.I},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
