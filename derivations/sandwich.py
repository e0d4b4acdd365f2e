"""Sandwich: y = √2 PΨσ(√2 Ψ⁻¹Qᵀx + b) with PᵀP + QᵀQ = I, written with Φ = √2 Ψ.

python derivations/sandwich.py
"""

import sys

from sympy import DiagMatrix, MatrixSymbol, Rational, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, lemmas, main

X, Y, phi = MatrixSymbol("X", p, n), MatrixSymbol("Y", m, n), MatrixSymbol("phi", n, 1)
top, bottom = lemmas.stacked("P", "Q", X, Y)
P, Q, F = top.symbol, bottom.symbol, DiagMatrix(phi)

derivation = Derivation(
    name="sandwich",
    title="Sandwich layers",
    claim="y = PΦσ(2Φ⁻¹Qᵀx + b) with [P; Q] = cayley([X; Y]) is 1-Lipschitz for all X, Y, every "
    "diagonal Φ > 0 and every σ with slopes in [0, 1].",
    source="[LBDN] Theorem 3.2, with Φ = √2 Ψ",
    condition=conditions.residual,
    free=[Free(X), Free(Y), Free(phi, "weights")],
    definitions=[top, bottom],
    ansatz={
        "H": ZeroMatrix(p, m),
        "G": P * F,
        "W": 2 * Q * F.I,
        "Lam": Rational(1, 2) * F**2,
        "rho": 1,
    },
    argument=lambda s: s.simplify().schur().congruence(F.I).conclude(),
    controls={"without the 2": {"W": 4 * Q * F.I}, "Φ on one side only": {"G": P * F**2}},
)

if __name__ == "__main__":
    sys.exit(main(derivation))
