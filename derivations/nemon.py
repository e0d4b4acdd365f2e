"""NEMON: equilibrium networks whose weighted ℓ∞ matrix measure is at most c.

python derivations/nemon.py
"""

import random
import sys

from sympy import (
    DiagMatrix,
    Identity,
    Matrix,
    MatrixSymbol,
    OneMatrix,
    Rational,
    Symbol,
    diag,
    eye,
    ones,
    zeros,
)

from sdplip import conditions
from sdplip.conditions import eta, m, n, p
from sdplip.derive import Derivation, Free, Identities, Rule, Theorem, main
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
        Free(c, "constant", default=0.0, low=-1e9, high=1 - 1e-6),
    ],
    ansatz={"A": c * Identity(n) + E * T * E.I - shift, "c": c},
    norm=float("inf"),
    controls={
        "half the shift": {"A": c * Identity(n) + E * T * E.I - shift / 2},
        "no shift": {"A": c * Identity(n) + E * T * E.I},
        "weights the wrong way round": {"A": c * Identity(n) + E.I * T * E - shift},
    },
)

# NEMON ⊂ LBEN. Row i of Λ(I − A) + (I − A)ᵀΛ in the basis scaled by η: with |a_ij| summed to
# P = Σ_{j≠i}|a_ij|η_j and R = Σ_{j≠i}ξ_j|a_ji|, the equations for η and ξ are the two rules.
w, e, a, P, R = (MatrixSymbol(x, 1, 1) for x in "weaPR")
one = Identity(1)
reserve = Identities(
    ((2 * w * (one - a) * e - w * P - R, w + one),),
    {x: ("diagonal",) for x in "weaPR"},
    (
        Rule(P, (one - a) * e - one, "row i of (I − ⌈A⌉)η = 1"),
        Rule(R, (one - a) * w * e - one, "column i of ξᵀ(I − ⌈A⌉) = 1ᵀ, with ξ_i = Λ_i η_i"),
    ),
)


def well_posed_exactly() -> bool:
    """Λ(I − A) + (I − A)ᵀΛ ≻ 0 with Λ = diag(ξ/η) for random rational A of measure below 1."""
    rng = random.Random(4)
    for size in (1, 2, 3, 4):
        free = Matrix(size, size, lambda *_: Rational(rng.randint(-9, 9), rng.randint(1, 5)))
        shifts = [sum(map(abs, free.row(i))) - Rational(rng.randint(1, 9), 10) for i in range(size)]
        found = free - diag(*shifts)
        inner = eye(size) - Matrix(
            size, size, lambda i, j, X=found: X[i, j] if i == j else abs(X[i, j])
        )
        if any(sum(inner.row(i)) <= 0 for i in range(size)):
            return False
        weights, duals = inner.inv() * ones(size, 1), inner.T.inv() * ones(size, 1)
        metric = [duals[i] / weights[i] for i in range(size)]
        whole = conditions.wellposed(
            A=found, Lam=Matrix(metric), alpha=zeros(size, 1), beta=ones(size, 1)
        )
        if not whole.is_positive_definite:
            return False
    return True


contained = Theorem(
    name="nemon-in-lben",
    title="NEMON ⊂ LBEN",
    claim="If the weighted measure of A is below 1, Λ = diag(ξ/η) with ξ = (I − ⌈A⌉)⁻ᵀ1 and "
    "η = (I − ⌈A⌉)⁻¹1 satisfies LBEN's well-posedness condition Λ(I − A) + (I − A)ᵀΛ ≻ 0: ℓ₂ "
    "bounds and monotone solvers apply to every NEMON network.",
    source="design of sdplip; M-matrices: Berman, Plemmons (1994)",
    identities={"row i keeps Λ_i + 1": reserve},
    argument=[
        "I − ⌈A⌉ is an M-matrix, so η and ξ are positive.",
        "X = Λ(I − A) + (I − A)ᵀΛ has X_ii = 2Λ_i(1 − a_ii) and |X_ij| ≤ Λ_i|a_ij| + Λ_j|a_ji|.",
        "With Λ_jη_j = ξ_j, X_ii η_i − Σ_{j≠i}|X_ij|η_j ≥ 2Λ_i(1 − a_ii)η_i − Λ_i P − R, "
        "P = Σ_{j≠i}|a_ij|η_j = (1 − a_ii)η_i − 1, R = Σ_{j≠i}ξ_j|a_ji| = (1 − a_ii)ξ_i − 1.",
        "The right side is Λ_i + 1 > 0: X is strictly diagonally dominant in the η-scaled basis, "
        "hence positive definite by the lemma on diagonal dominance.",
    ],
    instances={"random rational A of 1 to 4 units": well_posed_exactly},
)
derivations = [derivation, contained]

if __name__ == "__main__":
    sys.exit(main(*derivations))
