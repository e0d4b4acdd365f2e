"""The conditions: one for ℓ₂, one for ℓ∞; every named special case is a substitution into them.

The system is z = σ(Az + Bx + b), y = Cz + Dx + c with x ∈ R^m, z ∈ R^n, y ∈ R^p and unit i slope-
restricted in [α_i, β_i]. Sources: [ARAUJO] Araujo et al., ICLR 2023; [LIPSDP] Fazlyab et al.,
NeurIPS 2019; [LBEN] Revay, Wang, Manchester, arXiv 2010.01732; [NEMON] Jafarpour et al.,
NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import sympy as sp
from sympy import BlockMatrix, Identity, MatrixSymbol, ZeroMatrix

from .errors import InvalidInput
from .lmi import LMI, Absolute, Metzler

m, n, p = sp.symbols("m n p", integer=True, positive=True)
rho, gamma, c = sp.symbols("rho gamma c", real=True)
A, B = MatrixSymbol("A", n, n), MatrixSymbol("B", n, m)
C, D = MatrixSymbol("C", p, n), MatrixSymbol("D", p, m)
Lam, alpha, beta = (MatrixSymbol(name, n, n) for name in ("Lam", "alpha", "beta"))
eta = MatrixSymbol("eta", n, 1)

_input = BlockMatrix([[Identity(m), ZeroMatrix(m, n)], [ZeroMatrix(n, m), ZeroMatrix(n, n)]])
_output = BlockMatrix([[D, C]])
_units = BlockMatrix([[B, A], [ZeroMatrix(n, m), Identity(n)]])
_slopes = BlockMatrix(
    [[-2 * alpha * beta * Lam, (alpha + beta) * Lam], [(alpha + beta) * Lam, -2 * Lam]]
)

lipschitz = LMI(
    name="lipschitz",
    matrix=sp.block_collapse(
        rho * _input - _output.T * _output - _units.T * _slopes * _units
    ).xreplace({X.T: X for X in (Lam, alpha, beta)}),
    structure={"Lam": "diagonal", "alpha": "diagonal", "beta": "diagonal"},
    signed=("Lam",),
    claim="M ⪰ 0 with Λ ≥ 0 diagonal: ‖Δy‖₂ ≤ √ρ ‖Δx‖₂ for every two solutions.",
    source="S-procedure on 2(Δz − αΔv)ᵀΛ(βΔv − Δz) ≥ 0; [LIPSDP] Theorem 2, [LBEN] Theorem 2",
)
"""The general ℓ₂ condition, affine in (Λ, ρ)."""

wellposed = (
    lipschitz.substitute(C=ZeroMatrix(p, n))
    .block(1)
    .named(
        "wellposed",
        "M ≻ 0 with Λ > 0 diagonal: z = σ(Az + v) has exactly one solution for every v.",
        "[LBEN] Theorem 1; for general slopes: every I − JA with J in [α, β] is invertible",
    )
)
"""Existence and uniqueness of the equilibrium: the (2, 2) block without CᵀC."""

linear = (
    lipschitz.substitute(B=ZeroMatrix(n, m))
    .block(0)
    .named("linear", "M ⪰ 0: x ↦ Dx is √ρ-Lipschitz from ℓ₂ to ℓ₂.", "DᵀD ⪯ ρI")
)


def unit_slopes(units: sp.Expr) -> dict[str, sp.MatrixExpr]:
    """alpha and beta for slopes in [0, 1]."""
    return {"alpha": ZeroMatrix(units, units), "beta": Identity(units)}


_H, _G, _W = MatrixSymbol("H", p, m), MatrixSymbol("G", p, n), MatrixSymbol("W", m, n)
_unit_slopes = unit_slopes(n)

residual = lipschitz.substitute(A=ZeroMatrix(n, n), B=_W.T, C=_G, D=_H, **_unit_slopes).named(
    "residual",
    "M ⪰ 0 with Λ ≥ 0 diagonal, slopes in [0, 1]: x ↦ Hx + Gσ(Wᵀx + b) is √ρ-Lipschitz.",
    "[ARAUJO] Theorem 3",
)

equilibrium = lipschitz.substitute(**_unit_slopes).named(
    "equilibrium",
    "M ⪰ 0 with Λ > 0 diagonal, slopes in [0, 1]: the equilibrium network is √ρ-Lipschitz.",
    "[LBEN] Theorem 2",
)


@cache
def feedforward(depth: int) -> LMI:
    """x ↦ W_L σ(… σ(W_0 x + b_0) …) with `depth` = L ≥ 1 hidden layers.

    Symbols W0 … WL, Lam1 … LamL (diagonal), rho and scalar slopes alpha, beta. [LIPSDP] Theorem 2
    with diagonal multipliers ('LipSDP-Neuron'), the only valid ones for unrelated units.

    Raises:
        InvalidInput: depth below 1.
    """
    if depth < 1:
        raise InvalidInput(
            f"feedforward: depth = {depth}, but at least one hidden layer is needed."
        )
    sizes = [sp.Symbol(f"n{k}", integer=True, positive=True) for k in range(depth + 2)]
    weights = [MatrixSymbol(f"W{k}", sizes[k + 1], sizes[k]) for k in range(depth + 1)]
    multipliers = [MatrixSymbol(f"Lam{k}", sizes[k], sizes[k]) for k in range(1, depth + 1)]
    hidden = sizes[1:-1]
    total = sum(hidden, sp.Integer(0))
    low, high = sp.symbols("alpha beta", real=True)

    def grid(entry: Callable[[int, int], sp.MatrixExpr]) -> sp.MatrixExpr:
        rows = [[entry(i, j) for j in range(depth)] for i in range(depth)]
        return rows[0][0] if depth == 1 else BlockMatrix(rows)

    def zero(i: int, j: int) -> ZeroMatrix:
        return ZeroMatrix(hidden[i], hidden[j])

    first = [[weights[0]]] + [[ZeroMatrix(h, sizes[0])] for h in hidden[1:]]
    last = [[*(ZeroMatrix(sizes[-1], h) for h in hidden[:-1]), weights[-1]]]
    tall = lipschitz.substitute(
        A=grid(lambda i, j: weights[i] if j == i - 1 else zero(i, j)),
        B=weights[0] if depth == 1 else BlockMatrix(first),
        C=weights[-1] if depth == 1 else BlockMatrix(last),
        D=ZeroMatrix(sizes[-1], sizes[0]),
        Lam=grid(lambda i, j: multipliers[i] if i == j else zero(i, j)),
        alpha=low * Identity(total),
        beta=high * Identity(total),
        structure={f"Lam{k}": "diagonal" for k in range(1, depth + 1)},
    )
    return replace(tall, signed=tuple(f"Lam{k}" for k in range(1, depth + 1))).named(
        f"feedforward({depth})",
        "M ⪰ 0 with Λ ≥ 0 diagonal: the multilayer perceptron is √ρ-Lipschitz.",
        "[LIPSDP] Theorem 2, LipSDP-Neuron",
    )


def _rows(slope: MatrixSymbol) -> sp.MatrixExpr:
    reach = Absolute(slope * B) * sp.OneMatrix(m, 1)
    return c * eta - Metzler(slope * A) * eta - reach


linf = LMI(
    name="linf",
    matrix=BlockMatrix(
        [
            [_rows(alpha)],
            [_rows(beta)],
            [gamma * sp.OneMatrix(p, 1) - Absolute(C) * eta - Absolute(D) * sp.OneMatrix(m, 1)],
        ]
    ),
    structure={"alpha": "diagonal", "beta": "diagonal", "eta": "vector"},
    cone="nonnegative",
    signed=("eta",),
    claim=(
        "All entries ≥ 0 at c = 1 with η > 0, the first two blocks > 0: well-posed, and "
        "‖Δy‖∞ ≤ γ ‖Δx‖∞ with |Δz| ≤ η ‖Δx‖∞."
    ),
    source="[NEMON] Theorem 3 for slopes [0, 1]; general slopes: every vertex J of [α, β]",
)
"""The ℓ∞ condition, a linear program in (η, γ) at c = 1."""

measure = (
    linf.substitute(B=ZeroMatrix(n, m), **_unit_slopes)
    .block(1)
    .named(
        "measure",
        "All entries ≥ 0 with η > 0: the weighted matrix measure μ_{∞,[η]⁻¹}(A) is at most c; "
        "with c < 1 and slopes in [0, 1], z = σ(Az + v) has exactly one solution.",
        "[NEMON] Theorem 1",
    )
)
"""The matrix-measure condition (cI − ⌈A⌉)η ≥ 0."""
