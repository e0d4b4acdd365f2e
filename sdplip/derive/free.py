"""What may be chosen freely in an ansatz, and how a layer keeps it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import sympy as sp

from ..errors import InvalidInput

Domain = Literal["matrix", "direction", "bounded", "weights", "ratios", "constant"]

_FACTS = {"weights": ("positive",), "ratios": ("positive",)}
_CODE = {"direction": "normalised", "bounded": "bounded", "weights": "weights", "ratios": "ratios"}


@dataclass(frozen=True)
class Free:
    """A free symbol of an ansatz.

    Args:
        symbol: a MatrixSymbol (n, 1) for weights and ratios, any for the other matrix domains, a
            scalar Symbol for a constant.
        domain: "matrix"; "direction", where the map does not depend on its scale; "bounded", where
            huge values would only cost digits (equilibria); "weights", a positive vector; "ratios",
            one of which only ratios matter; "constant", a number given to the constructor.
        default, low, high: of a constant, strictly between low and high.
    """

    symbol: Any
    domain: Domain = "matrix"
    default: float = 1.0
    low: float = 0.0
    high: float = 1e9

    def __post_init__(self) -> None:
        if self.domain not in get_args(Domain):
            raise InvalidInput(
                f"Free: {self.symbol} has the domain {self.domain!r}, but must have one of "
                f"{', '.join(get_args(Domain))}."
            )
        if not all(isinstance(x, Real) for x in (self.default, self.low, self.high)):
            raise InvalidInput(f"Free: default, low and high of {self.symbol} must be numbers.")
        scalar = isinstance(self.symbol, sp.Symbol)
        if scalar != (self.domain == "constant"):
            raise InvalidInput(
                f"Free: {self.symbol} is {'a scalar' if scalar else 'a matrix'}, which does not go "
                f"with the domain {self.domain!r}."
            )
        if self.domain in _FACTS and self.symbol.shape[1] != 1:
            raise InvalidInput(f"Free: {self.symbol} has shape {self.symbol.shape}, not (n, 1).")
        if scalar and self.low >= 0 and not self.symbol.is_positive:
            raise InvalidInput(
                f"Free: declare {self.symbol} with positive=True, as its range says."
            )
        if scalar and not self.low < self.default < self.high:
            raise InvalidInput(
                f"Free: {self.symbol} = {self.default} by default, outside "
                f"({self.low:g}, {self.high:g})."
            )

    @property
    def name(self) -> str:
        return str(self.symbol.name)

    @property
    def facts(self) -> tuple[str, ...]:
        return _FACTS.get(self.domain, ())

    @property
    def parameter(self) -> str:
        """The name under which a layer keeps it."""
        return f"log_{self.name}" if self.facts else self.name

    @property
    def code(self) -> str:
        """The closed form that makes the symbol's value from the parameter, or ""."""
        return _CODE.get(self.domain, "")

    def draw(self, rng: random.Random, sizes: Mapping[Any, int]) -> Any:
        """A random exact value: small rationals."""
        if self.domain == "constant":
            span = sp.Rational(rng.randint(1, 8), 9)
            low = max(self.low, min(self.high, self.default) - 4)
            high = min(self.high, low + 4)
            return sp.nsimplify(low) + span * sp.nsimplify(high - low)
        rows, columns = (int(sp.sympify(d).subs(sizes)) for d in self.symbol.shape)
        least = 1 if self.facts else -9

        def entry(*_: int) -> sp.Rational:
            return sp.Rational(rng.randint(least, 9), rng.randint(1, 5))

        return sp.Matrix(rows, columns, entry)
