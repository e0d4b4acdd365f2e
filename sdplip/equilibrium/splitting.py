"""Operator splitting for 0 ∈ M z - v + ∂f(z), M = I - A: fixed-point maps with proven rates.

∂f is separable, so its resolvent in the metric of a diagonal Λ is the plain `Activation.resolvent`:
Λ appears in the choice of the step and in the proof, never in an iteration [LBEN, section 4].
"""

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..activations import Activation
from ..errors import InvalidInput
from .operators import Operator, as_operator
from .tuning import CHECK_EVERY

if TYPE_CHECKING:
    from .problem import Problem


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
        if not bool((metric.isfinite() & (metric > 0)).all()):
            raise InvalidInput("metric has entries that are not positive and finite. Pass Λ > 0.")
        root = metric.detach().to(N.device, torch.float64).sqrt()
        N = root[:, None] * N / root
    if not N.numel():
        return 1.0, 1.0
    # Squares of very large or small entries would leave the range.
    scale = N.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    N = N / scale
    m = torch.linalg.eigvalsh((N + N.mH) / 2)[..., 0].min()
    L = torch.linalg.eigvalsh(N.mH @ N)[..., -1].max().clamp(min=0).sqrt()
    return float(m * scale), float(L * scale)


def optimal_step(A: Tensor | Operator, method: str, metric: Tensor | None = None) -> float:
    """The step that the theory gives to `method`; keep it while A changes little.

    average, adaptive: 1 / (1 - min_i(a_ii)⁻) [NEMON]. forward_backward: m / L², half of what it
    admits. The others: 1 / √(m L). Where m ≤ 0 this metric proves nothing: forward_backward takes
    the step of average, and the others pretend that m = L / 100; only the residual tells whether
    they converge.
    Peaceman-Rachford and Douglas-Rachford converge for every step, so that theirs is taken from
    `Operator.sample`.
    """
    operator, method = as_operator(A), method.partition("+")[0]
    return operator.recall(method, lambda: _best_step(operator, method, metric))


def _best_step(A: Operator, method: str, metric: Tensor | None) -> float:
    shift = 1 / (1 - min(A.least_diagonal(), 0))
    if method in ("average", "adaptive"):
        return shift
    if method == "forward_backward" or len(A.sample()) == 1:
        m, L = A.recall("extremes", lambda: monotonicity(A, metric))
    else:
        m, L = _extremes(A.sample(), metric)
    known = m > A.blocks * torch.finfo(torch.float64).eps * L
    if method == "forward_backward":
        return m / L**2 if known else shift
    # Not of the product, which may leave the range.
    return (m if known else L / 100) ** -0.5 * L**-0.5 if L > 0 else 1.0


def contraction(kappa: float) -> float:
    """What ‖R‖_Λ of the Cayley matrix R is at most at the step 1/√(mL), for κ = L/m ≥ 1.

    With N = Λ^½ (I - A) Λ^-½ and y = (I + αN)⁻¹x of norm 1, ‖Rx‖² / ‖x‖² = (1 - q) / (1 + q) for
    q = 2α⟨y, Ny⟩ / (1 + α²‖Ny‖²) ≥ 2αm / (1 + α²L²), which is 2 / (√κ (1 + κ)) at this α.
    """
    q = 2 / (math.sqrt(kappa) * (1 + kappa))
    return math.sqrt((1 - q) / (1 + q))


def conditioning(rate: float) -> float:
    """The κ whose `contraction` is `rate` in (0, 1)."""
    q = (1 - rate**2) / (1 + rate**2)
    # √κ is the real root of s³ + s = 2 / q.
    return (2 / math.sqrt(3) * math.sinh(math.asinh(3 * math.sqrt(3) / q) / 3)) ** 2


class Iteration(Protocol):
    """A fixed-point map on states: `start`, `sweep` until `point` is a solution."""

    def start(self, problem: "Problem", z: Tensor | None) -> tuple[Tensor, Tensor]:
        """The state of the point z (None: of zero, or what follows it at no cost), and the constant
        term of every sweep. Rows come first in both."""

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor: ...

    def point(self, sigma: Activation, state: Tensor) -> Tensor: ...


class PeacemanRachford:
    """u ← R(2 J(u) - u) + c with the Cayley matrix R = (I - αM)(I + αM)⁻¹ and J = prox_{αf}.

    For ReLU the reflection is |u|, and ‖R‖_Λ < 1 is the well-posedness condition. With `relax` = ½
    it is Douglas-Rachford's iteration.
    """

    def __init__(self, A: Operator, step: float, relax: float = 1.0) -> None:
        self.step, self.relax, self.R = step, relax, A.cayley(step)

    def start(self, problem: "Problem", z: Tensor | None) -> tuple[Tensor, Tensor]:
        drive = self.R.plus(problem.v, problem.v).mul_(self.step)
        if z is None:
            return drive, drive  # the sweep from u = 0
        return z + self.step * (problem.preactivation(z) - z), drive

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        new = self.R.plus(drive, sigma.reflection(state, self.step))
        return new if self.relax == 1 else torch.lerp(state, new, self.relax)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return sigma.resolvent(state, self.step)


class ForwardBackward:
    """z ← prox_{αf}((1 - α) z + α (A z + v)); a contraction for α < 2m / L²."""

    def __init__(self, A: Operator, step: float) -> None:
        self.step = step
        self.K = A.affine(1 - step, step)

    def start(self, problem: "Problem", z: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(problem.v) if z is None else z, self.step * problem.v

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        return sigma.resolvent(self.K.plus(drive, state), self.step)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state


class Averaged:
    """z ← (1 - α) z + α σ(A z + v); an ℓ∞ contraction when the matrix measure is below 1."""

    def __init__(self, A: Operator, step: float) -> None:
        self.A, self.step = A, step

    def start(self, problem: "Problem", z: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(problem.v) if z is None else z, problem.v

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        return torch.lerp(state, sigma(self.A.plus(drive, state)), self.step)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state


class Adaptive(Averaged):
    """`Averaged` with a step of every row's own, between the theory's and 1: it grows by a fifth
    while ‖σ(A z + v) - z‖ falls by a tenth in every sweep, and is halved where it does not.

    States are z, the step and the last size (rows, n + 2). Never below the theory's step, at which
    the map contracts, so that no row can stand still and pass for solved [NEMON's own code does].
    """

    def start(self, problem: "Problem", z: Tensor | None) -> tuple[Tensor, Tensor]:
        point, drive = super().start(problem, z)
        return torch.cat([point, point.new_full((len(point), 2), torch.inf)], dim=-1), drive

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        z, step, before = self.point(sigma, state), state[:, -2:-1], state[:, -1:]
        gap = sigma(self.A.plus(drive, z)) - z
        size = torch.linalg.vector_norm(gap, dim=-1, keepdim=True)
        step = torch.where(size <= 0.9 * before, 1.2 * step, step / 2).clamp(self.step, 1)
        return torch.cat([z + step * gap, step, size], dim=-1)

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return state[:, :-2]


class Anderson:
    """Anderson's acceleration of another iteration, per row, over the last MEMORY sweeps.

    With the sweeps g_j of the states x_j and f_j = g_j - x_j, the next state is Σ θ_j g_j for the θ
    with Σ θ_j = 1 that minimises ‖Σ θ_j f_j‖, lightly regularised. A row takes it only where ‖f‖ is
    below its first size by a factor that a convergent sum of accepted steps allows, and the plain
    sweep elsewhere: so it converges wherever the iteration does.

    States are the last x and g and the next x, and per row the accepted steps and the first size:
    (rows, 2·MEMORY + 2, units).

    Source: Walker, Ni (SIAM J. Numer. Anal. 2011); the safeguard is that of Zhang, O'Donoghue,
    Boyd, Globally convergent type-I Anderson acceleration (SIAM J. Optim. 2020), equation 3.10.
    """

    MEMORY = 4
    REGULARISATION = 1e-8
    SAFETY = 1e3

    def __init__(self, inner: Iteration) -> None:
        self.inner, self.done = inner, 0

    def start(self, problem: "Problem", z: Tensor | None) -> tuple[Tensor, Tensor]:
        state, drive = self.inner.start(problem, z)
        self.done, self.units = 0, state.shape[-1]
        rows = state.new_zeros(len(state), 2 * self.MEMORY + 2, max(self.units, 2))
        rows[:, -2, : self.units] = state
        return rows, drive

    def sweep(self, sigma: Activation, state: Tensor, drive: Tensor) -> Tensor:
        x = state[:, -2, : self.units]
        g = self.inner.sweep(sigma, x, drive)
        accepted, first = state[:, -1, 0], state[:, -1, 1]
        size = torch.linalg.vector_norm(g - x, dim=-1)
        state = state.clone()
        if not self.done:
            first = size
        place = self.done % self.MEMORY
        state[:, place, : self.units] = g - x
        state[:, self.MEMORY + place, : self.units] = g
        self.done += 1
        known = min(self.done, self.MEMORY)
        f, points = state[:, :known], state[:, self.MEMORY : self.MEMORY + known]
        mixed = self._mixed(f, points)[:, : self.units]
        allowed = size <= self.SAFETY * first * (accepted + 1) ** -1.1
        take = allowed & mixed.isfinite().all(-1)
        state[:, -2, : self.units] = torch.where(take[:, None], mixed, g)
        state[:, -1, 0], state[:, -1, 1] = accepted + take, first
        return state

    def _mixed(self, f: Tensor, points: Tensor) -> Tensor:
        gram = f @ f.mT
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        eye = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        tiny = torch.finfo(f.dtype).tiny
        weights = torch.linalg.solve_ex(
            gram + (self.REGULARISATION * trace + tiny) * eye, torch.ones_like(gram[..., :1])
        )[0]
        return ((weights / weights.sum(dim=1, keepdim=True)).mT @ points)[:, 0]

    def point(self, sigma: Activation, state: Tensor) -> Tensor:
        return self.inner.point(sigma, state[:, -2, : self.units])


def iteration(A: Operator, method: str, step: float) -> Iteration:
    """The map of `method` for A."""
    name, _, accelerated = method.partition("+")
    inner: Iteration
    if name == "peaceman_rachford":
        inner = PeacemanRachford(A, step)
    elif name == "douglas_rachford":
        inner = PeacemanRachford(A, step, relax=0.5)
    elif name == "forward_backward":
        inner = ForwardBackward(A, step)
    else:
        inner = (Adaptive if name == "adaptive" else Averaged)(A, step)
    return Anderson(inner) if accelerated else inner


def iterate(
    problem: "Problem",
    scheme: Iteration,
    z: Tensor | None,
    tol: float,
    max_steps: int,
    first: int = CHECK_EVERY,
) -> tuple[Tensor, Tensor, Tensor | int, Tensor, bool, int]:
    """Sweep every row until it is `solved` to tol; then the row leaves the batch.

    The first look at the rows is after `first` sweeps, or before any of a z that is given. A row
    ends early when its residual is no longer finite. Returns z, residual, steps (a number where all
    rows took as many) and A z + v; whether all rows are solved, and the sweeps after which, as it
    seems, a look would have found them so.
    """
    state, drive = scheme.start(problem, z)
    live, done, look, before, whole = None, 0, first if z is None else 0, math.nan, True
    sweep = scheme.sweep
    while True:
        look, last = min(look, max_steps), done
        for _ in range(look - done):
            state = sweep(problem.sigma, state, drive)
        done, look = look, look + CHECK_EVERY
        point = scheme.point(problem.sigma, state) if done or z is None else z.clone()
        error, w = problem.look(point)
        if live is None:
            points, residual, pre = point, error, w
            steps: Tensor | int = done
        else:
            assert isinstance(steps, Tensor)
            points[live], residual[live], pre[live], steps[live] = point, error, w, done
        worst = float(error.max())
        finite = math.isfinite(worst)
        whole = whole and finite
        stay = None if worst <= tol else problem.unsolved(point, error, tol)
        if stay is None or (finite and not len(stay)):
            enough = needed(last, done, before, worst, tol)
            return points, residual, steps, pre, whole, enough
        if done == max_steps or not len(stay):
            return points, residual, steps, pre, False, done
        if live is None:
            live = torch.arange(len(state), device=state.device)
            steps = torch.full_like(live, done)
        before = worst
        if len(stay) < len(live):
            problem, live, state, drive = problem.rows(stay), live[stay], state[stay], drive[stay]


def needed(last: int, done: int, before: float, worst: float, tol: float) -> int:
    """When the worst residual, `before` after `last` sweeps, passed tol at a constant rate."""
    if not (last and tol < before < math.inf and 0 < worst < tol):
        return done
    return last + math.ceil((done - last) * math.log(before / tol) / math.log(before / worst))
