"""Layers with a proven Lipschitz constant, one file per family."""

from ._base import ROUNDING, Layer
from ._conv import ConvLayer
from ._equilibrium import EquilibriumLayer
from .aol import AOLConv2d, AOLConvTranspose2d, AOLLinear
from .basic import Normalize
from .bounds import lipschitz_bound
from .cpl import CPLLinear
from .lben import LBENLinear
from .nemon import NEMONLinear
from .orthogonal import OrthogonalLinear
from .sll import SLLConv2d, SLLLinear
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

CONVOLUTIONS: dict[str, type[Layer]] = {
    "aol": AOLConv2d,
    "sll": SLLConv2d,
}
"""The convolution of every family by name."""

__all__ = [
    "CONVOLUTIONS",
    "LAYERS",
    "ROUNDING",
    "AOLConv2d",
    "AOLConvTranspose2d",
    "AOLLinear",
    "CPLLinear",
    "ConvLayer",
    "EquilibriumLayer",
    "LBENLinear",
    "Layer",
    "NEMONLinear",
    "Normalize",
    "OrthogonalLinear",
    "SLLConv2d",
    "SLLLinear",
    "SpectralLinear",
    "lipschitz_bound",
]
