"""Derive Lipschitz layers: from a structure and an ansatz to a checked proof and a Torch layer."""

from . import lemmas
from .algebra import Algebra, Rule
from .controls import Check
from .counterexample import Counterexample
from .derivation import Derivation
from .free import Free
from .identities import LEMMAS, Identities, Lemma
from .lemmas import Definition
from .proof import Proof
from .replay import replay
from .report import main
from .statement import Square, Statement, Step, s_procedure, statement
from .theorem import Theorem
from .tightness import Tightness, promise_ratio, tightness

__all__ = [
    "LEMMAS",
    "Algebra",
    "Check",
    "Counterexample",
    "Definition",
    "Derivation",
    "Free",
    "Identities",
    "Lemma",
    "Proof",
    "Rule",
    "Square",
    "Statement",
    "Step",
    "Theorem",
    "Tightness",
    "lemmas",
    "main",
    "promise_ratio",
    "replay",
    "s_procedure",
    "statement",
    "tightness",
]
