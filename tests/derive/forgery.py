"""Proof objects written by hand, true and false ones, and what they really say."""

import itertools

import numpy as np

from sdplip import conditions
from sdplip.derive.algebra import grid
from sdplip.derive.proof import KIND, digest
from sdplip.derive.trees import trees
from sdplip.lmi import LMI

ONE, ZERO = ["num", "1"], ["num", "0"]
MATRIX = {"domain": "matrix", "low": 0.0, "high": 1e9, "default": 1.0, "positive": False}
VECTOR = MATRIX | {"domain": "ratios", "positive": True, "shape": ["n", "1"]}


def sym(name):
    return ["sym", name]


def minus(tree):
    return ["mul", ["num", "-1"], tree]


def free(*shape, **changes):
    return MATRIX | {"shape": list(shape)} | changes


def gram(name):
    return ["mul", ["t", sym(name)], sym(name)]


def defined(symbol, lemma, *arguments, options=()):
    return {
        "symbol": symbol,
        "lemma": lemma,
        "arguments": list(arguments),
        "options": list(options),
    }


def square(*row, weight, by="positive"):
    return {"row": list(row), "weight": weight, "by": by}


def goal(condition, *squares, **changes):
    return {
        "kind": "squares",
        "condition": condition.name,
        "blocks": trees(grid(condition.matrix)),
        "signed": list(condition.signed),
        "strict": condition.name == "wellposed",
        "squares": list(squares),
    } | changes


def sealed(document):
    """With the hash that goes with it, which anyone can compute."""
    kept = {k: v for k, v in document.items() if k != "sha256"}
    return kept | {"sha256": digest(kept)}


def forged(*goals, **parts):
    named = {x.name: x for x in vars(conditions).values() if isinstance(x, LMI)}
    first = named.get(goals[0].get("condition")) if goals else None
    return sealed(
        {
            "kind": KIND,
            "version": 1,
            "name": "forged",
            "title": "forged",
            "claim": "whatever",
            "source": "nobody",
            "status": "proved",
            "condition": {"name": first.name if first else "linear"},
            "slopes": ["0", "1"],
            "norm": "2" if first is None or first.cone == "psd" else "inf",
            "free": {},
            "definitions": [],
            "ansatz": {},
            "goals": list(goals),
        }
        | parts
    )


# --- an independent reading, in NumPy, for square W ---


def value(tree, at):
    """A tree at these matrices; every size is that of the matrices."""
    size = len(next(iter(at.values())))
    match tree:
        case ["sym", name, *_]:
            return at[name]
        case ["num", text]:
            top, _, bottom = text.partition("/")
            return float(top) / float(bottom or 1) * np.eye(size)
        case ["eye", *_]:
            return np.eye(size)
        case ["zeros", *_]:
            return np.zeros((size, size))
        case ["diag", inner]:
            return np.diag(value(inner, at))
        case ["t", inner]:
            return value(inner, at).T
        case ["inv", inner]:
            return np.linalg.inv(value(inner, at))
        case ["add", *parts]:
            return sum((value(p, at) for p in parts), np.zeros((size, size)))
        case ["mul", *parts]:
            product = np.eye(size)
            for part in parts:
                product = product @ value(part, at)
            return product
    raise ValueError(tree)


def holds(document):
    """Whether the residual layer of this document is √ρ-Lipschitz, on random 3 × 3 weights."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        at = {}
        for name in document["free"]:
            at[name] = rng.uniform(0.1, 3, 3) if name == "q" else rng.normal(size=(3, 3))
        for d in document["definitions"]:
            S, *more = (value(a, at) for a in d["arguments"])
            q = more[0] if more else np.ones(3)
            if d["lemma"] == "diagonal dominance":
                at[d["symbol"]] = np.diag(np.abs(S) @ q / q)
            elif d["lemma"] == "spectral norm":
                at[d["symbol"]] = np.linalg.norm(S, 2) ** 2 * np.eye(3)
            elif d["lemma"] == "block diagonal dominance":
                (k,) = d["options"]
                parts = S.reshape(3 // k, k, 3 // k, k).swapaxes(1, 2)
                sums = np.linalg.norm(parts, 2, axis=(-2, -1)).sum(axis=1)
                at[d["symbol"]] = np.diag(np.repeat(sums, k))
            elif d["lemma"] == "Gram power":
                (k,) = d["options"]
                power = np.abs(np.linalg.matrix_power(S, k))
                at[d["symbol"]] = np.diag((power @ q / q) ** (1 / k))
            elif d["lemma"] == "":
                at[d["symbol"]] = S
            else:
                raise ValueError(d["lemma"])
        ansatz = {"W": sym("W")} | document["ansatz"]
        H, G, W = (value(ansatz[k], at) for k in "HGW")
        rho = value(ansatz["rho"], at)[0, 0]
        for pattern in itertools.product((0.0, 1.0), repeat=3):
            if np.linalg.norm(H + G @ np.diag(pattern) @ W.T, 2) > np.sqrt(rho) * (1 + 1e-9):
                return False
    return True
