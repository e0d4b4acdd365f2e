"""The symbolic part of a proof object, checked on its JSON alone with `words`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..errors import InvalidInput
from .words import Poly, Words, times

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
POSITIVE = ("weights", "ratios")


def check(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with the symbolic part of a proof object; an empty list if it proves its goals.

    Every fact and rule is derived here from how the symbols were declared, none is taken over. That
    the goals are the library's conditions is not checked here (see `replay`).

    Raises:
        InvalidInput: something that is no proof object.
    """
    try:
        goals = document["goals"]
        problems = [] if goals else ["there is no goal"]
        engine = _engine(document)
        for goal in goals:
            problems += _KINDS[goal["kind"]](document, goal, engine)
        return problems
    except InvalidInput:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(f"Not a proof object: {type(error).__name__} {error}.") from error
    except (RecursionError, MemoryError) as error:
        raise InvalidInput("Not a proof object: it is nested too deeply.") from error


def _check_squares(
    document: Mapping[str, Any], goal: Mapping[str, Any], engine: Words
) -> list[str]:
    scalars = {
        n for n, d in document["free"].items() if d["domain"] == "constant" and d["low"] >= 0
    }
    ansatz = document["ansatz"]
    problems = []
    for name in _scalars(goal["blocks"]):
        if any(word for _, word in engine.reduce(engine.read(ansatz.get(name, ["var", name])))):
            problems.append(f"{name} is a scalar, but the ansatz gives a matrix")
    for name in goal["signed"]:
        value = engine.reduce(engine.read(_insert(["sym", name], ansatz)))
        if not all(_positive(engine, key, c, scalars, "diagonal") for key, c in value.items()):
            problems.append(f"{name} is not seen to be diagonal and ≥ 0")
    for i, row in enumerate(goal["blocks"]):
        for j, entry in enumerate(row):
            squares = [
                _minus(["mul", ["t", s["row"][i]], s["weight"], s["row"][j]])
                for s in goal["squares"]
            ]
            if not engine.zero(_insert(entry, ansatz), *squares):
                problems.append(f"block ({i + 1}, {j + 1}) is not the sum of the squares")
    definite = False
    for number, square in enumerate(goal["squares"], 1):
        weight = engine.reduce(engine.read(square["weight"]))
        if square["by"] == "positive":
            kind = "symmetric" if all(len(w) == 1 for _, w in weight) else "diagonal"
            seen = all(_positive(engine, key, c, scalars, kind) for key, c in weight.items())
            unit = len(square["row"]) == 1 and engine.zero(square["row"][0], _minus(["num", "1"]))
            definite = definite or (seen and unit and bool(weight))
        else:
            known = engine.reduce(engine.read(_conclusion(document, square["by"])))
            seen = _proportional(weight, known, scalars)
        if not seen:
            problems.append(f"weight {number} is not seen to be ⪰ 0 ({square['by']})")
    if goal["condition"] == "wellposed" and not definite:
        problems.append("no square is positive definite, which well-posedness needs")
    return problems


def _check_rows(document: Mapping[str, Any], goal: Mapping[str, Any], engine: Words) -> list[str]:
    return [problem for row in goal["rows"] for problem in _check_row(row, document)]


def _check_identities(
    document: Mapping[str, Any], goal: Mapping[str, Any], engine: Words
) -> list[str]:
    own = Words(goal["facts"], [rule[:2] for rule in goal["rules"]])
    wrong = [i for i, (a, b) in enumerate(goal["pairs"]) if not own.zero(a, _minus(b))]
    problems = [f"{goal['name']}: pair {i + 1} is not equal" for i in wrong]
    return problems if goal["pairs"] else [f"{goal['name']}: there is nothing to check"]


_KINDS = {"squares": _check_squares, "rows": _check_rows, "identities": _check_identities}


def _check_row(row: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """A row's letters commute; x and |x| are u − v and u + v with u, v ≥ 0 of their own."""
    letters = list(map(str, row["letters"]))
    signs: dict[str, Any] = {}
    for x in letters:
        if x.endswith("_ii") and not x.startswith("|"):
            up, down = ["sym", f"{x}⁺"], ["sym", f"{x}⁻"]
            signs[x] = ["add", up, _minus(down)]
            signs[f"|{x}|"] = ["add", up, down]
    engine = Words({n: ["diagonal", "invertible"] for n in (*letters, *signs)}, [])
    value, terms = _insert(row["value"], signs), _insert(row["terms"], signs)
    problems = []
    if not engine.zero(value, _minus(terms)):
        problems.append(f"{row['name']}: the row is not the sum that is claimed")
    sure = {n for n, d in document["free"].items() if d["domain"] == "constant" and d["low"] >= 0}
    vectors = [n for n, d in document["free"].items() if d["domain"] in POSITIVE]
    vectors += [d["symbol"] for d in document["definitions"] if d["lemma"] in _VECTORS]
    sure |= {f"{n}_i" for n in vectors}
    positive = False
    for (_, word), c in engine.reduce(engine.read(terms)).items():
        names = {n for n, *_ in word}
        for name in names - sure:
            if not (name.startswith(("|", "Σ")) or name[-1] in "⁺⁻"):
                problems.append(f"{row['name']}: {name} may be negative")
        if c < 0:
            problems.append(f"{row['name']}: a term may be negative")
        positive = positive or (c > 0 and names <= sure)
    if row["strict"] and not positive:
        problems.append(f"{row['name']}: the row is not seen to be positive")
    return problems


def _positive(engine: Words, key: Any, c: Fraction, scalars: set[str], kind: str) -> bool:
    powers, word = key
    names = {n for n, *_ in word}
    seen = engine.diagonal if kind == "diagonal" else engine.symmetric
    return c > 0 and {n for n, _ in powers} <= scalars and names <= engine.positive & seen


def _proportional(weight: Poly, known: Poly, scalars: set[str]) -> bool:
    (s, w), c = next(iter(known.items()))
    ratios = [(t, a / c) for (t, v), a in weight.items() if v == w]
    if len(ratios) != 1 or ratios[0][1] <= 0 or s or not {n for n, _ in ratios[0][0]} <= scalars:
        return False
    return weight == times({(ratios[0][0], ()): ratios[0][1]}, known)


def _conclusion(document: Mapping[str, Any], name: str) -> Any:
    """What the lemma behind this symbol says is ⪰ 0."""
    (d,) = [d for d in document["definitions"] if d["symbol"] == name]
    T, first = ["sym", name], d["arguments"][0]
    match d["lemma"]:
        case "diagonal dominance" | "block diagonal dominance" | "Gram power":
            return ["add", T, _minus(first)]
        case "spectral norm":
            return ["add", T, _minus(["mul", ["t", first], first])]
        case "orthogonality":
            return ["add", ["num", "1"], _minus(["mul", ["t", T], T])]
        case "inverse":
            return T
        case "stacked orthogonality":
            keys = ("lemma", "arguments", "options")
            same = [e for e in document["definitions"] if all(e[k] == d[k] for k in keys)]
            parts = [["sym", e["symbol"]] for e in same]
            if len(parts) == 2 and {P[1] for P in parts} == set(d["options"]):
                return ["add", ["num", "1"], *(_minus(["mul", ["t", P], P]) for P in parts)]
    raise InvalidInput(f"{name} is defined by {d['lemma']!r}, which concludes nothing.")


_VECTORS = ("M-matrix", "row sums")


def _engine(document: Mapping[str, Any]) -> Words:
    """Facts and rules from the declarations alone."""
    facts: dict[str, list[str]] = {}
    rules: list[list[Any]] = []
    known: set[str] = set()
    for name, d in document["free"].items():
        _new(name, known)
        if d["domain"] in POSITIVE:
            facts[f"diag({name})"] = ["diagonal", "positive"]
    for d in document["definitions"]:
        name, lemma, arguments = d["symbol"], d["lemma"], d["arguments"]
        if loose := set().union(*map(_symbols, arguments)) - known:
            raise InvalidInput(f"{name} is defined by {', '.join(sorted(loose))}, not known yet.")
        _new(name, known)
        S, first = ["sym", name], arguments[0]
        so_far = Words(facts, rules)
        if lemma in ("diagonal dominance", "block diagonal dominance", "Gram power"):
            if not so_far.zero(first, _minus(["t", first])):
                raise InvalidInput(f"{name}: what it is to dominate is not symmetric.")
            for q in arguments[1:]:
                if q[0] != "sym" or document["free"][q[1]]["domain"] not in POSITIVE:
                    raise InvalidInput(f"{name}: the scaling {q} is not a positive free vector.")
        match lemma:
            case "diagonal dominance" | "block diagonal dominance" | "spectral norm":
                facts[name] = ["diagonal", "positive"]
            case "Gram power":
                power = d["options"][0]
                if not all(_mirrored(so_far, k, c) for k, c in so_far.read(first).items()):
                    raise InvalidInput(f"{name}: the matrix whose power is taken is not seen ⪰ 0.")
                if type(power) is not int or power < 1 or power & (power - 1):
                    raise InvalidInput(f"{name}: the power {power!r} is not a power of two.")
                facts[name] = ["diagonal", "positive"]
            case "root":
                if {"diagonal", "positive"} - set(facts.get(first[1], [])):
                    raise InvalidInput(f"{name} is the root of {first}, not seen to be positive.")
                facts[name] = ["diagonal", "positive"]
                rules.append([first, ["mul", S, S]])
            case "orthogonality":
                gram = {"tall": [["t", S], S], "lying": [S, ["t", S]], "any": []}[d["options"][0]]
                if gram:
                    rules.append([["mul", *gram], ["num", "1"]])
            case "inverse":
                facts[name] = ["symmetric", "positive"]
                rules += _inverse_rules(so_far, S, first)
            case "":
                if any(goal["kind"] == "squares" for goal in document["goals"]):
                    rules.append([S, first])
            case "row sums":
                weights, floor = arguments[1:]
                vectors = [n for n, x in document["free"].items() if x["domain"] in POSITIVE]
                vectors += [e["symbol"] for e in document["definitions"] if e["lemma"] in _VECTORS]
                if weights[0] != "ones" and (weights[0] != "sym" or weights[1] not in vectors):
                    raise InvalidInput(f"{name}: the weights {weights} are not seen to be ≥ 0.")
                if floor[0] != "var" or document["free"][floor[1]]["low"] < 0:
                    raise InvalidInput(f"{name}: {floor} is not seen to be positive.")
            case "stacked orthogonality" | "M-matrix":
                pass
            case other:
                raise InvalidInput(f"{name} is defined by {other!r}, which is no known lemma.")
    return Words(facts, rules)


def _new(name: str, known: set[str]) -> None:
    if not NAME.fullmatch(name) or name in known:
        raise InvalidInput(f"{name!r:.40} is no name, or is declared twice.")
    known.add(name)


def _inverse_rules(engine: Words, Y: Any, E: Any) -> list[list[Any]]:
    terms = engine.read(E)
    seen = all(_mirrored(engine, key, c) for key, c in terms.items())
    if not seen or not any(not s and not w for s, w in terms):
        raise InvalidInput(f"{Y[1]} is the inverse of what is not seen to be positive definite.")
    (_, lead), c = max(terms.items(), key=lambda t: len(t[0][1]))
    first = ["mul", *(["t", ["sym", n]] if t else ["sym", n] for n, t, _ in lead)]
    rest = ["add", E, ["mul", ["num", str(-c)], first]]
    scale = ["num", str(1 / c)]
    return [
        [["mul", *pair], ["mul", scale, ["add", ["num", "1"], _minus(["mul", *other])]]]
        for pair, other in (((first, Y), (rest, Y)), ((Y, first), (Y, rest)))
    ]


def _mirrored(engine: Words, key: Any, c: Fraction) -> bool:
    """Whether a term is c·FᵀF with c > 0."""
    scalars, word = key
    half = len(word) // 2
    even = len(word) % 2 == 0 and not scalars
    return c > 0 and even and engine._turned(word[half:]) == word[:half]


def _minus(tree: Any) -> Any:
    return ["mul", ["num", "-1"], tree]


def _insert(tree: Any, values: Mapping[str, Any]) -> Any:
    """The expression with the ansatz in it."""
    match tree:
        case ["sym" | "var", str(name)]:
            return values.get(name, tree)
        case [str(head), *parts] if parts and isinstance(parts[0], list):
            return [head, *(_insert(part, values) for part in parts)]
    return tree


def _symbols(tree: Any) -> set[str]:
    if tree[0] in ("sym", "var"):
        return {tree[1]}
    return set().union(*(_symbols(t) for t in tree[1:] if isinstance(t, list)))


def _scalars(tree: Any) -> set[str]:
    if not isinstance(tree, list) or not tree:
        return set()
    return {tree[1]} if tree[0] == "var" else set().union(*map(_scalars, tree))
