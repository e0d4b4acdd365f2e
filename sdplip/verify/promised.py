"""The layers' own closed forms as a certificate of the whole network: no solver, one proof.

Each part k of a chain has multipliers Λ_k with which its form ρ_k‖x_k‖² − ‖x_{k+1}‖² − (its units'
constraints, weighted by Λ_k) is ⪰ 0. Weighted by c_k = ρ_{k+1}·…·ρ_K and added up, the norms in
between cancel: what is left is the form of the network, with multipliers c_kΛ_k and ρ = ρ_1·…·ρ_K.
A closed form may leave no room at all, so Λ_k and ρ_k are raised by a little for the proof.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from .._arrays import Array
from .._modules import PASSES, extract, plain
from ..errors import CertificationError, InvalidInput
from ..system import System
from .certificate import Certificate, holds
from .subject import as_system

ROOM = 10.0 ** np.arange(-11, -4)
"""What is tried, relative; weights that were rounded to float32 need about 1e-6."""

CONDITIONS = ("linear", "residual", "equilibrium")
"""Those whose witness has ρ, and Λ if there are units, of a bound for ℓ₂."""


def promise(model: nn.Module) -> Certificate:
    """The bound in ℓ₂ that the layers' closed forms give, proven for the weights as they are.

    It is the product of the parts' constants, enlarged by what rounding to the weights' precision
    cost; `bound.lipschitz` finds a tighter one.

    Args:
        model: a dense layer of `sdplip.layers` with a promise in ℓ₂, or a Sequential of such,
            nn.Linear, activations and Flatten.

    Raises:
        InvalidInput: a part with no closed form of its own.
        CertificationError: the multipliers do not prove the bound: a defect, or weights that
            leave no room in their precision.
    """
    began = time.perf_counter()
    system = as_system(model)
    parts = list(_parts(model, "", system.inputs))
    for room in ROOM:
        later, multipliers = 1.0, []
        for lam, rho in reversed(parts):
            multipliers.append(lam * later * (1 + room))
            later *= rho * (1 + 2 * room)
        lam, bound = np.concatenate([np.zeros(0), *reversed(multipliers)]), math.sqrt(later)
        if lam.shape == (system.units,) and holds(system, 2, bound, lam):
            return Certificate(
                bound=bound,
                norm=2.0,
                multipliers=tuple(lam.tolist()),
                proven=True,
                lower=None,
                optimum=None,
                norm_product=None,
                solver="closed form of the layers",
                seconds=time.perf_counter() - began,
                inputs=system.inputs,
                units=system.units,
                outputs=system.outputs,
                model=system.digest(),
                version=__version__,
                solved=math.sqrt(math.prod(rho for _, rho in parts)),
            )
    raise CertificationError(
        f"The closed forms of the {len(parts)} parts do not prove their product of constants for "
        f"these weights, up to a relative {ROOM[-1]:g}. Use sdplip.lipschitz(model)."
    )


def _parts(module: nn.Module, place: str, features: int) -> Iterator[tuple[Array, float]]:
    """Multipliers and ρ of every part, in the order of the units in the system."""
    if plain(module, nn.Sequential):
        for name, child in module._modules.items():
            if child is not None and not plain(child, *PASSES):
                yield from _parts(child, f"{place}.{name}".lstrip("."), features)
                features = extract(child, place, features).outputs
        return
    system = extract(module, place, features)
    witness: Any = getattr(module, "witness", None)
    if callable(witness) and getattr(module, "condition", None) in CONDITIONS:
        with torch.no_grad():
            values = {k: v.double().cpu().numpy() for k, v in witness().items()}
        yield values["Lam"] if system.units else np.zeros(0), float(values["rho"])
    elif system.units == 0:
        yield np.zeros(0), float(np.linalg.norm(system.D, 2)) ** 2
    elif _elementwise(system):
        slope, width = np.maximum(abs(system.alpha), abs(system.beta)), system.beta - system.alpha
        yield np.where(width > 0, slope / np.where(width > 0, width, 1.0), 1.0), slope.max() ** 2
    else:
        raise InvalidInput(
            f"{type(module).__name__} (at {place!r}) has no closed form for ℓ₂; use "
            "sdplip.lipschitz(model)."
        )


def _elementwise(system: System) -> bool:
    """Whether it is y = σ(x): with s = max(|α|, |β|), λ = s / (β − α) leaves a square at ρ = s²."""
    eye = np.eye(system.units)
    same = all(np.array_equal(X, eye) for X in (system.B, system.C))
    return same and not (system.A.any() or system.D.any())
