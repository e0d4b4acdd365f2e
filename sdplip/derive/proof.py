"""What running a derivation gives: the checks, the verdict, and a file that can be replayed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sympy as sp

from .. import __version__
from .._arrays import write_named
from ..errors import DerivationError
from ..lmi import LMI
from .controls import Check, controls
from .counterexample import Counterexample, search
from .declared import LIBRARY
from .exact import instance, is_psd, sizes_of
from .identities import LEMMAS, verify
from .instances import convex, numeric
from .tex import tex

if TYPE_CHECKING:
    from .derivation import Derivation, Goal
    from .statement import Step
    from .theorem import Theorem

KIND, THEOREM = "sdplip.derivation", "sdplip.theorem"
Status = Literal["proved", "refuted", "undecided", "inconsistent"]


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
    document: Mapping[str, Any] = field(repr=False)

    def __bool__(self) -> bool:
        return self.proved

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        from .report import markdown

        return markdown(self)

    @property
    def proved(self) -> bool:
        return self.status == "proved"

    def save(self, path: str | Path) -> None:
        """Write the proof object, which `sdplip check` replays."""
        text = json.dumps(self.document, indent=1) + "\n"
        write_named(Path(path), lambda p: p.write_text(text))


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
            "lemmas": [
                {"name": x.name, "statement": x.statement, "proof": x.proof, "source": x.source}
                for name in dict.fromkeys(d.lemma for d in derivation.definitions)
                if (x := LEMMAS.get(name)) is not None
            ],
        },
    )


def _chain_text(goals: Sequence[Goal]) -> str:
    parts = [
        f"{goal.condition.name} is a sum of squares ({len(goal.squares)})"
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
        both = verify(name)
        how = "" if LEMMAS[name].identities().pairs else " (argued in words, nothing to compute)"
        found.append(Check(f"lemma: {name}", all(both), LEMMAS[name].statement + how, True))
    return found


def _on_instances(derivation: Derivation, goals: Sequence[Goal]) -> list[Check]:
    if derivation.condition.name not in LIBRARY:
        exact = _exactly(derivation, goals)
        own = f"{derivation.condition.name} is the author's condition, and so is its claim"
        return [
            Check("exact instances", *exact),
            Check("condition", True, own),
            *controls(derivation, goals),
        ]
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
    return [*found, *controls(derivation, goals)]


def _exactly(derivation: Derivation, goals: Sequence[Goal]) -> tuple[bool, str]:
    rng = random.Random(1)
    done = []
    for sizes in sizes_of(derivation):
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
        "lemmas": [],
        **(more or {}),
        "checks": [asdict(check) for check in checks],
        "status": status,
        "broken": broken,
        "counterexample": None if counterexample is None else counterexample.to_json(),
    }
    document["sha256"] = digest(document)
    return Proof(status, tuple(checks), broken, counterexample, document)


def document_of(proof: Proof | Mapping[str, Any]) -> Mapping[str, Any]:
    return proof.document if isinstance(proof, Proof) else proof


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document without its own hash."""
    kept = {k: v for k, v in document.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
