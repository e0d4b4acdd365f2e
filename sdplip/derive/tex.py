"""How conditions and steps are written in LaTeX."""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter


class _Printer(LatexPrinter):
    """SymPy's printer with ᵀ as ⊤, since T is the name of a matrix here."""

    def _print_Transpose(self, expr: Any) -> str:
        return rf"{self.parenthesize(expr.arg, 100)}^{{\top}}"

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

    def _print_MatrixSymbol(self, expr: Any) -> str:
        return _NAMES.get(expr.name) or super()._print_MatrixSymbol(expr)


_NAMES = {"Lam": r"\Lambda"}


def tex(expr: Any) -> str:
    """LaTeX of an expression."""
    return _Printer().doprint(sp.sympify(expr))
