"""Matrix expressions as nested lists, which a file can hold and `words` can read, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp

from ..errors import InvalidInput
from ..lmi import Absolute, Metzler
from .algebra import Grid


def tree(expr: Any) -> list[Any]:
    """The expression as a nested list (see `words`)."""
    match expr:
        case sp.MatrixSymbol():
            return ["sym", expr.name]
        case sp.DiagMatrix():
            return ["diag", tree(expr.args[0])]
        case sp.Transpose():
            return ["t", tree(expr.arg)]
        case sp.Identity():
            return ["eye", str(expr.shape[0])]
        case sp.ZeroMatrix():
            return ["zeros", *map(str, expr.shape)]
        case sp.Rational():
            return ["num", str(expr)]
        case sp.Symbol():
            return ["var", expr.name]
        case sp.OneMatrix():
            return ["ones", *map(str, expr.shape)]
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


def expression(node: Any, symbols: Mapping[str, Any]) -> Any:
    """The inverse of `tree`.

    Args:
        symbols: by name, matrix symbols and scalars; sizes are positive integers or their names.

    Raises:
        InvalidInput: an unknown symbol or node.
    """
    match node:
        case ["sym" | "var", str(name)] if name in symbols:
            return symbols[name]
        case ["num", str(number)]:
            return sp.Rational(number)
        case ["eye", n]:
            return sp.Identity(size(n))
        case ["zeros", n, m]:
            return sp.ZeroMatrix(size(n), size(m))
        case ["ones", n, m]:
            return sp.OneMatrix(size(n), size(m))
        case ["diag", inner]:
            return sp.DiagMatrix(expression(inner, symbols))
        case ["abs", inner]:
            return Absolute(expression(inner, symbols))
        case ["metzler", inner]:
            return Metzler(expression(inner, symbols))
        case ["t", inner]:
            return sp.Transpose(expression(inner, symbols)).doit()
        case ["inv", inner]:
            return expression(inner, symbols) ** -1
        case ["add", first, *rest]:
            total = expression(first, symbols)
            for part in rest:
                total = total + expression(part, symbols)
            return total
        case ["mul", first, *rest]:
            product = expression(first, symbols)
            for part in rest:
                product = product * expression(part, symbols)
            return product
    raise InvalidInput(f"Not an expression of a proof: {node!r:.80}")


def size(text: Any) -> Any:
    """A size: a positive integer, or the symbol of that name."""
    if isinstance(text, str) and text.isdecimal() and len(text) < 6 and int(text) > 0:
        return sp.Integer(text)
    if isinstance(text, str) and text.isidentifier():
        return sp.Symbol(text, integer=True, positive=True)
    raise InvalidInput(f"Not a size: {text!r:.40}")
