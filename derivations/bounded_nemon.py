"""NEMON with its ℓ∞ bound built in instead of regularised.

New here: NEMON promises well-posedness only; its Lipschitz constant from ℓ∞ to ℓ∞ is a penalty of
the training. Solving one M-matrix system gives ζ = (I − ⌈A⌉)⁻¹(|B|1 + ε1), the reach of a unit
change of the input, and dividing the rows of C by |C|ζ makes the constant at most γ.

    python derivations/bounded_nemon.py
"""

import sys

from sympy import DiagMatrix, Identity, MatrixSymbol, OneMatrix, Symbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, lemmas, main
from sdplip.lmi import Absolute

T, q = MatrixSymbol("T", n, n), MatrixSymbol("q", n, 1)
B, X = MatrixSymbol("B", n, m), MatrixSymbol("X", p, n)
mu = Symbol("mu", real=True)
gamma, eps = Symbol("gamma", positive=True), Symbol("eps", positive=True)
E = DiagMatrix(q)
shift = DiagMatrix(Absolute(T) * OneMatrix(n, 1))

matrix = lemmas.define("A", mu * Identity(n) + E * T * E.I - shift)
A = matrix.symbol
reach = lemmas.m_matrix("zeta", A, Absolute(B) * OneMatrix(m, 1) + eps * OneMatrix(n, 1), q, mu)
zeta = reach.symbol
size = lemmas.row_sums("s", X, zeta, eps)
S = DiagMatrix(size.symbol)

derivation = Derivation(
    name="bounded_nemon",
    title="NEMON with its ℓ∞ bound built in",
    claim="z = σ(Az + Bx + b), y = Cz + c with A = μI + [q]T[q]⁻¹ − [|T|1], "
    "ζ = (I − ⌈A⌉)⁻¹(|B|1 + ε1) and C = γ[|X|ζ + ε1]⁻¹X has exactly one solution and is "
    "γ-Lipschitz from ℓ∞ to ℓ∞, for all T, B, X, q > 0, μ < 1, γ, ε > 0 and every σ with slopes "
    "in [0, 1].",
    source="sdplip, from [NEMON]",
    condition=conditions.linf,
    free=[
        Free(T, "bounded"),
        Free(q, "weights"),
        Free(B, "bounded"),
        Free(X, "bounded"),
        Free(mu, "constant", default=0.0, low=-1e9, high=1 - 1e-6),
        Free(gamma, "constant", default=1.0, low=1e-9),
        Free(eps, "constant", default=1e-6, low=1e-12),
    ],
    definitions=[matrix, reach, size],
    ansatz={
        "C": gamma * S.I * X,
        "D": ZeroMatrix(p, m),
        "alpha": ZeroMatrix(n, n),
        "beta": Identity(n),
        "eta": zeta,
        "c": 1,
    },
    norm=float("inf"),
    controls={
        "C not divided": {"C": gamma * X},
        "twice as long": {"C": 2 * gamma * S.I * X},
    },
)

if __name__ == "__main__":
    sys.exit(main(derivation))
