"""Layers with a proven Lipschitz constant, one file per family."""

from ._base import ROUNDING, Layer
from ._equilibrium import EquilibriumLayer
from .aol import AOLLinear
from .basic import Normalize
from .bounds import lipschitz_bound
from .cpl import CPLLinear
from .lben import LBENLinear
from .nemon import NEMONLinear
from .orthogonal import OrthogonalLinear
from .sll import SLLLinear
from .spectral import SpectralLinear

LAYERS: dict[str, type[Layer]] = {
    "orthogonal": OrthogonalLinear,
    "spectral": SpectralLinear,
    "aol": AOLLinear,
    "cpl": CPLLinear,
    "sll": SLLLinear,
    "lben": LBENLinear,
    "nemon": NEMONLinear,
}
"""Every family by name; tests, the command line and the benchmarks run over it."""

__all__ = [
    "LAYERS",
    "ROUNDING",
    "AOLLinear",
    "CPLLinear",
    "EquilibriumLayer",
    "LBENLinear",
    "Layer",
    "NEMONLinear",
    "Normalize",
    "OrthogonalLinear",
    "SLLLinear",
    "SpectralLinear",
    "lipschitz_bound",
]
