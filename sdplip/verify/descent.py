"""A first-order form of the condition for chains: every iterate is a bound.

For a chain z_k = σ(W_k z_{k−1}), y = C z_L, and any Λ_k that is large enough, elimination from the
last layer to the first gives the least ρ = λ_max(Q₀) with M(ρ, λ) ⪰ 0:

    Q_L = CᵀC,   Q_{k−1} = W_kᵀSΛ_k (2Λ_k − Q_k)⁻¹ Λ_kS W_k − 2 W_kᵀ αβΛ_k W_k,   S = α + β.

Λ_k = c_k T_k with c_k = (1 + e^{a_k})/2 · λ_max(T_k^{−1/2} Q_k T_k^{−1/2}) is large enough whatever
log T_k and a_k are, so these are free, and ρ is differentiable in them and in the weights. Cost
and memory are linear in the depth.
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
from ..errors import InvalidInput, ShapeError
from ..system import System
from .interior import Optimum
from .reduce import Problem

Slopes = tuple[Tensor | float, Tensor | float]


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
    levels = problem.levels
    if not levels or problem.D.any():
        return None
    rows = np.hstack([problem.B, problem.A])
    m, seen = problem.B.shape[1], np.arange(problem.B.shape[1])
    weights = []
    for level in levels:
        skips = rows[level]
        weights.append(skips[:, seen].copy())
        skips[:, seen] = 0.0
        if skips.any():
            return None
        seen = m + level
    weights.append(problem.C[:, levels[-1]])
    if np.count_nonzero(problem.C) != np.count_nonzero(weights[-1]):
        return None
    return Layers(
        weights, [problem.alpha[v] for v in levels], [problem.beta[v] for v in levels], levels
    )


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
    return (_eliminate(weights, scales, rooms, tensors)[0] / 2).exp()


def _eliminate(
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    margins: Sequence[Tensor],
    slopes: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, list[Tensor]]:
    """The logarithms of the least ρ and of every layer's λ."""
    C = weights[-1]
    Q, size = _scaled(C.mT @ C)
    least = torch.finfo(Q.dtype).tiny ** 0.5
    logs: list[Tensor] = []
    for W, t, a, (low, high) in list(zip(weights[:-1], scales, margins, slopes, strict=True))[::-1]:
        t = t + torch.zeros_like(W[..., 0])
        root = (-t / 2).exp()
        top = torch.linalg.eigvalsh(root[..., :, None] * Q * root[..., None, :])[..., -1]
        # Q may be negative where αβ > 0: then any λ > 0 is large enough.
        c = (1 + a.exp()) / 2 * top.clamp_min(least)
        lam = c[..., None] * t.exp()
        logs.append(lam.log() + size[..., None])
        factor = torch.linalg.cholesky(2 * torch.diag_embed(lam) - Q)
        cross = (lam * (low + high))[..., None] * W
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        Q = half.mT @ half - 2 * W.mT @ ((lam * low * high)[..., None] * W)
        Q, more = _scaled(Q)
        size = size + more
    top = torch.linalg.eigvalsh(Q)[..., -1]
    return top.clamp_min(least).log() + size, logs[::-1]


def _scaled(Q: Tensor) -> tuple[Tensor, Tensor]:
    """Q of norm one, and the logarithm taken out: deep gains leave the range of the dtype."""
    size = torch.linalg.matrix_norm(Q.detach())
    size = torch.where(size > 0, size, torch.ones_like(size))
    return Q / size[..., None, None], size.log()


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
        rate: of Adam at first; it falls linearly to a fiftieth.
        deadline: in `time.monotonic`; then the best iterate so far is returned.
        progress: called with the steps, ρ and −inf.
        device: where to compute, in float64.

    Raises:
        InvalidInput: the problem is no chain.
    """
    chain = layers(problem)
    if chain is None:
        raise InvalidInput("descent.minimise: problem is no chain. Use solver = 'interior'.")

    def put(arrays: Sequence[Array]) -> list[Tensor]:
        return [torch.as_tensor(a, dtype=torch.float64, device=device) for a in arrays]

    weights = put(chain.weights)
    slopes = list(zip(put(chain.alpha), put(chain.beta), strict=True))
    widths = [len(low) for low, _ in slopes]
    # log T_1 … log T_L, then a_1 … a_L.
    free = torch.zeros(sum(widths) + len(widths), dtype=torch.float64, device=device)
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    best, logs, steps, stopped = math.inf, [], 0, "steps"
    while True:
        free.requires_grad_()
        with torch.enable_grad():
            *scales, rooms = free.split([*widths, len(widths)])
            value, logs_now = _eliminate(weights, scales, list(rooms), slopes)
        now = float(value.detach())
        if now < best:
            best, logs = now, [v.detach() for v in logs_now]
        if progress is not None:
            progress(steps, math.exp(best), -math.inf)
        late = deadline is not None and time.monotonic() > deadline
        if late or steps >= max_steps or not math.isfinite(now):
            stopped = "time" if late else stopped
            break
        # Adam in a line or two: torch.optim imports more than all else here together.
        (slope,) = torch.autograd.grad(value, free)
        first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.01)
        steps += 1
        length = rate * (1.02 - (steps - 1) / max_steps) / (1 - 0.9**steps)
        spread = (second / (1 - 0.99**steps)).sqrt() + 1e-8
        free = (free - length * first / spread).detach()
    lam = chain.gather([v.exp().cpu().numpy() for v in logs])
    return Optimum(math.exp(best) * (1 + 1e-9), lam, -math.inf, steps, stopped)
