"""Matrix expressions as nested lists, which a file can hold and `words` can read, and back."""

from __future__ import annotations

from typing import Any

import sympy as sp

from ..errors import InvalidInput
from ..lmi import Absolute, Metzler
from .algebra import Grid, name_of


def tree(expr: Any) -> list[Any]:
    """The expression as a nested list (see `words`)."""
    match expr:
        case sp.MatrixSymbol() | sp.DiagMatrix():
            return ["sym", name_of(expr)]
        case sp.Transpose():
            return ["t", tree(expr.arg)]
        case sp.Identity():
            return ["num", "1"]
        case sp.ZeroMatrix():
            return ["num", "0"]
        case sp.Rational():
            return ["num", str(expr)]
        case sp.Symbol():
            return ["var", expr.name]
        case sp.OneMatrix():
            return ["ones"]
        case Absolute():
            return ["metzler" if isinstance(expr, Metzler) else "abs", tree(expr.args[0])]
        case sp.MatAdd() | sp.Add():
            return ["add", *(tree(a) for a in expr.args)]
        case sp.MatMul() | sp.Mul():
            return ["mul", *(tree(a) for a in expr.args)]
        case sp.MatPow() | sp.Pow() if expr.exp.is_Integer:
            base = tree(expr.base)
            product = ["mul", *[base] * abs(int(expr.exp))]
            return ["inv", product] if expr.exp < 0 else product
    raise InvalidInput(f"{expr} ({type(expr).__name__}) has no place in a proof object.")


def trees(entries: Grid) -> list[list[Any]]:
    return [[tree(entry) for entry in row] for row in entries]
