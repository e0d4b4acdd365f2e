"""Documents by hand: true ones, and forged ones that prove what is false or prove nothing."""

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
    minus,
    sealed,
    square,
    sym,
)

from sdplip.conditions import equilibrium, linear, lipschitz, residual, wellposed

HALF, UNIT, NONE = ["num", "1/2"], ["eye", "n"], ["zeros", "n", "n"]
NOTHING, ALL = ["zeros", "p", "m"], ["eye", "m"]
FOUR = ["mul", ["num", "4"], UNIT]
W, X, T, U, R = (sym(name) for name in "WXTUR")
TW = defined("T", "spectral norm", W)
ABOVE = ["add", T, minus(gram("W"))]
FREE = {"W": free("m", "n")}
ROOTED = {"D": ["mul", W, ["inv", R]], "rho": ONE}
UNDER_ROOT = square(["inv", R], weight=["add", ["mul", R, R], minus(gram("W"))], by="T")

SOUND = {
    "nothing at all": forged(goal(linear), ansatz={"D": NOTHING, "rho": ZERO}),
    "twice the identity": forged(
        goal(linear), ansatz={"D": ["mul", ["num", "2"], ALL], "rho": ["num", "4"]}
    ),
    "spectral norm": forged(
        goal(linear, UNDER_ROOT),
        free=FREE,
        definitions=[TW, defined("R", "root", T)],
        ansatz=ROOTED,
    ),
    "a well-posed equilibrium": forged(
        goal(equilibrium, square(["zeros", "n", "m"], UNIT, weight=FOUR)),
        goal(wellposed, square(UNIT, weight=FOUR)),
        ansatz={
            "A": minus(UNIT),
            "B": ["zeros", "n", "m"],
            "C": ["zeros", "p", "n"],
            "D": NOTHING,
            "Lam": UNIT,
            "rho": ZERO,
            "alpha": NONE,
            "beta": UNIT,
        },
    ),
}

POSED = {"A": UNIT, "Lam": UNIT, "alpha": NONE, "beta": UNIT}
LONE = {"A": ["mul", ["num", "5"], UNIT], "B": sym("B"), "C": ["zeros", "p", "n"], "D": NOTHING}
LONE |= {"Lam": NONE, "rho": ZERO, "alpha": NONE, "beta": UNIT}
FORGED = {
    "rows that are none, for any condition": forged(
        {"kind": "rows", "condition": "residual", "rows": []},
        ansatz={
            "H": NOTHING,
            "G": ["mul", ["num", "100"], ["eye", "n"]],
            "W": ["eye", "n"],
            "Lam": UNIT,
            "rho": ONE,
        },
    ),
    "rows of no condition": forged({"kind": "rows", "condition": "measure", "rows": []}),
    "a kind of its own": forged(
        {"kind": "x", "condition": "residual", "blocks": [], "signed": [], "squares": []}
    ),
    "identities of its own": forged(
        {
            "kind": "identities",
            "name": "x",
            "facts": {},
            "rules": [[X, UNIT, "r"]],
            "pairs": [[X, UNIT]],
        }
    ),
    "blocks of its own": forged(
        goal(linear, blocks=[[["zeros", "m", "m"]]]), ansatz={"D": ALL, "rho": ZERO}
    ),
    "no signed multipliers": forged(
        goal(
            residual,
            square(["zeros", "n", "m"], UNIT, weight=["mul", ["num", "2"], UNIT]),
            signed=[],
        ),
        ansatz={
            "H": NOTHING,
            "G": ["zeros", "p", "n"],
            "W": ["zeros", "m", "n"],
            "Lam": UNIT,
            "rho": ZERO,
        },
    ),
    "one symbol defined twice": forged(
        goal(linear, square(ALL, weight=minus(gram("W")), by="T")),
        free=FREE,
        definitions=[TW, defined("T", "", NONE)],
        ansatz={"D": W, "rho": ZERO},
    ),
    "a free symbol defined": forged(
        goal(linear),
        free=FREE,
        definitions=[defined("W", "", ["zeros", "m", "n"])],
        ansatz={"D": W, "rho": ZERO},
    ),
    "a circular definition": forged(
        goal(linear, square(ALL, weight=minus(["mul", R, R]), by="T")),
        definitions=[
            defined("T", "diagonal dominance", ["mul", ["num", "2"], T]),
            defined("R", "root", T),
        ],
        ansatz={"D": R, "rho": ZERO},
    ),
    "a scaling of any sign": forged(
        goal(linear, UNDER_ROOT),
        free=FREE | {"q": free("n", "1")},
        definitions=[
            defined("T", "diagonal dominance", gram("W"), sym("q")),
            defined("R", "root", T),
        ],
        ansatz=ROOTED,
    ),
    "dominance of what is not symmetric": forged(
        goal(
            wellposed,
            square(UNIT, weight=["add", T, minus(X)], by="T"),
            square(UNIT, weight=["add", U, minus(["t", X])], by="U"),
            square(UNIT, weight=UNIT),
        ),
        free={"X": free("n", "n"), "q": VECTOR, "r": VECTOR},
        definitions=[
            defined("T", "diagonal dominance", X, sym("q")),
            defined("U", "diagonal dominance", ["t", X], sym("r")),
        ],
        ansatz=POSED
        | {"A": ["add", ["mul", HALF, UNIT], minus(["mul", HALF, T]), minus(["mul", HALF, U]), X]},
    ),
    "a root of order −1": forged(
        goal(linear, UNDER_ROOT),
        free=FREE,
        definitions=[defined("T", "Gram power", gram("W"), options=[-1]), defined("R", "root", T)],
        ansatz=ROOTED,
    ),
    "a power of what is not ⪰ 0": forged(
        goal(linear, square(ALL, weight=["add", T, minus(X)], by="T")),
        free={"X": free("n", "n")},
        definitions=[defined("T", "Gram power", ["add", X, ["t", X]], options=[2])],
        ansatz={"D": NOTHING, "rho": ZERO},
    ),
    "the inverse of what may be singular": forged(
        goal(wellposed, square(UNIT, weight=T)),
        free=FREE,
        definitions=[defined("T", "inverse", gram("W"))],
        ansatz=POSED | {"A": ["add", UNIT, minus(["mul", HALF, T])]},
    ),
    "a matrix for ρ": forged(
        goal(linear, square(ALL, weight=ABOVE, by="T")),
        free=FREE,
        definitions=[TW],
        ansatz={"D": W, "rho": T},
    ),
    "one stacked matrix twice": forged(
        goal(linear, square(ALL, weight=["add", UNIT, minus(gram("P")), minus(gram("P"))], by="P")),
        free={"X": free("m", "n"), "Y": free("m", "n")},
        definitions=[defined("P", "stacked orthogonality", X, sym("Y"), options=["P", "P"])],
        ansatz={"D": ["mul", ["num", "2"], sym("P")], "rho": ["num", "2"]},
    ),
    "a weight by nobody": forged(
        goal(linear, square(ALL, weight=ALL, by="nobody")), ansatz={"D": NOTHING, "rho": ONE}
    ),
    "a negative weight": forged(
        goal(linear, square(ALL, weight=minus(ALL))), ansatz={"D": ALL, "rho": ZERO}
    ),
    "a constant that is not positive": forged(
        goal(linear, square(ALL, weight=["mul", ["var", "t"], ALL])),
        free={"t": free(domain="constant", low=-1.0, high=1.0, default=0.5)},
        ansatz={"D": NOTHING, "rho": ["var", "t"]},
    ),
    "an undeclared constant": forged(
        goal(linear, square(ALL, weight=["mul", ["var", "t"], ALL])),
        ansatz={"D": NOTHING, "rho": ["var", "t"]},
    ),
    "well-posed by a weight of zero": forged(
        goal(wellposed, square(UNIT, weight=NONE)), ansatz=POSED
    ),
    "well-posed without being strict": forged(goal(wellposed, strict=False), ansatz=POSED),
    "an equilibrium without well-posedness": forged(
        goal(equilibrium), free={"B": free("n", "m")}, ansatz=LONE
    ),
    "well-posedness for other slopes": forged(
        goal(equilibrium),
        goal(wellposed, square(UNIT, weight=UNIT)),
        free={"B": free("n", "m")},
        ansatz=LONE | {"beta": NONE, "Lam": ["mul", HALF, UNIT]},
    ),
    "a condition for other slopes": forged(
        goal(
            lipschitz,
            square(["zeros", "n", "p"], UNIT, weight=["add", T, minus(gram("W"))], by="T"),
        ),
        free=FREE,
        definitions=[TW],
        ansatz={
            "A": ["zeros", "n", "n"],
            "B": ["zeros", "n", "p"],
            "C": W,
            "D": ["zeros", "m", "p"],
            "rho": ZERO,
            "Lam": ["mul", HALF, T],
            "alpha": NONE,
            "beta": NONE,
        },
    ),
    "an unproved lemma": forged(
        goal(linear, square(ALL, weight=ABOVE, by="T")),
        free=FREE,
        definitions=[defined("T", "unproved")],
        ansatz={"D": NOTHING, "rho": ZERO},
    ),
    "another norm": forged(goal(linear), ansatz={"D": ALL, "rho": ONE}, norm="inf"),
    "no goal": forged(),
    "status undecided": forged(goal(linear), ansatz={"D": ALL, "rho": ONE}, status="undecided"),
}
SLL = document("sll")
FORGED["slopes that the condition does not cover"] = sealed({**SLL, "slopes": ["-1", "1"]})
FORGED["a changed file"] = {**SLL, "claim": "2-Lipschitz"}

REASONS = {
    "rows that are none, for any condition": "Not a proof object: KeyError 'blocks'",
    "rows of no condition": "neither the ansatz nor the free symbols give A, c, eta",
    "a kind of its own": "Not a proof object: KeyError 'x'",
    "identities of its own": "Not a proof object: KeyError 'condition'",
    "blocks of its own": "not the library's conditions (linear)",
    "no signed multipliers": "not the library's conditions (residual)",
    "one symbol defined twice": "'T' is no name, or is declared twice",
    "a free symbol defined": "'W' is no name, or is declared twice",
    "a circular definition": "T is defined by T, not known yet",
    "a scaling of any sign": "is not a positive free vector",
    "dominance of what is not symmetric": "what it is to dominate is not symmetric",
    "a root of order −1": "the power -1 is not a power of two",
    "a power of what is not ⪰ 0": "not seen ⪰ 0",
    "the inverse of what may be singular": "not seen to be positive definite",
    "a matrix for ρ": "rho is a scalar",
    "one stacked matrix twice": "'stacked orthogonality', which concludes nothing",
    "a weight by nobody": "Not a proof object: ValueError",
    "a negative weight": "weight 1 is not seen to be ⪰ 0 (positive)",
    "a constant that is not positive": "weight 1 is not seen to be ⪰ 0 (positive)",
    "an undeclared constant": "Not an expression of a proof: ['var', 't']",
    "well-posed by a weight of zero": "no square is positive definite",
    "well-posed without being strict": "no square is positive definite",
    "an equilibrium without well-posedness": "the library's conditions (equilibrium, wellposed)",
    "well-posedness for other slopes": "beta does not go with the slopes",
    "a condition for other slopes": "the ansatz gives beta = 0, but slopes = (0.0, 1.0)",
    "an unproved lemma": "Not a proof object: IndexError",
    "another norm": "norm = inf, but linear is a condition for norm 2",
    "no goal": "there is no goal",
    "status undecided": "says 'undecided', not 'proved'",
    "slopes that the condition does not cover": "residual is stated for slopes in [0, 1]",
    "a changed file": "its hash does not fit",
}
"""What the check says that rejects each."""
