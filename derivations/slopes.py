"""Residual layers for any range of slopes [a, b], such as GELU's and SiLU's, or |·|.

New here: [ARAUJO]'s layers need slopes in [0, 1]. For slopes [a, b] the identity is replaced by
H = I + kWT⁻¹Wᵀ, k = 2a/(b − a), which takes back the linear part aWᵀx of the units.

    python derivations/slopes.py
"""

import sys

from sympy import Identity, MatrixSymbol, Rational, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, lemmas, main

W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
dominance = lemmas.diagonal_dominance("T", W.T * W, q)
T = dominance.symbol


def for_slopes(name: str, a: Rational, b: Rational) -> Derivation:
    """The layer for activations with slopes in [a, b]."""
    k, step = 2 * a / (b - a), 2 / (b - a)
    return Derivation(
        name=name,
        title=f"Residual layers for slopes in [{a}, {b}]",
        claim="x ↦ x + kWT⁻¹Wᵀx − sWT⁻¹σ(Wᵀx + c) with T = diag(Σ_j |WᵀW|_ij q_j/q_i), "
        f"k = {k}, s = {step} is 1-Lipschitz for every W, every q > 0 and every σ with slopes in "
        f"[{a}, {b}].",
        source="sdplip; [0, 1] is SLL",
        condition=conditions.lipschitz,
        free=[Free(W), Free(q, "ratios")],
        definitions=[dominance],
        ansatz={
            "A": ZeroMatrix(n, n),
            "B": W.T,
            "C": -step * W * T.I,
            "D": Identity(m) + k * W * T.I * W.T,
            "Lam": step**2 / 2 * T.I,
            "alpha": a * Identity(n),
            "beta": b * Identity(n),
            "rho": 1,
        },
        argument=lambda s: (
            s.simplify().factor([-k * T.I * W.T, step * T.I], T - W.T * W).conclude()
        ),
        slopes=(float(a), float(b)),
        controls={
            "the identity left as it is": {"D": Identity(m)},
            "SLL's step": {"C": -2 * step * W * T.I},
        },
    )


derivation = for_slopes("slopes", Rational(-13, 100), Rational(113, 100))
absolute = for_slopes("slopes-absolute", Rational(-1), Rational(1))
derivations = [derivation, absolute]

if __name__ == "__main__":
    sys.exit(main(*derivations))
