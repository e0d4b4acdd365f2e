"""Instances of a derivation in exact rational arithmetic."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy as sp

from ..lmi import evaluate
from . import rational
from .lemmas import Definition
from .statement import Square

if TYPE_CHECKING:
    from .derivation import Derivation


@dataclass(frozen=True)
class Instance:
    """Exact values of every symbol of an ansatz, by name; matrices in full."""

    values: dict[str, Any]
    outputs: dict[str, Any]
    sizes: dict[Any, int]

    def at(self, expr: Any) -> Any:
        """An expression in the free and defined symbols at these values."""
        return evaluate(sp.sympify(expr), self.values, self.sizes)

    def condition(self, derivation: Derivation) -> sp.Matrix:
        """The condition's matrix (a column for entrywise conditions)."""
        lmi = derivation.condition
        arguments = {}
        for name in lmi.symbols:
            value = self.outputs[name]
            if lmi.structure.get(name) == "diagonal":
                value = sp.Matrix([value[i, i] for i in range(value.rows)])
            arguments[name] = value
        return lmi(**arguments)

    def sum(self, squares: Sequence[Square]) -> sp.Matrix:
        """Σ rowᵀ · weight · row."""
        total = None
        for square in squares:
            row = sp.Matrix.hstack(*(self.at(e) for e in square.row))
            part = row.T * self.at(square.weight) * row
            total = part if total is None else total + part
        return total


def instance(
    derivation: Derivation,
    sizes: Mapping[Any, int],
    rng: random.Random,
    changes: Mapping[str, Any] | None = None,
    free: Mapping[str, Any] | None = None,
    closed_form: bool = False,
) -> Instance:
    """A random instance; `changes` replaces entries of the ansatz, `free` gives drawn values.

    With `closed_form` definitions take their closed form's own value, without it a rational one
    that satisfies the lemma just as well.

    Raises:
        ValueError: a value that is not rational, or an inverse that does not exist.
    """
    values: dict[str, Any] = dict(free or {})
    for f in derivation.free:
        if f.name not in values:
            values[f.name] = f.draw(rng, sizes)
    known = dict(sizes)
    for definition in derivation.definitions:
        values[definition.symbol.name] = _defined(definition, values, known, closed_form)
    found = Instance(values, {}, known)
    expressions = {**derivation.outputs, **(changes or {})}
    outputs = {name: found.at(value) for name, value in expressions.items()}
    return Instance(values, outputs, known)


def _defined(
    d: Definition, values: Mapping[str, Any], sizes: Mapping[Any, int], closed_form: bool
) -> Any:
    arguments = [evaluate(a, values, sizes) for a in d.arguments]
    exact: Any = rational.CLOSED.get(d.lemma, d.exact) if closed_form else d.exact
    value = evaluate(d.value, values, sizes) if exact is None else exact(*arguments)
    if not all(entry.is_rational for entry in value):
        raise ValueError(f"{d.symbol} is not rational at this instance.")
    return value


def is_psd(matrix: sp.Matrix) -> bool:
    """Whether a symmetric rational matrix is positive semidefinite, by exact elimination."""
    M = [[sp.Rational(x) for x in row] for row in matrix.tolist()]
    active = list(range(len(M)))
    while active:
        if any(M[i][i] < 0 for i in active):
            return False
        pivots = [i for i in active if M[i][i] > 0]
        if not pivots:
            return all(M[i][j] == 0 for i in active for j in active)
        k = pivots[0]
        active.remove(k)
        for i in active:
            factor = M[i][k] / M[k][k]
            for j in active:
                M[i][j] -= factor * M[k][j]
    return True


def sizes_of(derivation: Derivation) -> list[dict[Any, int]]:
    """The sizes of the derivation's exact instances, each once."""
    found = [sized(derivation, shape) for shape in derivation.sizes]
    return [s for i, s in enumerate(found) if s not in found[:i]]


def sized(derivation: Derivation, shape: tuple[int, int, int]) -> dict[Any, int]:
    """The size symbols of the free symbols at (m, n, p); others are 2."""
    dims = {d for f in derivation.free if f.domain != "constant" for d in f.symbol.shape}
    given = dict(zip("mnp", shape, strict=True))
    named = sorted((d for d in dims if getattr(d, "is_Symbol", False)), key=str)
    return {d: given.get(str(d), 2) for d in named}
