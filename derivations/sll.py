"""SLL: x ↦ x − 2WT⁻¹σ(Wᵀx + b) is 1-Lipschitz where T = diag(Σ_j |WᵀW|_ij q_j/q_i).

Substitutes the ansatz H = I, G = −2WT⁻¹, Λ = 2T⁻¹ into [ARAUJO] Theorem 3 for general sizes, shows
what is left, and checks the identity M = Fᵀ(T − WᵀW)F, F = [0, 2T⁻¹], exactly on rational matrices.
That T − WᵀW ⪰ 0 is Gershgorin's theorem in the q-scaled basis. Exit code 0 only if all holds.

    python derivations/sll.py
"""

import random
import sys

import sympy as sp

from sdplip import conditions
from sdplip.conditions import m, n

W, T = sp.MatrixSymbol("W", m, n), sp.MatrixSymbol("T", n, n)


def ansatz():
    """The condition with the layer's closed form in it, T still free."""
    square = conditions.residual.substitute(H=sp.Identity(m), rho=sp.Integer(1))
    return square.substitute(G=-2 * W * T.I, Lam=2 * T.I, structure={"T": "diagonal"})


def holds_exactly(rows: int, columns: int, seed: int) -> bool:
    """M = Fᵀ(T − WᵀW)F and T − WᵀW ⪰ 0 for one random rational W and q."""
    rng = random.Random(seed)
    draw = sp.Matrix(rows, columns, lambda *_: sp.Rational(rng.randint(-9, 9), rng.randint(1, 9)))
    q = [sp.Rational(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(columns)]
    gram = draw.T * draw
    t = [
        sum(abs(gram[i, j]) * q[j] / q[i] for j in range(columns)) + sp.Rational(1, 10**6)
        for i in range(columns)
    ]
    left = ansatz()(W=draw, T=sp.Matrix(t))
    gap = sp.diag(*t) - gram
    F = sp.Matrix.hstack(sp.zeros(columns, rows), 2 * sp.diag(*t).inv())
    return left == F.T * gap * F and bool(gap.is_positive_semidefinite)


def main() -> int:
    condition = ansatz()
    print(f"{conditions.residual.source}:")
    sp.pprint(conditions.residual.matrix)
    print("\nwith H = I, G = −2WT⁻¹, Λ = 2T⁻¹, ρ = 1:")
    sp.pprint(condition.matrix)
    sizes = [(1, 1), (2, 3), (3, 2), (3, 3)]
    results = [holds_exactly(rows, columns, seed) for seed, (rows, columns) in enumerate(sizes)]
    print(f"\nM = Fᵀ(T − WᵀW)F with F = [0, 2T⁻¹], exactly, at sizes {sizes}: {all(results)}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
