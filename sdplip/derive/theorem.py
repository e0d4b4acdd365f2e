"""Theorems about conditions themselves, from which no layer follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DerivationError, InvalidInput
from ..lmi import LMI
from .algebra import grid
from .identities import Identities, both_agree
from .proof import THEOREM, Check, Proof, assemble
from .statement import Statement
from .trees import tree


@dataclass(frozen=True)
class Theorem:
    """A claim that rests on identities for every size.

    Args:
        name, title, claim, source: as for a `Derivation`.
        identities: by name, what each shows; all are checked by SymPy and by the words.
        argument: how the identities give the claim, in sentences, in order.
        statement: a chain of steps, if there is one; `gives`, the condition that it must end in.
        instances: by name a function that returns whether the claim holds on exact instances.
    """

    name: str
    title: str
    claim: str
    source: str
    identities: Mapping[str, Identities]
    argument: Sequence[str]
    statement: Callable[[], Statement] | None = None
    gives: LMI | None = None
    instances: Mapping[str, Callable[[], bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.identities and self.statement is None:
            raise InvalidInput(f"{self.name}: a theorem needs identities or a statement.")
        for name, found in self.identities.items():
            if not found.pairs:
                raise InvalidInput(f"{self.name}: {name!r} has no equation. Leave it out.")

    def prove(self, *, quick: bool = False) -> Proof:
        """Run every check; `quick` leaves out the instances."""
        checks: list[Check] = []
        steps: tuple[Any, ...] = ()
        identities = dict(self.identities)
        broken: str | None = None
        if self.statement is not None:
            try:
                done = self.statement()
                steps = done.steps
                if done.direction == "necessary":
                    raise DerivationError(f"{self.name}: the steps only give what is necessary.")
                if self.gives is not None:
                    identities = {
                        f"the steps give {self.gives.name}": self._same(done)
                    } | identities
            except DerivationError as error:
                broken = str(error)
            checks.append(Check("symbolic chain", broken is None, broken or "every step", True))
        for name, found in identities.items():
            first, second = both_agree(found)
            detail = "by SymPy and by the words, every size"
            if not (first and second):
                detail = f"SymPy: {first}, words: {second}"
                broken = broken or f"{name} does not hold"
            checks.append(Check(name, first and second, detail, True))
        if not quick:
            checks += [Check(n, test(), "exact", False) for n, test in self.instances.items()]
        proved = all(check.holds for check in checks)
        documents = [
            {
                "kind": "identities",
                "name": name,
                "facts": {k: list(v) for k, v in x.facts.items()},
                "rules": [[tree(r.left), tree(r.right), r.reason] for r in x.rules],
                "pairs": [[tree(left), tree(right)] for left, right in x.pairs],
            }
            for name, x in identities.items()
        ]
        return assemble(
            self,
            kind=THEOREM,
            condition=self.gives,
            symbolic={"free": {}, "definitions": [], "ansatz": {}, "goals": documents},
            steps=steps,
            argument=self.argument,
            checks=checks,
            status="proved" if proved else "undecided",
            broken=broken,
        )

    def _same(self, done: Statement) -> Identities:
        assert self.gives is not None
        pairs = [
            (a, b)
            for left, right in zip(done.blocks, grid(self.gives.matrix), strict=True)
            for a, b in zip(left, right, strict=True)
        ]
        facts = {name: (kind,) for name, kind in self.gives.structure.items()}
        return Identities(tuple(pairs), facts)
