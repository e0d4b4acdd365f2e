"""Operations on an LMI, each of which records why it is valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sympy as sp
from sympy.matrices.expressions import MatrixExpr

from ..errors import DerivationError, InvalidInput, ShapeError
from ..lmi import LMI, Structure
from .algebra import Algebra, Grid, Rule, block, grid, identity, transpose
from .lemmas import Definition
from .squares import squares_of

Direction = Literal["equivalent", "sufficient", "necessary"]
"""Whether the new condition is equivalent to, implies, or is implied by the old one."""


@dataclass(frozen=True)
class Step:
    """One line of a proof: what was done, why it is valid, what it gave."""

    name: str
    reason: str
    direction: Direction
    before: MatrixExpr
    after: MatrixExpr


@dataclass(frozen=True)
class Square:
    """A summand rowᵀ · weight · row of the condition, with weight ⪰ 0 by the named lemma.

    `by` is "positive" (a sum of positive multiples of squares, read off) or the name of the symbol
    whose definition concludes it.
    """

    row: tuple[MatrixExpr, ...]
    weight: MatrixExpr
    by: str


@dataclass(frozen=True)
class Statement(LMI):
    """An LMI under way to its proof: original = outerᵀ · matrix · outer + Σ squares throughout.

    Every method returns a new statement whose `steps` say what was done. A statement starts as
    `statement(lmi)` and ends with `conclude()`.
    """

    algebra: Algebra = field(default_factory=Algebra)
    definitions: tuple[Definition, ...] = ()
    steps: tuple[Step, ...] = ()
    original: Grid = ()
    outer: Grid = ()
    squares: tuple[Square, ...] = ()
    concluded: bool = False

    @property
    def blocks(self) -> Grid:
        return grid(self.matrix)

    @property
    def sizes(self) -> tuple[Any, ...]:
        return tuple(row[0].shape[0] for row in self.blocks)

    @property
    def direction(self) -> Direction:
        """What the chain so far keeps: M ⪰ 0 follows from the present matrix unless "necessary"."""
        kinds = {step.direction for step in self.steps}
        if "necessary" in kinds:
            return "necessary"
        return "sufficient" if "sufficient" in kinds else "equivalent"

    def substitute(
        self, structure: Mapping[str, Structure] | None = None, **expressions: Any
    ) -> Statement:
        """See `LMI.substitute`; every statement about free symbols holds for what replaces them."""
        if len(self.steps) > sum(s.name == "substitute" for s in self.steps):
            raise DerivationError("Substitute first: earlier steps do not carry over.")
        lmi = LMI.substitute(self, structure, **expressions)
        done = ", ".join(expressions)
        step = Step("substitute", f"the ansatz for {done}", "equivalent", self.matrix, lmi.matrix)
        flat = grid(lmi.matrix)
        assert isinstance(lmi, Statement)
        return replace(
            lmi,
            steps=(*self.steps, step),
            original=flat,
            outer=identity([row[0].shape[0] for row in flat]),
        )

    def simplify(
        self,
        symmetric: Sequence[Any] = (),
        diagonal: Sequence[Any] = (),
        positive: Sequence[Any] = (),
        invertible: Sequence[Any] = (),
        orthogonal: Sequence[Any] = (),
        rules: Sequence[Rule] = (),
    ) -> Statement:
        """Multiplied out, with facts about symbols: QᵀQ = I for orthogonal Q, and so on."""
        given = {
            "symmetric": symmetric,
            "diagonal": diagonal,
            "positive": positive,
            "invertible": invertible,
        }
        facts: dict[str, set[str]] = {}
        for fact, symbols in given.items():
            for s in symbols:
                facts.setdefault(s.name, set()).add(fact)
        more = [*rules]
        for q in orthogonal:
            more.append(Rule(q.T * q, sp.Identity(q.shape[1]), f"{q} has orthonormal columns"))
        algebra = self.algebra.extended(facts, more) if facts or more else self.algebra
        new = tuple(tuple(algebra.normal(e) for e in row) for row in self.blocks)
        return replace(self, algebra=algebra)._then(
            "simplify", "multiplied out under the stated facts", "equivalent", new, None
        )

    def permute(self, order: Sequence[int]) -> Statement:
        """Block rows and columns in another order: congruence with a permutation."""
        if sorted(order) != list(range(len(self.sizes))):
            raise InvalidInput(f"permute: {list(order)} is no order of {len(self.sizes)} blocks.")
        new = tuple(tuple(self.blocks[i][j] for j in order) for i in order)
        picked = tuple(identity(self.sizes)[i] for i in order)
        return self._then("permute", f"blocks in the order {order}", "equivalent", new, picked)

    def drop_zeros(self) -> Statement:
        """Leave out block rows that are zero with their columns: 0 ⪰ 0 there."""
        zero = [
            all(not self.algebra.terms(e) for e in (*row, *(r[i] for r in self.blocks)))
            for i, row in enumerate(self.blocks)
        ]
        kept = [i for i, empty in enumerate(zero) if not empty]
        if len(kept) == len(zero):
            raise self._fails("the matrix has no zero block row to drop", "drop_zeros")
        if not kept and self.direction == "necessary":
            raise self._fails("a necessary condition proves nothing", "drop_zeros")
        if not kept:
            return self._finish("all blocks are zero", ())
        new = tuple(tuple(self.blocks[i][j] for j in kept) for i in kept)
        picked = tuple(identity(self.sizes)[i] for i in kept)
        text = "zero rows and columns do not matter"
        return self._then("drop zero blocks", text, "equivalent", new, picked)

    def schur(self, pivot: int = 0, inverse: MatrixExpr | None = None) -> Statement:
        """The Schur complement of a diagonal block P ≻ 0: M ⪰ 0 ⇔ R − NᵀP⁻¹N ⪰ 0.

        Args:
            pivot: which block is eliminated.
            inverse: P⁻¹ as an expression; needed where P is no single product. It must be a sum of
                positive multiples of squares, which shows P⁻¹ ⪰ 0, and P·P⁻¹ = I is checked.
        """
        P = self.blocks[pivot][pivot]
        if inverse is None:
            try:
                inverse = self.algebra.normal(sp.Inverse(P))
            except InvalidInput as error:
                raise self._fails(
                    f"P = {P} has no inverse that is known: {error}", "schur"
                ) from error
        unit = sp.Identity(P.shape[0])
        if not self.algebra.equal(P * inverse, unit):
            raise self._fails(f"({P})·({inverse}) is not I", "schur")
        if squares_of(inverse, self.algebra) is None:
            raise self._fails(f"the pivot {P} is not seen to be positive definite", "schur")
        rest = [i for i in range(len(self.sizes)) if i != pivot]
        row = tuple(self.blocks[pivot])
        new = tuple(
            tuple(
                self.algebra.normal(
                    self.blocks[i][j] - self.blocks[i][pivot] * inverse * self.blocks[pivot][j]
                )
                for j in rest
            )
            for i in rest
        )
        picked = tuple(identity(self.sizes)[i] for i in rest)
        text = f"Schur complement of block {pivot + 1}, which is positive definite"
        return self._then("Schur complement", text, "equivalent", new, picked, [(row, inverse)])

    def congruence(self, *diagonal: MatrixExpr) -> Statement:
        """XᵀMX for the block diagonal X of these invertible matrices, one per block."""
        if len(diagonal) != len(self.sizes):
            raise ShapeError(f"congruence: {len(diagonal)} blocks, but {len(self.sizes)} needed.")
        try:
            back = [self.algebra.normal(sp.Inverse(X)) for X in diagonal]
        except InvalidInput as error:
            raise self._fails(str(error), "congruence") from error
        new = tuple(
            tuple(self.algebra.normal(X.T * e * Y) for e, Y in zip(row, diagonal, strict=True))
            for X, row in zip(diagonal, self.blocks, strict=True)
        )
        inverse = tuple(
            tuple(back[i] if i == j else e for j, e in enumerate(row))
            for i, row in enumerate(identity(self.sizes))
        )
        shown = ", ".join(str(X) for X in diagonal)
        return self._then("congruence", f"with diag({shown})", "equivalent", new, inverse)

    def subtract(self, row: Sequence[MatrixExpr], weight: MatrixExpr) -> Statement:
        """What is left without the square rowᵀ · weight · row ⪰ 0: sufficient."""
        if squares_of(weight, self.algebra) is None:
            raise self._fails(f"{weight} is not seen to be ⪰ 0", "subtract")
        new = self._without(row, weight)
        unit = identity(self.sizes)
        text = f"it suffices without the square of weight {weight}"
        return self._then("subtract", text, "sufficient", new, unit, [(tuple(row), weight)])

    def factor(self, row: Sequence[MatrixExpr], weight: MatrixExpr) -> Statement:
        """weight ⪰ 0 suffices where M = rowᵀ · weight · row, which is checked."""
        if not self.algebra.zero(self._without(row, weight)):
            raise self._fails(f"the matrix is not the square of {row} with {weight}", "factor")
        text = f"the matrix is FᵀPF with F = [{', '.join(map(str, row))}]"
        return self._then("factor", text, "sufficient", ((weight,),), (tuple(row),))

    def _without(self, row: Sequence[MatrixExpr], weight: MatrixExpr) -> Grid:
        """The matrix less rowᵀ · weight · row."""
        line: Grid = (tuple(row),)
        square = self.algebra.product(transpose(self.algebra.product(((weight,),), line)), line)
        return self.algebra.add(self.blocks, square, -1)

    def restrict(self, *columns: Sequence[MatrixExpr]) -> Statement:
        """VᵀMV for V given by its block rows: implied by M ⪰ 0, so 'necessary'."""
        V = tuple(tuple(row) for row in columns)
        new = self.algebra.product(self.algebra.product(transpose(V), self.blocks), V)
        return self._then("restrict", "to the image of V", "necessary", new, None)

    def limit(self, symbol: sp.Symbol, value: Any = 0) -> Statement:
        """The limit of a scalar: the cone is closed, so what holds on the way holds there."""
        new = tuple(
            tuple(self.algebra.normal(e.xreplace({symbol: sp.sympify(value)})) for e in row)
            for row in self.blocks
        )
        text = f"{symbol} → {value}; the positive semidefinite matrices form a closed set"
        return self._then("limit", text, "necessary", new, None)

    def conclude(self) -> Statement:
        """Discharge the matrix: block by block by a definition's lemma, or as a sum of squares."""
        if self.direction == "necessary":
            raise DerivationError("A necessary condition proves nothing about the original one.")
        if not self.blocks:
            raise DerivationError("There is nothing to conclude.")
        found: list[Square] = []
        reasons: list[str] = []
        for i, row in enumerate(self.blocks):
            for j, entry in enumerate(row):
                if i != j and self.algebra.terms(entry):
                    raise self._fails(f"block ({i + 1}, {j + 1}) is {entry}, not zero", "conclude")
            by, weights = self._reason(row[i])
            unit = identity(self.sizes)[i]
            reasons.append(by)
            for factor, weight in weights:
                line = self.algebra.product(((factor,),), (unit,))
                full = self.algebra.product(line, self.outer)[0]
                found.append(Square(full, weight, by))
        return self._finish("; ".join(dict.fromkeys(reasons)), found)

    def _reason(self, P: MatrixExpr) -> tuple[str, list[tuple[MatrixExpr, MatrixExpr]]]:
        terms = self.algebra.terms(P)
        if not terms:
            return "positive", []
        for definition in self.definitions:
            for known in definition.concludes:
                other = self.algebra.terms(known)
                if known.shape != P.shape or other.keys() != terms.keys():
                    continue
                ratios = {sp.cancel(terms[w] / other[w]) for w in terms}
                if len(ratios) == 1 and (ratio := ratios.pop()).is_positive:
                    return definition.symbol.name, [(sp.Identity(P.shape[0]), ratio * known)]
        squares = squares_of(P, self.algebra)
        if squares is None:
            raise self._fails(
                f"{P} is neither what a lemma gives nor a sum of squares. Where it is the sum of "
                "both, take the square off first, with subtract(row, weight)",
                "conclude",
            )
        return "positive", squares

    def _then(
        self,
        name: str,
        reason: str,
        direction: Direction,
        new: Grid,
        factor: Grid | None,
        squares: Sequence[tuple[tuple[MatrixExpr, ...], MatrixExpr]] = (),
    ) -> Statement:
        """The next statement: before = factorᵀ · new · factor + squares; None keeps the outer."""
        after = block(new)
        outer = self.outer if factor is None else self.algebra.product(factor, self.outer)
        more: list[Square] = []
        for row, weight in squares:
            full = self.algebra.product((row,), self.outer)[0]
            for part, inner in squares_of(weight, self.algebra) or []:
                more.append(Square(self.algebra.product(((part,),), (full,))[0], inner, "positive"))
        step = Step(name, reason, direction, self.matrix, after)
        return replace(
            self,
            matrix=after,
            steps=(*self.steps, step),
            outer=outer,
            squares=(*self.squares, *more),
        )

    def _finish(self, reason: str, found: Sequence[Square]) -> Statement:
        zero = sp.ZeroMatrix(*self.matrix.shape)
        names = {d.symbol.name: d.lemma for d in self.definitions}
        text = "; ".join(
            f"by {names[r]}" if r in names else r.replace("positive", "a sum of squares")
            for r in reason.split("; ")
        )
        step = Step("conclude", text, "equivalent", self.matrix, zero)
        return replace(
            self, steps=(*self.steps, step), squares=(*self.squares, *found), concluded=True
        )

    def _fails(self, problem: str, step: str) -> DerivationError:
        """The error for a step that is not valid here, with the steps up to it."""
        error = DerivationError(f"{self.name}, step {len(self.steps) + 1} ({step}): {problem}.")
        error.steps = self.steps
        return error


def statement(
    lmi: LMI,
    definitions: Sequence[Definition] = (),
    facts: Mapping[str, Sequence[str]] | None = None,
) -> Statement:
    """The start of a proof of `lmi`, with what is known about the symbols of the ansatz."""
    known: dict[str, set[str]] = {
        name: {kind} for name, kind in lmi.structure.items() if kind in ("diagonal", "symmetric")
    }
    for name, more in (facts or {}).items():
        known.setdefault(name, set()).update(more)
    for d in definitions:
        known.setdefault(d.symbol.name, set()).update(d.facts)
    algebra = Algebra(known).extended(rules=[r for d in definitions for r in d.rules])
    blocks = grid(lmi.matrix)
    return Statement(
        lmi.name,
        lmi.matrix,
        lmi.claim,
        lmi.source,
        lmi.structure,
        lmi.cone,
        algebra=algebra,
        definitions=tuple(definitions),
        original=blocks,
        outer=identity([row[0].shape[0] for row in blocks]),
    )


def s_procedure(
    name: str,
    goal: Grid,
    given: Sequence[Grid],
    claim: str,
    structure: Mapping[str, Structure],
    source: str = "S-procedure",
) -> Statement:
    """goal − Σ given ⪰ 0: sufficient for ξᵀ·goal·ξ ≥ 0 wherever every ξᵀ·given·ξ ≥ 0.

    Args:
        goal, given: symmetric grids of blocks in the same order of signals ξ; the multipliers stand
            inside `given` and must make each form non-negative on what the system can do.
    """
    start = statement(LMI(name, block(goal), claim, source, structure))
    total = start.blocks
    for form in given:
        total = start.algebra.add(total, form, -1)
    text = "ξᵀ(goal − Σ given)ξ ≥ 0 and ξᵀ given ξ ≥ 0 give ξᵀ goal ξ ≥ 0"
    step = Step("S-procedure", text, "sufficient", start.matrix, block(total))
    sizes = [row[0].shape[0] for row in total]
    return replace(start, matrix=block(total), steps=(step,), original=total, outer=identity(sizes))
