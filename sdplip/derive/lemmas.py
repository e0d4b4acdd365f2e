"""The lemmas that end a proof, used through the definition of a symbol.

`diagonal_dominance("T", W.T * W, q)` defines T and lets a derivation conclude T − WᵀW ⪰ 0. What
each lemma says and why it holds is in `LEMMAS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sympy as sp
from sympy import Identity, MatrixSymbol
from sympy.matrices.expressions import MatrixExpr

from ..errors import InvalidInput, ShapeError
from ..lmi import Absolute
from . import rational
from .algebra import Algebra, Rule
from .squares import squares_of
from .tex import tex

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


def diagonal_dominance(name: str, S: MatrixExpr, q: MatrixSymbol | None = None) -> Definition:
    """T = diag(Σ_j |S_ij| q_j / q_i), hence T − S ⪰ 0.

    Args:
        name: of the new diagonal symbol.
        S: symmetric (n, n). q: (n, 1), a free symbol of domain "ratios" or "weights"; None is all
            ones.
    """
    n = _square("diagonal_dominance", S, q)
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
        exact=rational.dominance,
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
        exact=rational.spectral,
        code="spectral",
    )


def gram_power(
    name: str, S: MatrixExpr, q: MatrixSymbol | None = None, power: int = 2
) -> Definition:
    """T = diag((Σ_j |Sᵖ|_ij q_j / q_i)^{1/p}), hence T − S ⪰ 0, for S = XᵀX and p = 2, 4, 8, …"""
    n = _square("gram_power", S, q)
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
        exact=lambda *values: rational.power(*values, power=power),
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
        exact=lambda *values: rational.blocks(*values, size=blocks),
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
        exact=rational.cayley,
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
    """Y = E⁻¹ ≻ 0 for E = cI + squares, c > 0. One product in E must be longer than the others."""
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
        exact=lambda A, right, q, c: (sp.eye(A.rows) - rational.metzler(A)).inv() * right,
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


def stacked(
    top: str, bottom: str, X: MatrixSymbol, Y: MatrixSymbol
) -> tuple[Definition, Definition]:
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
            (P, r"\text{top of}", (Identity(n) - P.T * P - Q.T * Q,), rational.top, "cayley_top"),
            (Q, r"\text{bottom of}", (), rational.bottom, "cayley_bottom"),
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
            S, q = (*arguments, None)[:2]
            return gram_power(name, S, q, options[0])
        if lemma == "stacked orthogonality":
            top, bottom = options
            return stacked(top, bottom, *arguments)[(top, bottom).index(name)]
        return makers[lemma](name, *arguments, *options)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{name} is defined by {lemma!r}, which is no lemma of the library that takes these "
            "arguments. Use the functions of sdplip.derive.lemmas."
        ) from error


def _square(owner: str, S: MatrixExpr, q: MatrixSymbol | None = None) -> Any:
    if q is not None and q.shape != (S.shape[0], 1):
        raise ShapeError(f"{owner}: q has shape {q.shape}, but S has shape {S.shape}.")
    if S.shape[0] != S.shape[1]:
        raise InvalidInput(f"{owner}: S has shape {S.shape}, but must be square.")
    return S.shape[0]
