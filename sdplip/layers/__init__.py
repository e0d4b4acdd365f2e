"""Layers with a proven Lipschitz constant, one file per family."""

from ._base import ROUNDING, Layer
from ._conv import ConvLayer
from ._equilibrium import EquilibriumLayer
from .aol import AOLConv2d, AOLConvTranspose2d, AOLLinear
from .basic import Normalize, Scale
from .bounds import lipschitz_bound
from .computed import solve_output
from .containers import Concatenate, ConvexResidual, Residual
from .cpl import CPLConv2d, CPLLinear
from .folding import fold
from .head import NormalizedLinear
from .implicit import ImplicitLinear
from .lben import LBENLinear
from .lben_conv import LBENConv2d
from .mon import MONConv2d, MONLinear, MultiscaleMON
from .multiscale import MultiscaleLBEN
from .nemon import NEMONLinear
from .nemon_conv import NEMONConv2d
from .orthogonal import OrthogonalConv2d, OrthogonalConvTranspose2d, OrthogonalLinear
from .pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from .public import load_public
from .represent import as_lben
from .sandwich import SandwichConv2d, SandwichLinear
from .shaping import ChannelPad, ChannelSlice, DepthToSpace, SpaceToDepth
from .sll import SLLConv2d, SLLLinear
from .sorting import GroupSort, Householder, MaxMin
from .spectral import SpectralConv2d, SpectralConvTranspose2d, SpectralLinear

LAYERS: dict[str, type[Layer]] = {
    "orthogonal": OrthogonalLinear,
    "spectral": SpectralLinear,
    "aol": AOLLinear,
    "cpl": CPLLinear,
    "sll": SLLLinear,
    "sandwich": SandwichLinear,
    "lben": LBENLinear,
    "nemon": NEMONLinear,
}
"""Every family by name; tests, the command line and the benchmarks run over it."""

CONVOLUTIONS: dict[str, type[Layer]] = {
    "orthogonal": OrthogonalConv2d,
    "spectral": SpectralConv2d,
    "aol": AOLConv2d,
    "cpl": CPLConv2d,
    "sll": SLLConv2d,
    "sandwich": SandwichConv2d,
    "lben": LBENConv2d,
    "nemon": NEMONConv2d,
}
"""The convolution of every family by name."""

__all__ = [
    "CONVOLUTIONS",
    "LAYERS",
    "ROUNDING",
    "AOLConv2d",
    "AOLConvTranspose2d",
    "AOLLinear",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "CPLConv2d",
    "CPLLinear",
    "ChannelPad",
    "ChannelSlice",
    "Concatenate",
    "ConvLayer",
    "ConvexResidual",
    "DepthToSpace",
    "EquilibriumLayer",
    "GroupSort",
    "Householder",
    "ImplicitLinear",
    "LBENConv2d",
    "LBENLinear",
    "Layer",
    "MONConv2d",
    "MONLinear",
    "MaxMin",
    "MaxPool2d",
    "MultiscaleLBEN",
    "MultiscaleMON",
    "NEMONConv2d",
    "NEMONLinear",
    "Normalize",
    "NormalizedLinear",
    "OrthogonalConv2d",
    "OrthogonalConvTranspose2d",
    "OrthogonalLinear",
    "Residual",
    "SLLConv2d",
    "SLLLinear",
    "SandwichConv2d",
    "SandwichLinear",
    "Scale",
    "SpaceToDepth",
    "SpectralConv2d",
    "SpectralConvTranspose2d",
    "SpectralLinear",
    "as_lben",
    "fold",
    "lipschitz_bound",
    "load_public",
    "solve_output",
]
