"""Gram powers: Gershgorin's discs of (WᵀW)ᵖ, then the p-th root.

New here as layers: by Löwner–Heinz D ⪰ Sᵖ gives D^{1/p} ⪰ S, so T = (Σ_j |Sᵖ|_ij)^{1/p} is as valid
as AOL's T and tighter for most weights (p = 1 is AOL and SLL, p → ∞ tends to ‖W‖²: CPL).

    python derivations/gram_power.py
"""

import sys

from sympy import Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, lemmas, main

V = MatrixSymbol("W", p, m)
power = lemmas.gram_power("T", V.T * V, power=8)
root = lemmas.root("R", power)
R = root.symbol

derivation = Derivation(
    name="gram_power",
    title="AOL with Gram powers",
    claim="x ↦ W T^(−1/2) x with T = diag((Σ_j |(WᵀW)⁸|_ij)^{1/8}) is 1-Lipschitz for every W.",
    source="sdplip, from [AOL] and Löwner–Heinz",
    condition=conditions.linear,
    free=[Free(V, "direction")],
    definitions=[power, root],
    ansatz={"D": V * R.I, "rho": 1},
    argument=lambda s: s.simplify().congruence(R).conclude(),
    controls={"no division": {"D": V}, "twice as long": {"D": 2 * V * R.I}},
)

W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
scaled = lemmas.gram_power("T", W.T * W, q, power=2)
T = scaled.symbol

residual = Derivation(
    name="gram_power_residual",
    title="SLL with Gram powers",
    claim="x ↦ x − 2WT⁻¹σ(Wᵀx + b) with T = diag((Σ_j |(WᵀW)²|_ij q_j/q_i)^{1/2}) is 1-Lipschitz "
    "for every W, every q > 0 and every σ with slopes in [0, 1].",
    source="sdplip, from [ARAUJO] and Löwner–Heinz",
    condition=conditions.residual,
    free=[Free(W), Free(q, "ratios")],
    definitions=[scaled],
    ansatz={"H": Identity(m), "G": -2 * W * T.I, "Lam": 2 * T.I, "rho": 1},
    argument=lambda s: s.simplify().drop_zeros().congruence(T / 2).conclude(),
    controls={"step above 2": {"G": -3 * W * T.I}, "plus": {"G": 2 * W * T.I}},
)
derivations = [derivation, residual]

if __name__ == "__main__":
    sys.exit(main(*derivations))
