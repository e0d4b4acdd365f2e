"""The second opinion on a proof: words, signs and rewrite rules, on JSON alone, without SymPy.

A polynomial is a dict from (scalar powers, word) to a Fraction; a word is a tuple of letters
(name, transposed, inverted). An expression is a nested list: ["sym", name], ["var", scalar],
["num", "3/2"], ["eye", n], ["zeros", n, m], ["diag", vector], ["t", x], ["inv", x], ["add", …],
["mul", …].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ..errors import InvalidInput

NUMBER = re.compile(r"-?[0-9]{1,40}(/[0-9]{1,40})?")
Poly = dict[tuple[Any, Any], Fraction]
LIMIT, LONGEST, MOST = 200_000, 2_000, 100_000


class Words:
    """Normal forms under facts {name: [fact, …]} and rules [[left, right], …]."""

    def __init__(self, facts: Mapping[str, Sequence[str]], rules: Sequence[Sequence[Any]]) -> None:
        self.diagonal = {n for n, f in facts.items() if "diagonal" in f}
        self.symmetric = self.diagonal | {n for n, f in facts.items() if "symmetric" in f}
        self.positive = {n for n, f in facts.items() if "positive" in f}
        self.invertible = self.positive | {n for n, f in facts.items() if "invertible" in f}
        self.rules: list[tuple[Any, Poly]] = []
        oriented: list[tuple[Any, Poly]] = []
        for left, right in rules:
            for x, y in ((left, right), (["t", left], ["t", right])):
                ((scalars, word), factor) = _single(self.reduce(self.read(x)), x)
                if scalars or not word:
                    raise InvalidInput(f"A rule must start from one product of symbols, not {x}.")
                oriented.append((word, _scaled(self.read(y), 1 / factor)))
        self.rules = oriented

    def read(self, tree: Any) -> Poly:
        match tree:
            case ["sym", str(name)]:
                return {((), ((name, False, False),)): Fraction(1)}
            case ["var", str(name)]:
                return {(((name, 1),), ()): Fraction(1)}
            case ["diag", ["sym", str(name)]]:
                return {((), ((f"diag({name})", False, False),)): Fraction(1)}
            case ["eye", *_]:
                return {((), ()): Fraction(1)}
            case ["zeros", *_]:
                return {}
            case ["num", str(number)] if NUMBER.fullmatch(number):
                return {((), ()): Fraction(number)} if Fraction(number) else {}
            case ["add", *parts]:
                total: Poly = {}
                for part in parts:
                    total = plus(total, self.read(part))
                return total
            case ["mul", *parts]:
                product: Poly = {((), ()): Fraction(1)}
                for part in parts:
                    product = times(product, self.read(part))
                return product
            case ["t", inner]:
                return {(s, self._turned(w)): c for (s, w), c in self.read(inner).items()}
            case ["inv", inner]:
                ((scalars, word), c) = _single(self.reduce(self.read(inner)), inner)
                for name, _, inverted in word:
                    if not inverted and name not in self.invertible:
                        raise InvalidInput(f"{name} is inverted, but not known to be invertible.")
                back = tuple((n, t, not i) for n, t, i in reversed(word))
                return {(tuple((n, -k) for n, k in scalars), back): 1 / c}
        raise InvalidInput(f"Not an expression of a proof: {tree!r:.80}")

    def reduce(self, poly: Poly) -> Poly:
        """The normal form; InvalidInput where the rules do not come to an end."""
        result: Poly = {}
        work = list(poly.items())
        for _ in range(LIMIT):
            if not work:
                return {k: c for k, c in result.items() if c}
            (scalars, word), factor = work.pop()
            if len(word) > LONGEST:
                break
            word = self._settled(word)
            hit = next(((i, w, r) for w, r in self.rules for i in _places(word, w)), None)
            if hit is None:
                result[scalars, word] = result.get((scalars, word), Fraction(0)) + factor
                continue
            at, left, right = hit
            head: Poly = {(scalars, word[:at]): factor}
            tail: Poly = {((), word[at + len(left) :]): Fraction(1)}
            work += times(times(head, right), tail).items()
        raise InvalidInput("The rules of this proof do not come to an end.")

    def zero(self, *trees: Any) -> bool:
        """Whether the sum of these expressions is zero."""
        return not self.reduce(self.read(["add", *trees]))

    def _turned(self, word: Any) -> Any:
        return tuple((n, t != (n not in self.symmetric), i) for n, t, i in reversed(word))

    def _settled(self, word: Any) -> Any:
        letters: list[Any] = []
        for letter in word:
            place = len(letters)
            while (
                place
                and letter[0] in self.diagonal
                and letters[place - 1][0] in self.diagonal
                and letters[place - 1] > letter
            ):
                place -= 1
            letters.insert(place, letter)
        for i in range(len(letters) - 1):
            (a, s, x), (b, t, y) = letters[i], letters[i + 1]
            if (a, s) == (b, t) and x != y:
                return self._settled((*letters[:i], *letters[i + 2 :]))
        return tuple(letters)


def plus(p: Poly, q: Poly) -> Poly:
    zero = Fraction(0)
    return {k: c for k in p.keys() | q.keys() if (c := p.get(k, zero) + q.get(k, zero))}


def times(p: Poly, q: Poly) -> Poly:
    total: Poly = {}
    for (s, v), a in p.items():
        for (t, w), b in q.items():
            powers = dict(s)
            for name, k in t:
                powers[name] = powers.get(name, 0) + k
            key = (tuple(sorted((n, k) for n, k in powers.items() if k)), v + w)
            total[key] = total.get(key, Fraction(0)) + a * b
        if len(total) > MOST:
            raise InvalidInput("This proof multiplies out to too many terms.")
    return total


def _scaled(p: Poly, factor: Fraction) -> Poly:
    return {k: c * factor for k, c in p.items()}


def _single(p: Poly, tree: Any) -> tuple[Any, Fraction]:
    if len(p) != 1:
        raise InvalidInput(f"Not a single product: {tree!r:.80}")
    return next(iter(p.items()))


def _places(word: Any, left: Any) -> list[int]:
    return [i for i in range(len(word) - len(left) + 1) if word[i : i + len(left)] == left]
