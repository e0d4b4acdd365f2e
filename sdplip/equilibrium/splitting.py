"""Operator splitting for 0 ∈ M z - v + ∂f(z), M = I - A: fixed-point maps with proven rates.

∂f is separable, so its resolvent in the metric of a diagonal Λ is the plain `Activation.resolvent`:
Λ appears in the choice of the step and in the proof, never in an iteration [LBEN, section 4].
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..activations import Activation

if TYPE_CHECKING:
    from .problem import Problem

CHECK_EVERY = 4
"""Iterations between two looks at the residual: a look costs one more product with A."""


def monotonicity(A: Tensor, metric: Tensor | None = None) -> tuple[float, float]:
    """The modulus m and the Lipschitz constant L of I - A in the Λ-metric.

    m is the least eigenvalue of the symmetric part of N = Λ^½ (I - A) Λ^-½ and L = ‖N‖₂. For m > 0
    every z = σ(A z + v) with slopes in [0, 1] has exactly one solution [LBEN, theorem 1].

    Args:
        A: (n, n). metric: (n,) positive Λ, or None for the identity.
    """
    A = A.detach().double()
    N = torch.eye(len(A), dtype=A.dtype, device=A.device) - A
    if metric is not None:
        root = metric.detach().to(A).sqrt()
        N = root[:, None] * N / root
    if not len(A):
        return 1.0, 1.0
    m = torch.linalg.eigvalsh((N + N.mT) / 2)[0]
    L = torch.linalg.eigvalsh(N.mT @ N)[-1].clamp(min=0).sqrt()
    return float(m), float(L)


def optimal_step(A: Tensor, method: str, metric: Tensor | None = None) -> float:
    """The step that the theory gives to `method`; keep it while A changes little.

    average: 1 / (1 - min_i(a_ii)⁻) [NEMON]. forward_backward: m / L², half of what it admits. The
    others: 1 / √(m L). Where m ≤ 0 this metric proves nothing: forward_backward takes the step of
    average, and the others pretend that m = L / 100; only the residual tells whether they converge.
    """
    A = A.detach()
    shift = 1 / (1 - float(A.diagonal().min().clamp(max=0))) if len(A) else 1.0
    if method == "average":
        return shift
    m, L = monotonicity(A, metric)
    known = m > len(A) * torch.finfo(torch.float64).eps * L
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

    def __init__(self, A: Tensor, step: float, relax: float = 1.0) -> None:
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        V = torch.linalg.inv(eye + step * (eye - A))
        self.step, self.relax = step, relax
        self.R, self.drive = 2 * V - eye, 2 * step * V

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        forward = problem.preactivation(z) - z
        return z + self.step * forward, problem.v @ self.drive.mT

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        if sigma.name == "relu":
            reflected = state.abs()
        else:
            reflected = 2 * sigma.resolvent(state, self.step) - state
        new = torch.addmm(drive, reflected, self.R.mT)
        return new if self.relax == 1 else torch.lerp(state, new, self.relax)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return sigma.resolvent(state, self.step)


class ForwardBackward:
    """z ← prox_{αf}((1 - α) z + α (A z + v)); a contraction for α < 2m / L²."""

    def __init__(self, A: Tensor, step: float) -> None:
        self.step = step
        self.K = (1 - step) * torch.eye(len(A), dtype=A.dtype, device=A.device) + step * A

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.step * problem.v

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        return sigma.resolvent(torch.addmm(drive, state, self.K.mT), self.step)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state


class Averaged:
    """z ← (1 - α) z + α σ(A z + v); an ℓ∞ contraction when the matrix measure is below 1."""

    def __init__(self, A: Tensor, step: float) -> None:
        self.A, self.step = A, step

    def start(self, problem: "Problem", z: Tensor) -> tuple[Tensor, Tensor]:
        return z, problem.v

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        return torch.lerp(state, sigma(torch.addmm(drive, state, self.A.mT)), self.step)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state


def iteration(A: Tensor, method: str, step: float) -> Iteration:
    """The map of `method` for the matrix A."""
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
