"""What a report says, in order, from a proof object alone; `report` and `html` only set it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidInput
from .proof import KIND, THEOREM, digest
from .tex import matrix, name, number, written

Document = Mapping[str, Any]

DOMAINS = {
    "matrix": "any",
    "direction": "any; only its direction matters",
    "bounded": "any",
    "weights": "positive",
    "ratios": "positive; only ratios matter",
}
UNBOUNDED = 1e9
"""A constant's limit from which on it is none."""
RELATIONS = {
    "equivalent": r"\Longleftrightarrow",
    "sufficient": r"\Longleftarrow",
    "necessary": r"\Longrightarrow",
}
SENTENCES = {
    "refuted": "The claim is false: the counterexample breaks it in exact arithmetic.",
    "undecided": "The chain of steps breaks, and no counterexample was found. Nothing is claimed.",
    "inconsistent": "The symbolic chain and the other checks disagree, which is a defect of sdplip "
    "or of the derivation. Nothing is claimed.",
    "altered": "The file was changed after it was written: its hash or its checks do not fit its "
    "status. Nothing is claimed.",
}


@dataclass(frozen=True)
class Title:
    text: str
    status: str
    sentence: str


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Prose:
    """A paragraph; the label is set in bold before it."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class Formula:
    """A displayed formula; `more` are lines that continue it."""

    latex: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Items:
    """Formulas, each with a remark; `dense` ones may stand beside each other."""

    items: tuple[tuple[str, str], ...]
    dense: bool = False


@dataclass(frozen=True)
class Step:
    """One line of the proof; `latex` is empty where the matrix stays as it is."""

    number: int
    name: str
    reason: str
    direction: str
    latex: str


@dataclass(frozen=True)
class Checks:
    """Rows (check, whether it holds, "every size" or "instances", detail)."""

    rows: tuple[tuple[str, bool, str, str], ...]


Part = Title | Heading | Prose | Formula | Items | Step | Checks


def outline(document: Document) -> list[Part]:
    """The parts of a report.

    Raises:
        InvalidInput: something that is no proof object.
    """
    if not isinstance(document, Mapping) or document.get("kind") not in (KIND, THEOREM):
        raise InvalidInput("This is no proof object of sdplip, so there is nothing to report.")
    try:
        return list(_parts(document))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(f"Not a proof object: {type(error).__name__} {error}.") from error


def verdict(document: Document) -> tuple[str, str]:
    """The status in a word, and what it means; "proved" only for a document that is intact."""
    status = document["status"]
    if status != "proved":
        return status, SENTENCES[status]
    checks = document["checks"]
    if digest(document) != document["sha256"] or not all(c["holds"] is True for c in checks):
        return "altered", SENTENCES["altered"]
    some = sum(c["general"] is not True for c in checks)
    text = f"For matrices of every size, by {_count(len(checks) - some, 'check')} on symbols"
    return status, f"{text}; {_count(some, 'more check')} on instances."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def readable(text: str) -> str:
    """Prose with SymPy's notation in it, as ½TᵀW rather than (1/2)*T.T*W."""
    for pattern, new in _NOTATION:
        text = re.sub(pattern, new, text)
    return text


_GREEK = {"Lam": "Λ", "lam": "λ", "alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "rho": "ρ"}
_GREEK |= {"eps": "ε", "phi": "φ", "psi": "ψ", "zeta": "ζ", "mu": "μ"}
_NOTATION = [
    (r"\bDiagMatrix\((\w+)\)", r"[\1]"),
    (r"\bAbsolute\((\w+)\)", r"|\1|"),
    (r"\bMetzler\((\w+)\)", r"⌈\1⌉"),
    (r"\bOneMatrix\(\w+, 1\)", "1"),
    (r"\bZeroMatrix\(\w+, \w+\)", "0"),
    (r"(?:\*\*\(-1\)|\.I\b)", "⁻¹"),
    (r"\*\*2\b", "²"),
    (r"\*\*3\b", "³"),
    (r"\*\*4\b", "⁴"),
    (r"(?<=[\w\])])\.T\b", "ᵀ"),
    (r"\(1/2\)\*", "½"),
    (r"(?<=\S)\*(?=\S)", " "),
    (r"(?<![\w)\]}⁻-])-(?=[\w(\[])", "−"),
    (r"(?<=\S) - (?=\S)", " − "),
    *((rf"\b{word}\b", letter) for word, letter in _GREEK.items()),
]


def _parts(document: Document) -> Iterator[Part]:
    status, sentence = verdict(document)
    yield Title(document["title"], status, sentence)
    yield Prose(document["claim"], "Theorem." if status == "proved" else "Claim.")
    yield Prose(f"{document['source']}.", "Source.")
    yield from _setting(document)
    if document["ansatz_tex"]:
        yield Heading("Ansatz")
        yield Items(tuple((f"{name(k)} = {v}", "") for k, v in document["ansatz_tex"].items()))
    yield Heading("Proof" if status == "proved" else "Attempt")
    yield from (Prose(text, f"({i})") for i, text in enumerate(document["argument"], 1))
    yield from _steps(document)
    for place, goal in enumerate(document["goals"]):
        yield from _goal(document, goal, place)
    if document["broken"]:
        yield Heading("Where it breaks")
        yield Prose(readable(document["broken"]))
    if document["counterexample"]:
        yield from _counterexample(document["counterexample"])
    if numbered := _numbered(document):
        yield Heading("Lemmas")
        for x, at in numbered.values():
            source = f" ({x['source']})" if x["source"] else ""
            yield Prose(f"{x['statement']}{source}", f"Lemma {at}, {x['name']}.")
            yield Prose(f"{x['proof']} ∎", "Proof.")
    yield Heading("Checks")
    yield Checks(
        tuple(
            (
                c["name"],
                c["holds"] is True,
                "every size" if c["general"] is True else "instances",
                readable(c["detail"]),
            )
            for c in document["checks"]
        )
    )
    yield Heading("Verdict")
    yield Prose(sentence, f"{status.capitalize()}.")
    yield Prose(
        f"{document['name']}, sdplip {document['sdplip']}, SHA-256 {document['sha256']}.",
        "Proof object.",
    )


def _numbered(document: Document) -> dict[str, tuple[Mapping[str, str], int]]:
    """The lemmas by name with their numbers, each once."""
    lemmas = {x["name"]: x for x in document["lemmas"]}
    return {key: (x, at) for at, (key, x) in enumerate(lemmas.items(), 1)}


def _lemma(document: Document, lemma: str) -> str:
    found = _numbered(document).get(lemma)
    return f"Lemma {found[1]}, {lemma}" if found else lemma


def _setting(document: Document) -> Iterator[Part]:
    condition = document["condition"]
    if condition is not None:
        yield Heading("Setting")
        yield Prose(f"{condition['claim']} ({condition['source']})", f"{condition['name']}.")
        yield Formula(f"M = {condition['tex']}")
    if "slopes" in document:
        low, high = document["slopes"]
        norm = "∞" if document["norm"] == "inf" else "₂"
        yield Prose(f"σ has slopes in [{low}, {high}]; both norms are ℓ{norm}.", "Layer.")
    groups: dict[tuple[str, str], list[str]] = {}
    for key, d in document["free"].items():
        groups.setdefault(_kind(d), []).append(name(key))
    if groups:
        yield Prose("", "Free.")
        yield Items(
            tuple((r",\, ".join(names) + place, kind) for (place, kind), names in groups.items())
        )
    if document["definitions_tex"]:
        by = {d["symbol"]: d["lemma"] for d in document["definitions"]}
        yield Prose("", "Defined.")
        yield Items(
            tuple(
                (f"{name(key)} = {shown}", _lemma(document, by[key]))
                for key, shown in document["definitions_tex"].items()
            )
        )


def _kind(d: Mapping[str, Any]) -> tuple[str, str]:
    """The space that a free symbol is from, and what else is known of it."""
    if d["domain"] == "constant":
        low, high = (f"{d[k]:g}" if abs(d[k]) < UNBOUNDED else "" for k in ("low", "high"))
        low = re.sub(r"^1e(-?)[+0]*(\d+)$", r"10^{\1\2}", low)
        above = rf" > {low}" if low else r" \in \mathbb{R}"
        return above, f"a constant below {high}" if high else "a constant"
    rows, columns = d["shape"]
    power = rows if columns == "1" else rf"{rows} \times {columns}"
    return rf" \in \mathbb{{R}}^{{{power}}}", DOMAINS[d["domain"]]


def _steps(document: Document) -> Iterator[Part]:
    shown = document["condition"]["tex"] if document["condition"] else ""
    for at, step in enumerate(document["steps"], 1):
        before, after, kind = step["before"], step["after"], step["direction"]
        if before != shown:
            yield Formula(before)
        latex = "" if after == before else rf"{RELATIONS[kind]}\quad {after} \succeq 0"
        if step["name"] == "conclude":
            latex = rf"{before} \succeq 0"
        reason = readable(step["reason"]) + ("" if latex else "; nothing changes")
        yield Step(at, step["name"], reason, kind, latex)
        shown = after


def _goal(document: Document, goal: Mapping[str, Any], place: int) -> Iterator[Part]:
    match goal["kind"]:
        case "squares":
            yield from _squares(document, goal, place)
        case "rows":
            yield from _rows(document, goal)
        case "identities":
            yield from _identities(goal)
        case other:
            raise InvalidInput(f"Not a proof object: a goal of the kind {other!r}.")


def _squares(document: Document, goal: Mapping[str, Any], place: int) -> Iterator[Part]:
    letter = "M" if place == 0 else "N"
    if place == 0:
        yield Prose("The steps, read backwards, write M as a sum of squares.", "Decomposition.")
    else:
        slopes = [k for k in ("alpha", "beta") if k in document["ansatz"]]
        at = [f"{readable(k)} = {written(document['ansatz'][k])}" for k in slopes]
        text = f"The condition {goal['condition']} at the ansatz"
        text += f" and {', '.join(at)}" if at else ""
        yield Prose(f"{text} is a sum of squares.", "Well-posedness.")
        yield Formula("N = " + _blocks([[written(e) for e in row] for row in goal["blocks"]]))
    first, *rest = [_term(square) for square in goal["squares"]] or ["0"]
    lines = [f"{letter} = {first}", *(f"+ {term}" for term in rest)]
    lines[-1] += r" \succ 0" if goal["strict"] else r" \succeq 0"
    yield Formula(lines[0], tuple(lines[1:]))
    lemmas = [
        (rf"P_{{{k}}} = {written(s['weight'])} \succeq 0", _why(document, s["by"]))
        for k, s in enumerate(goal["squares"], 1)
        if s["by"] != "positive"
    ]
    if lemmas:
        yield Items(tuple(lemmas))
    if len(lemmas) < len(goal["squares"]):
        every = "Every other" if lemmas else "Every"
        yield Prose(f"{every} FᵀPF has for P a positive multiple of I or of a positive matrix.")
    if goal["strict"]:
        yield Prose("The summand without a factor F is positive definite, hence the whole is.")


def _why(document: Document, by: str) -> str:
    """The lemma behind the symbol `by`."""
    lemma = next(d["lemma"] for d in document["definitions"] if d["symbol"] == by)
    return f"by {_lemma(document, lemma)}"


def _term(square: Mapping[str, Any]) -> str:
    """Fᵀ P F, a number times I in P drawn to the front."""
    weight = written(square["weight"])
    row = [written(entry) for entry in square["row"]]
    factor = _blocks([row])
    lead, middle = (
        "",
        rf" \left({weight}\right) " if square["weight"][0] == "add" else f" {weight} ",
    )
    if weight == "I" or weight.endswith(" I"):
        lead, middle = weight[:-1], " "
    if row == ["I"]:
        return weight
    tree = square["row"][0]
    turned = written(["t", tree]) if len(row) == 1 else rf"{factor}^{{\top}}"
    right = rf"\left({factor}\right)" if len(row) == 1 and tree[0] == "add" else factor
    return f"{lead}{turned}{middle}{right}"


def _rows(document: Document, goal: Mapping[str, Any]) -> Iterator[Part]:
    text = "Row i of each block in scalar letters; a sum over j ≠ i is one letter, and a real x is "
    text += "x⁺ − x⁻ with |x| = x⁺ + x⁻, both ≥ 0."
    yield Prose(text, "Rows.")
    for row in goal["rows"]:
        value, terms = written(row["value"]), written(row["terms"])
        middle = "" if value == terms else f" = {terms}"
        sign = ">" if row["strict"] else r"\ge"
        yield Prose("", f"{readable(row['name'])}.")
        yield Formula(f"{value}{middle} {sign} 0")


def _identities(goal: Mapping[str, Any]) -> Iterator[Part]:
    yield Prose("", f"{goal['name'][:1].upper()}{goal['name'][1:]}.")
    for left, right in goal["pairs"]:
        yield Formula(f"{written(left)}", (f"= {written(right)}",))
    if goal["rules"]:
        yield Items(tuple((f"{written(a)} = {written(b)}", why) for a, b, why in goal["rules"]))


def _counterexample(found: Mapping[str, Any]) -> Iterator[Part]:
    yield Heading("Counterexample")
    yield Prose("z = σ(Az + Bx + b), y = Cz + Dx; σ has the slopes α below 0 and β above.")
    yield Prose("", "Symbols.")
    yield Items(
        tuple((f"{name(k)} = {_exact(v)}", "") for k, v in found["values"].items()), dense=True
    )
    yield Prose("", "Network.")
    system = [(k, found[k]) for k in "ABCD" if found[k] and found[k][0]]
    vectors = [(k, [[x] for x in found[k]]) for k in ("b", "alpha", "beta") if found[k]]
    yield Items(tuple((f"{name(k)} = {_exact(v)}", "") for k, v in [*system, *vectors]), dense=True)
    yield Prose("", "Two inputs and their solutions.")
    pairs = [(k, found[k]) for k in "xz" if found[k][0]]
    columns = [
        (f"{k}{mark} = {_exact([[e] for e in v[at]])}", "")
        for k, v in pairs
        for at, mark in ((0, ""), (1, r"^{\prime}"))
    ]
    yield Items(tuple(columns), dense=True)
    y, x = (rf"\lVert \Delta {letter} \rVert" for letter in "yx")
    power = r"_{2}^{2}" if found["norm"] == "2" else r"_{\infty}"
    ratio, claim = number(found["ratio"]), number(found["claim"])
    yield Formula(rf"\frac{{{y}{power}}}{{{x}{power}}} = {ratio} > {claim}")
    what = "the square of the claimed constant" if found["norm"] == "2" else "the claimed constant"
    yield Prose(
        f"The ratio is exact, and {found['claim']} is {what}. For the worst biases the true "
        f"constant of this network is {found['constant']:.6g}."
    )


def _exact(value: Any) -> str:
    if isinstance(value, list):
        return matrix([[number(entry) for entry in row] for row in value])
    return number(value)


def _blocks(rows: list[list[str]]) -> str:
    """A block matrix; a single block stands for itself."""
    return rows[0][0] if len(rows) == len(rows[0]) == 1 else matrix(rows)
