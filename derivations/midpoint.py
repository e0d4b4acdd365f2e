"""Implicit midpoint: a gradient step taken at the midpoint needs no normalisation at all.

New here: SLL and CPL divide by T ⪰ WᵀW so that an explicit step is not too long. The same step
evaluated at (x + y)/2 is 1-Lipschitz for every B, a Cayley transform for every pattern of units.

    python derivations/midpoint.py
"""

import sys

from sympy import DiagMatrix, Identity, MatrixSymbol

from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, main

B, lam = MatrixSymbol("B", n, m), MatrixSymbol("lam", n, 1)
L = DiagMatrix(lam)

derivation = Derivation(
    name="midpoint",
    title="Implicit midpoint layers",
    claim="y = x − BᵀΛz, z = σ(B(x + y)/2 + b) has exactly one solution and x ↦ y is 1-Lipschitz, "
    "for every B, every diagonal Λ > 0 and every σ with slopes in [0, 1].",
    source="sdplip",
    condition=conditions.equilibrium,
    free=[Free(B, "bounded"), Free(lam, "weights")],
    ansatz={"A": -B * B.T * L / 2, "C": -B.T * L, "D": Identity(m), "Lam": L, "rho": 1},
    argument=lambda s: s.simplify().drop_zeros().conclude(),
    controls={
        "explicit step": {"A": 0 * B * B.T},
        "plus instead of minus": {"C": B.T * L},
        "step at y, not the midpoint, with twice the length": {"C": -2 * B.T * L},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
