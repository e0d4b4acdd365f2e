"""The tightest bound that the condition gives: propose multipliers, then prove the bound."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from torch import nn

from .. import __version__
from .._arrays import Array, parse_norm
from .._modes import own_modes
from ..convolutional import ConvSystem
from ..errors import CertificationError, InvalidInput, NotConverged
from ..system import System
from .certificate import CONVOLUTION, Certificate, holds, prove
from .descent import layers
from .euclidean import Progress, Proposal, euclidean
from .fold import fold
from .frequency import lipschitz_conv
from .frequency_lower import lower_bound_conv
from .layered import folds
from .local import restrict
from .lower import lower_bound
from .margins import difference
from .maximum import maximum
from .reduce import live_units, prune, spectral_norm
from .region import Region
from .rigorous import LARGE
from .subject import as_system, described

THREADED_ORDER = 1500
THREADED_WIDTH = 128
FREQUENCY = "frequency"
UNROLLED_SIZE = 1024
"""Up to this many inputs and units each a network on images is also bounded unrolled: some 20 s."""


@own_modes
def lipschitz(
    model: System | ConvSystem | nn.Module,
    norm: float | str = 2,
    *,
    method: str = "auto",
    classes: tuple[int, int] | None = None,
    region: Region | None = None,
    input_shape: Sequence[int] | None = None,
    lower: bool = True,
    seed: int = 0,
    start: Certificate | None = None,
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """The tightest Lipschitz bound over diagonal multipliers, with its certificate.

    Args:
        model: a `System`, a `ConvSystem`, a layer with `system()`, or a Torch module that
            `System.from_module` takes; with `input_shape`, any that `importing.from_torch` takes.
            A `ConvSystem` is bounded by frequency, with one multiplier per channel whatever the
            size of its images; one of at most 1,024 inputs and 1,024 units also unrolled, with one
            per unit, and the smaller bound is taken: the certificate's `solver` says "unrolled"
            then, and `model.unroll()` is what it is about. Other norms, regions, pairs of classes
            and methods are for the unrolled network.
        norm: 2 (ℓ₂ → ℓ₂, a semidefinite program) or inf (ℓ∞ → ℓ∞, a linear program whose optimum
            has a closed form).
        method: for norm 2: "interior" (own primal-dual method), "chain" (the same on the blocks of
            a chain), "descent" (first order, for chains), "layerwise" and "product" (closed forms,
            loose), "frequency" (for a `ConvSystem`), or a CVXPY solver such as "CLARABEL" or "SCS",
            the reference; "auto" chooses by structure and size. For norm inf: "auto", "closed form"
            or a CVXPY solver. Which method it is can make the bound looser, never wrong.
        classes: (i, j) bounds y_i − y_j, what a margin between two classes needs, instead of y.
        region: bounds the map on a box or ball only, with the slopes that units can have there.
        input_shape: of one sample without the batch dimension.
        lower: whether to search for a lower bound, too.
        seed: of that search.
        start: the certificate of a similar network, whose multipliers to begin with.
        time_limit: seconds. The search ends so early that its best point so far, which is valid, is
            proven by then; where time is too short for a search, the product of norms is proven.
            Estimates may be off by some seconds; what would take 10 s more is refused.
        progress: called with the iteration, the bound so far and a lower bound of the optimum.

    Raises:
        NotWellPosed: the network has no bound that this condition can show.
        CertificationError: multipliers were found, but no bound could be proven with them.
        InvalidInput: an unknown norm or method, a time limit that is not positive, a module that
            is no system.
    """
    began = time.perf_counter()
    norm = parse_norm(norm)
    if time_limit is not None and not time_limit > 0:
        raise InvalidInput(f"time_limit is {time_limit}, but must be positive seconds.")
    system = described(model, input_shape)
    if not (system.inputs and system.outputs):
        raise InvalidInput(
            f"The system maps R^{system.inputs} to R^{system.outputs}: there is nothing to bound."
        )
    # BLAS threads cost more than they give on small matrices, and far more on a busy machine.
    small = system.units + system.inputs < THREADED_ORDER or _narrow(system)
    threads = 1 if small else None
    # What overflows or underflows is found out by the proof, which then fails.
    with threadpool_limits(threads), np.errstate(all="ignore"):
        deadline = None if time_limit is None else time.monotonic() + time_limit
        whole = norm == 2 and classes is None and region is None
        if isinstance(system, ConvSystem) and whole and method in ("auto", FREQUENCY):
            certificate = _convolutional(system, method, lower, seed, deadline, progress)
        elif method == FREQUENCY:
            raise InvalidInput(
                "method = 'frequency' is for a ConvSystem in norm 2, as a whole and everywhere. "
                "Use method = 'auto'."
            )
        else:
            task = _Task(system, norm, classes, region)
            found = task.solve(method, deadline, progress, start)
            certificate = task.certificate(found, lower, seed, deadline)
    return replace(certificate, seconds=time.perf_counter() - began)


def _narrow(system: System | ConvSystem) -> bool:
    """Whether it is a chain of small layers, whose matrices are all small."""
    chain = layers(system) if isinstance(system, System) else None
    return chain is not None and max(max(W.shape) for W in chain.weights) < THREADED_WIDTH


class _Task:
    """One statement to be shown: the system as given, and what of it a solver sees."""

    def __init__(
        self,
        model: System | ConvSystem,
        norm: float = 2.0,
        classes: tuple[int, int] | None = None,
        region: Region | None = None,
    ) -> None:
        system = as_system(model)
        self.unrolled = system is not model
        self.system, self.norm, self.classes, self.region = system, norm, classes, region
        if classes is not None:
            _check_pair(classes, system.outputs)
        self.local = system if region is None else restrict(system, region)
        self.target = self.local if classes is None else difference(self.local, *classes)
        small = prune(self.target)
        folded = fold(small) if norm != 2 or folds(small) else None
        self.solved = small if folded is None else folded.system
        self.kept = np.flatnonzero(live_units(self.target))
        if folded is not None:
            self.kept = self.kept[folded.kept]

    def expand(self, multipliers: Array) -> Array:
        """The solver's multipliers as those of all units."""
        full = np.zeros(self.system.units)
        full[self.kept] = multipliers
        return full

    def prove(self, least: float, multipliers: Array) -> float | None:
        return prove(self.local, self.norm, least, self.expand(multipliers), self.classes, 1e-2)

    def holds(self, bound: float, multipliers: Array) -> bool:
        return holds(self.local, self.norm, bound, self.expand(multipliers), self.classes)

    def solve(
        self,
        method: str,
        deadline: float | None,
        progress: Progress | None,
        start: Certificate | None,
    ) -> Proposal:
        small = self.solved
        if small.units == 0:
            return self._linear()
        if self.norm != 2:
            return maximum(small, method, self.holds)
        warm = None
        if start is not None and len(start.multipliers) == self.system.units:
            warm = np.asarray(start.multipliers)[self.kept]
        return euclidean(small, method, self.prove, deadline, progress, warm)

    def _linear(self) -> Proposal:
        value = float(np.linalg.norm(self.solved.D, self.norm))
        none = np.zeros(0)
        # 0 is proven by D = 0 alone, not by a norm that underflowed; what cancels leaves rounding.
        rest = norm_product(self.target, self.norm) or 1.0
        steps = 10.0 ** np.arange(-14, -2)
        slacks = rest * np.concatenate([10.0 ** np.arange(-280, -15, 20), steps])
        for bound in map(float, [value, *(value * (1 + steps)), *(value + slacks)]):
            if self.holds(bound, none):
                # With ten times the excess that it takes, as `certificate.prove`.
                return Proposal("closed form", none, bound + 9 * (bound - value), value, value)
        raise CertificationError(f"The norm {value!r} of the linear map could not be proven.")

    def certificate(
        self, found: Proposal, lower: bool, seed: int, deadline: float | None
    ) -> Certificate:
        late = deadline is not None and time.monotonic() > deadline
        late = late and self.system.units + self.system.inputs >= LARGE
        return _certificate(
            self.system,
            found.bound,
            self._below(seed, deadline) if lower else None,
            norm=self.norm,
            multipliers=tuple(self.expand(found.multipliers).tolist()),
            optimum=found.optimum,
            norm_product=None if late else norm_product(self.target, self.norm),
            solver=f"{found.method}, unrolled" if self.unrolled else found.method,
            classes=self.classes,
            region=self.region,
            solved=found.solved,
        )

    def _below(self, seed: int, deadline: float | None) -> float | None:
        system = self.system if self.classes is None else difference(self.system, *self.classes)
        # The bound stands whether or not this network can be evaluated everywhere.
        with contextlib.suppress(NotConverged):
            return lower_bound(system, self.norm, seed=seed, region=self.region, deadline=deadline)
        return None


def _check_pair(classes: tuple[int, int], outputs: int) -> None:
    fits = isinstance(classes, Sequence) and len(classes) == 2
    fits = fits and all(type(k) is int and 0 <= k < outputs for k in classes)
    if not fits or classes[0] == classes[1]:
        raise InvalidInput(
            f"classes = {classes!r}, but must be two different numbers from 0 to {outputs - 1}."
        )


def _convolutional(
    system: ConvSystem,
    method: str,
    lower: bool,
    seed: int,
    deadline: float | None,
    progress: Progress | None,
) -> Certificate:
    """By frequency; with another method also unrolled, if that is cheap or the only way."""
    unrolled, found = method != FREQUENCY and system.unrolls, None
    try:
        found = lipschitz_conv(system, deadline=deadline, progress=progress)
    except (InvalidInput, CertificationError):
        if not unrolled:
            raise
    late = deadline is not None and time.monotonic() >= deadline
    cheap = max(system.units, system.inputs) <= UNROLLED_SIZE
    if found is None or (unrolled and cheap and not late):
        task = _Task(system)
        # What one multiplier per channel has proven stands, whatever becomes of one per unit.
        with contextlib.suppress(*([] if found is None else [CertificationError])):
            other = task.solve("auto", deadline, progress, None)
            if found is None or other.bound < found.bound:
                return task.certificate(other, lower, seed, deadline)
    assert found is not None
    return _certificate(
        system,
        found.bound,
        lower_bound_conv(system, seed=seed, deadline=deadline) if lower else None,
        norm=2.0,
        multipliers=tuple(found.multipliers.tolist()),
        optimum=found.optimum,
        norm_product=None,
        solver=found.solver,
        kind=CONVOLUTION,
        solved=found.solved,
    )


def _certificate(
    system: System | ConvSystem, bound: float, below: float | None, **found: Any
) -> Certificate:
    if below is not None and below > bound * (1 + 1e-9):
        raise CertificationError(
            f"A Jacobian of norm {below!r} contradicts the bound {bound!r}: this is a defect of "
            "sdplip or of the model's description; please report it."
        )
    return Certificate(
        bound=float(bound),
        proven=True,
        lower=None if below is None else min(below, bound),
        seconds=0.0,
        inputs=system.inputs,
        units=system.units,
        outputs=system.outputs,
        model=system.digest(),
        version=__version__,
        **found,
    )


def norm_product(system: System, norm: float | str = 2) -> float | None:
    """The bound by norms of single blocks, with no coupling between layers.

    For an acyclic system, Σ over paths of products of norms times slopes (for a multilayer
    perceptron the product of the norms); for an equilibrium with slopes in [0, 1] and
    m = λ_min of the symmetric part of I − A positive, ‖C‖‖B‖/m + ‖D‖ [Pabbaraju et al., ICLR 2021];
    None elsewhere, and where it overflows. Floating point: a comparison, not a certificate.
    """
    order = parse_norm(norm)

    def size(matrix: Array) -> float:
        if order == 2:
            return spectral_norm(matrix)
        return float(np.linalg.norm(matrix, order)) if matrix.any() else 0.0

    slope = np.maximum(abs(system.alpha), abs(system.beta))
    if system.feeds is None:
        if order != 2 or system.alpha.min() < 0 or system.beta.max() > 1:
            return None
        modulus = 1 - np.linalg.eigvalsh((system.A + system.A.T) / 2)[-1]
        if modulus <= 0:
            return None
        return float(size(system.C) * size(system.B) / modulus + size(system.D))
    # Of every unit its level, and of every level the largest gain of its units.
    place, gains = np.zeros(system.units, dtype=np.intp), [0.0] * len(system.feeds)
    for k, (level, fed, block) in enumerate(system.feeds):
        sources = [(j, place[fed] == j) for j in np.unique(place[fed])]
        paths = sum(size(block[:, own]) * gains[j] for j, own in sources)
        place[level], gains[k] = k, float(slope[level].max() * (size(system.B[level]) + paths))
    paths = sum(size(system.C[:, f.units]) * g for f, g in zip(system.feeds, gains, strict=True))
    total = float(size(system.D) + paths)
    return total if math.isfinite(total) else None
