"""Provably Lipschitz neural networks: derive, verify and train them from one matrix condition."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convolutional import ConvSystem
    from .derive import Derivation
    from .errors import (
        CertificationError,
        InvalidInput,
        NotConverged,
        NotConvergedWarning,
        NotWellPosed,
        SdplipError,
        ShapeError,
        UncheckedWarning,
    )
    from .importing import load
    from .layers import CONVOLUTIONS, LAYERS, fold, lipschitz_bound
    from .lmi import LMI
    from .system import System
    from .verify import Certificate, Region, check, lipschitz, margin_bounds

__version__ = "0.1.0"

_HOMES = {
    "CONVOLUTIONS": "layers",
    "LAYERS": "layers",
    "LMI": "lmi",
    "Certificate": "verify",
    "ConvSystem": "convolutional",
    "CertificationError": "errors",
    "Derivation": "derive",
    "InvalidInput": "errors",
    "NotConverged": "errors",
    "NotConvergedWarning": "errors",
    "NotWellPosed": "errors",
    "Region": "verify",
    "SdplipError": "errors",
    "ShapeError": "errors",
    "System": "system",
    "UncheckedWarning": "errors",
    "check": "verify",
    "fold": "layers",
    "lipschitz": "verify",
    "lipschitz_bound": "layers",
    "load": "importing",
    "margin_bounds": "verify",
}
_MODULES = {
    *("activations", "conditions", "convolutional", "derive", "equilibrium", "errors"),
    *("importing", "layers", "lmi", "system", "train", "verify"),
}

__all__ = [  # noqa: RUF022 - by job, not by letter
    "System",
    "ConvSystem",
    "load",
    "lipschitz",
    "margin_bounds",
    "check",
    "Certificate",
    "Region",
    "Derivation",
    "LMI",
    "LAYERS",
    "CONVOLUTIONS",
    "lipschitz_bound",
    "fold",
    "SdplipError",
    "InvalidInput",
    "ShapeError",
    "NotConverged",
    "NotConvergedWarning",
    "UncheckedWarning",
    "NotWellPosed",
    "CertificationError",
]


def __getattr__(name: str) -> Any:
    """Load a part on first use: training needs neither CVXPY nor SymPy."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'sdplip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
