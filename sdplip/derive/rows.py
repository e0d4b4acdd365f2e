"""Entrywise conditions: one generic row in scalar letters, for every size.

Row i of a vector expression is written in letters such as T_ii, |T_ii|, η_i and the sums
Σ_{j≠i}|T_ij|. Entries |Σ_k X_k| are bounded by Σ_k |X_k|, which keeps the direction: the conditions
subtract absolute values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from ..errors import DerivationError
from ..lmi import Absolute, Metzler
from .algebra import grid

if TYPE_CHECKING:
    from .derivation import Derivation


@dataclass(frozen=True)
class Row:
    """value = terms, a sum of products of letters that are ≥ 0.

    `signs` says how a real number x and its |x| are written by their positive and negative parts;
    `strict` that the claim needs the row > 0.
    """

    name: str
    value: Any
    terms: Any
    signs: tuple[tuple[Any, Any], ...]
    strict: bool = False

    def document(self) -> dict[str, Any]:
        """JSON values (see `words`)."""
        letters = {s.name for e in (self.value, self.terms) for s in e.free_symbols}
        return {
            "name": self.name,
            "letters": sorted(letters),
            "value": _letters(self.value),
            "terms": _letters(self.terms),
            "strict": self.name.endswith("> 0") or self.strict,
        }


def rows(derivation: Derivation, changes: Mapping[str, Any] | None = None) -> list[Row]:
    """One generic row per block row of a "nonnegative" condition at the ansatz, shown ≥ 0.

    Raises:
        DerivationError: a row that is not seen to be ≥ 0, or an expression that has no row.
    """
    found = [_shown(derivation, name, value) for name, value in _values(derivation, changes)]
    c = sp.sympify(
        {**derivation.ansatz, **(changes or {})}.get("c", derivation.outputs.get("c", 0))
    )
    bound = next((f for f in derivation.free if f.symbol == c), None)
    below = c < 1 if c.is_number else bound is not None and bound.high <= 1
    if below:
        return found
    # At c = 1 the condition proves well-posedness only where the rows of the units are > 0.
    units = {f"{derivation.condition.name}, block {k}" for k in (1, 2)}
    for row in found:
        if c != 1 or (
            row.name in units and not any(t.is_positive for t in sp.Add.make_args(row.terms))
        ):
            raise DerivationError(
                f"{derivation.name}: c = {c} is not below 1, and the rows of the units are not "
                "seen to be strictly positive: the equilibrium need not exist."
            )
    return [replace(row, strict=row.name in units) for row in found]


def _hypotheses(derivation: Derivation, calculus: _Calculus) -> list[tuple[str, Any]]:
    """What the M-matrix lemma needs: cq − ⌈A⌉q ≥ 0 with c < 1."""
    found = []
    for d in derivation.definitions:
        if d.lemma != "M-matrix":
            continue
        A, right, q, c = d.arguments
        bound = next((f for f in derivation.free if f.symbol == c), None)
        if bound is None or bound.high > 1:
            raise DerivationError(f"{derivation.name}: {c} must be a constant below 1.")
        found.append((f"{right} > 0", calculus.row(right)))
        found.append((f"{q} > 0", calculus.row(q)))
        found.append((f"M-matrix for {d.symbol}", calculus.row(c * q - Metzler(A) * q, top=True)))
    return found


def _values(derivation: Derivation, changes: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    calculus = _Calculus(derivation)
    ansatz = {**derivation.ansatz, **(changes or {})}
    blocks = grid(derivation.condition.matrix)
    symbols = derivation.condition.symbols
    given = {}
    for name, symbol in symbols.items():
        value = sp.sympify(ansatz.get(name, derivation.outputs[name]))
        given[symbol] = value
    found = []
    for number, (block,) in enumerate(blocks, 1):
        at = block.xreplace(given).doit()
        value = calculus.row(at, top=True)
        found.append((f"{derivation.condition.name}, block {number}", value))
    for name in derivation.condition.signed:
        found.append((f"{name} > 0", calculus.row(given[symbols[name]])))
    found += _hypotheses(derivation, calculus)
    return [(name, value.xreplace(calculus.sums())) for name, value in found]


def _shown(derivation: Derivation, name: str, value: Any) -> Row:
    value = sp.expand(value)
    signs: list[tuple[Any, Any]] = []
    for letter in sorted(value.free_symbols, key=lambda s: s.name):
        if letter.name.endswith("_ii") and not letter.name.startswith("|"):
            size = sp.Symbol(f"|{letter.name}|", nonnegative=True)
            up, down = (sp.Symbol(f"{letter.name}{s}", nonnegative=True) for s in "⁺⁻")
            signs += [(letter, up - down), (size, up + down)]
    terms = sp.expand(value.xreplace(dict(signs)))
    parts = sp.Add.make_args(terms)
    if name.endswith("> 0") and not any(term.is_positive for term in parts):
        raise DerivationError(f"{derivation.name}: {name} is not seen; the row is {value}.")
    for term in parts:
        if not term.is_nonnegative:
            raise DerivationError(
                f"{derivation.name}, {name}: the row is {value}, and {term} in it may be negative."
            )
    return Row(name, value, terms, tuple(signs))


class _Calculus:
    """Rows of vectors and entries of matrices in scalar letters."""

    def __init__(self, derivation: Derivation) -> None:
        self.positive = {f.name for f in derivation.free if f.facts}
        self.definitions = {d.symbol.name: d for d in derivation.definitions}

    def sums(self) -> dict[Any, Any]:
        """Sums that have a name: Σ_j |X_ij| w_j = s_i − floor."""
        found = {}
        for d in self.definitions.values():
            if d.lemma == "row sums":
                X, weights, floor = d.arguments
                letter = self._beside(self._plain(X), weights, "i")
                found[letter] = sp.Symbol(f"{d.symbol.name}_i", positive=True) - floor
        return found

    def row(self, vector: Any, at: str = "i", top: bool = False) -> Any:
        """Row `at` of a vector; at the `top` absolute values of sums that are subtracted may be
        replaced by the larger sums of absolute values."""
        match vector:
            case sp.MatrixSymbol() if vector.name in self.definitions:
                d = self.definitions[vector.name]
                if d.value is None or d.lemma == "row sums":
                    return sp.Symbol(f"{vector.name}_{at}", positive=True)
                return self.row(d.value, at)
            case sp.MatrixSymbol():
                return sp.Symbol(f"{vector.name}_{at}", positive=vector.name in self.positive)
            case sp.OneMatrix():
                return sp.Integer(1)
            case sp.ZeroMatrix():
                return sp.Integer(0)
            case sp.MatAdd():
                return sp.Add(*(self.row(a, at, top) for a in vector.args))
            case sp.MatMul():
                factor, (first, *rest) = vector.as_coeff_matrices()
                if not rest:
                    return factor * self.row(first, at)
                tail = rest[0] if len(rest) == 1 else sp.MatMul(*rest)
                return factor * self._times(first, tail, at, split=top and factor.is_negative)
        raise DerivationError(f"{vector} has no row that could be written in letters.")

    def _times(self, matrix: Any, vector: Any, at: str, split: bool) -> Any:
        if isinstance(matrix, Absolute):
            inner = self._plain(matrix.args[0])
            solved = self.definitions.get(getattr(vector, "name", ""))
            if isinstance(matrix, Metzler) and solved is not None and solved.lemma == "M-matrix":
                A, right = solved.arguments[:2]
                if inner == self._plain(A):
                    return self.row(vector, at) - self.row(right, at)
            total = self._beside(inner, vector, at, split)
            if inner.shape[0] == inner.shape[1]:
                own = self.entry(inner, at, at)
                if not isinstance(matrix, Metzler):
                    own = sp.Add(*(self._size(t) for t in self._terms(own, inner, split)))
                total += own * self.row(vector, at)
            return total
        if not self._diagonal(matrix):
            raise DerivationError(f"{matrix} times a vector has no row that could be written.")
        return self.entry(matrix, at, at) * self.row(vector, at)

    def _terms(self, value: Any, matrix: Any, split: bool) -> tuple[Any, ...]:
        terms = sp.Add.make_args(sp.expand(value))
        if len(terms) > 1 and not split:
            raise DerivationError(
                f"|{matrix}| is the absolute value of a sum, which is bounded by its parts only "
                "where the condition subtracts it."
            )
        return terms

    def _plain(self, matrix: Any) -> Any:
        """The matrix with plain definitions written out."""
        replaced = {
            d.symbol: d.value
            for d in self.definitions.values()
            if d.lemma == "" and d.value is not None
        }
        return sp.sympify(matrix).xreplace(replaced).doit()

    def _beside(self, matrix: Any, vector: Any, at: str, split: bool = False) -> Any:
        """Σ_{j≠i} |X_ij| v_j, an upper bound where X_ij is a sum."""
        other = "j"
        weight = self.row(vector, other)
        if not weight.is_nonnegative:
            raise DerivationError(f"The weights {vector} are not seen to be ≥ 0.")
        total = sp.Integer(0)
        parts = self._terms(self.entry(matrix, at, other), matrix, split)
        for term in (sp.expand(part * weight) for part in parts):
            if term == 0:
                continue
            if isinstance(term, sp.Add):
                raise DerivationError(f"|{matrix}|({vector}) has no row that could be written.")
            here: list[Any] = []
            there: list[Any] = []
            for factor in sp.Mul.make_args(term):
                names = [s.name for s in factor.free_symbols]
                (there if any(n.endswith("j") for n in names) else here).append(factor)
            inside = "·".join(sorted(self._shown(f) for f in there))
            outside = sp.Mul(*(self._size(f) for f in here))
            total += outside * sp.Symbol(f"Σ{inside}", nonnegative=True)
        return total

    def _shown(self, factor: Any) -> str:
        text = str(factor)
        return text if factor.is_nonnegative else f"|{text}|"

    def _size(self, factor: Any) -> Any:
        """|factor| in letters."""
        total = sp.Integer(1)
        for f in sp.Mul.make_args(factor):
            if f.is_nonnegative:
                total *= f
            elif f.is_number:
                total *= abs(f)
            else:
                total *= sp.Symbol(f"|{f}|", nonnegative=True)
        return total

    def entry(self, matrix: Any, i: str, j: str) -> Any:
        """X_ii for i = j, X_ij for j ≠ i."""
        same = i == j
        match matrix:
            case sp.MatrixSymbol() if matrix.name in self.definitions:
                d = self.definitions[matrix.name]
                if d.value is None:
                    raise DerivationError(f"{matrix} has no entries that could be written.")
                return self.entry(d.value, i, j)
            case sp.MatrixSymbol():
                return sp.Symbol(f"{matrix.name}_{i}{j}", real=True)
            case sp.Identity():
                return sp.Integer(same)
            case sp.ZeroMatrix():
                return sp.Integer(0)
            case sp.DiagMatrix():
                return self.row(matrix.args[0], i) if same else sp.Integer(0)
            case sp.MatPow() if self._diagonal(matrix.base):
                base = self.entry(matrix.base, i, i)
                if matrix.exp.is_negative and not base.is_positive:
                    raise DerivationError(
                        f"{matrix.base} is inverted, but not seen to be positive."
                    )
                return base**matrix.exp if same else sp.Integer(0)
            case sp.MatAdd():
                return sp.Add(*(self.entry(a, i, j) for a in matrix.args))
            case sp.MatMul():
                factor, matrices = matrix.as_coeff_matrices()
                full = [k for k, X in enumerate(matrices) if not self._diagonal(X)]
                if not full:
                    parts = [self.entry(X, i, i) for X in matrices]
                    return factor * sp.Mul(*parts) if same else sp.Integer(0)
                if len(full) == 1:
                    k = full[0]
                    left = [self.entry(X, i, i) for X in matrices[:k]]
                    right = [self.entry(X, j, j) for X in matrices[k + 1 :]]
                    return sp.expand(
                        factor * sp.Mul(*left) * self.entry(matrices[k], i, j) * sp.Mul(*right)
                    )
        raise DerivationError(f"The entries of {matrix} cannot be written in letters.")

    def _diagonal(self, matrix: Any) -> bool:
        if isinstance(matrix, sp.MatMul | sp.MatAdd):
            return all(self._diagonal(a) for a in matrix.args if isinstance(a, sp.MatrixExpr))
        if isinstance(matrix, sp.MatPow):
            return self._diagonal(matrix.base)
        return isinstance(matrix, sp.DiagMatrix | sp.Identity)


def _letters(expr: Any) -> list[Any]:
    if expr.is_Symbol:
        return ["sym", expr.name]
    if expr.is_Rational:
        return ["num", str(expr)]
    if expr.is_Add or expr.is_Mul:
        return ["add" if expr.is_Add else "mul", *(_letters(a) for a in expr.args)]
    if expr.is_Pow and expr.exp.is_Integer:
        product = ["mul", *[_letters(expr.base)] * abs(int(expr.exp))]
        return ["inv", product] if expr.exp < 0 else product
    raise DerivationError(f"{expr} cannot be written in letters.")
