"""Matrix expressions of symbolic size as polynomials in noncommuting SymPy symbols.

An identity that holds in the free algebra with an involution (transposition) and the stated rewrite
rules holds for matrices of every size. Source: the standard argument that such identities are
formal; see e.g. Helton, "Positive" noncommutative polynomials are sums of squares (2002).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.matrices.expressions import MatrixExpr

from ..errors import InvalidInput

LIMIT = 20_000
"""Rewrite steps after which rules are taken not to terminate."""

FACTS = frozenset({"symmetric", "diagonal", "positive", "invertible"})
LONGEST = 2_000
"""Letters of a word after which rules are taken to make words longer for ever."""

Grid = tuple[tuple[MatrixExpr, ...], ...]
Letter = tuple[str, bool, bool]
"""A symbol's name, whether transposed, whether inverted."""


@dataclass(frozen=True)
class Rule:
    """`left` = `right`, used from left to right; `left` is a product of symbols.

    `reason` is the definition or lemma that makes it true.
    """

    left: MatrixExpr
    right: MatrixExpr
    reason: str


class Algebra:
    """Normal forms under facts about symbols and rewrite rules.

    Args:
        facts: per symbol's name some of `FACTS`. Diagonal symbols are symmetric and commute with
            each other; only invertible or positive symbols may be inverted.
        rules: equations, oriented; the transpose of each is added.

    Raises:
        InvalidInput: an unknown fact, or a rule whose left side is no product of symbols.
    """

    def __init__(
        self, facts: Mapping[str, Iterable[str]] | None = None, rules: Sequence[Rule] = ()
    ) -> None:
        self.facts = {name: frozenset(f) for name, f in (facts or {}).items()}
        for name, known in self.facts.items():
            if unknown := known - FACTS:
                raise InvalidInput(
                    f"{name} is declared {', '.join(sorted(unknown))}; known facts are "
                    f"{', '.join(sorted(FACTS))}."
                )
        self.rules = tuple(rules)
        self._symbols: dict[str, Any] = {}
        self._oriented: list[tuple[tuple[Letter, ...], dict[tuple[Letter, ...], Any]]] = []
        oriented: dict[tuple[Letter, ...], dict[tuple[Letter, ...], Any]] = {}
        for rule in rules:
            for left, right in ((rule.left, rule.right), (rule.left.T, rule.right.T)):
                word = self.terms(left)
                if len(word) != 1 or () in word:
                    raise InvalidInput(f"The rule {rule.left} = … must start from one product.")
                ((letters, factor),) = word.items()
                target = {w: sp.cancel(c / factor) for w, c in self.terms(right).items()}
                oriented.setdefault(letters, target)
        self._oriented = list(oriented.items())

    def extended(
        self, facts: Mapping[str, Iterable[str]] | None = None, rules: Sequence[Rule] = ()
    ) -> Algebra:
        """The same with more facts and rules."""
        merged = {k: set(v) for k, v in self.facts.items()}
        for name, more in (facts or {}).items():
            merged[name] = merged.get(name, set()) | set(more)
        return Algebra(merged, (*self.rules, *rules))

    def has(self, name: str, fact: str) -> bool:
        known = self.facts.get(name, frozenset())
        if fact == "symmetric":
            return bool(known & {"symmetric", "diagonal"})
        if fact == "invertible":
            return bool(known & {"invertible", "positive"})
        return fact in known

    # --- normal forms ---

    def terms(self, expr: MatrixExpr) -> dict[tuple[Letter, ...], Any]:
        """The normal form: per word of letters its scalar coefficient, zeros left out."""
        pending = list(sp.Add.make_args(sp.expand(self._noncommuting(expr))))
        result: dict[tuple[Letter, ...], Any] = {}
        work = [self._word(term) for term in pending if term != 0]
        for _ in range(LIMIT):
            if not work:
                break
            factor, word = work.pop()
            if len(word) > LONGEST:
                raise InvalidInput(
                    f"The rules make {expr} longer and longer. Orient them otherwise."
                )
            word = self._ordered(word)
            for left, right in self._oriented:
                at = _find(word, left)
                if at is not None:
                    head, tail = word[:at], word[at + len(left) :]
                    work += [(factor * c, head + w + tail) for w, c in right.items()]
                    break
            else:
                result[word] = result.get(word, 0) + factor
        else:
            raise InvalidInput(f"The rules do not come to an end on {expr}. Orient them otherwise.")
        cancelled = {word: sp.cancel(factor) for word, factor in result.items()}
        return {word: factor for word, factor in cancelled.items() if factor != 0}

    def normal(self, expr: MatrixExpr) -> MatrixExpr:
        """The same matrix, multiplied out and in a canonical order."""
        return self.assemble(self.terms(expr), expr.shape)

    def equal(self, left: MatrixExpr, right: MatrixExpr) -> bool:
        """Whether the two are the same for every size and all values that satisfy the facts."""
        return not self.terms(left - right)

    def assemble(self, terms: Mapping[tuple[Letter, ...], Any], shape: tuple[Any, Any]) -> Any:
        """The inverse of `terms`."""
        parts: list[Any] = []
        for word, factor in sorted(terms.items(), key=lambda t: (len(t[0]), t[0])):
            factors = list(self._factors(word)) or [sp.Identity(shape[0])]
            factors = factors if factor == 1 else [factor, *factors]
            parts.append(factors[0] if len(factors) == 1 else sp.MatMul(*factors))
        return _sum(parts) if parts else sp.ZeroMatrix(*shape)

    # --- grids of blocks ---

    def product(self, left: Grid, right: Grid) -> Grid:
        return tuple(
            tuple(
                self.normal(_sum([a * right[k][j] for k, a in enumerate(row)]))
                for j in range(len(right[0]))
            )
            for row in left
        )

    def add(self, left: Grid, right: Grid, sign: int = 1) -> Grid:
        return tuple(
            tuple(self.normal(a + sign * b) for a, b in zip(r, s, strict=True))
            for r, s in zip(left, right, strict=True)
        )

    def zero(self, grid: Grid) -> bool:
        return all(not self.terms(entry) for row in grid for entry in row)

    # --- to and from SymPy's matrix expressions ---

    def _noncommuting(self, expr: Any) -> Any:
        match expr:
            case sp.MatrixSymbol() | sp.DiagMatrix():
                return self._letter(expr, False)
            case sp.Transpose():
                return self._transposed(expr.arg)
            case sp.Identity():
                return sp.Integer(1)
            case sp.ZeroMatrix():
                return sp.Integer(0)
            case sp.MatAdd() | sp.Add():
                return sp.Add(*(self._noncommuting(a) for a in expr.args))
            case sp.MatMul() | sp.Mul():
                return sp.Mul(*(self._noncommuting(a) for a in expr.args))
            case sp.MatPow() if expr.exp.is_Integer:
                base = self._noncommuting(expr.base)
                if expr.exp < 0:
                    base = self._inverse(expr.base)
                return sp.Mul(*[base] * abs(int(expr.exp)))
            case sp.Expr() if expr.is_commutative and not expr.atoms(sp.MatrixSymbol):
                return expr
        raise InvalidInput(
            f"{expr} ({type(expr).__name__}) is no polynomial in the symbols. "
            "Give it a name with a definition."
        )

    def _letter(self, symbol: Any, transposed: bool) -> Any:
        name = name_of(symbol)
        self._symbols[name] = symbol
        if isinstance(symbol, sp.DiagMatrix):
            self.facts.setdefault(name, frozenset({"diagonal"}) | self._of_vector(symbol))
        flip = transposed and not self.has(name, "symmetric")
        return sp.Symbol(name + ("ᵀ" if flip else ""), commutative=False)

    def _of_vector(self, symbol: Any) -> frozenset[str]:
        vector = symbol.args[0]
        known = self.facts.get(getattr(vector, "name", ""), frozenset())
        return frozenset({"positive"}) if "positive" in known else frozenset()

    def _transposed(self, inner: Any) -> Any:
        match inner:
            case sp.MatrixSymbol() | sp.DiagMatrix():
                return self._letter(inner, True)
            case sp.Transpose():
                return self._noncommuting(inner.arg)
            case sp.MatAdd():
                return sp.Add(*(self._transposed(a) for a in inner.args))
            case sp.MatMul():
                factor, matrices = inner.as_coeff_matrices()
                return sp.Mul(factor, *(self._transposed(a) for a in reversed(matrices)))
            case sp.MatPow() if inner.exp.is_Integer:
                return self._noncommuting(sp.MatPow(sp.Transpose(inner.base), inner.exp))
        return self._noncommuting(inner)

    def _inverse(self, inner: Any) -> Any:
        terms = self.terms(inner)
        if len(terms) != 1:
            raise InvalidInput(f"The inverse of {inner} needs a name: define a symbol for it.")
        ((word, factor),) = terms.items()
        for name, _, inverted in word:
            if not inverted and not self.has(name, "invertible"):
                raise InvalidInput(f"{name} is inverted in ({inner})⁻¹, but not known invertible.")
        flipped = [_symbol((name, t, not inverted)) for name, t, inverted in reversed(word)]
        return sp.Mul(1 / factor, *flipped)

    def _word(self, term: Any) -> tuple[Any, tuple[Letter, ...]]:
        commuting, factors = term.args_cnc()
        word: list[Letter] = []
        for factor in factors:
            base, power = factor.as_base_exp()
            letter = (base.name.removesuffix("ᵀ"), base.name.endswith("ᵀ"), bool(power < 0))
            word += [letter] * abs(int(power))
        return sp.Mul(*commuting), tuple(word)

    def _ordered(self, word: tuple[Letter, ...]) -> tuple[Letter, ...]:
        """Diagonal neighbours sorted, then what stands beside its inverse cancelled."""
        letters = list(word)
        changed = True
        while changed:
            changed = False
            for i in range(len(letters) - 1):
                (a, s, x), (b, t, y) = letters[i], letters[i + 1]
                if a == b and s == t and x != y:
                    del letters[i : i + 2]
                    changed = True
                    break
                if b < a and self.has(a, "diagonal") and self.has(b, "diagonal"):
                    letters[i], letters[i + 1] = letters[i + 1], letters[i]
                    changed = True
        return tuple(letters)

    def _factors(self, word: tuple[Letter, ...]) -> tuple[Any, ...]:
        factors: list[Any] = []
        i = 0
        while i < len(word):
            power = 1
            while i + power < len(word) and word[i + power] == word[i]:
                power += 1
            name, transposed, inverted = word[i]
            symbol = self._symbols[name]
            base = sp.Transpose(symbol) if transposed else symbol
            exponent = -power if inverted else power
            factors.append(base if exponent == 1 else sp.MatPow(base, exponent))
            i += power
        return tuple(factors)


def name_of(symbol: Any) -> str:
    """What a symbol is called; the diagonal matrix of a vector q is diag(q)."""
    if isinstance(symbol, sp.DiagMatrix):
        return f"diag({symbol.args[0]})"
    return str(symbol.name)


def grid(matrix: MatrixExpr) -> Grid:
    """The blocks of a matrix; one block for what is no block matrix."""
    if not isinstance(matrix, sp.BlockMatrix):
        return ((matrix,),)
    rows, columns = matrix.blockshape
    return tuple(tuple(matrix.blocks[i, j] for j in range(columns)) for i in range(rows))


def block(entries: Grid) -> MatrixExpr:
    """The inverse of `grid`."""
    if len(entries) == 1 and len(entries[0]) == 1:
        return entries[0][0]
    return sp.BlockMatrix([list(row) for row in entries])


def transpose(entries: Grid) -> Grid:
    return tuple(tuple(sp.Transpose(row[j]) for row in entries) for j in range(len(entries[0])))


def identity(sizes: Sequence[Any]) -> Grid:
    return tuple(
        tuple(sp.Identity(r) if i == j else sp.ZeroMatrix(r, c) for j, c in enumerate(sizes))
        for i, r in enumerate(sizes)
    )


def _symbol(letter: Letter) -> Any:
    name, transposed, inverted = letter
    symbol = sp.Symbol(name + ("ᵀ" if transposed else ""), commutative=False)
    return symbol**-1 if inverted else symbol


def _sum(parts: Sequence[MatrixExpr]) -> MatrixExpr:
    return parts[0] if len(parts) == 1 else sp.MatAdd(*parts)


def _find(word: tuple[Letter, ...], left: tuple[Letter, ...]) -> int | None:
    for i in range(len(word) - len(left) + 1):
        if word[i : i + len(left)] == left:
            return i
    return None
