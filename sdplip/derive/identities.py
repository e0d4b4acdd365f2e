"""What each lemma says, and the identities that prove it for every size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy import Identity, MatrixSymbol
from sympy.matrices.expressions import MatrixExpr

from .algebra import Algebra, Rule
from .trees import tree
from .words import Words


@dataclass(frozen=True)
class Identities:
    """Equations left = right in symbols with these facts and rules."""

    pairs: tuple[tuple[MatrixExpr, MatrixExpr], ...]
    facts: Mapping[str, tuple[str, ...]]
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Lemma:
    """A statement, its proof in words, and the identities that carry the proof."""

    name: str
    statement: str
    proof: str
    source: str
    identities: Callable[[], Identities]


_n, _m, _k = sp.symbols("n m k", integer=True, positive=True)


def _no_identity() -> Identities:
    return Identities((), {})


def _gram() -> Identities:
    X, v = MatrixSymbol("X", _m, _n), MatrixSymbol("v", _n, 1)
    return Identities(((v.T * (X.T * X) * v, (X * v).T * (X * v)),), {})


def _numbers(*names: str) -> list[MatrixSymbol]:
    return [MatrixSymbol(name, 1, 1) for name in names]


def _dominance() -> Identities:
    """|s|(r²x² + y²/r²) − 2s·x·y = |s|(r·x − sgn(s)·y/r)², with s = a·sgn, a = |s|, sgn² = 1."""
    a, sgn, r, x, y, s = _numbers("a", "sgn", "r", "x", "y", "s")
    facts = {z.name: ("diagonal", "invertible") for z in (a, sgn, r, x, y, s)}
    rules = (
        Rule(s, a * sgn, "s = |s|·sgn(s)"),
        Rule(sgn * sgn, Identity(1), "sgn(s)² = 1"),
    )
    left = a * (r * r * x * x + r.I * r.I * y * y) - 2 * s * x * y
    # r² stands for q_i / q_j read off the pair, so that T_i collects |s_ij| q_j / q_i.
    right = a * (r * x - sgn * r.I * y) * (r * x - sgn * r.I * y)
    return Identities(((left, right),), facts, rules)


def _cayley_symbols() -> tuple[Any, ...]:
    A, Y = MatrixSymbol("A", _n, _n), MatrixSymbol("Y", _n, _n)
    V = MatrixSymbol("V", _k, _n)
    return A, Y, V


def _orthogonality() -> Identities:
    """[2Y − I; −2VY] has orthonormal columns for Y = (I + A)⁻¹, A + Aᵀ = 2VᵀV."""
    A, Y, V = _cayley_symbols()
    unit = Identity(_n)
    rules = (
        Rule(A * Y, unit - Y, "Y = (I + A)⁻¹"),
        Rule(Y * A, unit - Y, "Y = (I + A)⁻¹"),
        Rule(V.T * V, (A + A.T) / 2, "A = U − Uᵀ + VᵀV"),
    )
    top, bottom = 2 * Y - unit, -2 * V * Y
    P = MatrixSymbol("P", _n, _n)
    projector = (Rule(P * P, P, "P = QᵀQ with QQᵀ = I"),)
    return Identities(
        (
            (top.T * top + bottom.T * bottom, unit),
            ((unit - P).T * (unit - P), unit - P),
        ),
        {"P": ("symmetric",)},
        rules + projector,
    )


def _loewner() -> Identities:
    """R² − S² = ½((R − S)(R + S) + (R + S)(R − S))."""
    R, S = MatrixSymbol("R", _n, _n), MatrixSymbol("S", _n, _n)
    right = ((R - S) * (R + S) + (R + S) * (R - S)) / 2
    return Identities(((R * R - S * S, right),), {"R": ("symmetric",), "S": ("symmetric",)})


def _inverse() -> Identities:
    E, Y, v = MatrixSymbol("E", _n, _n), MatrixSymbol("Y", _n, _n), MatrixSymbol("v", _n, 1)
    rules = (Rule(E * Y, Identity(_n), "Y = E⁻¹"), Rule(Y * E, Identity(_n), "Y = E⁻¹"))
    facts = {"E": ("symmetric",), "Y": ("symmetric",)}
    return Identities(((v.T * Y * v, (Y * v).T * E * (Y * v)),), facts, rules)


def _metzler() -> Identities:
    """(1 − s·a) − s(1 − a) = 1 − s: a slope s in [0, 1] keeps at least s times the reserve."""
    s, a = _numbers("s", "a")
    one = Identity(1)
    facts = {"s": ("diagonal",), "a": ("diagonal",)}
    return Identities((((one - s * a) - s * (one - a), one - s),), facts)


LEMMAS: dict[str, Lemma] = {
    lemma.name: lemma
    for lemma in (
        Lemma(
            "Gram matrix",
            "XᵀX ⪰ 0.",
            "vᵀXᵀXv = ‖Xv‖² for every v.",
            "",
            _gram,
        ),
        Lemma(
            "diagonal dominance",
            "T − S ⪰ 0 for symmetric S, q > 0 and T = diag(Σ_j |S_ij| q_j / q_i).",
            "vᵀ(T − S)v = Σ_i (|S_ii| − S_ii)v_i² + Σ_{i<j} [|S_ij|(v_i² q_j/q_i + v_j² q_i/q_j) "
            "− 2S_ij v_i v_j]; the first terms are ≥ 0, each bracket is |S_ij| times a square.",
            "Gershgorin (1931); with q: [ARAUJO] Theorem 3",
            _dominance,
        ),
        Lemma(
            "spectral norm",
            "‖W‖₂² I − WᵀW ⪰ 0.",
            "vᵀWᵀWv = ‖Wv‖² ≤ ‖W‖₂²‖v‖²: the definition of the norm.",
            "",
            _no_identity,
        ),
        Lemma(
            "orthogonality",
            "Q = [2Y − I; −2VY] with Y = (I + A)⁻¹, A = U − Uᵀ + VᵀV has QᵀQ = I; and "
            "I − QᵀQ ⪰ 0 for Q and for Qᵀ alike.",
            "I + A is invertible since its symmetric part I + VᵀV is positive definite. With "
            "A + Aᵀ = 2VᵀV the blocks' Gram matrices add up to I. Where instead QQᵀ = I, P = QᵀQ "
            "is a projector and I − P = (I − P)ᵀ(I − P).",
            "Cayley (1846); Trockman, Kolter (ICLR 2021); [LBDN]",
            _orthogonality,
        ),
        Lemma(
            "Gram power",
            "T − S ⪰ 0 for S ⪰ 0, p a power of two and T = diag((Σ_j |Sᵖ|_ij q_j / q_i)^{1/p}).",
            "Diagonal dominance gives Tᵖ ⪰ Sᵖ. R² ⪰ S² implies R ⪰ S for R ≻ 0, S ⪰ 0 (Löwner–"
            "Heinz): for a unit eigenvector v of R − S with eigenvalue λ, "
            "0 ≤ vᵀ(R² − S²)v = λ vᵀ(R + S)v and vᵀ(R + S)v > 0. Repeat log₂ p times.",
            "Löwner (1934), Heinz (1951)",
            _loewner,
        ),
        Lemma(
            "block diagonal dominance",
            "T − S ⪰ 0 for symmetric S in blocks and T = diag(Σ_j ‖S_ij‖₂ · I).",
            "vᵀSv ≤ Σ_ij ‖S_ij‖‖v_i‖‖v_j‖, and for the non-negative numbers ‖v_i‖ this is diagonal "
            "dominance.",
            "Feingold, Varga (1962)",
            _dominance,
        ),
        Lemma(
            "root",
            "R = T^{1/2} has R² = T for a positive diagonal T.",
            "Entry by entry.",
            "",
            _no_identity,
        ),
        Lemma(
            "inverse",
            "Y = E⁻¹ is symmetric and positive definite for E = cI + Σ FᵀF, c > 0.",
            "vᵀEv ≥ c‖v‖² makes E invertible, and vᵀYv = (Yv)ᵀE(Yv) ≥ 0.",
            "",
            _inverse,
        ),
        Lemma(
            "stacked orthogonality",
            "I − PᵀP − QᵀQ ⪰ 0 for [P; Q] = cayley([X; Y]).",
            "It is orthogonality of the stacked matrix, whose Gram matrix is PᵀP + QᵀQ.",
            "[LBDN]",
            _orthogonality,
        ),
        Lemma(
            "row sums",
            "s = |X|w + δ1 > 0 for w ≥ 0 and δ > 0.",
            "Entry by entry.",
            "",
            _no_identity,
        ),
        Lemma(
            "M-matrix",
            "ζ = (I − ⌈A⌉)⁻¹r > 0 for r > 0, where cq − ⌈A⌉q ≥ 0 with c < 1 and q > 0.",
            "(I − ⌈A⌉)q ≥ (1 − c)q > 0 and the off-diagonal entries of I − ⌈A⌉ are ≤ 0, so it is "
            "an M-matrix: its inverse is ≥ 0 and has no zero row.",
            "Berman, Plemmons (1994), Theorem 6.2.3",
            _no_identity,
        ),
        Lemma(
            "Metzler rows",
            "(I − ⌈A⌉)η ≥ |B|1 with η > 0, (I − ⌈A⌉)η > 0 and slopes in [0, 1] give exactly one "
            "solution of z = σ(Az + Bx + b) for every x, and |Δz| ≤ η‖Δx‖∞.",
            "Δz_i = s(a_ii Δz_i + Σ_{j≠i} a_ij Δz_j + (BΔx)_i) with s in [0, 1]. Let r be the "
            "largest |Δz_i|/η_i, at i: (1 − s·a_ii)rη_i ≤ s(Σ_{j≠i}|a_ij| rη_j + "
            "(|B|1)_i‖Δx‖∞), and 1 − s·a_ii ≥ s(1 − a_ii), hence r ≤ ‖Δx‖∞ or s = 0. Existence: "
            "the same estimate makes I − JA invertible for every diagonal J in [0, 1], so the "
            "piecewise smooth map is a homeomorphism.",
            "[NEMON] Theorems 1 and 3",
            _metzler,
        ),
    )
}


def verify(name: str) -> tuple[bool, bool]:
    """Whether the lemma's identities hold, by SymPy and by the independent words."""
    return both_agree(LEMMAS[name].identities())


def both_agree(found: Identities) -> tuple[bool, bool]:
    """Whether the identities hold for every size, by SymPy and by the independent words."""
    algebra = Algebra(found.facts, found.rules)
    first = all(algebra.equal(left, right) for left, right in found.pairs)
    words = Words(
        {k: list(v) for k, v in found.facts.items()},
        [[tree(r.left), tree(r.right)] for r in found.rules],
    )
    second = all(
        words.zero(tree(left), ["mul", ["num", "-1"], tree(right)]) for left, right in found.pairs
    )
    return first, second
