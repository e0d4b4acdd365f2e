"""Proof objects from files: true ones are accepted, forged ones reported, hostile ones refused."""

import contextlib
import copy
import json

import pytest
from forgeries import FORGED, REASONS, SLL, SOUND
from forgery import (
    ONE,
    ZERO,
    defined,
    forged,
    free,
    goal,
    gram,
    holds,
    minus,
    sealed,
    square,
    sym,
)

from sdplip.conditions import linear, wellposed
from sdplip.derive import replay
from sdplip.derive.checker import check
from sdplip.derive.library import find
from sdplip.errors import InvalidInput

T = sym("T")


def verdict(found):
    """[] for accepted, else what is wrong."""
    try:
        return replay(found)
    except InvalidInput as error:
        return [str(error)]


@pytest.mark.parametrize("name", ["sll", "aol", "lben", "nemon", "orthogonal", "bounded_nemon"])
def test_shipped_proofs_are_accepted_from_their_json(name):
    first = find(name)[1][0]
    again = json.loads(json.dumps(first.prove(quick=True).document))
    assert replay(again) == []


@pytest.mark.parametrize("case", SOUND)
def test_true_documents_written_by_hand_are_accepted(case):
    """So that the forged ones below fail for what is wrong in them, not for their form."""
    assert verdict(SOUND[case]) == []


@pytest.mark.parametrize("case", FORGED)
def test_forged_documents_are_rejected_for_what_is_wrong_in_them(case):
    said = verdict(FORGED[case])
    assert said
    with contextlib.suppress(InvalidInput, LookupError):
        said += check(FORGED[case])
    assert any(REASONS[case] in text for text in said), said


def row(value, strict=False, letters=()):
    entry = {"name": "r", "letters": letters, "value": value, "terms": value, "strict": strict}
    return {"kind": "rows", "condition": "measure", "rows": [entry]}


BELOW = minus(gram("W"))
OBJECTIONS = {
    "the weight of a lemma, turned round": (
        [goal(linear, square(["eye", "m"], weight=minus(["add", T, BELOW]), by="T"))],
        [defined("T", "spectral norm", sym("W"))],
        "weight 1 is not seen to be ⪰ 0",
    ),
    "the inverse of a difference": (
        [goal(linear)],
        [defined("T", "inverse", ["add", ["eye", "n"], BELOW])],
        "not seen to be positive definite",
    ),
    "a power of what is ⪯ 0": (
        [goal(linear)],
        [defined("T", "Gram power", BELOW, options=[2])],
        "not seen ⪰ 0",
    ),
    "a power that is no power of two": (
        [goal(linear)],
        [defined("T", "Gram power", gram("W"), options=[3])],
        "not a power of two",
    ),
    "the root of what is not diagonal": (
        [goal(linear)],
        [
            defined("T", "inverse", ["add", ["eye", "n"], gram("W")]),
            defined("R", "root", T),
        ],
        "not seen to be positive",
    ),
    "a weight on a matrix of any sign": (
        [goal(linear)],
        [defined("s", "row sums", sym("W"), sym("v"), ["var", "d"])],
        "are not seen to be ≥ 0",
    ),
    "nothing definite for well-posedness": (
        [goal(wellposed, square(sym("W"), weight=["eye", "m"]))],
        [],
        "no square is positive definite",
    ),
    "a row below zero": ([row(["num", "-1"])], [], "a term may be negative"),
    "a row of any sign": ([row(sym("x_i"), letters=["x_i"])], [], "x_i may be negative"),
    "a row that is only zero": ([row(ZERO, strict=True)], [], "not seen to be positive"),
}


@pytest.mark.parametrize("case", OBJECTIONS)
def test_the_words_object_by_themselves(case):
    """Without what `replay` derives anew: the checker is an opinion of its own."""
    goals, definitions, reason = OBJECTIONS[case]
    constant = free(domain="constant", low=0.0)
    known = {"W": free("m", "n"), "v": free("n", "1"), "d": constant}
    try:
        problems = check(forged(*goals, free=known, definitions=definitions))
    except InvalidInput as error:
        problems = [str(error)]
    assert any(reason in problem for problem in problems), problems


def nested(depth):
    tree = ONE
    for _ in range(depth):
        tree = ["t", tree]
    return tree


HOSTILE = {
    "not a dict": [],
    "nothing": {},
    "another kind": {"kind": "x"},
    "deep": {**SLL, "ansatz": {**SLL["ansatz"], "H": nested(5000)}},
    **{f"without {key}": {k: v for k, v in SLL.items() if k != key}
       for key in ("goals", "free", "definitions", "ansatz", "slopes", "condition")},
    **{f"{key} is {bad!r}": {**SLL, key: bad}
       for key in ("goals", "free", "definitions", "ansatz", "slopes", "condition")
       for bad in ("text", 3, None, [1], [[]], {"a": 1})},
    **{f"G is {bad!r:.30}": {**SLL, "ansatz": {**SLL["ansatz"], "G": bad}}
       for bad in ([], ["num", "1/0"], ["num", "nan"], ["num", "1e999999999"], ["num", 3],
                   ["num", "9" * 10**5], ["inv", ZERO], ["inv", sym("W")], ["sym"], ["sym", 3],
                   ["t"], {"num": "1"}, "W", None, ["evil", "x"], ["inv", ["add", sym("T"), ONE]])},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_documents_are_refused_or_reported(case):
    found = HOSTILE[case]
    with contextlib.suppress(RecursionError):
        found = sealed(found) if isinstance(found, dict) else found
    assert verdict(found) != []


# --- every single change of one field ---

WORDS = ("", "0", "2", "-1", "W", "T", "q", "t", "inv", "add", "mul", "sym", "eye", "residual",
         "linear", "positive", "matrix", "ratios", "constant", "spectral norm")  # fmt: skip


def leaves(tree, path=()):
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from leaves(tree[key], (*path, key))
    yield path, tree


def replacements(old):
    if isinstance(old, str):
        return [word for word in WORDS if word != old]
    if isinstance(old, bool):
        return [not old, 3]
    if isinstance(old, int | float):
        return [old + 1, -old - 1, "x", None]
    if isinstance(old, list):
        return [[], old + old, old[::-1], old[1:], old[:-1], ["t", old], ["inv", old], old[0:1] * 3]
    return [{}, None, []]


def corrupted(part):
    """Every document in which one place of a part is another, with its new hash."""
    for path, old in leaves(SLL[part]):
        for new in replacements(old):
            found = copy.deepcopy(dict(SLL))
            if not path:
                found[part] = new
            else:
                place = found[part]
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = new
            if new != old:
                yield path, new, sealed(found)


@pytest.mark.parametrize("part", ["goals", "ansatz", "definitions", "free"])
def test_no_single_change_proves_a_false_claim(part):
    """Refused, reported, or still true by an independent computation."""
    count = accepted = 0
    for path, new, found in corrupted(part):
        count += 1
        if verdict(found) == []:
            accepted += 1
            assert holds(found), (path, new)
    assert count > 50
    assert accepted < count


@pytest.mark.parametrize(
    ("part", "name", "key", "new"),
    [
        ("ansatz", "H", 1, "n"),
        ("ansatz", "rho", 0, "eye"),
        ("free", "W", "shape", ["n", "m"]),
        ("free", "q", "shape", ["m", "1"]),
        ("free", "W", "shape", ["0", "n"]),
        ("free", "W", "domain", "ratios"),
        ("free", "W", "domain", "nonsense"),
        ("free", "W", "low", "x"),
    ],
)
def test_declarations_that_do_not_fit_are_not_accepted(part, name, key, new):
    """Sizes and domains are part of what a document says is proved."""
    found = copy.deepcopy(dict(SLL))
    found[part][name][key] = new
    assert verdict(sealed(found)) != []


def test_the_independent_reading_tells_true_from_false():
    assert holds(SLL)
    wrong = {**SLL, "ansatz": {**SLL["ansatz"], "G": minus(SLL["ansatz"]["G"])}}
    assert not holds(wrong)
