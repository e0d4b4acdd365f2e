"""The general condition: from what one unit does and the Lipschitz inequality, nothing else.

python derivations/general.py
"""

import sys

from sympy import Identity, MatrixSymbol, ZeroMatrix

from sdplip import conditions
from sdplip.conditions import A, B, C, D, Lam, alpha, beta, m, n, rho
from sdplip.derive import Identities, Rule, Theorem, main, s_procedure

dx = [Identity(m), ZeroMatrix(m, n)]
dz = [ZeroMatrix(n, m), Identity(n)]
dv = [B, A]
dy = [D, C]


def form(left, weight, right):
    """The symmetric matrix of 2·(left ξ)ᵀ weight (right ξ), ξ = (Δx, Δz)."""
    return tuple(
        tuple(a.T * weight * d + c.T * weight * b for b, d in zip(left, right, strict=True))
        for a, c in zip(left, right, strict=True)
    )


def minus(left, right):
    return [x - y for x, y in zip(left, right, strict=True)]


def scaled(weight, row):
    return [weight * x for x in row]


gain = form(dx, rho / 2 * Identity(m), dx)
output = form(dy, Identity(C.shape[0]) / 2, dy)
goal = tuple(
    tuple(a - b for a, b in zip(r, s, strict=True)) for r, s in zip(gain, output, strict=True)
)
units = form(minus(dz, scaled(alpha, dv)), Lam, minus(scaled(beta, dv), dz))


def steps():
    return s_procedure(
        "the Lipschitz inequality",
        goal,
        [units],
        claim=conditions.lipschitz.claim,
        structure=conditions.lipschitz.structure,
    )


# One unit: Δz = sΔv with s = α + r(β − α), r in [0, 1], r' = 1 − r, w = β − α.
s, a, b, r, o, v, w = (MatrixSymbol(x, 1, 1) for x in ("s", "a", "b", "r", "o", "v", "w"))
scalars = {x.name: ("diagonal",) for x in (s, a, b, r, o, v, w)}
unit = Identities(
    (((s * v - a * v) * (b * v - s * v), w * w * r * o * v * v),),
    scalars,
    (Rule(s, a + r * w, "a slope"), Rule(b, a + w, "w = β − α"), Rule(o, Identity(1) - r, "1 − r")),
)
written_out = Identities(
    tuple(
        (goal[i][j] - units[i][j], conditions.lipschitz.matrix.blocks[i, j])
        for i in range(2)
        for j in range(2)
    ),
    {name: (kind,) for name, kind in conditions.lipschitz.structure.items()},
)
# Existence: for J = α + R(β − α), R in [0, 1], (I − JA)Δz = 0 means Δv = AΔz, Δz = JΔv.
X, Y = MatrixSymbol("X", n, 1), MatrixSymbol("Y", n, 1)
existence = Identities(
    (
        (
            Y.T * conditions.wellposed.matrix * Y,
            -(Y - alpha * X).T * Lam * (beta * X - Y) - (beta * X - Y).T * Lam * (Y - alpha * X),
        ),
    ),
    {name: ("diagonal",) for name in ("Lam", "alpha", "beta")},
    (Rule(A * Y, X, "v = Az"),),
)

derivation = Theorem(
    name="general",
    title="The general condition",
    claim="If M(Λ, ρ) ⪰ 0 with a diagonal Λ ≥ 0, any two solutions of z = σ(Az + Bx + b), "
    "y = Cz + Dx + c with unit slopes in [α, β] satisfy ‖Δy‖₂² ≤ ρ‖Δx‖₂².",
    source="S-procedure; [LIPSDP] Theorem 2, [LBEN] Theorems 1 and 2",
    identities={
        "one unit's constraint is ≥ 0": unit,
        "the condition, written out": written_out,
        "the well-posedness block": existence,
    },
    argument=[
        "A unit of slope range [α, β] has Δz = sΔv with s = α + r(β − α), r ∈ [0, 1], so "
        "(Δz − αΔv)(βΔv − Δz) = (β − α)² r(1 − r)Δv² ≥ 0.",
        "With weights λ ≥ 0 these add up to 2(Δz − αΔv)ᵀΛ(βΔv − Δz) ≥ 0 for Δv = AΔz + BΔx and a "
        "diagonal Λ; for any other Λ the sum need not be ≥ 0.",
        "S-procedure: if ρ‖Δx‖² − ‖Δy‖² minus that form is ⪰ 0 as a quadratic form in (Δx, Δz), "
        "the inequality ‖Δy‖² ≤ ρ‖Δx‖² holds for every two solutions. That matrix is M.",
        "If the block of M without CᵀC is ≻ 0, I − JA is invertible for every diagonal J in "
        "[α, β]: (I − JA)y = 0 gives y = Jv with v = Ay, for which yᵀMy = −2(y − αv)ᵀΛ(βv − y) "
        "≤ 0. Hence the equilibrium exists and is unique.",
    ],
    statement=steps,
    gives=conditions.lipschitz,
)

if __name__ == "__main__":
    sys.exit(main(derivation))
