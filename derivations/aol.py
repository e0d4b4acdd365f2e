"""AOL: almost-orthogonal layers, T from Gershgorin's discs.

python derivations/aol.py
"""

import sys

from sympy import MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, p
from sdplip.derive import Derivation, Free, Identities, Rule, Theorem, lemmas, main

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

# What is proved about AOL's weights being pulled towards orthogonal ones: with S = WᵀW and
# o = Σ_{j≠i}|S_ij|, T_i = S_ii + o, so that T − S has the diagonal o.
s, o, t = (MatrixSymbol(x, 1, 1) for x in "sot")
slack = Identities(
    ((t - s, o),), {x: ("diagonal",) for x in "sot"}, (Rule(t, s + o, "T_i = Σ_j |S_ij|"),)
)
almost = Theorem(
    name="aol-slack",
    title="AOL is orthogonal where W has orthogonal columns, and only there",
    claim="For D = WT^(−1/2) without zero columns, tr(I − DᵀD) = Σ_i (Σ_{j≠i}|WᵀW|_ij)/T_i: the "
    "bound's slack vanishes exactly where the columns of W are orthogonal, and then DᵀD = I.",
    source="[AOL]; that training moves towards it is an observation, not a theorem",
    identities={"the diagonal of T − WᵀW": slack},
    argument=[
        "I − DᵀD = T^(−1/2)(T − WᵀW)T^(−1/2) has the diagonal (T − WᵀW)_ii / T_i.",
        "(T − WᵀW)_ii is the sum of |WᵀW|_ij over j ≠ i, since (WᵀW)_ii ≥ 0.",
        "I − DᵀD ⪰ 0 is zero exactly if its trace is, that is if all WᵀW_ij with j ≠ i vanish. So "
        "a loss that wants large outputs lowers the off-diagonal entries; how far it gets is "
        "measured by benchmarks/tightness.py --singular-values.",
    ],
)
derivations = [derivation, almost]

if __name__ == "__main__":
    sys.exit(main(*derivations))
