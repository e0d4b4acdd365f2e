"""Proofs to read: in the terminal, as Markdown with LaTeX, as one HTML page with MathML."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .proof import Proof

if TYPE_CHECKING:
    from .derivation import Derivation


def text(proof: Proof) -> str:
    """The report for a terminal."""
    lines = [f"{proof.document['title']}: {proof.status}"]
    lines += [f"  {'ok' if c.holds else 'FAILS'}  {c.name}: {c.detail}" for c in proof.checks]
    return "\n".join(lines)


def main(*derivations: Derivation) -> int:
    """Run derivations as a script: print their reports, return 0 only if all are proved."""
    proofs = [derivation.prove() for derivation in derivations]
    for proof in proofs:
        sys.stdout.write(text(proof) + "\n")
    return 0 if all(proofs) else 1
