"""Operator splitting for 0 ∈ M z - v + ∂f(z), M = I - A: fixed-point maps with proven rates.

∂f is separable, so its resolvent in the metric of a diagonal Λ is the plain `Activation.resolvent`:
Λ appears in the choice of the step and in the proof, never in an iteration [LBEN, section 4].
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..activations import Activation
from .operators import Operator, as_operator

if TYPE_CHECKING:
    from .problem import Problem

CHECK_EVERY = 4
"""Iterations between two looks at the residual: a look costs one more product with A."""


def monotonicity(A: Tensor | Operator, metric: Tensor | None = None) -> tuple[float, float]:
    """The modulus m and the Lipschitz constant L of I - A in the Λ-metric.

    m is the least eigenvalue of the symmetric part of N = Λ^½ (I - A) Λ^-½ and L = ‖N‖₂. For m > 0
    every z = σ(A z + v) with slopes in [0, 1] has exactly one solution [LBEN, theorem 1].

    Args:
        A: (n, n), or an operator. metric: (n,) positive Λ, or None for the identity.
    """
    return _extremes(as_operator(A).values, metric)


def _extremes(values: Tensor, metric: Tensor | None) -> tuple[float, float]:
    """m and L of the worst of the matrices (..., n, n)."""
    A = values.detach().to(torch.promote_types(values.dtype, torch.float64))
    N = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - A
    if metric is not None:
        root = metric.detach().to(N.device, torch.float64).sqrt()
        N = root[:, None] * N / root
    if not N.numel():
        return 1.0, 1.0
    m = torch.linalg.eigvalsh((N + N.mH) / 2)[..., 0].min()
    L = torch.linalg.eigvalsh(N.mH @ N)[..., -1].max().clamp(min=0).sqrt()
    return float(m), float(L)


def optimal_step(A: Tensor | Operator, method: str, metric: Tensor | None = None) -> float:
    """The step that the theory gives to `method`; keep it while A changes little.

    average: 1 / (1 - min_i(a_ii)⁻) [NEMON]. forward_backward: m / L², half of what it admits. The
    others: 1 / √(m L). Where m ≤ 0 this metric proves nothing: forward_backward takes the step of
    average, and the others pretend that m = L / 100; only the residual tells whether they converge.
    Peaceman-Rachford and Douglas-Rachford converge for every step, so that theirs is taken from
    `Operator.sample`.
    """
    operator = as_operator(A)
    return operator.recall(method, lambda: _best_step(operator, method, metric))


def _best_step(A: Operator, method: str, metric: Tensor | None) -> float:
    shift = 1 / (1 - min(A.least_diagonal(), 0))
    if method == "average":
        return shift
    values = A.values if method == "forward_backward" else A.sample()
    m, L = _extremes(values, metric)
    known = m > A.blocks * torch.finfo(torch.float64).eps * L
    if method == "forward_backward":
        return m / L**2 if known else shift
    return ((m if known else L / 100) * L) ** -0.5 if L > 0 else 1.0


class Iteration(Protocol):
    """A fixed-point map on states: `start`, `sweep` until `point` is a solution."""

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        """The state of the point z, and the constant term of every sweep."""

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor: ...

    def point(self, sigma: Activation, state: Tensor) -> Tensor: ...


class PeacemanRachford:
    """u ← R(2 J(u) - u) + c with the Cayley matrix R = (I - αM)(I + αM)⁻¹ and J = prox_{αf}.

    For ReLU the reflection is |u|, and ‖R‖_Λ < 1 is the well-posedness condition. With `relax` = ½
    it is Douglas-Rachford's iteration.
    """

    def __init__(self, A: Operator, step: float, relax: float = 1.0) -> None:
        V = A.resolvent(step)
        self.step, self.relax = step, relax
        self.R, self.drive = V.affine(-1, 2), V.affine(0, 2 * step)

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        forward = problem.preactivation(z) - z
        return z + self.step * forward, self.drive.plus(torch.zeros_like(z), problem.v)

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        if sigma.name == "relu":
            reflected = state.abs()
        else:
            reflected = 2 * sigma.resolvent(state, self.step) - state
        new = self.R.plus(drive, reflected)
        return new if self.relax == 1 else torch.lerp(state, new, self.relax)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return sigma.resolvent(state, self.step)


class ForwardBackward:
    """z ← prox_{αf}((1 - α) z + α (A z + v)); a contraction for α < 2m / L²."""

    def __init__(self, A: Operator, step: float) -> None:
        self.step = step
        self.K = A.affine(1 - step, step)

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.step * problem.v

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        return sigma.resolvent(self.K.plus(drive, state), self.step)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state


class Averaged:
    """z ← (1 - α) z + α σ(A z + v); an ℓ∞ contraction when the matrix measure is below 1."""

    def __init__(self, A: Operator, step: float) -> None:
        self.A, self.step = A, step

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        return z, problem.v

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        return torch.lerp(state, sigma(self.A.plus(drive, state)), self.step)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state


def iteration(A: Operator, method: str, step: float) -> Iteration:
    """The map of `method` for A."""
    if method == "peaceman_rachford":
        return PeacemanRachford(A, step)
    if method == "douglas_rachford":
        return PeacemanRachford(A, step, relax=0.5)
    return ForwardBackward(A, step) if method == "forward_backward" else Averaged(A, step)


def iterate(
    problem: "Problem", build: Callable[[], Iteration], z: Tensor, tol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sweep every row until it is `solved` to tol; then the row leaves the batch.

    Returns z, residual and steps. A row ends early when its residual is no longer finite.
    """
    z, residual = z.clone(), problem.residual(z)
    steps = torch.zeros(len(z), dtype=torch.long, device=z.device)
    live = (~problem.solved(z, residual, tol) & residual.isfinite()).nonzero()[:, 0]
    if not len(live):
        return z, residual, steps
    problem, scheme = problem.rows(live), build()
    state, drive = scheme.start(problem, z[live])
    done = 0
    while done < max_steps and len(live):
        sweeps = min(CHECK_EVERY, max_steps - done)
        for _ in range(sweeps):
            state = scheme.sweep(problem.sigma, state, drive)
        done += sweeps
        point = scheme.point(problem.sigma, state)
        error = problem.residual(point)
        z[live], residual[live], steps[live] = point, error, done
        stay = (~problem.solved(point, error, tol) & error.isfinite()).nonzero()[:, 0]
        if len(stay) < len(live):
            problem, live, state, drive = problem.rows(stay), live[stay], state[stay], drive[stay]
    return z, residual, steps
