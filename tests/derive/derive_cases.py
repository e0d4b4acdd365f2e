"""Pieces of the tests of derivations: the shipped ones, and exact random matrices."""

import importlib.util
from functools import cache
from pathlib import Path

import sympy as sp

DERIVATIONS = Path(__file__).parents[2] / "derivations"


@cache
def shipped(name):
    """The module derivations/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"shipped_{name}", DERIVATIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def document(name):
    """The proof object of derivations/<name>.py, without the checks on instances."""
    return shipped(name).derivation.prove(quick=True).document


def rational(rng, rows, columns, low=-4, high=4):
    """A random matrix of small fractions."""
    return sp.ImmutableMatrix(
        rows, columns, lambda *_: sp.Rational(rng.randint(low, high), rng.randint(1, 3))
    )


def explicit(expr, values):
    """A matrix expression at explicit matrices, by SymPy's own arithmetic."""
    return sp.ImmutableMatrix(sp.sympify(expr).xreplace(values).doit().as_explicit())


def located(expr, sizes, values):
    """An expression of symbolic sizes at explicit matrices by name, by SymPy's own arithmetic."""
    sized = sp.sympify(expr).xreplace(sizes)
    symbols = sized.atoms(sp.MatrixSymbol) | {s for s in sized.free_symbols if s.name in values}
    return explicit(sized, {s: values[s.name] for s in symbols})


def stacked(blocks, sizes, values):
    """A grid of blocks as one explicit matrix."""
    rows = [sp.Matrix.hstack(*(located(e, sizes, values) for e in row)) for row in blocks]
    return sp.ImmutableMatrix(sp.Matrix.vstack(*rows))
