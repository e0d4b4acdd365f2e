"""Spectral normalisation: T = ‖W‖₂² I.

python derivations/spectral.py
"""

import sys

from sympy import MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, p
from sdplip.derive import Derivation, Free, lemmas, main

W = MatrixSymbol("W", p, m)
norm = lemmas.spectral("T", W)
root = lemmas.root("R", norm)
R = root.symbol

derivation = Derivation(
    name="spectral",
    title="Spectral normalisation",
    claim="x ↦ W T^(−1/2) x with T = ‖W‖₂² I is 1-Lipschitz for every W.",
    source="Yoshida, Miyato (2017); Miyato et al. (ICLR 2018)",
    condition=conditions.linear,
    free=[Free(W, "direction")],
    definitions=[norm, root],
    ansatz={"D": W * R.I, "rho": 1},
    argument=lambda s: s.simplify().congruence(R).conclude(),
    controls={"no division": {"D": W}, "twice as long": {"D": 2 * W * R.I}},
)

if __name__ == "__main__":
    sys.exit(main(derivation))
