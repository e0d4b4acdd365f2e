"""What `equilibrium.py` solves, and how it is brought to equal error: random layers as stiff as
trained ones, one trained layer, and `Bench`, which finds the tolerance of every method.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from equilibrium_textbook import (
    Conv,
    Dense,
    ForwardStep,
    Textbook,
    TorchDEQ,
    adjoint,
    forward_backward,
    has_torchdeq,
    reference,
    worst,
)
from layers import _wait
from torch import Tensor, nn
from torch.nn import functional as F

from sdplip import System
from sdplip.equilibrium import Circulant, monotonicity
from sdplip.layers import LBENLinear, MONConv2d, MONLinear, NEMONLinear

TARGETS = (1e-2, 1e-4, 1e-6)
INPUTS, CLASSES = 784, 10
OURS, ALPHA1 = "ours", "α = 1"


@dataclass(frozen=True)
class Case:
    """A layer, and how much cheaper it must be: `limits` by target, of α = 1 or of the floor."""

    name: str
    make: Callable[[], nn.Module]
    limits: dict[float, dict[str, float]] = field(default_factory=dict)
    side: int = 0
    """Of the images, for a convolution."""
    targets: tuple[float, ...] = TARGETS
    named: bool = False
    """Left out unless asked for."""


def cases() -> list[Case]:
    """All rows, in the order of the table."""
    make = functools.partial

    def limits(ratio: float) -> dict[float, dict[str, float]]:
        return {1e-4: {ALPHA1: ratio, "floor": 1.5}}

    return [
        Case("MON 80", make(mon, 80), limits(1 / 4)),
        Case("LBEN 80 γ=1", trained, limits(1 / 8)),
        Case("LBEN 80 γ=0.1", make(lben, 80, 0.1, 72, 3.47), limits(1 / 70)),
        Case("MON 500", make(mon, 500), limits(1 / 2)),
        Case("LBEN 500 γ=1", make(lben, 500, 1.0, 12, 1.86), limits(1 / 5)),
        Case("NEMON 100", make(nemon, 100, 4.06, 4.06)),
        Case("NEMON 500", make(nemon, 500, 28.6, 10), limits(1 / 8)),
        Case("LBEN 2000 γ=1", make(lben, 2000, 1.0, 12, 1.86), named=True),
        Case("conv 54 ch 30x30", make(conv, 54), {1e-2: {ALPHA1: 1 / 3.5}}, 30, (1e-2,)),
        Case("conv 40 ch 28x28", make(conv, 40), {}, 28, (1e-2, 1e-4), named=True),
        Case("conv 80 ch 32x32", make(conv, 80), {}, 32, (1e-2, 1e-4), named=True),
    ]


def mon(units: int) -> nn.Module:
    return stiff(MONLinear(INPUTS, units, CLASSES), 5, None)


def lben(units: int, gamma: float, kappa: float, m: float) -> nn.Module:
    return stiff(LBENLinear(INPUTS, units, CLASSES, gamma=gamma), kappa, m)


def conv(channels: int) -> nn.Module:
    options = {"eps": 0.1, "readout": "pool", "padding_mode": "circular"}
    return stiff(MONConv2d(1, channels, CLASSES, 3, **options), 20, None)


def nemon(units: int, least: float, typical: float) -> nn.Module:
    """Diagonal entries of A from nearly 0 to -typical, and one in fifty, -least."""
    layer = NEMONLinear(INPUTS, units, CLASSES)
    sums = torch.linspace(0.1, typical, units)
    sums[-(units // 50) :] = least
    with torch.no_grad():
        layer.T.mul_(sums[:, None] / layer.T.abs().sum(dim=1, keepdim=True))
    return layer


def trained() -> nn.Module:
    """The trained network as free parameters, with the multipliers of its tightest bound."""
    if "SDPLIP_NETS" not in os.environ:
        return lben(80, 1.0, 12, 1.86)
    from sdplip.verify import lipschitz

    system = System.load(Path(os.environ["SDPLIP_NETS"]) / "lben_gamma1_w80.npz")
    found = torch.tensor(lipschitz(system, lower=False).multipliers)
    arrays = (system.A, system.B, system.C, system.b, system.c)
    A, B, C, bias, out_bias = (torch.tensor(array) for array in arrays)

    def rest(Lam: Tensor) -> Tensor:
        """2(VᵀV + εI)."""
        N = Lam[:, None] * B
        M = torch.diag(Lam) - Lam[:, None] * A
        return M + M.T - C.T @ C - N @ N.T

    Lam = max(
        (found * 2.0 ** (k / 8) for k in range(-32, 33)),
        key=lambda Lam: float(torch.linalg.eigvalsh(rest(Lam))[0]),
    )
    eps = float(torch.linalg.eigvalsh(rest(Lam))[0]) / 4
    layer = LBENLinear(INPUTS, len(A), CLASSES, gamma=1.0, eps=eps)
    M = torch.diag(Lam) - Lam[:, None] * A
    V = torch.linalg.cholesky(rest(Lam) / 2 - eps * torch.eye(len(A))).T
    free = {"V": V, "S": (M - M.T) / 4, "B": B, "C": C, "psi": -4 * torch.atanh(Lam.log() / 4)}
    layer.load_state_dict(
        {k: v.float() for k, v in (free | {"bias": bias, "out_bias": out_bias}).items()}, False
    )
    # The layer adds what rounding might take from ε.
    if not torch.allclose(layer.witness()["A"].double(), A, atol=1e-4 * float(A.abs().max())):
        raise ArithmeticError("The free parameters do not give back the trained network.")
    return layer


def condition(layer: nn.Module) -> tuple[float, float]:
    """m and L of I - A in the layer's own metric."""
    with torch.no_grad():
        if isinstance(layer, MONConv2d):
            return monotonicity(Circulant(layer.witness((30, 30))["A"], (30, 30)))
        w = layer.witness()
        return monotonicity(w["A"], layer._metric(w))


def stiff(layer: Any, kappa: float, m: float | None) -> nn.Module:
    """V and B with rows of different sizes; V, and Λ, scaled until L/m, and m, are as given."""
    rows = torch.linspace(0.05, 1, len(layer.V)).view(-1, *[1] * (layer.V.ndim - 1))
    with torch.no_grad():
        layer.V.mul_(rows)
        if m is not None:
            layer.B.mul_(20 * min(layer.gamma, 1) ** 0.5 / (layer.B * rows).norm() * rows)
            layer.psi.normal_(std=0.3)
        for _ in range(40):
            least, most = condition(layer)
            if abs(most / least / kappa - 1) < 0.03 and abs(least / (m or least) - 1) < 0.03:
                break
            layer.V.mul_(((kappa - 1) / max(most / least - 1, 0.1)) ** 0.4)
            if m is not None:
                layer.psi.add_(0.5 * math.log(m / least))
    return layer


def batch_of(case: Case, size: int) -> Tensor:
    """Smooth images, normalised as MNIST's; a convolution's have a frame of zeros."""
    side = case.side - 2 if case.side else 28
    x = F.interpolate(torch.randn(size, 1, 7, 7).relu(), (side, side), mode="bilinear")
    x = (x.clamp(max=1) - 0.1307) / 0.3081
    return F.pad(x, (1, 1, 1, 1)) if case.side else x.flatten(1)


class Observed(nn.Module):
    """A fresh copy of our layer, after a few passes: it learns from them when to look whether it
    has converged.

    Attributes:
        z, steps: what it says of the last pass that was watched.
        first: seconds of the first pass, in which the step is chosen, as it is now and then.
    """

    max_steps = math.inf

    def __init__(self, bench: Bench, tol: float) -> None:
        super().__init__()
        self.layer = copy.deepcopy(bench.layer)
        self.tol = self.layer.tol = tol
        self.layer.on_failure = "ignore"
        self.first = sum(bench.run(self))
        for _ in range(0 if bench.case.side else 2):
            bench.run(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def watch(self, run: Callable[[], object]) -> None:
        """Do a pass and note the solutions that it announces: of z, then of the gradient."""
        implicit = sys.modules["sdplip.equilibrium.implicit"]
        announce, seen = implicit.announce, []
        implicit.announce = lambda solution, *rest: seen.append(solution)
        try:
            run()
        finally:
            implicit.announce = announce
        self.z = seen[0].z
        self.steps = [*(int(found.by_row().steps.max()) for found in seen), 0][:2]


def good(module: Any, error: float, slope: float, target: float) -> bool:
    """Whether the target is met; by ours, to within 10 times (1e-4 at best) by the gradient too."""
    close = not slope > max(10 * target, 1e-4)
    return error <= target and (close or not isinstance(module, Observed))


@dataclass
class Bench:
    """A case made ready: the layer, the textbook's copy of it, the batch and the cotangent of y."""

    case: Case
    layer: Any
    weights: Any
    x: Tensor
    g: Tensor
    exact: dict[bool, tuple[Tensor | None, Tensor]]
    """A and the equilibria for it, in float64: ours and the textbook's differ by their rounding."""

    @classmethod
    def of(cls, case: Case, size: int, device: torch.device) -> Bench:
        torch.manual_seed(0)
        layer = case.make().to(device).train()
        x, g = batch_of(case, size).to(device), torch.randn(size, CLASSES).to(device)
        weights: Any = Conv(layer, case.side) if case.side else Dense(layer)
        weights = weights.to(device)
        m, most = condition(layer)
        find = functools.partial(reference, weights=weights, x=x, alpha=(m * most) ** -0.5)
        if case.side:
            z = find(None)
            return cls(case, layer, weights, x, g, {False: (None, z), True: (None, z)})
        with torch.no_grad():
            A = {False: weights.A().double(), True: layer.witness()["A"].double()}
        found = {own: (A[own], find(A[own])) for own in A}
        return cls(case, layer, weights, x, g, found)

    def run(self, module: nn.Module, x: Tensor | None = None) -> tuple[float, float]:
        """Seconds forward and backward: of the processor, since others may be at work on it, or on
        the clock where a GPU does the work."""
        x = self.x if x is None else x
        clock = time.perf_counter if x.is_cuda else time.process_time
        for parameter in module.parameters():
            parameter.grad = None
        _wait(x.device)
        began = clock()
        y = module(x).flatten(1)
        _wait(x.device)
        middle = clock()
        if not self.case.side:
            y.backward(self.g)
            _wait(x.device)
        return middle - began, clock() - middle

    def errors(self, module: Any) -> tuple[float, float]:
        """Of z and of ∂loss/∂x for the worst sample, the latter at the module's own active set."""
        own = isinstance(module, Observed)
        A, z = self.exact[own]
        x = self.x.clone().requires_grad_(not self.case.side)
        if own:
            module.watch(lambda: self.run(module, x))
        else:
            self.run(module, x)
        error = worst(module.z.flatten(1), z)
        if A is None or math.isinf(error):
            return error, math.nan
        with torch.no_grad():
            active = self.active(module) if own else module.active
            u = adjoint(A, active, self.g.double() @ self.weights.C.double())
            return error, worst(x.grad, u @ self.weights.B.double())

    def active(self, module: Observed) -> Tensor:
        """The units that our backward pass takes as active."""
        A = self.layer.witness()["A"]
        return torch.addmm(self.weights.drive(self.x), module.z, A.T) > 0

    def reach(self, make: Callable[[float], Any], target: float) -> tuple[Any, float, float]:
        """The method at the largest tolerance that meets the target, to a factor of 2^¼, and its
        errors; None and the least error where it does not."""
        tol, least = 64 * target, math.inf
        while True:
            module = make(tol)
            error, slope = self.errors(module)
            least = min(least, error)
            if good(module, error, slope, target):
                break
            if tol < 1e-4 * target or module.steps[0] >= module.max_steps:
                return None, least, math.nan
            tol /= 4
        low, high = 0.0, 1.0
        for _ in range(0 if self.case.side else 3):
            middle = (low + high) / 2
            trial = make(tol * 4**middle)
            found, other = self.errors(trial)
            if good(trial, found, other, target):
                low, module, error, slope = middle, trial, found, other
            else:
                high = middle
        while module.steps[1] >= module.max_steps:  # rounding may keep the adjoint from settling
            module.back_tol *= 2
            error, slope = self.errors(module)
        return module, error, slope

    def tuned(self, points: Callable[[float], Iterator[Tensor]], around: float) -> float:
        """The power of two with which the iteration first meets the target that has a limit, or
        1e-4. One that is not there before the best so far, as when it diverges, is no good."""
        target, best, chosen = min(self.case.limits, default=1e-4), 3000, around
        for shift in (0, -1, 1, -2, 2, -3, 3):
            step = 2.0 ** (round(math.log2(around)) + shift)
            for count, z in enumerate(points(step), 1):
                if count >= best:
                    break
                if worst(z.flatten(1), self.exact[False][1]) <= target:
                    best, chosen = count, step
                    break
        return chosen

    def methods(self) -> dict[str, Callable[[float], Any]]:
        """Who takes part, by a tolerance."""
        weights, (m, most) = self.weights, condition(self.layer)
        with torch.no_grad():
            v = weights.drive(self.x)

        @torch.no_grad()
        def splitting(alpha: float) -> Iterator[Tensor]:
            module = Textbook(weights, alpha)
            module._prepare()
            yield from module.iterates(v)

        alpha = self.tuned(splitting, (m * most) ** -0.5)
        found: dict[str, Callable[[float], Any]] = {
            OURS: lambda tol: Observed(self, tol),
            ALPHA1: lambda tol: Textbook(weights, 1.0, tol),
            f"α tuned {alpha:g}": lambda tol: Textbook(weights, alpha, tol),
        }
        if self.case.side:
            return found
        with torch.no_grad():
            A = weights.A()
        if isinstance(self.layer, NEMONLinear):
            star = 1 / (1 - float(A.diagonal().min()))

            def settled(tol: float) -> ForwardStep:
                module = ForwardStep(weights, 1.0, tol, adaptive=True)
                for _ in range(4):
                    self.run(module)
                return module

            found["forward step"] = settled
            found["forward step α*"] = lambda tol: ForwardStep(weights, star, tol)
        if has_torchdeq():
            step = self.tuned(functools.partial(forward_backward, A, v), 2 / most)
            for solver in TorchDEQ.LIMITS:
                found[f"torchdeq {solver}"] = functools.partial(TorchDEQ, weights, solver, step)
        return found
