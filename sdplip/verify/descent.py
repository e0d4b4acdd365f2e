"""A first-order form of the condition for chains: every iterate is a bound.

For a chain z_k = σ(W_k z_{k−1}), y = C z_L, and any Λ_k that is large enough, elimination from the
last layer to the first gives the least ρ = λ_max(Q₀) with M(ρ, λ) ⪰ 0:

    Q_L = CᵀC,   Q_{k−1} = W_kᵀSΛ_k (2Λ_k − Q_k)⁻¹ Λ_kS W_k − 2 W_kᵀ αβΛ_k W_k,   S = α + β.

Λ_k = c_k T_k with c_k = (1 + e^{a_k})/2 · λ_max(T_k^{−1/2} Q_k T_k^{−1/2}) is large enough whatever
log T_k and a_k are, so these are free, and ρ is differentiable in them and in the weights. Cost
and memory are linear in the depth.

Q_k ⪰ 0 whatever the slopes, and of low rank behind few outputs. With Q_k = FᵀF for such an F,

    Q_{k−1} = W_kᵀ (½(β − α)²Λ_k + VᵀV) W_k,   V = ½L⁻¹FS,   LLᵀ = I − ½FΛ_k⁻¹Fᵀ,

and λ_max(T_k^{−1/2} Q_k T_k^{−1/2}) is that of FT_k⁻¹Fᵀ: the cost is that of the smaller side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .._arrays import Array
from ..errors import CertificationError, InvalidInput, ShapeError
from ..system import System
from .interior import Optimum
from .reduce import Problem

Slopes = tuple[Tensor | float, Tensor | float]

LINEAR = 6.0
"""log T_k of the units of one slope at first."""
DENSE = 1500
"""From this order on the largest eigenvalue is found by iteration."""


@dataclass(frozen=True)
class Layers:
    """A chain: weights W_1 … W_L and C, the slopes of each layer, and where its units are."""

    weights: list[Array]
    alpha: list[Array]
    beta: list[Array]
    places: list[np.ndarray]

    def gather(self, parts: Sequence[Array]) -> Array:
        """One array over all units from one per layer."""
        whole = np.empty(sum(len(place) for place in self.places))
        for place, part in zip(self.places, parts, strict=True):
            whole[place] = part
        return whole


def layers(problem: Problem | System) -> Layers | None:
    """The chain that a problem or system is; None if it has skips, cycles, or no units."""
    known = vars(problem)
    if "_layers" not in known:
        # Kept there, as a cached property is.
        known["_layers"] = _layers(problem)
    return cast(Layers | None, known["_layers"])


def _layers(problem: Problem | System) -> Layers | None:
    feeds = problem.feeds
    if not feeds or problem.D.any():
        return None
    places = [feed.units for feed in feeds]
    weights = [problem.B[places[0]]]
    for before, (units, fed, block) in zip(places, feeds[1:], strict=False):
        if not np.isin(fed, before, assume_unique=True).all():
            return None
        if len(fed) < len(before):
            whole = np.zeros((len(units), len(before)))
            whole[:, np.searchsorted(before, fed)] = block
            block = whole
        weights.append(block)
    weights.append(problem.C[:, places[-1]])
    # What these leave out must be zero.
    for whole, part in ((problem.B, weights[0]), (problem.C, weights[-1])):
        if np.count_nonzero(whole) != np.count_nonzero(part):
            return None
    alpha, beta = ([slope[v] for v in places] for slope in (problem.alpha, problem.beta))
    return Layers(weights, alpha, beta, places)


def chain_bound(
    weights: Sequence[Tensor],
    log_scales: Sequence[Tensor] | None = None,
    margins: Sequence[Tensor] | None = None,
    slopes: Slopes | Sequence[Slopes] = (0.0, 1.0),
) -> Tensor:
    """A Lipschitz bound (ℓ₂) of x ↦ Cσ(W_L … σ(W_1 x)), differentiable: a training regulariser.

    It is a bound for any `log_scales` and `margins`; train them along with the weights, or leave
    them out for the closed form with Λ_k = λ_max(Q_k) I (the recursion of ECLipsE-Fast, backwards).
    Computed in the dtype of the weights without directed rounding: evidence, not a proof. For a
    proof call `lipschitz` on the trained model.

    Args:
        weights: L + 1 ≥ 1 matrices W_1 … W_L, C as in nn.Linear, (..., n_k, n_{k−1}), of one
            floating dtype and device; leading dimensions are a batch.
        log_scales: L tensors log T_k (..., n_k), or None for zeros.
        margins: L tensors a_k (...), or None for zeros.
        slopes: (α, β) of all layers, or one pair per layer; numbers or (n_k,) tensors, of any sign.

    Returns:
        (...): the bound; where a weight is 0, not 0 but of the order of the least number's root.

    Raises:
        ShapeError: weights that do not follow each other, or as many scales as there are not.
        InvalidInput: α > β.
    """
    if not weights:
        raise ShapeError("chain_bound: weights is empty, but needs at least one matrix.")
    hidden = len(weights) - 1
    for k in range(hidden):
        if weights[k].shape[-2] != weights[k + 1].shape[-1]:
            raise ShapeError(
                f"chain_bound: weights[{k}] has {weights[k].shape[-2]} rows, but weights[{k + 1}] "
                f"takes {weights[k + 1].shape[-1]} inputs."
            )
    one = weights[0].new_zeros(())
    scales = [one] * hidden if log_scales is None else list(log_scales)
    rooms = [one] * hidden if margins is None else list(margins)
    single = len(slopes) == 2 and not isinstance(slopes[0], (tuple, list))
    pairs = cast(list[Slopes], [slopes] * hidden if single else list(slopes))
    for name, given in (("log_scales", scales), ("margins", rooms), ("slopes", pairs)):
        if len(given) != hidden:
            raise ShapeError(f"chain_bound: {len(given)} {name}, but {hidden} hidden layers.")
    tensors = [(one + a, one + b) for a, b in pairs]
    for k, (a, b) in enumerate(tensors):
        if (a > b).any():
            raise InvalidInput(f"chain_bound: slopes[{k}] has alpha > beta, which is no range.")
    return (_eliminate(weights, scales, rooms, tensors, _highest)[0] / 2).exp()


@np.errstate(all="ignore")
def least_rho(chain: Layers, lam: Array) -> float:
    """`reduce.least_rho` by elimination over the layers."""
    if not (lam > 0).all():
        return math.inf
    weights, slopes = _tensors(chain, "cpu")
    scales = [torch.as_tensor(lam[place]).log() for place in chain.places]
    try:
        with torch.no_grad():
            rho = float(_eliminate(weights, scales, None, slopes, _highest)[0].exp())
    except torch.linalg.LinAlgError:
        return math.inf
    return rho if rho < math.inf else math.inf


def _tensors(
    chain: Layers, device: str | torch.device
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Weights and slopes, in float64."""

    def put(arrays: Sequence[Array]) -> list[Tensor]:
        return [torch.as_tensor(a, dtype=torch.float64, device=device) for a in arrays]

    return put(chain.weights), list(zip(put(chain.alpha), put(chain.beta), strict=True))


def _eliminate(
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    margins: Sequence[Tensor] | None,
    slopes: Sequence[tuple[Tensor, Tensor]],
    top: Callable[[Tensor, bool, float], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The logarithms of the least ρ and of every layer's λ; without margins, λ = T.

    Args:
        top: λ_max(Q) (...) from F (..., r, n) with Q = FᵀF and True, or from Q and False, and the
            relative error of its vector that is allowed.

    Raises:
        torch.linalg.LinAlgError: no ρ is enough.
    """
    least = torch.finfo(weights[-1].dtype).tiny ** 0.5
    (X, size), factored = _scaled(weights[-1]), True
    size = 2 * size
    logs: list[Tensor] = []
    for k in range(len(scales) - 1, -1, -1):
        W, (low, high) = weights[k], slopes[k]
        n, before = W.shape[-2:]
        signed = bool((low * high).any())
        if signed and before > n and not factored:
            # Q_{k−1} is larger than its factor; this little more makes sure that there is one.
            X, factored = torch.linalg.cholesky(_plus(X, X.new_tensor(1e-12))).mT, True
        t = scales[k] + torch.zeros_like(W[..., 0])
        if margins is None:
            t = t - size[..., None]
        root = (-t / 2).exp()[..., None, :]
        G = X * root if factored else root.mT * X * root
        few = factored and (4 * X.shape[-2] < 3 * n or (signed and before > n))
        E = G @ G.mT if few else G.mT @ G if factored else G
        c = torch.ones_like(size)
        if margins is not None:
            c = (1 + margins[k].exp()) / 2 * top(E, False, 1e-3).clamp_min(least)
        logs.append(c.log()[..., None] + t + size[..., None])
        L = torch.linalg.cholesky(_plus(-E, 2 * c))
        mean, half = (low + high)[..., None] / root.mT, (c / 2)[..., None, None]
        spread = half.sqrt() * (high - low)[..., None] / root.mT * W
        if few:
            V = torch.linalg.solve_triangular(L, G * mean.mT, upper=False) @ W
            X = torch.cat([spread, half.sqrt() * V], -2)
        elif signed:
            # As positive terms alone: the multipliers of units of one slope are large.
            Z, factored = mean * W, False
            rest = half * (E @ Z).mT @ torch.cholesky_solve(Z, L)
            X = spread.mT @ spread + (rest + rest.mT) / 2
        else:
            X, factored = torch.linalg.solve_triangular(L, 2 * half * mean * W, upper=False), True
        X, more = _scaled(X)
        size = size + (2 * more if factored else more)
    return top(X, factored, 1e-6).clamp_min(least).log() + size, logs[::-1]


def _plus(Q: Tensor, diagonal: Tensor) -> Tensor:
    """Q + diagonal · I."""
    return torch.diagonal_scatter(Q, Q.diagonal(0, -2, -1) + diagonal[..., None], 0, -2, -1)


def _scaled(X: Tensor) -> tuple[Tensor, Tensor]:
    """X of norm one, and the logarithm taken out: deep gains leave the range of the dtype."""
    size = torch.linalg.matrix_norm(X.detach())
    size = torch.where(size > 0, size, torch.ones_like(size))
    return X / size[..., None, None], size.log()


def _smaller(X: Tensor, factored: bool) -> Tensor:
    """Q, or where that is smaller FFᵀ, of the same largest eigenvalue."""
    if not factored:
        return X
    return X @ X.mT if X.shape[-2] < X.shape[-1] else X.mT @ X


def _highest(X: Tensor, factored: bool, tol: float) -> Tensor:
    return torch.linalg.eigvalsh(_smaller(X, factored))[..., -1]


def _rayleigh(X: Tensor, factored: bool, tol: float) -> Tensor:
    """λ_max as the quotient of its vector, which costs little to differentiate, and only once."""
    with torch.no_grad():
        E = _smaller(X, factored)
        if len(E) < DENSE:
            v = torch.linalg.eigh(E)[1][:, -1]
        else:
            begin = torch.sin(torch.arange(1.0, len(E) + 1).to(E) ** 2)[:, None]
            v = torch.lobpcg(E, X=begin, niter=200, tol=tol)[1][:, 0]
    if not factored:
        return v @ X @ v
    return (X @ v if len(v) == X.shape[-1] else v @ X).square().sum()


def minimise(
    problem: Problem,
    *,
    max_steps: int = 400,
    rate: float = 0.05,
    deadline: float | None = None,
    progress: Callable[[int, float, float], None] | None = None,
    device: str | torch.device = "cpu",
) -> Optimum:
    """Lower ρ by Adam over log T_k and a_k; the best iterate, which is feasible up to rounding.

    Usually 0.02 to 2 % above the optimum in γ; it has no dual value (−inf).

    Args:
        problem: a chain (`layers`).
        rate: of Adam at first, up to four times that where time is short; it falls linearly to a
            fiftieth, with the steps or the time.
        deadline: in `time.monotonic`; no step but the first, the closed form, is begun that would
            likely end after it.
        progress: called with the steps, ρ and −inf.
        device: where to compute, in float64.

    Raises:
        InvalidInput: the problem is no chain.
        CertificationError: rounding leaves no feasible point.
    """
    chain = layers(problem)
    if chain is None:
        raise InvalidInput("descent.minimise: problem is no chain. Use solver = 'interior'.")

    weights, slopes = _tensors(chain, device)
    widths = [len(low) for low, _ in slopes]
    # log T_1 … log T_L, then a_1 … a_L.
    # The best multiplier of a unit of one slope, and the margin of a layer of them, is infinite.
    single = [low == high for low, high in slopes]
    parts = [*single, torch.stack([own.all() for own in single])]
    free = LINEAR * torch.cat(parts).to(dtype=torch.float64)
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    best, logs, steps, stopped = math.inf, [], 0, "steps"
    start = mark = time.monotonic()
    while True:
        free.requires_grad_()
        try:
            with torch.enable_grad():
                *scales, rooms = free.split([*widths, len(widths)])
                value, logs_now = _eliminate(weights, scales, list(rooms), slopes, _rayleigh)
            now = float(value.detach())
        except torch.linalg.LinAlgError:
            now = math.inf
        if now < best:
            best, logs = now, [v.detach() for v in logs_now]
        if progress is not None:
            progress(steps, math.exp(best), -math.inf)
        # A step is a gradient, which takes about two evaluations, and an evaluation.
        mark, spent = time.monotonic(), (time.monotonic() - mark) * (1 if steps else 2.5)
        late = deadline is not None and mark + spent > deadline
        if late or steps >= max_steps or not math.isfinite(now):
            stopped = "time" if late else stopped if math.isfinite(now) else "rounding"
            break
        # Adam in a line or two: torch.optim imports more than all else here together.
        (slope,) = torch.autograd.grad(value, free)
        first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.01)
        steps += 1
        done = (steps - 1) / max_steps
        if deadline is not None:
            done = max(done, (mark - start) / (deadline - start))
            if steps == 1:
                # Few steps must be longer ones.
                rate *= min(max(100 * spent / (deadline - mark), 1.0), 4.0)
        length = rate * (1.02 - done) / (1 - 0.9**steps)
        spread = (second / (1 - 0.99**steps)).sqrt() + 1e-8
        free = (free - length * first / spread).detach()
    if not logs:
        raise CertificationError("descent.minimise: the closed form is infeasible in float64.")
    lam = chain.gather([v.exp().cpu().numpy() for v in logs])
    return Optimum(math.exp(best), lam, -math.inf, steps, stopped)
