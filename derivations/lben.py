"""LBEN: equilibrium networks that are γ-Lipschitz by construction.

python derivations/lben.py
"""

import sys

from sympy import DiagMatrix, Identity, MatrixSymbol, Symbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, main

B, C = MatrixSymbol("B", n, m), MatrixSymbol("C", p, n)
V, S, lam = MatrixSymbol("V", n, n), MatrixSymbol("S", n, n), MatrixSymbol("lam", n, 1)
gamma, eps = Symbol("gamma", positive=True), Symbol("eps", positive=True)
L = DiagMatrix(lam)
half = (C.T * C + L * B * B.T * L) / (2 * gamma)


def A(half=half, square=V.T * V, skew=S - S.T):
    return Identity(n) - L.I * (half + square + eps * Identity(n) + skew)


derivation = Derivation(
    name="lben",
    title="LBEN: Lipschitz-bounded equilibrium networks",
    claim="z = σ(Az + Bx + b), y = Cz + c with A = I − Λ⁻¹((CᵀC + ΛBBᵀΛ)/2γ + VᵀV + εI + S − Sᵀ) "
    "has exactly one solution and is γ-Lipschitz, for all B, C, V, S, Λ > 0 diagonal, γ, ε > 0 and "
    "every σ with slopes in [0, 1].",
    source="[LBEN] Theorem 2 and its direct parametrisation",
    condition=conditions.equilibrium,
    free=[
        Free(B, "bounded"),
        Free(C, "bounded"),
        Free(V, "bounded"),
        Free(S, "bounded"),
        Free(lam, "weights"),
        Free(gamma, "constant", default=1.0, low=1e-9),
        Free(eps, "constant", default=1.0, low=1e-6),
    ],
    ansatz={"A": A(), "D": ZeroMatrix(p, m), "Lam": gamma * L, "rho": gamma**2},
    argument=lambda s: s.simplify().schur().conclude(),
    controls={
        "VᵀV with its sign changed": {"A": A(square=-V.T * V)},
        "without CᵀC": {"A": A(half=L * B * B.T * L / (2 * gamma))},
        "without the 1/2": {"A": A(half=half / 2)},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
