"""A proof object from a file, checked anew."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import sympy as sp

from .. import conditions
from ..errors import InvalidInput
from ..lmi import LMI
from . import lemmas
from .algebra import grid
from .checker import check
from .declared import LIBRARY
from .derivation import Derivation
from .free import Free
from .proof import KIND, digest
from .trees import expression, size, trees
from .words import Words


def replay(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a proof object read from a file; an empty list if its goals are proved.

    Squares are checked by the words alone, rows are derived anew; both against the library's own
    conditions. Steps and prose are not read: what is proved is that the ansatz satisfies the named
    condition, whose claim is the library's.

    Raises:
        InvalidInput: something that is no proof object of a derivation.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InvalidInput("This is no proof object of a derivation.")
    try:
        problems = _replayed(document)
    except (RecursionError, MemoryError) as error:
        raise InvalidInput("Not a proof object: it is nested too deeply.") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"Not a proof object: {type(error).__name__} {error}.") from error
    return problems


def _replayed(document: Mapping[str, Any]) -> list[str]:
    problems = []
    if digest(document) != document.get("sha256"):
        problems.append("the file was changed: its hash does not fit")
    if document.get("status") != "proved":
        problems.append(f"the file itself says {document.get('status')!r}, not 'proved'")
    problems += check(document)
    first = document["goals"][0]
    known = LIBRARY.get(first["condition"])
    if known is None or document["condition"]["name"] != known.name:
        return [*problems, f"the condition {first['condition']!r} is not one of the library's"]
    if known.cone == "nonnegative":
        again = _again(document, known)
        if document["goals"] != again.document(again.goals())["goals"]:
            problems.append("the rows are not those of the ansatz")
        return problems
    low, high = map(Fraction, document["slopes"])
    wanted = [known]
    if (
        known != conditions.wellposed
        and "A" in known.symbols
        and document["ansatz"].get("A", ["sym"])[0] != "zeros"
    ):
        wanted.append(conditions.wellposed)
    if "alpha" not in known.symbols:
        if not 0 <= low <= high <= 1:
            problems.append(f"{known.name} is stated for slopes in [0, 1]")
        low, high = Fraction(0), Fraction(1)
    if "alpha" in known.symbols or conditions.wellposed in wanted:
        for name, bound in (("alpha", low), ("beta", high)):
            off = ["add", document["ansatz"][name], ["num", str(-bound)]]
            if not Words({}, []).zero(off):
                problems.append(f"{name} does not go with the slopes {document['slopes']}")
    if document["norm"] != "2":
        problems.append(f"{known.name} is a condition for norm 2, not {document['norm']!r}")
    found = [
        {k: goal[k] for k in ("kind", "condition", "blocks", "signed")}
        for goal in document["goals"]
    ]
    if found != [
        {
            "kind": "squares",
            "condition": lmi.name,
            "blocks": trees(grid(lmi.matrix)),
            "signed": list(lmi.signed),
        }
        for lmi in wanted
    ]:
        names = ", ".join(lmi.name for lmi in wanted)
        problems.append(f"the goals are not the library's conditions ({names})")
        return problems
    return problems + _ill_typed(document, _again(document, known))


def _ill_typed(document: Mapping[str, Any], again: Derivation) -> list[str]:
    """Squares whose matrices do not fit: words have no sizes, so they do not see it."""
    symbols = {f.name: f.symbol for f in again.free}
    symbols |= {d.symbol.name: d.symbol for d in again.definitions}
    first = again.start().sizes
    problems = []
    for goal in document["goals"]:
        sizes = (again.outputs["A"].shape[0],) if goal["condition"] == "wellposed" else first
        for square in goal["squares"]:
            row = [expression(e, symbols).shape for e in square["row"]]
            k = expression(square["weight"], symbols).shape[0]
            if row != [(k, size) for size in sizes]:
                problems.append(f"a square of {goal['condition']} has the shapes {row}")
    return problems


def _again(document: Mapping[str, Any], condition: LMI) -> Derivation:
    """The derivation of a proof object, from its declarations."""
    symbols: dict[str, Any] = {}
    free = []
    for name, d in document["free"].items():
        if d["domain"] == "constant":
            symbol = sp.Symbol(name, positive=True) if d["low"] >= 0 else sp.Symbol(name, real=True)
        else:
            symbol = sp.MatrixSymbol(name, *map(size, d["shape"]))
        symbols[name] = symbol
        free.append(Free(symbol, d["domain"], d["default"], d["low"], d["high"]))
    definitions: dict[str, lemmas.Definition] = {}
    for d in document["definitions"]:
        arguments = [expression(a, symbols) for a in d["arguments"]]
        made = lemmas.rebuilt(d["symbol"], d["lemma"], arguments, d["options"], definitions)
        definitions[d["symbol"]] = made
        symbols[d["symbol"]] = made.symbol
    low, high = (float(Fraction(s)) for s in document["slopes"])
    return Derivation(
        name=str(document["name"]),
        title=str(document["title"]),
        claim=str(document["claim"]),
        source=str(document["source"]),
        condition=condition,
        free=free,
        definitions=list(definitions.values()),
        ansatz={
            k: expression(v, symbols)
            for k, v in document["ansatz"].items()
            if condition.cone == "nonnegative" or k in condition.symbols
        },
        slopes=(low, high),
        norm=float(document["norm"]),
    )
