"""Equilibria z = σ(A z + v): per-sample solves by operator splitting or Newton, implicit gradients.

Sources: [LBEN] Revay, Wang, Manchester, Lipschitz Bounded Equilibrium Networks (arXiv 2010.01732);
[MON] Winston, Kolter, Monotone Operator Equilibrium Networks (NeurIPS 2020); [NEMON] Jafarpour,
Davydov, Proskurnikov, Bullo, Robust Implicit Networks via Non-Euclidean Contractions (NeurIPS
2021, arXiv 2106.03194).
"""

from .implicit import implicit
from .operators import Circulant, Dense, Operator
from .problem import Solution, announce, error_bound
from .solve import METHODS, solve
from .splitting import monotonicity, optimal_step
from .tuning import Tuning

__all__ = [
    "METHODS",
    "Circulant",
    "Dense",
    "Operator",
    "Solution",
    "Tuning",
    "announce",
    "error_bound",
    "implicit",
    "monotonicity",
    "optimal_step",
    "solve",
]
