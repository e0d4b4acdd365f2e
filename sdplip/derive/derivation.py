"""A derivation: condition, ansatz, argument; what it proves and the layer that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import sympy as sp

from .. import conditions
from ..errors import DerivationError, InvalidInput
from ..lmi import LMI, Structure
from .algebra import Algebra, grid
from .checker import check
from .declared import DOMINANCE, EXTRA, check_declarations
from .free import Free
from .lemmas import UNPROVED, Definition
from .rows import Row, rows
from .squares import squares_of
from .statement import Square, Statement, Step, statement
from .trees import tree, trees

if TYPE_CHECKING:
    from .proof import Proof


@dataclass(frozen=True)
class Goal:
    """A condition at the ansatz as a sum of squares, or as rows that are ≥ 0."""

    condition: LMI
    squares: tuple[Square, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Derivation:
    """From a condition to a layer: state an ansatz, argue that it satisfies the condition.

    Args:
        name: short, for files and the command line.
        title: one line.
        claim: the theorem, in a sentence or two.
        source: the paper, or "sdplip" for what is new here.
        condition: an LMI of `sdplip.conditions` or one of your own; its claim becomes the layer's.
        free: the free symbols of the ansatz.
        ansatz: per symbol of the condition an expression; symbols that stay free are left out.
            For rows ("nonnegative" conditions) also B, C, D where the condition lacks them.
        definitions: further symbols, in order, each from a lemma or `lemmas.define`.
        argument: the steps from the condition at the ansatz to a statement that is concluded.
        slopes: the range of slopes for which the condition was stated.
        controls: wrong variants by name, each a change of the ansatz that must fail.
        norm: 2 or inf.
        sizes: (m, n, p) of the exact instances.
    """

    name: str
    title: str
    claim: str
    source: str
    condition: LMI
    free: Sequence[Free]
    ansatz: Mapping[str, Any]
    definitions: Sequence[Definition] = ()
    argument: Callable[[Statement], Statement] = field(default=lambda s: s.simplify().conclude())
    slopes: tuple[float, float] = (0.0, 1.0)
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    norm: float = 2
    sizes: Sequence[tuple[int, int, int]] = ((1, 1, 1), (2, 2, 2), (2, 3, 1), (3, 2, 2))

    def __post_init__(self) -> None:
        check_declarations(self)

    def __copy__(self) -> Derivation:
        return self

    def __deepcopy__(self, memo: object) -> Derivation:
        return self

    def __reduce__(self) -> NoReturn:
        raise InvalidInput(
            f"Derivation: {self.name!r} cannot be pickled, for its argument and its lemmas are "
            "functions. Pickle what prove() returns, or load the file that defines it again."
        )

    # --- what the ansatz says ---

    @cached_property
    def structure(self) -> dict[str, Structure]:
        """What is declared diagonal."""
        return {d.symbol.name: "diagonal" for d in self.definitions if d.diagonal}

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """Every symbol of the condition and of the system, as expressions."""
        given = {f.name: f.symbol for f in self.free}
        given |= {d.symbol.name: d.symbol for d in self.definitions}
        extra = EXTRA if self.condition.cone == "nonnegative" else ()
        names = [*self.condition.symbols, *(s for s in extra if s in {*given, *self.ansatz})]
        found = {name: self.ansatz.get(name, given.get(name)) for name in dict.fromkeys(names)}
        if self.family == "Equilibrium" and "D" not in found:
            found["D"] = sp.ZeroMatrix(found["C"].shape[0], found["B"].shape[1])
        return found

    @cached_property
    def family(self) -> Literal["Linear", "Residual", "Equilibrium"]:
        names = self.condition.symbols
        if "A" not in names:
            return "Residual" if "G" in names else "Linear"
        return "Residual" if isinstance(self.ansatz.get("A"), sp.ZeroMatrix) else "Equilibrium"

    @cached_property
    def square(self) -> bool:
        """Whether input and output have the same size."""
        last = next((self.outputs[x] for x in ("H", "D") if x in self.outputs), None)
        return last is not None and last.shape[0] == last.shape[1]

    @property
    def takes_relu(self) -> bool:
        low, high = self.slopes
        return low <= 0 and high >= 1

    @property
    def direct(self) -> bool:
        return not isinstance(self.outputs.get("D"), sp.ZeroMatrix | None)

    @property
    def ansatz_text(self) -> str:
        parts = [f"{d.symbol} by {d.lemma or 'definition'}" for d in self.definitions]
        parts += [f"{name} = {value}" for name, value in self.ansatz.items()]
        text = "; ".join(parts)
        return text if len(text) < 85 else f"{text[:80]} …"

    # --- the proof ---

    def start(self, changes: Mapping[str, Any] | None = None) -> Statement:
        """The condition with the ansatz in it."""
        facts = {f"diag({f.name})": ("diagonal", *f.facts) for f in self.free if f.facts}
        values = {**self.ansatz, **(changes or {})}
        values = {k: sp.sympify(v) for k, v in values.items() if k in self.condition.symbols}
        begun = replace(statement(self.condition, self.definitions, facts), name=self.name)
        return begun.substitute(structure=self.structure, **values)

    def goals(self) -> list[Goal]:
        """The conditions of the claim with their decompositions.

        Raises:
            DerivationError: the step that breaks.
        """
        if self.condition.cone == "nonnegative":
            return [Goal(self.condition, rows=tuple(rows(self)))]
        proved = self._argued()
        if not proved.concluded:
            raise DerivationError(f"{self.name}: the argument ends without conclude().")
        self._nothing_assumed(proved.algebra)
        self._signed(proved.algebra)
        found = [Goal(self.condition, squares=proved.squares)]
        if self.family == "Equilibrium":
            found.append(self._wellposed(proved.algebra))
        return found

    def steps(self) -> tuple[Step, ...]:
        """The argument's steps as far as they are valid."""
        if self.condition.cone == "nonnegative":
            return ()
        try:
            return self._argued().steps
        except DerivationError as error:
            return getattr(error, "steps", ())

    def _argued(self) -> Statement:
        found = self.argument(self.start())
        if not isinstance(found, Statement):
            raise DerivationError(
                f"{self.name}: the argument gives {found!r}, not a statement. Let it return what "
                "its last step gives."
            )
        return found

    def _nothing_assumed(self, algebra: Algebra) -> None:
        """The argument may use what definitions give, not facts of its own."""
        given = self.start().algebra
        more = [r for r in algebra.rules if r not in given.rules]
        facts = {n: f for n, f in algebra.facts.items() if not f <= given.facts.get(n, frozenset())}
        facts = {n: f for n, f in facts.items() if not n.startswith("diag(")}
        if more or facts:
            raise DerivationError(
                f"{self.name}: the argument assumes {', '.join([*facts, *map(str, more)])}, which "
                "no definition gives. Use a lemma's definition instead."
            )
        for d in self.definitions:
            if d.lemma == UNPROVED:
                raise DerivationError(
                    f"{self.name}: {d.symbol} is defined by a formula that no lemma knows."
                )
            if d.lemma in DOMINANCE and not algebra.equal(d.arguments[0], d.arguments[0].T):
                raise DerivationError(f"{self.name}: {d.arguments[0]} is not symmetric.")

    def _signed(self, algebra: Algebra) -> None:
        """The multipliers must be diagonal and ≥ 0: nothing else is a valid multiplier."""
        for name in self.condition.signed:
            value = self.ansatz.get(name, self.outputs[name])
            for word, factor in algebra.terms(value).items():
                letters = {letter for letter, _, _ in word}
                if not all(algebra.has(x, "diagonal") for x in letters):
                    raise DerivationError(
                        f"{self.name}, step 1 (substitute): {name} = {value} is not diagonal, and "
                        "only diagonal multipliers are valid for units that act one by one."
                    )
                if not factor.is_nonnegative or not all(
                    algebra.has(x, "positive") for x in letters
                ):
                    raise DerivationError(
                        f"{self.name}, step 1 (substitute): {name} = {value} is not seen to be ≥ 0."
                    )

    def _wellposed(self, algebra: Algebra) -> Goal:
        values = {k: v for k, v in self.outputs.items() if k in conditions.wellposed.symbols}
        if "alpha" not in values:
            values |= conditions.unit_slopes(values["A"].shape[0])
        at = conditions.wellposed.substitute(structure=self.structure, **values)
        squares = squares_of(at.matrix, algebra)
        strict = squares is not None and any(
            isinstance(F, sp.Identity) and _definite(C, algebra) for F, C in squares
        )
        if squares is None or not strict:
            raise DerivationError(
                f"{self.name}: that the equilibrium exists and is unique does not follow: "
                f"{algebra.normal(at.matrix)} is not seen to be positive definite."
            )
        found = tuple(Square((F,), C, "positive") for F, C in squares)
        return Goal(conditions.wellposed, squares=found)

    def document(self, goals: Sequence[Goal]) -> dict[str, Any]:
        """The symbolic part of the proof object: declarations, ansatz, decompositions."""
        values = dict(self.ansatz)
        if self.family == "Equilibrium" and self.condition.cone == "psd":
            values |= {
                k: v for k, v in conditions.unit_slopes(sp.Symbol("n")).items() if k not in values
            }
        return {
            "slopes": [str(sp.Rational(str(s))) for s in self.slopes],
            "norm": "2" if self.norm == 2 else "inf",
            "free": {
                f.name: {
                    "domain": f.domain,
                    "low": f.low,
                    "high": f.high,
                    "default": f.default,
                    "shape": [str(d) for d in getattr(f.symbol, "shape", ())],
                    "positive": f.low >= 0 if f.domain == "constant" else bool(f.facts),
                }
                for f in self.free
            },
            "definitions": [
                {
                    "symbol": d.symbol.name,
                    "lemma": d.lemma,
                    "arguments": [tree(a) for a in d.arguments],
                    "options": list(d.options),
                }
                for d in self.definitions
            ],
            "ansatz": {k: tree(sp.sympify(v)) for k, v in values.items()},
            "goals": [_goal(goal) for goal in goals],
        }

    def identity_holds(
        self, goals: Sequence[Goal], changes: Mapping[str, Any] | None = None
    ) -> tuple[bool, list[str]]:
        """Whether the decompositions hold for general sizes: by SymPy, and what the words object.

        `changes` replaces entries of the ansatz, with the decompositions kept.
        """
        document = self.document(goals)
        document["ansatz"] |= {k: tree(sp.sympify(v)) for k, v in (changes or {}).items()}
        if self.condition.cone == "nonnegative":
            fresh = _goal(Goal(self.condition, rows=tuple(rows(self, changes))))
            return fresh == document["goals"][0], check(document | {"goals": [fresh]})
        start = self.start(changes)
        total = start.original
        for square in goals[0].squares:
            part = tuple(tuple(a.T * square.weight * b for b in square.row) for a in square.row)
            total = start.algebra.add(total, part, -1)
        return start.algebra.zero(total), check(document)

    def prove(self, *, quick: bool = False) -> Proof:
        """Run every check; see `Proof`. `quick` leaves out all but the symbolic part."""
        from .proof import prove

        return prove(self, quick=quick)

    # --- the layer ---

    @property
    def class_name(self) -> str:
        """What the layer's class is called where nobody says otherwise."""
        return f"{self.name.title().replace('-', '').replace('_', '')}Layer"

    def emit(self, name: str, convolution: bool = False) -> str:
        """The layer as a Python module with the class `name`.

        Args:
            convolution: a layer of images, where the ansatz has that meaning.

        Raises:
            InvalidInput: no Torch form, no convolutional meaning, or a bad name.
        """
        from . import emit, emit_conv

        return (emit_conv if convolution else emit).source(self, name)

    def layer(self, name: str | None = None, convolution: bool = False) -> type[Any]:
        """The layer as a class, a `Layer` whose arguments depend on the condition; see `emit`.

        It pickles within this process; write the source to a file for more than that.
        """
        from .loading import load

        name = name or self.class_name
        return load(self.emit(name, convolution), name)


def _definite(weight: Any, algebra: Algebra) -> bool:
    terms = algebra.terms(weight)
    return bool(terms) and all(
        factor.is_positive and all(algebra.has(x, "positive") for x, _, _ in word)
        for word, factor in terms.items()
    )


def _goal(goal: Goal) -> dict[str, Any]:
    if goal.rows:
        return {
            "kind": "rows",
            "condition": goal.condition.name,
            "rows": [row.document() for row in goal.rows],
        }
    return {
        "kind": "squares",
        "condition": goal.condition.name,
        "blocks": trees(grid(goal.condition.matrix)),
        "signed": list(goal.condition.signed),
        "strict": goal.condition.name == "wellposed",
        "squares": [
            {"row": [tree(e) for e in s.row], "weight": tree(s.weight), "by": s.by}
            for s in goal.squares
        ],
    }
