"""NEMON: equilibrium networks whose weighted ℓ∞ matrix measure is at most c.

    python derivations/nemon.py
"""

import sys

from sympy import DiagMatrix, Identity, MatrixSymbol, OneMatrix, Symbol

from sdplip import conditions
from sdplip.conditions import eta, m, n, p
from sdplip.derive import Derivation, Free, main
from sdplip.lmi import Absolute

T = MatrixSymbol("T", n, n)
B, C = MatrixSymbol("B", n, m), MatrixSymbol("C", p, n)
c = Symbol("c", real=True)
E = DiagMatrix(eta)
shift = DiagMatrix(Absolute(T) * OneMatrix(n, 1))

derivation = Derivation(
    name="nemon",
    title="NEMON: non-Euclidean monotone operator networks",
    claim="A = cI + [η]T[η]⁻¹ − [|T|1] has weighted matrix measure μ_{∞,[η]⁻¹}(A) ≤ c for every T, "
    "every η > 0; with c < 1 and slopes in [0, 1], z = σ(Az + Bx + b) has exactly one solution.",
    source="[NEMON] Theorem 1 and the parametrisation of its training problem",
    condition=conditions.measure,
    free=[
        Free(T, "bounded"),
        Free(eta, "weights"),
        Free(B, "bounded"),
        Free(C, "bounded"),
        Free(c, "constant", default=0.0, low=-1e9, high=1.0),
    ],
    ansatz={"A": c * Identity(n) + E * T * E.I - shift, "c": c},
    norm=float("inf"),
    controls={
        "half the shift": {"A": c * Identity(n) + E * T * E.I - shift / 2},
        "no shift": {"A": c * Identity(n) + E * T * E.I},
        "weights the wrong way round": {"A": c * Identity(n) + E.I * T * E - shift},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
