"""The condition of a chain by the blocks of its tridiagonal M, enclosed, linear in the depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import conditions
from .._arrays import Array
from ..system import System
from .descent import layers
from .rigorous import Ball


def tridiagonal(
    system: System, arrays: dict[str, Any], lam: Array
) -> tuple[list[Ball], list[Ball]] | None:
    """M(0, λ) as for `rigorous.tridiagonal_definite`, the inputs first; None for what is no chain.

    A unit's term of M involves that unit and what feeds it, here the layer before: M is the sum of
    the conditions of single layers, where only the last has outputs.

    Args:
        system: whose zeros show the layers, at least two: one makes a dense M.
        arrays: A, B, C, alpha and beta of the condition, balls or arrays.
        lam: (n,).
    """
    chain = layers(system)
    if chain is None or len(chain.places) < 2 or not system.inputs:
        return None
    A, B, C, alpha, beta = (arrays[name] for name in ("A", "B", "C", "alpha", "beta"))
    diagonal, below = [Ball(np.zeros((system.inputs, system.inputs)))], []
    for k, own in enumerate(chain.places):
        last = k + 1 == len(chain.places)
        outputs = C[:, own] if last else np.zeros((1, len(own)))
        feeding = A[np.ix_(own, chain.places[k - 1])] if k else B[own]
        before = feeding.shape[1]
        M = conditions.lipschitz(
            A=np.zeros((len(own), len(own))),
            B=feeding,
            C=outputs,
            D=np.zeros((outputs.shape[0], before)),
            alpha=alpha[own],
            beta=beta[own],
            Lam=Ball(lam[own]),
            rho=0.0,
        )
        diagonal[-1] = diagonal[-1] + M[:before, :before]
        below.append(M[before:, :before])
        diagonal.append(M[before:, before:])
    return diagonal, below
