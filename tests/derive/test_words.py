"""Proof objects from files: true ones are accepted, forged ones reported, hostile ones refused."""

import copy
import json

import pytest
from derive_cases import document
from forgery import (
    ONE,
    VECTOR,
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

from sdplip import conditions
from sdplip.conditions import equilibrium, linear, lipschitz, residual, wellposed
from sdplip.derive import replay
from sdplip.derive.library import find
from sdplip.errors import InvalidInput

HALF = ["num", "1/2"]
W, X, T, U, R = (sym(name) for name in "WXTUR")
TW = defined("T", "spectral norm", W)
ABOVE = ["add", T, minus(gram("W"))]
FREE = {"W": free("m", "n")}
ROOTED = {"D": ["mul", W, ["inv", R]], "rho": ONE}
UNDER_ROOT = square(["inv", R], weight=["add", ["mul", R, R], minus(gram("W"))], by="T")


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


SOUND = {
    "nothing at all": forged(goal(linear), ansatz={"D": ZERO, "rho": ZERO}),
    "twice the identity": forged(goal(linear), ansatz={"D": ["num", "2"], "rho": ["num", "4"]}),
    "spectral norm": forged(
        goal(linear, UNDER_ROOT),
        free=FREE,
        definitions=[TW, defined("R", "root", T)],
        ansatz=ROOTED,
    ),
    "a well-posed equilibrium": forged(
        goal(equilibrium),
        goal(wellposed, square(ONE, weight=["num", "4"])),
        ansatz={
            "A": ["num", "-1"], "B": ZERO, "C": ZERO, "D": ZERO, "Lam": ONE, "rho": ZERO,
            "alpha": ZERO, "beta": ONE,
        },
    ),
}
SOUND["a well-posed equilibrium"]["goals"][0]["squares"] = [
    square(ZERO, ONE, weight=["num", "4"])
]
SOUND["a well-posed equilibrium"] = sealed(SOUND["a well-posed equilibrium"])


@pytest.mark.parametrize("case", SOUND)
def test_true_documents_written_by_hand_are_accepted(case):
    """So that the forged ones below fail for what is wrong in them, not for their form."""
    assert verdict(SOUND[case]) == []


POSED = {"A": ONE, "Lam": ONE, "alpha": ZERO, "beta": ONE}
LONE = {"A": ["num", "5"], "B": sym("B"), "C": ZERO, "D": ZERO, "Lam": ZERO, "rho": ZERO}
LONE |= {"alpha": ZERO, "beta": ONE}
FORGED = {
    "rows that are none, for any condition": forged(
        {"kind": "rows", "condition": "residual", "rows": []}, ansatz={"G": ["num", "100"]}
    ),
    "rows of no condition": forged({"kind": "rows", "condition": "measure", "rows": []}),
    "a kind of its own": forged(
        {"kind": "x", "condition": "residual", "blocks": [], "signed": [], "squares": []}
    ),
    "identities of its own": forged(
        {"kind": "identities", "name": "x", "facts": {}, "rules": [[X, ONE, "r"]],
         "pairs": [[X, ONE]]}
    ),
    "blocks of its own": forged(goal(linear, blocks=[[ZERO]]), ansatz={"D": ONE, "rho": ZERO}),
    "no signed multipliers": forged(
        goal(residual, square(ZERO, ONE, weight=["num", "2"]), signed=[]),
        ansatz={"H": ZERO, "G": ZERO, "W": ZERO, "Lam": ONE, "rho": ZERO},
    ),
    "one symbol defined twice": forged(
        goal(linear, square(ONE, weight=minus(gram("W")), by="T")),
        free=FREE, definitions=[TW, defined("T", "", ZERO)], ansatz={"D": W, "rho": ZERO},
    ),
    "a free symbol defined": forged(
        goal(linear), free=FREE, definitions=[defined("W", "", ZERO)],
        ansatz={"D": W, "rho": ZERO},
    ),
    "a circular definition": forged(
        goal(linear, square(ONE, weight=minus(["mul", R, R]), by="T")),
        definitions=[defined("T", "diagonal dominance", ["mul", ["num", "2"], T]),
                     defined("R", "root", T)],
        ansatz={"D": R, "rho": ZERO},
    ),
    "a scaling of any sign": forged(
        goal(linear, UNDER_ROOT),
        free=FREE | {"q": free("n", "1")},
        definitions=[defined("T", "diagonal dominance", gram("W"), sym("q")),
                     defined("R", "root", T)],
        ansatz=ROOTED,
    ),
    "dominance of what is not symmetric": forged(
        goal(wellposed, square(ONE, weight=["add", T, minus(X)], by="T"),
             square(ONE, weight=["add", U, minus(["t", X])], by="U"), square(ONE, weight=ONE)),
        free={"X": free("n", "n"), "q": VECTOR, "r": VECTOR},
        definitions=[defined("T", "diagonal dominance", X, sym("q")),
                     defined("U", "diagonal dominance", ["t", X], sym("r"))],
        ansatz=POSED | {"A": ["add", HALF, minus(["mul", HALF, T]), minus(["mul", HALF, U]), X]},
    ),
    "a root of order −1": forged(
        goal(linear, UNDER_ROOT), free=FREE,
        definitions=[defined("T", "Gram power", gram("W"), options=[-1]),
                     defined("R", "root", T)],
        ansatz=ROOTED,
    ),
    "a power of what is not ⪰ 0": forged(
        goal(linear, square(ONE, weight=["add", T, minus(X)], by="T")),
        free={"X": free("n", "n")},
        definitions=[defined("T", "Gram power", ["add", X, ["t", X]], options=[2])],
        ansatz={"D": ZERO, "rho": ZERO},
    ),
    "the inverse of what may be singular": forged(
        goal(wellposed, square(ONE, weight=T)), free=FREE,
        definitions=[defined("T", "inverse", gram("W"))],
        ansatz=POSED | {"A": ["add", ONE, minus(["mul", HALF, T])]},
    ),
    "a matrix for ρ": forged(
        goal(linear, square(ONE, weight=ABOVE, by="T")), free=FREE, definitions=[TW],
        ansatz={"D": W, "rho": T},
    ),
    "one stacked matrix twice": forged(
        goal(linear, square(ONE, weight=["add", ONE, minus(gram("P")), minus(gram("P"))], by="P")),
        free={"X": free("m", "n"), "Y": free("m", "n")},
        definitions=[defined("P", "stacked orthogonality", X, sym("Y"), options=["P", "P"])],
        ansatz={"D": ["mul", ["num", "2"], sym("P")], "rho": ["num", "2"]},
    ),
    "a weight by nobody": forged(
        goal(linear, square(ONE, weight=ONE, by="nobody")), ansatz={"D": ZERO, "rho": ONE}
    ),
    "a negative weight": forged(
        goal(linear, square(ONE, weight=["num", "-1"])), ansatz={"D": ONE, "rho": ZERO}
    ),
    "a constant that is not positive": forged(
        goal(linear, square(ONE, weight=["var", "t"])),
        free={"t": free(domain="constant", low=-1.0, high=1.0, default=0.5)},
        ansatz={"D": ZERO, "rho": ["var", "t"]},
    ),
    "an undeclared constant": forged(
        goal(linear, square(ONE, weight=["var", "t"])), ansatz={"D": ZERO, "rho": ["var", "t"]}
    ),
    "well-posed by a weight of zero": forged(
        goal(wellposed, square(ONE, weight=ZERO)), ansatz=POSED
    ),
    "well-posed without being strict": forged(goal(wellposed, strict=False), ansatz=POSED),
    "an equilibrium without well-posedness": forged(
        goal(equilibrium), free={"B": free("n", "m")}, ansatz=LONE
    ),
    "well-posedness for other slopes": forged(
        goal(equilibrium), goal(wellposed, square(ONE, weight=ONE)),
        free={"B": free("n", "m")}, ansatz=LONE | {"beta": ZERO, "Lam": HALF},
    ),
    "a condition for other slopes": forged(
        goal(lipschitz, square(ZERO, ONE, weight=["add", T, minus(gram("W"))], by="T")),
        free=FREE, definitions=[TW],
        ansatz={"A": ["zeros", "n", "n"], "B": X, "C": W, "D": ZERO, "rho": ZERO,
                "Lam": ["mul", HALF, T], "alpha": ZERO, "beta": ZERO},
    ),
    "slopes that the condition does not cover": SOUND["twice the identity"] | {},
    "an unproved lemma": forged(
        goal(linear, square(ONE, weight=ABOVE, by="T")), free=FREE,
        definitions=[defined("T", "unproved")], ansatz={"D": ZERO, "rho": ZERO},
    ),
    "another norm": forged(goal(linear), ansatz={"D": ONE, "rho": ONE}, norm="inf"),
    "no goal": forged(),
    "status undecided": forged(goal(linear), ansatz={"D": ONE, "rho": ONE}, status="undecided"),
}
SLL = document("sll")
FORGED["slopes that the condition does not cover"] = sealed({**SLL, "slopes": ["-1", "1"]})
FORGED["a changed file"] = {**SLL, "claim": "2-Lipschitz"}


@pytest.mark.parametrize("case", FORGED)
def test_forged_documents_are_not_accepted(case):
    assert verdict(FORGED[case]) != []


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
    try:
        found = sealed(found) if isinstance(found, dict) else found
    except RecursionError:
        pass
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
    assert vars(conditions)["residual"].name == SLL["condition"]["name"]
