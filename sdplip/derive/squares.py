"""Sums of squares, read off a normal form."""

from __future__ import annotations

import sympy as sp
from sympy.matrices.expressions import MatrixExpr

from .algebra import Algebra, Letter


def squares_of(P: MatrixExpr, algebra: Algebra) -> list[tuple[MatrixExpr, MatrixExpr]] | None:
    """P as Σ FᵀCF, C a positive multiple of I or of a positive diagonal; None if not seen so."""
    found: list[tuple[MatrixExpr, MatrixExpr]] = []
    for word, factor in algebra.terms(P).items():
        if not factor.is_nonnegative:
            return None
        split = _palindrome(word, algebra)
        if split is None:
            return None
        half, centre = split
        rows = P.shape[0]
        F = algebra.assemble({half: sp.Integer(1)}, (rows, rows))
        C = algebra.assemble({centre: factor}, (F.shape[0], F.shape[0]))
        found.append((F, C))
    return found


def _palindrome(
    word: tuple[Letter, ...], algebra: Algebra
) -> tuple[tuple[Letter, ...], tuple[Letter, ...]] | None:
    """word = halfᵀ · centre · half with a positive centre, or None.

    The centre is made of positive diagonal letters, or is one positive symmetric letter.
    """
    for size in range(len(word) // 2, -1, -1):
        head, centre, tail = word[:size], word[size : len(word) - size], word[len(word) - size :]
        kind = "symmetric" if len(centre) == 1 else "diagonal"
        positive = all(algebra.has(x, "positive") and algebra.has(x, kind) for x, _, _ in centre)
        mirrored = tuple(
            (name, transposed != (not algebra.has(name, "symmetric")), inverted)
            for name, transposed, inverted in reversed(tail)
        )
        if positive and head == mirrored:
            return tail, centre
    return None
