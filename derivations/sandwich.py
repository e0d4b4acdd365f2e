"""Sandwich: y = √2 Pᵀ Ψ σ(√2 Ψ⁻¹ Q x + b) with PPᵀ + QQᵀ = I.

    python derivations/sandwich.py
"""

import sys

from sympy import DiagMatrix, Identity, MatrixSymbol, ZeroMatrix, sqrt

from sdplip import conditions
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, lemmas, main

derivation = None
