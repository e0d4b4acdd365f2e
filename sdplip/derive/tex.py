"""How formulas are written in LaTeX: SymPy's expressions, and the nested lists of proof objects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter

_SMALL = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi"
_GREEK = f"{_SMALL} psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
NAMES = {
    **{name: rf"\{name}" for name in _GREEK.split()},
    "Lam": r"\Lambda",
    "lam": r"\lambda",
    "eps": r"\varepsilon",
}
_SCRIPTS = {"⁺": "+", "⁻": "-"}


def name(text: str) -> str:
    """LaTeX of a symbol's name: Lam, eta_i, |T_ii|, T_ii⁺, Σ|T_ij|·eta_j."""
    if text in NAMES:
        return NAMES[text]
    if text.startswith("Σ"):
        return r"\sum_{j \ne i} " + r"\,".join(name(part) for part in text[1:].split("·"))
    if len(text) > 2 and text[0] == text[-1] == "|":
        return rf"\left|{name(text[1:-1])}\right|"
    if text[:-1] and text[-1] in _SCRIPTS:
        return f"{name(text[:-1])}^{{{_SCRIPTS[text[-1]]}}}"
    if text.startswith("1/"):
        return f"{name(text[2:])}^{{-1}}"
    if found := re.fullmatch(r"(.+)\*\*(\d+)", text):
        return f"{name(found[1])}^{{{found[2]}}}"
    if found := re.fullmatch(r"([A-Za-z]+)_?(\d+|(?<=_)\w+)", text):
        return f"{NAMES.get(found[1], found[1])}_{{{found[2]}}}"
    plain = re.sub(r"[^\w ()+/.,|-]", " ", text)
    return text if text.isalpha() else rf"\text{{{plain}}}"


class _Printer(LatexPrinter):
    """SymPy's printer with ᵀ as ⊤ (T is the name of a matrix here) and [q] for diag(q)."""

    def _print_Symbol(self, expr: Any, style: str = "plain") -> str:
        return name(expr.name)

    _print_MatrixSymbol = _print_Symbol

    def _print_DiagMatrix(self, expr: Any) -> str:
        return rf"[{self._print(expr.args[0])}]"

    def _print_Absolute(self, expr: Any) -> str:
        return rf"\left|{self._print(expr.args[0])}\right|"

    def _print_Metzler(self, expr: Any) -> str:
        return rf"\left\lceil {self._print(expr.args[0])} \right\rceil"

    def _print_Identity(self, expr: Any) -> str:
        return "I"

    def _print_ZeroMatrix(self, expr: Any) -> str:
        return "0"

    def _print_OneMatrix(self, expr: Any) -> str:
        return r"\mathbf{1}"

    def _print_Transpose(self, expr: Any) -> str:
        if isinstance(expr.arg, sp.DiagMatrix):
            return self._print(expr.arg)
        return rf"{self._atom(expr.arg)}^{{\top}}"

    def _print_MatPow(self, expr: Any) -> str:
        return f"{self._atom(expr.base)}^{{{self._print(expr.exp)}}}"

    _print_Inverse = _print_MatPow

    def _print_MatMul(self, expr: Any) -> str:
        factor, matrices = expr.as_coeff_matrices()
        sign, factor = ("- ", -factor) if factor.as_coeff_Mul()[0] < 0 else ("", factor)
        parts = [] if factor == 1 else [self._inside(factor)]
        return sign + " ".join([*parts, *(self._inside(X) for X in matrices)])

    def _print_MatAdd(self, expr: Any) -> str:
        return joined([self._print(term) for term in expr.as_ordered_terms()])

    def _inside(self, factor: Any) -> str:
        shown = self._print(factor)
        return _bracketed(shown) if isinstance(factor, sp.MatAdd | sp.Add) else shown

    def _atom(self, base: Any) -> str:
        single = sp.MatrixSymbol | sp.DiagMatrix | sp.Identity
        shown = self._print(base)
        return shown if isinstance(base, single) else _bracketed(shown)


def tex(expr: Any) -> str:
    """LaTeX of an expression."""
    return _Printer().doprint(sp.sympify(expr))


def joined(terms: Sequence[str]) -> str:
    """A sum of terms with their signs, a positive one first where there is one."""
    lead = next((i for i, term in enumerate(terms) if not term.startswith("-")), 0)
    text, *rest = [terms[lead], *terms[:lead], *terms[lead + 1 :]]
    for term in rest:
        text += f" - {term[1:].strip()}" if term.startswith("-") else f" + {term}"
    return text


def matrix(rows: Sequence[Sequence[str]]) -> str:
    """A matrix of entries that are LaTeX."""
    lines = r"\\".join(" & ".join(row) for row in rows)
    return rf"\left[\begin{{matrix}}{lines}\end{{matrix}}\right]"


def split(latex: str, more: Sequence[str]) -> str:
    """A formula over several lines, aligned at its first = or at its start."""
    if not more:
        return latex
    first = latex.replace(" = ", " &= ", 1) if " = " in latex else f"&{latex}"
    lines = r" \\ ".join([first, *(f"&{line}" for line in more)])
    return rf"\begin{{split}} {lines} \end{{split}}"


def number(value: Any) -> str:
    """A rational number."""
    found = Fraction(value)
    sign = "- " if found < 0 else ""
    if found.denominator == 1:
        return f"{sign}{abs(found)}"
    return rf"{sign}\frac{{{abs(found.numerator)}}}{{{found.denominator}}}"


def written(tree: Any) -> str:
    """LaTeX of an expression in a proof object (see `words`)."""
    match tree:
        case ["add", *terms]:
            return joined([written(term) for term in terms])
        case ["t", ["sym", str(text)]]:
            return rf"{name(text)}^{{\top}}"
        case ["t", ["diag", _]]:
            return written(tree[1])
        case ["t", inner]:
            return rf"{_bracketed(written(inner))}^{{\top}}"
        case ["sym", str(text)]:
            return name(text)
        case ["eye", *_]:
            return "I"
        case ["zeros", *_]:
            return "0"
        case ["ones", *_]:
            return r"\mathbf{1}"
        case ["diag", inner]:
            return f"[{written(inner)}]"
        case ["abs", inner]:
            return rf"\left|{written(inner)}\right|"
        case ["metzler", inner]:
            return rf"\left\lceil {written(inner)} \right\rceil"
    return _product(tree)


def _product(tree: Any) -> str:
    """Number, scalars over scalars, matrices in their order."""
    number_, scalars, matrices = _factors(tree)
    above = [_power(s, k) for s, k in scalars if k > 0]
    below = [_power(s, -k) for s, k in scalars if k < 0]
    sign, number_ = ("- ", -number_) if number_ < 0 else ("", number_)
    if number_ == 0:
        return "0"
    top, bottom = number_.numerator, number_.denominator
    over = " ".join([*([str(top)] if top != 1 else []), *above])
    under = " ".join([*([str(bottom)] if bottom != 1 else []), *below])
    lead = rf"\frac{{{over or 1}}}{{{under}}}" if under else over
    body = " ".join(_power(m, k) for m, k in matrices)
    return sign + (" ".join(part for part in (lead, body) if part) or "1")


def _factors(tree: Any) -> tuple[Fraction, list[tuple[str, int]], list[tuple[str, int]]]:
    """The number, the scalars and the matrices of a product, each with its power."""
    match tree:
        case ["num", text]:
            return Fraction(text), [], []
        case ["var", str(text)]:
            return Fraction(1), [(name(text), 1)], []
        case ["mul", *parts]:
            total, scalars, matrices = Fraction(1), dict[str, int](), list[tuple[str, int]]()
            for part in parts:
                factor, some, more = _factors(part)
                total *= factor
                for text, power in some:
                    scalars[text] = scalars.get(text, 0) + power
                for text, power in more:
                    if matrices and matrices[-1][0] == text:
                        power += matrices.pop()[1]
                    matrices.append((text, power))
            return total, [(s, k) for s, k in scalars.items() if k], [m for m in matrices if m[1]]
        case ["inv", inner]:
            factor, some, more = _factors(inner)
            back = [(text, -power) for text, power in reversed(more)]
            return 1 / factor, [(s, -k) for s, k in some], back
    if _has_matrix(tree):
        shown = written(tree)
        return Fraction(1), [], [(_bracketed(shown) if tree[0] == "add" else shown, 1)]
    return Fraction(1), [(_bracketed(written(tree)), 1)], []


def _has_matrix(tree: Any) -> bool:
    kinds = ("sym", "eye", "zeros", "ones", "diag")
    return tree[0] in kinds or any(_has_matrix(t) for t in tree[1:] if isinstance(t, list))


def _power(base: str, power: int) -> str:
    return base if power == 1 else f"{_bracketed(base) if '^' in base else base}^{{{power}}}"


def _bracketed(text: str) -> str:
    return rf"\left({text}\right)"
