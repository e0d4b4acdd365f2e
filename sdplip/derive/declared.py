"""What a derivation must declare before anything is proved from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import sympy as sp

from .. import conditions
from ..errors import InvalidInput
from ..lmi import LMI
from .algebra import Algebra
from .checker import NAME
from .free import Free
from .lemmas import UNPROVED, Definition, rebuilt

if TYPE_CHECKING:
    from .derivation import Derivation

EXTRA = ("B", "C", "D")
"""What an entrywise condition may lack of the system."""

LIBRARY = {x.name: x for x in vars(conditions).values() if isinstance(x, LMI)}
"""The conditions whose claims are the library's."""

DOMINANCE = ("diagonal dominance", "block diagonal dominance", "Gram power")


def check_declarations(derivation: Derivation) -> None:
    """Raise InvalidInput for a derivation that declares nothing that could be proved."""
    _check_kinds(derivation)
    condition, owner = derivation.condition, derivation.name
    known = LIBRARY.get(condition.name)
    if known is not None and condition != known:
        raise InvalidInput(
            f"{owner}: {condition.name!r} is the name of a condition of the library, but this is "
            "another one. Put what differs into the ansatz, or name it anew with named(...)."
        )
    names = [f.name for f in derivation.free] + [d.symbol.name for d in derivation.definitions]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"{owner}: {name} is declared twice.")
    for name in names:
        if not NAME.fullmatch(name):
            raise InvalidInput(
                f"{owner}: {name!r} is no name for a symbol here; use letters and digits."
            )
    if derivation.norm != (2 if condition.cone == "psd" else math.inf):
        raise InvalidInput(
            f"{owner}: norm = {derivation.norm}, but {condition.name} is a condition for "
            f"norm {'2' if condition.cone == 'psd' else 'inf'}."
        )
    extra = EXTRA if condition.cone == "nonnegative" else ()
    if unknown := set(derivation.ansatz) - set(condition.symbols) - set(extra):
        raise InvalidInput(
            f"{owner}: the ansatz gives {', '.join(sorted(unknown))}, which "
            f"{condition.name} does not have; it has {', '.join(condition.symbols)}."
        )
    given = {*names, *derivation.ansatz}
    if missing := set(condition.symbols) - given:
        raise InvalidInput(
            f"{owner}: neither the ansatz nor the free symbols give "
            f"{', '.join(sorted(missing))}, which {condition.name} needs."
        )
    declared = {f.name for f in derivation.free}
    for definition in derivation.definitions:
        _check_definition(derivation, definition, declared)
        declared.add(definition.symbol.name)
    constants = {f.name: f.symbol for f in derivation.free if f.domain == "constant"}
    for name, expr in derivation.ansatz.items():
        _check_symbols(derivation, expr, declared)
        if name in constants and sp.sympify(expr) != constants[name]:
            raise InvalidInput(
                f"{owner}: {name} is a constant of the layer and a symbol of {condition.name} with "
                "another value. Rename the constant."
            )
    _check_slopes(derivation)


def _check_kinds(derivation: Derivation) -> None:
    wanted: list[tuple[str, Sequence[Any], Any, str]] = [
        ("condition", [derivation.condition], LMI, "an LMI, as conditions.residual"),
        ("free", derivation.free, Free, "Free(...) of every free symbol"),
        ("definitions", derivation.definitions, Definition, "what functions of lemmas return"),
        ("argument", [derivation.argument], Callable, "a function of the statement"),
    ]
    for name, values, kind, how in wanted:
        for value in values:
            if not isinstance(value, kind):
                raise InvalidInput(f"{derivation.name}: {name} has {value!r}, but must have {how}.")


def _check_symbols(derivation: Derivation, expr: Any, declared: set[str]) -> None:
    found = sp.sympify(expr)
    sizes = {s for m in found.atoms(sp.MatrixExpr) for d in m.shape for s in d.free_symbols}
    used = {s.name for s in found.atoms(sp.MatrixSymbol)}
    used |= {s.name for s in found.free_symbols - sizes if isinstance(s, sp.Symbol)}
    if loose := used - declared:
        raise InvalidInput(
            f"{derivation.name}: {', '.join(sorted(loose))} in {expr} is neither free nor defined "
            "before. Declare it with Free(...) or a definition."
        )


def _check_definition(derivation: Derivation, d: Definition, declared: set[str]) -> None:
    for expr in (*d.arguments, *(() if d.value is None else (d.value,))):
        _check_symbols(derivation, expr, declared)
    if d.lemma == UNPROVED:
        return
    earlier = {e.symbol.name: e for e in derivation.definitions if e.symbol.name in declared}
    fresh = rebuilt(d.symbol.name, d.lemma, d.arguments, d.options, earlier)
    for part in ("symbol", "value", "facts", "concludes", "rules", "code"):
        if getattr(fresh, part) != getattr(d, part):
            raise InvalidInput(
                f"{derivation.name}: {d.symbol} is not what {d.lemma!r} makes of its arguments "
                f"(its {part} differ). Use the functions of sdplip.derive.lemmas."
            )
    positive = {f.symbol for f in derivation.free if f.facts}
    if d.lemma == "stacked orthogonality":
        parts = [
            e
            for e in derivation.definitions
            if (e.arguments, e.options) == (d.arguments, d.options)
        ]
        if {e.symbol.name for e in parts} != set(d.options):
            raise InvalidInput(
                f"{derivation.name}: {d.symbol} is one of {d.options}; give both definitions that "
                "lemmas.stacked returns."
            )
    if d.lemma == "row sums":
        positive |= {e.symbol for e in earlier.values() if "positive" in e.facts}
        weights, floor = d.arguments[1:]
        if not (isinstance(weights, sp.OneMatrix) or weights in positive):
            raise InvalidInput(f"{derivation.name}: the weights {weights} are not seen to be ≥ 0.")
        if floor not in {
            f.symbol for f in derivation.free if f.domain == "constant" and f.low >= 0
        }:
            raise InvalidInput(f"{derivation.name}: {floor} must be a positive constant.")
    if d.lemma in DOMINANCE and any(q not in positive for q in d.arguments[1:]):
        raise InvalidInput(
            f"{derivation.name}: {d.symbol} is scaled by {d.arguments[1]}, which must be a free "
            'vector of domain "ratios" or "weights".'
        )


def _check_slopes(derivation: Derivation) -> None:
    """The slopes for which the condition was stated are those that the layer accepts."""
    condition, owner = derivation.condition, derivation.name
    low, high = derivation.slopes
    if not low <= high:
        raise InvalidInput(f"{owner}: slopes {derivation.slopes} are no range; give low <= high.")
    for name, bound in (("alpha", low), ("beta", high)):
        if name not in condition.symbols:
            if not 0 <= low <= high <= 1:
                raise InvalidInput(
                    f"{owner}: slopes {derivation.slopes}, but {condition.name} is stated "
                    "for slopes in [0, 1]. Start from conditions.lipschitz."
                )
            continue
        terms = Algebra().terms(sp.sympify(derivation.ansatz.get(name, derivation.outputs[name])))
        found = terms.get((), sp.Integer(0))
        if set(terms) - {()} or found != sp.Rational(str(bound)):
            raise InvalidInput(
                f"{owner}: the ansatz gives {name} = {derivation.ansatz.get(name)}, but slopes = "
                f"{derivation.slopes}. The two must say the same."
            )
