"""What running a derivation gives: the checks, the verdict, and a file that can be replayed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import sympy as sp

from .. import __version__, conditions
from .._arrays import write_atomically
from ..errors import DerivationError, InvalidInput
from ..lmi import LMI
from . import lemmas
from .algebra import grid
from .counterexample import Counterexample, search
from .exact import instance, is_psd
from .free import Free
from .instances import convex, numeric
from .tex import tex
from .trees import expression, size, trees
from .words import Words
from .words import check as check_words

if TYPE_CHECKING:
    from .derivation import Derivation, Goal
    from .statement import Step
    from .theorem import Theorem

KIND, THEOREM = "sdplip.derivation", "sdplip.theorem"
Status = Literal["proved", "refuted", "undecided", "inconsistent"]


@dataclass(frozen=True)
class Check:
    """One check: `general` says whether it covers all sizes or only instances."""

    name: str
    holds: bool
    detail: str
    general: bool = False


@dataclass(frozen=True)
class Proof:
    """The outcome of a derivation.

    Attributes:
        status: "proved": the symbolic chain is complete, both checkers agree and no instance
            contradicts it; "refuted": a counterexample is at hand; "undecided": the chain breaks,
            but no counterexample was found; "inconsistent": chain and instances disagree, which is
            a defect of the library.
        checks: in the order they ran.
        broken: the step that fails, in words; None if none does.
        counterexample: for "refuted".
        document: everything as JSON values, with a hash.
    """

    status: Status
    checks: tuple[Check, ...]
    broken: str | None
    counterexample: Counterexample | None
    document: Mapping[str, Any]

    def __bool__(self) -> bool:
        return self.proved

    @property
    def proved(self) -> bool:
        return self.status == "proved"

    def save(self, path: str | Path) -> None:
        """Write the proof object, which `sdplip check` replays without SymPy."""
        text = json.dumps(self.document, indent=1) + "\n"
        write_atomically(Path(path), lambda p: p.write_text(text))


def prove(derivation: Derivation, *, quick: bool = False) -> Proof:
    """See `Derivation.prove`."""
    checks: list[Check] = []
    broken: str | None = None
    goals: list[Goal] = []
    try:
        goals = derivation.goals()
    except DerivationError as error:
        broken = str(error)
    checks.append(Check("symbolic chain", broken is None, broken or _chain_text(goals), True))
    counterexample = None
    if broken is None:
        checks += _symbolic(derivation, goals)
        if not quick:
            checks += _on_instances(derivation, goals)
        status: Status = "proved" if all(c.holds for c in checks) else "inconsistent"
        failed = [c for c in checks if not c.holds]
        broken = f"{failed[0].name}: {failed[0].detail}" if failed else None
    else:
        counterexample = search(derivation)
        status = "refuted" if counterexample is not None else "undecided"
    return assemble(
        derivation,
        condition=derivation.condition,
        symbolic=derivation.document(goals),
        steps=derivation.steps(),
        checks=checks,
        status=status,
        broken=broken,
        counterexample=counterexample,
        more={
            "definitions_tex": {d.symbol.name: d.tex for d in derivation.definitions},
            "ansatz_tex": {k: tex(v) for k, v in derivation.ansatz.items()},
            "decomposition": [
                {"row": [tex(e) for e in s.row], "weight": tex(s.weight), "by": s.by}
                for goal in goals[:1]
                for s in goal.squares
            ],
            "rows": [
                {"name": row.name, "value": tex(row.value), "terms": tex(row.terms)}
                for goal in goals
                for row in goal.rows
            ],
            "lemmas": [
                {"name": x.name, "statement": x.statement, "proof": x.proof, "source": x.source}
                for name in dict.fromkeys(d.lemma for d in derivation.definitions)
                if (x := lemmas.LEMMAS.get(name)) is not None
            ],
        },
    )


def _chain_text(goals: Sequence[Goal]) -> str:
    parts = [
        f"{goal.condition.name} = {len(goal.squares)} squares"
        if goal.squares or not goal.rows
        else f"{goal.condition.name}: {len(goal.rows)} rows ≥ 0"
        for goal in goals
    ]
    return "; ".join(parts)


def _symbolic(derivation: Derivation, goals: Sequence[Goal]) -> list[Check]:
    first, problems = derivation.identity_holds(goals)
    used = dict.fromkeys(d.lemma for d in derivation.definitions if d.lemma)
    found = [
        Check("identity, SymPy", first, "noncommuting symbols, every size", True),
        Check(
            "identity, words",
            not problems,
            "; ".join(problems) or "independent rewriting, every size",
            True,
        ),
    ]
    for name in used:
        both = lemmas.verify(name)
        found.append(Check(f"lemma: {name}", all(both), lemmas.LEMMAS[name].statement, True))
    return found


def _on_instances(derivation: Derivation, goals: Sequence[Goal]) -> list[Check]:
    found = []
    for name, run in {
        "exact instances": lambda: _exactly(derivation, goals),
        "random and adversarial weights": lambda: numeric(derivation),
        "CVXPY and Clarabel": lambda: convex(derivation),
    }.items():
        try:
            found.append(Check(name, *run()))
        except Exception as error:  # whatever stops a check, it has not been passed
            found.append(Check(name, False, f"{type(error).__name__}: {error}"))
    return [*found, *_controls(derivation, goals)]


def _exactly(derivation: Derivation, goals: Sequence[Goal]) -> tuple[bool, str]:
    rng = random.Random(1)
    done = []
    for sizes in _sizes(derivation):
        at = instance(derivation, sizes, rng)
        matrix = at.condition(derivation)
        text = "×".join(str(s) for s in sizes.values())
        if goals[0].rows:
            if not all(x >= 0 for x in matrix):
                return False, f"a negative row at {text}"
        else:
            total = at.sum(goals[0].squares)
            total = sp.zeros(*matrix.shape) if total is None else total
            if sp.Matrix(matrix) - total != sp.zeros(*matrix.shape):
                return False, f"another matrix at {text}"
            weights = [at.at(s.weight) for s in goals[0].squares]
            if not all(is_psd(sp.Matrix(w)) for w in [*weights, matrix]):
                return False, f"not ⪰ 0 at {text}"
        done.append(text)
    return True, f"rational matrices of {len(done)} sizes"


def _sizes(derivation: Derivation) -> list[dict[Any, int]]:
    dims = {d for f in derivation.free if f.domain != "constant" for d in f.symbol.shape}
    named = sorted((d for d in dims if getattr(d, "is_Symbol", False)), key=str)
    found = []
    for m, n, p in derivation.sizes:
        found.append({d: {"m": m, "n": n, "p": p}.get(str(d), 2) for d in named})
    return [s for i, s in enumerate(found) if s not in found[:i]]


def _controls(derivation: Derivation, goals: Sequence[Goal]) -> list[Check]:
    """Perturbed ansätze must fail symbolically and on instances."""
    found = []
    for name, changes in derivation.controls.items():
        symbolic = not _still_holds(derivation, goals, changes)
        instances = _violated(derivation, changes)
        detail = f"fails symbolically: {symbolic}, on instances: {instances}"
        found.append(Check(f"control: {name}", symbolic and instances, detail))
    caught, harmless = [], []
    for name, changes in _perturbations(derivation):
        still = _still_holds(derivation, goals, changes)
        violated = _violated(derivation, changes)
        if still and violated:
            text = f"{name} satisfies the identity, but not the condition on instances"
            return [*found, Check("perturbations", False, text)]
        if still:
            harmless.append(name)
        elif violated:
            caught.append(name)
    detail = f"caught: {', '.join(caught) or 'none'}"
    detail += f"; harmless, still proved: {', '.join(harmless)}" if harmless else ""
    return [*found, Check("perturbations", len(caught) + len(derivation.controls) >= 2, detail)]


def _perturbations(derivation: Derivation) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for name, value in derivation.ansatz.items():
        expr = sp.sympify(value)
        if isinstance(expr, sp.ZeroMatrix) or name not in derivation.condition.symbols:
            continue
        found.append((f"{name} with its sign changed", {name: -expr}))
        found.append((f"{name} without a factor 2", {name: expr / 2}))
    return found


def _still_holds(
    derivation: Derivation, goals: Sequence[Goal], changes: Mapping[str, Any]
) -> bool:
    try:
        first, problems = derivation.identity_holds(goals, changes)
    except (DerivationError, InvalidInput):
        return False
    return first and not problems


def _violated(derivation: Derivation, changes: Mapping[str, Any]) -> bool:
    """Whether the condition fails at the changed ansatz for some small instance."""
    rng = random.Random(2)
    for sizes in _sizes(derivation) * 2:
        try:
            matrix = instance(derivation, sizes, rng, changes).condition(derivation)
        except (ValueError, ZeroDivisionError, sp.matrices.exceptions.MatrixError):
            continue
        values = np.array(sp.Matrix(matrix).tolist(), dtype=float)
        if derivation.condition.cone == "nonnegative":
            lowest = values.min()
        else:
            lowest = np.linalg.eigvalsh((values + values.T) / 2)[0]
        if lowest < -1e-9 * max(1.0, np.abs(values).max()):
            return True
    return False


# --- the document ---


def assemble(
    subject: Derivation | Theorem,
    *,
    condition: LMI | None,
    symbolic: Mapping[str, Any],
    steps: Sequence[Step],
    checks: Sequence[Check],
    status: Status,
    broken: str | None,
    counterexample: Counterexample | None = None,
    kind: str = KIND,
    argument: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> Proof:
    """The proof with its document."""
    document: dict[str, Any] = {
        "kind": kind,
        "version": 1,
        "sdplip": __version__,
        "name": subject.name,
        "title": subject.title,
        "claim": subject.claim,
        "source": subject.source,
        "condition": None
        if condition is None
        else {
            "name": condition.name,
            "claim": condition.claim,
            "source": condition.source,
            "tex": tex(condition.matrix),
        },
        **symbolic,
        "steps": [
            {
                "name": step.name,
                "reason": step.reason,
                "direction": step.direction,
                "before": tex(step.before),
                "after": tex(step.after),
            }
            for step in steps
        ],
        "argument": list(argument),
        "definitions_tex": {},
        "ansatz_tex": {},
        "decomposition": [],
        "rows": [],
        "lemmas": [],
        **(more or {}),
        "checks": [asdict(check) for check in checks],
        "status": status,
        "broken": broken,
        "counterexample": None if counterexample is None else counterexample.to_json(),
    }
    document["sha256"] = digest(document)
    return Proof(status, tuple(checks), broken, counterexample, document)


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document without its own hash."""
    kept = {k: v for k, v in document.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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
    problems += check_words(document)
    named = {x.name: x for x in vars(conditions).values() if isinstance(x, LMI)}
    first = document["goals"][0]
    known = named.get(first["condition"])
    if known is None or document["condition"]["name"] != known.name:
        return [*problems, f"the condition {first['condition']!r} is not one of the library's"]
    if known.cone == "nonnegative":
        again = _again(document, known)
        if document["goals"] != again.document(again.goals())["goals"]:
            problems.append("the rows are not those of the ansatz")
        return problems
    low, high = map(Fraction, document["slopes"])
    wanted = [known]
    if "A" in known.symbols and document["ansatz"].get("A", ["sym"])[0] != "zeros":
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
        {k: goal[k] for k in ("kind", "condition", "blocks", "signed")} for goal in document["goals"]
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


def _again(document: Mapping[str, Any], condition: LMI) -> Derivation:
    """The derivation of a proof object, from its declarations."""
    from .derivation import Derivation

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
    return Derivation(
        name=str(document["name"]),
        title=str(document["title"]),
        claim=str(document["claim"]),
        source=str(document["source"]),
        condition=condition,
        free=free,
        definitions=list(definitions.values()),
        ansatz={k: expression(v, symbols) for k, v in document["ansatz"].items()},
        slopes=tuple(float(Fraction(s)) for s in document["slopes"]),  # type: ignore[arg-type]
        norm=float(document["norm"]),
    )
