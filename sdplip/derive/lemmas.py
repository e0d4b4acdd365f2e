"""The lemmas that end a proof, each with the identities that prove it for every size.

A lemma is used through the definition of a symbol: `diagonal_dominance("T", W.T * W, q)` defines T
and lets a derivation conclude T − WᵀW ⪰ 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sympy as sp
from sympy import Identity, MatrixSymbol
from sympy.matrices.expressions import MatrixExpr

from ..errors import InvalidInput
from ..lmi import Absolute
from .algebra import Algebra, Letter, Rule
from .tex import tex
from .trees import tree
from .words import Words


UNPROVED = "unproved"


@dataclass(frozen=True)
class Definition:
    """A symbol of the ansatz that stands for something, and what follows from that.

    Args:
        symbol: the new symbol.
        lemma: key of `LEMMAS`, or "" for a plain definition.
        arguments: what it is computed from.
        value: the same as an expression, where there is one.
        tex: how reports write the right-hand side.
        facts: of `algebra.FACTS`, what the lemma says of the symbol.
        concludes: each ⪰ 0 by the lemma.
        rules: equations that hold by the lemma.
        options: what else the lemma was given, such as the power.
        exact: from exact arguments an exact value that satisfies the lemma's hypothesis; where the
            closed form is irrational, a rational one beyond it.
        code: the function of `sdplip.layers.closed_forms` that computes it, called with the
            arguments; "" evaluates `value`.
    """

    symbol: MatrixSymbol
    lemma: str
    arguments: tuple[MatrixExpr, ...]
    tex: str
    value: MatrixExpr | None = None
    facts: tuple[str, ...] = ()
    concludes: tuple[MatrixExpr, ...] = ()
    rules: tuple[Rule, ...] = ()
    exact: Callable[..., sp.Matrix] | None = None
    code: str = ""
    options: tuple[Any, ...] = ()

    @property
    def diagonal(self) -> bool:
        return "diagonal" in self.facts


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
    """(1 − s·a) − s(1 − a) = 1 − s: a slope s in [0, 1] keeps at least s times the row's reserve."""
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
            "A + Aᵀ = 2VᵀV the blocks' Gram matrices add up to I. Where instead QQᵀ = I, P = QᵀQ is "
            "a projector and I − P = (I − P)ᵀ(I − P).",
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
            "(I − ⌈A⌉)q ≥ (1 − c)q > 0 and the off-diagonal entries of I − ⌈A⌉ are ≤ 0, so it is an "
            "M-matrix: its inverse is ≥ 0 and has no zero row.",
            "Berman, Plemmons (1994), Theorem 6.2.3",
            _no_identity,
        ),
        Lemma(
            "Metzler rows",
            "(I − ⌈A⌉)η ≥ |B|1 with η > 0, (I − ⌈A⌉)η > 0 and slopes in [0, 1] give exactly one "
            "solution of z = σ(Az + Bx + b) for every x, and |Δz| ≤ η‖Δx‖∞.",
            "Δz_i = s(a_ii Δz_i + Σ_{j≠i} a_ij Δz_j + (BΔx)_i) with s in [0, 1]. Let r be the "
            "largest |Δz_i|/η_i, at i: (1 − s·a_ii)rη_i ≤ s(Σ_{j≠i}|a_ij| rη_j + (|B|1)_i‖Δx‖∞), and "
            "1 − s·a_ii ≥ s(1 − a_ii), hence r ≤ ‖Δx‖∞ or s = 0. Existence: the same estimate makes "
            "I − JA invertible for every diagonal J in [0, 1], so the piecewise smooth map is a "
            "homeomorphism.",
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


# --- definitions by lemma ---


def diagonal_dominance(name: str, S: MatrixExpr, q: MatrixSymbol | None = None) -> Definition:
    """T = diag(Σ_j |S_ij| q_j / q_i), hence T − S ⪰ 0.

    Args:
        name: of the new diagonal symbol.
        S: symmetric (n, n). q: (n, 1), a free symbol of domain "ratios" or "weights"; None is all
            ones.
    """
    n = _square("diagonal_dominance", S)
    T = MatrixSymbol(name, n, n)
    if q is None:
        value = sp.DiagMatrix(Absolute(S) * sp.OneMatrix(n, 1))
        arguments: tuple[MatrixExpr, ...] = (S,)
        shown = rf"\operatorname{{diag}}\bigl(\textstyle\sum_j |{tex(S)}|_{{ij}}\bigr)"
    else:
        value = sp.DiagMatrix(Absolute(S) * q) * sp.DiagMatrix(q).I
        arguments = (S, q)
        shown = rf"\operatorname{{diag}}\bigl(\textstyle\sum_j |{tex(S)}|_{{ij}}\,q_j/q_i\bigr)"
    return Definition(
        T,
        "diagonal dominance",
        arguments,
        shown,
        value,
        ("diagonal", "positive"),
        (T - S,),
        exact=_exact_dominance,
        code="dominant",
    )


def spectral(name: str, W: MatrixExpr) -> Definition:
    """T = ‖W‖₂² I, hence T − WᵀW ⪰ 0, for W (m, n)."""
    n = W.shape[1]
    T = MatrixSymbol(name, n, n)
    return Definition(
        T,
        "spectral norm",
        (W,),
        rf"\|{tex(W)}\|_2^2\, I",
        None,
        ("diagonal", "positive"),
        (T - W.T * W,),
        exact=_exact_spectral,
        code="spectral",
    )


def gram_power(
    name: str, S: MatrixExpr, q: MatrixSymbol | None = None, power: int = 2
) -> Definition:
    """T = diag((Σ_j |Sᵖ|_ij q_j / q_i)^{1/p}), hence T − S ⪰ 0, for S = XᵀX and p = 2, 4, 8, …"""
    n = _square("gram_power", S)
    if power < 1 or power & (power - 1):
        raise InvalidInput(f"gram_power: power = {power}, but must be a power of two.")
    if squares_of(S, Algebra()) is None:
        raise InvalidInput(f"gram_power: {S} is not seen to be ⪰ 0; give a Gram matrix XᵀX.")
    T = MatrixSymbol(name, n, n)
    scaled = r"\,q_j/q_i" if q is not None else ""
    return Definition(
        T,
        "Gram power",
        (S,) if q is None else (S, q),
        rf"\operatorname{{diag}}\bigl((\textstyle\sum_j |({tex(S)})^{{{power}}}|_{{ij}}"
        rf"{scaled})^{{1/{power}}}\bigr)",
        None,
        ("diagonal", "positive"),
        (T - S,),
        exact=lambda *values: _exact_power(*values, power=power),
        code="gram_power",
        options=(power,),
    )


def block_dominance(name: str, S: MatrixExpr, blocks: int) -> Definition:
    """T = diag(Σ_j ‖S_ij‖₂ · I) over blocks of `blocks` rows each, hence T − S ⪰ 0.

    Args:
        S: symmetric (n, n), n a multiple of `blocks`.
    """
    n = _square("block_dominance", S)
    if blocks < 1:
        raise InvalidInput(f"block_dominance: blocks = {blocks}, but must be at least 1.")
    T = MatrixSymbol(name, n, n)
    return Definition(
        T,
        "block diagonal dominance",
        (S,),
        rf"\operatorname{{diag}}\bigl(\textstyle\sum_j \|{tex(S)}\|_{{[ij]}} I\bigr)",
        None,
        ("diagonal", "positive"),
        (T - S,),
        exact=lambda *values: _exact_blocks(*values, size=blocks),
        code="block_dominant",
        options=(blocks,),
    )


def orthogonal(
    name: str, X: MatrixSymbol, shape: Literal["any", "tall", "lying"] = "any"
) -> Definition:
    """Q (p, m) semi-orthogonal by the Cayley map of the free X (p, m), hence I − QᵀQ ⪰ 0.

    Args:
        shape: "tall" for p ≥ m, which gives QᵀQ = I besides, "lying" for p ≤ m, which gives
            QQᵀ = I; the layer then refuses other shapes.
    """
    p, m = X.shape
    Q = MatrixSymbol(name, p, m)
    rules = {
        "any": (),
        "tall": (Rule(Q.T * Q, Identity(m), "orthogonality"),),
        "lying": (Rule(Q * Q.T, Identity(p), "orthogonality"),),
    }
    if shape not in rules:
        raise InvalidInput(f"orthogonal: shape = {shape!r}, but must be any, tall or lying.")
    return Definition(
        Q,
        "orthogonality",
        (X,),
        rf"\operatorname{{cayley}}({tex(X)})",
        None,
        (),
        (Identity(m) - Q.T * Q,),
        rules[shape],
        exact=_exact_cayley,
        code="cayley" if shape == "any" else f"cayley_{shape}",
        options=(shape,),
    )


def root(name: str, T: Definition) -> Definition:
    """R = T^{1/2} for a positive diagonal T."""
    if not {"diagonal", "positive"} <= set(T.facts):
        raise InvalidInput(f"root: {T.symbol} is not known to be diagonal and positive.")
    R = MatrixSymbol(name, *T.symbol.shape)
    return Definition(
        R,
        "root",
        (T.symbol,),
        rf"{tex(T.symbol)}^{{1/2}}",
        None,
        ("diagonal", "positive"),
        (),
        (Rule(T.symbol, R * R, f"{name} = {T.symbol}^½"),),
        exact=lambda T: T.applyfunc(sp.sqrt),
        code="torch.sqrt",
    )


def inverse(name: str, E: MatrixExpr) -> Definition:
    """Y = E⁻¹ for E = cI + squares, c > 0, hence Y ≻ 0. One word of E must be longer than others."""
    n = _square("inverse", E)
    algebra = Algebra()
    terms = algebra.terms(E)
    if squares_of(E, algebra) is None or () not in terms:
        raise InvalidInput(f"inverse: {E} is not seen to be positive definite (cI plus squares).")
    *others, lead = sorted(terms, key=len)
    if others and len(others[-1]) == len(lead):
        raise InvalidInput(f"inverse: {E} has two longest products; name one of them first.")
    Y = MatrixSymbol(name, n, n)
    first = algebra.assemble({lead: sp.Integer(1)}, E.shape)
    rest = algebra.assemble({w: terms[w] for w in others}, E.shape)
    rules = tuple(
        Rule(left, (Identity(n) - right) / terms[lead], f"{name} is an inverse")
        for left, right in ((first * Y, rest * Y), (Y * first, Y * rest))
    )
    return Definition(
        Y,
        "inverse",
        (E,),
        rf"({tex(E)})^{{-1}}",
        E.I,
        ("symmetric", "positive"),
        (Y,),
        rules,
        exact=lambda E: E.inv(),
        code="torch.linalg.inv",
    )


def m_matrix(
    name: str, A: MatrixExpr, right: MatrixExpr, q: MatrixSymbol, c: sp.Symbol
) -> Definition:
    """ζ = (I − ⌈A⌉)⁻¹·right > 0 for right > 0, where cq − ⌈A⌉q ≥ 0 with c < 1 and q > 0."""
    return Definition(
        MatrixSymbol(name, A.shape[0], 1),
        "M-matrix",
        (A, right, q, c),
        rf"(I - \lceil {tex(A)} \rceil)^{{-1}} ({tex(right)})",
        None,
        ("positive",),
        exact=lambda A, right, q, c: (sp.eye(A.rows) - _metzler_part(A)).inv() * right,
        code="metzler_solve",
    )


def row_sums(name: str, X: MatrixExpr, weights: MatrixExpr, floor: sp.Symbol) -> Definition:
    """s_i = Σ_j |X_ij| w_j + floor > 0 for w ≥ 0 and floor > 0."""
    value = Absolute(X) * weights + floor * sp.OneMatrix(X.shape[0], 1)
    return Definition(
        MatrixSymbol(name, X.shape[0], 1),
        "row sums",
        (X, weights, floor),
        tex(value),
        value,
        ("positive",),
    )


def stacked(top: str, bottom: str, X: MatrixSymbol, Y: MatrixSymbol) -> tuple[Definition, Definition]:
    """P (p, n) and Q (m, n) with [P; Q] = cayley([X; Y]), hence I − PᵀP − QᵀQ ⪰ 0."""
    n = X.shape[1]
    P, Q = MatrixSymbol(top, *X.shape), MatrixSymbol(bottom, *Y.shape)
    first, second = (
        Definition(
            symbol,
            "stacked orthogonality",
            (X, Y),
            rf"{part}\ \operatorname{{cayley}}\left(\left[\begin{{matrix}}{tex(X)}\\{tex(Y)}"
            r"\end{matrix}\right]\right)",
            concludes=conclusion,
            exact=exact,
            code=code,
            options=(top, bottom),
        )
        for symbol, part, conclusion, exact, code in (
            (P, r"\text{top of}", (Identity(n) - P.T * P - Q.T * Q,), _exact_top, "cayley_top"),
            (Q, r"\text{bottom of}", (), _exact_bottom, "cayley_bottom"),
        )
    )
    return first, second


def diagonal(name: str, value: MatrixExpr) -> Definition:
    """A diagonal given by a formula that no lemma knows: a derivation that rests on it fails."""
    return Definition(
        MatrixSymbol(name, *value.shape),
        UNPROVED,
        (),
        tex(value),
        value,
        ("diagonal", "positive"),
    )


def define(name: str, value: MatrixExpr) -> Definition:
    """A name for an expression."""
    symbol = MatrixSymbol(name, *value.shape)
    rule = Rule(symbol, value, f"{name} stands for it")
    return Definition(symbol, "", (value,), tex(value), value, rules=(rule,))


def rebuilt(
    name: str,
    lemma: str,
    arguments: Sequence[Any],
    options: Sequence[Any],
    earlier: Mapping[str, Definition],
) -> Definition:
    """The definition that this lemma makes of these arguments.

    Raises:
        InvalidInput: an unknown lemma, or arguments that do not fit it.
    """
    makers: dict[str, Callable[..., Definition]] = {
        "": define,
        "diagonal dominance": diagonal_dominance,
        "block diagonal dominance": block_dominance,
        "spectral norm": spectral,
        "inverse": inverse,
        "M-matrix": m_matrix,
        "row sums": row_sums,
        "orthogonality": orthogonal,
    }
    try:
        if lemma == "root":
            return root(name, earlier[arguments[0].name])
        if lemma == "Gram power":
            return gram_power(name, *arguments, power=options[0])
        if lemma == "stacked orthogonality":
            top, bottom = options
            return stacked(top, bottom, *arguments)[(top, bottom).index(name)]
        if lemma == "":
            return define(name, arguments[0])
        return makers[lemma](name, *arguments, *options)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{name} is defined by {lemma!r}, which is no lemma of the library that takes these "
            "arguments. Use the functions of sdplip.derive.lemmas."
        ) from error


def squares_of(P: MatrixExpr, algebra: Algebra) -> list[tuple[MatrixExpr, MatrixExpr]] | None:
    """P as Σ FᵀCF with C a positive multiple of I or of a positive diagonal; None if not seen so."""
    found: list[tuple[MatrixExpr, MatrixExpr]] = []
    for word, factor in algebra.terms(P).items():
        if not factor.is_nonnegative:
            return None
        split = _palindrome(word, algebra)
        if split is None:
            return None
        half, centre = split
        rows = P.shape[0]
        F = algebra.assemble({half: sp.Integer(1)}, (rows, rows))
        C = algebra.assemble({centre: factor}, (F.shape[0], F.shape[0]))
        found.append((F, C))
    return found


def _palindrome(
    word: tuple[Letter, ...], algebra: Algebra
) -> tuple[tuple[Letter, ...], tuple[Letter, ...]] | None:
    """word = halfᵀ · centre · half with a positive centre, or None.

    The centre is made of positive diagonal letters, or is one positive symmetric letter.
    """
    for size in range(len(word) // 2, -1, -1):
        head, centre, tail = word[:size], word[size : len(word) - size], word[len(word) - size :]
        kind = "symmetric" if len(centre) == 1 else "diagonal"
        positive = all(algebra.has(x, "positive") and algebra.has(x, kind) for x, _, _ in centre)
        mirrored = tuple(
            (name, transposed != (not algebra.has(name, "symmetric")), inverted)
            for name, transposed, inverted in reversed(tail)
        )
        if positive and head == mirrored:
            return tail, centre
    return None


def _square(owner: str, S: MatrixExpr) -> Any:
    if S.shape[0] != S.shape[1]:
        raise InvalidInput(f"{owner}: S has shape {S.shape}, but must be square.")
    return S.shape[0]


# --- exact values on instances: rational squares, at or just above the closed form ---


def _upwards(value: sp.Rational, power: int = 1) -> sp.Rational:
    """A rational square t with t^power ≥ value, close to the least; 1 for value = 0."""
    if value == 0:
        return sp.Integer(1)
    scale = 10**6
    guess = sp.Rational(int(np.ceil(float(value) ** (1 / (2 * power)) * scale)), scale)
    while guess ** (2 * power) < value:
        guess += sp.Rational(1, scale)
    return guess**2


def _row_sums(S: sp.Matrix, q: sp.Matrix | None) -> list[sp.Rational]:
    q = sp.ones(S.rows, 1) if q is None else q
    return [sum(abs(S[i, j]) * q[j] / q[i] for j in range(S.rows)) for i in range(S.rows)]


def _exact_dominance(S: sp.Matrix, q: sp.Matrix | None = None) -> sp.Matrix:
    return sp.diag(*(_upwards(t) for t in _row_sums(S, q)))


def _exact_power(S: sp.Matrix, q: sp.Matrix | None = None, *, power: int) -> sp.Matrix:
    return sp.diag(*(_upwards(t, power) for t in _row_sums(S**power, q)))


def _exact_spectral(W: sp.Matrix) -> sp.Matrix:
    gram = np.array((W.T * W).tolist(), dtype=float)
    top = sp.Rational(float(np.linalg.norm(gram, 2)) * (1 + 1e-9)).limit_denominator(10**12)
    return _upwards(top) * sp.eye(W.cols)


def _exact_blocks(S: sp.Matrix, *, size: int) -> sp.Matrix:
    count = S.rows // size
    if count * size != S.rows:
        raise InvalidInput(f"block_dominance: {S.rows} rows are no multiple of {size}.")
    norms = sp.zeros(count, count)
    for i in range(count):
        for j in range(count):
            part = S[i * size : (i + 1) * size, j * size : (j + 1) * size]
            value = float(np.linalg.norm(np.array(part.tolist(), dtype=float), 2)) * (1 + 1e-9)
            norms[i, j] = sp.Rational(value).limit_denominator(10**12)
    sums = _row_sums(norms, None)
    return sp.diag(*(_upwards(sums[i // size]) for i in range(S.rows)))


def _exact_cayley(X: sp.Matrix) -> sp.Matrix:
    if X.rows < X.cols:
        return _exact_cayley(X.T).T
    U, V = X[: X.cols, :], X[X.cols :, :]
    R = (sp.eye(X.cols) + U - U.T + V.T * V).inv()
    return sp.Matrix.vstack(2 * R - sp.eye(X.cols), -2 * V * R)


def _exact_top(X: sp.Matrix, Y: sp.Matrix) -> sp.Matrix:
    return _exact_cayley(sp.Matrix.vstack(X, Y))[: X.rows, :]


def _exact_bottom(X: sp.Matrix, Y: sp.Matrix) -> sp.Matrix:
    return _exact_cayley(sp.Matrix.vstack(X, Y))[X.rows :, :]


def _metzler_part(A: sp.Matrix) -> sp.Matrix:
    return sp.Matrix(*A.shape, lambda i, j: A[i, j] if i == j else abs(A[i, j]))
