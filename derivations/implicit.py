"""Implicit deep learning ⊂ NEMON: ‖A‖_∞ ≤ c bounds the matrix measure as well.

python derivations/implicit.py
"""

import random
import sys

from sympy import Matrix, MatrixSymbol, Rational, diag, ones

from sdplip import conditions
from sdplip.derive import Identities, Rule, Theorem, main

# One row: the diagonal entry a, its absolute value q, P = Σ_{j≠i}|a_ij|, t the entry of T.
a, q, P, c, t = (MatrixSymbol(x, 1, 1) for x in "aqPct")
scalars = {x: ("diagonal",) for x in "aqPct"}
measured = Identities(((c - a - P, (c - q - P) + (q - a)),), scalars)
chosen = Identities(
    ((c + t + t - P, a),),
    scalars,
    (Rule(t + t, a - c + P, "t = (a − c + P) / 2, which is not positive: −|t| = t"),),
)


def _draw(rng: random.Random, size: int) -> tuple[Matrix, Rational]:
    """A random rational matrix and its ‖·‖_∞, scaled to lie below 1."""
    free = Matrix(size, size, lambda *_: Rational(rng.randint(-9, 9), rng.randint(1, 5)))
    norm = max(sum(map(abs, free.row(i))) for i in range(size))
    bound = Rational(rng.randint(1, 99), 100)
    return free * bound / max(norm, bound), bound


def measured_exactly() -> bool:
    """The measure of random rational A with ‖A‖_∞ ≤ c, by the package's condition."""
    rng = random.Random(5)
    for size in (1, 2, 3, 4):
        A, bound = _draw(rng, size)
        row = conditions.measure(A=A, eta=ones(size, 1), c=bound)
        if any(entry < 0 for entry in row):
            return False
    return True


def parametrised_exactly() -> bool:
    """NEMON's cI + T − [|T|1] with this T is A again."""
    rng = random.Random(6)
    for size in (1, 2, 3, 4):
        A, bound = _draw(rng, size)
        off = A - diag(*A.diagonal())
        sums = [sum(map(abs, off.row(i))) for i in range(size)]
        T = off + diag(*((A[i, i] - bound + sums[i]) / 2 for i in range(size)))
        shift = diag(*(sum(map(abs, T.row(i))) for i in range(size)))
        if bound * diag(*[1] * size) + T - shift != A:
            return False
    return True


derivation = Theorem(
    name="implicit-in-nemon",
    title="Implicit deep learning ⊂ NEMON",
    claim="Every A with ‖A‖_∞ ≤ c has μ_∞(A) ≤ c, with weights η = 1, and is cI + T − [|T|1] for "
    "some T: for c < 1 such equilibrium networks are well-posed, and NEMON's bounds hold.",
    source="El Ghaoui et al., Implicit deep learning (2021), for the norm; [NEMON] for the measure",
    identities={"a row's slack": measured, "the diagonal of T": chosen},
    argument=[
        "In row i let q = |a_ii| and P = Σ_{j≠i}|a_ij|; ‖A‖_∞ ≤ c says q + P ≤ c.",
        "c − (a_ii + P) = (c − q − P) + (q − a_ii) is a sum of two numbers that are not negative.",
        "With T_ij = a_ij off the diagonal and t = T_ii = (a_ii − c + P)/2 ≤ 0, the diagonal of "
        "cI + T − [|T|1] is c + t − |t| − P = c + 2t − P = a_ii.",
    ],
    instances={
        "random rational A of 1 to 4 units": measured_exactly,
        "they are NEMON's": parametrised_exactly,
    },
)
derivations = [derivation]

if __name__ == "__main__":
    sys.exit(main(*derivations))
