"""Bounds of convolutional networks by the condition at every spatial frequency of a torus.

`torus` says why that is valid and what its systems are. Multipliers are one per channel (and phase,
where there are strides), so that they are few, however large the images; the interior point method
of `blocks` lets frequencies enter as they become active.

A dense head H enters by ‖Σ_c H_c y_c‖² ≤ Σ_c t_c²‖y_c‖² with scales t, one per channel, such that
Σ_c H_c H_cᵀ / t_c² ⪯ I; they are variables, too. That holds for every H, and is tight for none but
the simplest; one that weighs all pixels alike (an average) is taken exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import conditions
from .._arrays import Array
from ..convolutional import ConvSystem
from ..errors import CertificationError, InvalidInput
from .blocks import Blocks, minimise
from .rigorous import TINY, UNIT, Ball, positive_definite
from .torus import Torus, torus

FIRST = 12
"""Frequencies to begin with."""
COARSE = 64.0
"""How many times the errors of one proof those of another may be."""
CHUNK = 1 << 22
"""Numbers that the proof holds in one array."""
LARGEST = 1 << 27
"""Complex numbers in the matrices of all frequencies."""


@dataclass(frozen=True)
class ConvBound:
    """A proven bound with the multipliers that prove it.

    Attributes:
        bound: ‖f(x) − f(x′)‖₂ ≤ bound · ‖x − x′‖₂, shown by `frequency_holds`.
        solved: the bound before the proof.
        multipliers: as `frequency_holds` takes them.
        optimum: a value below the best bound over all such multipliers, by duality: evidence only.
        steps, frequencies: of the interior point method, and how many frequencies entered.
    """

    bound: float
    solved: float
    multipliers: Array
    optimum: float
    steps: int
    frequencies: int
    solver: str = "frequency"


def lipschitz_conv(
    conv: ConvSystem,
    *,
    tol: float = 1e-8,
    deadline: float | None = None,
    progress: Callable[[int, float, float], None] | None = None,
    device: str | torch.device = "cpu",
) -> ConvBound:
    """The tightest ℓ₂ bound over channelwise multipliers, proven about the stored weights.

    Args:
        tol: relative gap of the squared bound at which to stop.
        deadline: in `time.monotonic`; the best point until then, which is valid, is proven.
        progress: called with the steps, the bound and the dual value so far.
        device: where the interior point method runs; the proof runs on the processor.

    Raises:
        InvalidInput: see `torus`.
        CertificationError: multipliers were found, but no bound could be proven with them.
    """
    whole = torus(conv)
    pruned, multipliers = whole.pruned(), np.zeros(whole.multipliers)
    live = np.append(whole.live(), np.ones(len(multipliers) - whole.units, dtype=bool))
    if _holds(pruned, 0.0, multipliers[live]):
        return ConvBound(0.0, 0.0, multipliers, 0.0, 0, 0)
    problem = _Problem.of(pruned, device)

    def report(steps: int, upper: float, lower: float) -> None:
        if progress is not None:
            progress(steps, problem.bound(upper), problem.bound(lower))

    try:
        families, start = problem.families(), problem.start()
        count = len(families[0])
        entered = [torch.arange(0, count, max(1, count // FIRST), device=device)]
        entered += [torch.zeros(1, dtype=torch.long, device=device)] * (len(families) - 1)
        found = minimise(
            families, start, entered, problem.signed, tol=tol, deadline=deadline, progress=report
        )
        bound, solved, multipliers[live] = problem.prove(families[0], found.v, start)
    except torch.linalg.LinAlgError as error:
        raise CertificationError(
            f"The interior point method met numbers that are none ({error}). Rescale the weights."
        ) from error
    optimum = problem.bound(found.dual)
    return ConvBound(bound, solved, multipliers, optimum, found.steps, found.entered)


def multiplier_count(conv: ConvSystem) -> int:
    """How many multipliers `frequency_holds` takes."""
    return torus(conv).multipliers


def frequency_holds(conv: ConvSystem, bound: float, multipliers: Array) -> bool:
    """Whether multipliers satisfy the condition with the bound at every frequency of the torus.

    In rounding-safe arithmetic, about the weights as they are stored.

    Args:
        multipliers: Λ in the order of `Torus.layers`, 0 for units that cannot matter; then the
            scales t of a head, if there is one that weighs pixels differently.
    """
    data = torus(conv)
    multipliers = np.asarray(multipliers, dtype=np.float64)
    if multipliers.shape != (data.multipliers,):
        return False
    live = np.append(data.live(), np.ones(len(multipliers) - data.units, dtype=bool))
    return _holds(data.pruned(), bound, multipliers[live])


def _holds(
    data: Torus,
    bound: float,
    kept: Array,
    order: NDArray[np.intp] | None = None,
    coarse: float = 1.0,
) -> bool:
    """Whether the condition holds; also if M were off by `coarse` times what it may be."""
    lam, scales = kept[: data.units], Ball(kept[data.units :, None])
    if not (math.isfinite(bound) and bound >= 0 and np.isfinite(kept).all() and (kept > 0).all()):
        return False
    W, n = data.weights, data.units
    if n == 0 and not (W.mid.any() or W.rad.any()):
        return True
    if data.head is not None and not _head_holds(data.head, scales.mid):
        return False
    # What overflows is no number, which proves nothing.
    with np.errstate(all="ignore"):
        return _all_hold(data, bound, lam, scales, order, coarse)


def _all_hold(
    data: Torus,
    bound: float,
    lam: Array,
    scales: Ball,
    order: NDArray[np.intp] | None,
    coarse: float,
) -> bool:
    W, n, m = data.weights, data.units, data.inputs
    slopes = {"alpha": data.alpha, "beta": data.beta, "Lam": lam}
    # Real and imaginary parts share their units' slopes and multipliers.
    twice = {name: Ball(np.tile(value, 2)) for name, value in slopes.items()}
    # ρ is below bound², so what is proved for √ρ holds for the bound.
    rho = Ball(float((Ball(bound) * Ball(bound)).lower))
    k = data.frequencies()
    k = k if order is None else k[order]
    flat = Ball(W.mid.reshape(len(W.mid), -1), W.rad.reshape(len(W.rad), -1))
    for part in np.array_split(k, math.ceil(len(k) * flat.shape[1] / CHUNK)):
        cos, sin = (wave @ flat for wave in data.waves(part))
        for i in range(len(part)):
            real, imaginary = (
                Ball(X.mid[i].reshape(W.shape[1:]), X.rad[i].reshape(W.shape[1:]))
                for X in (cos, sin)
            )
            if data.head is not None:
                real, imaginary = (_scaled(X, n, scales) for X in (real, imaginary))
            outputs = slice(n, n if data.mean and part[i].any() else None)
            places = {
                "A": np.s_[:n, m:], "B": np.s_[:n, :m], "C": np.s_[outputs, m:],
                "D": np.s_[outputs, :m],
            }  # fmt: skip
            blocks = {k: _embedded(real[place], imaginary[place]) for k, place in places.items()}
            M = conditions.lipschitz(**blocks, **twice, rho=rho)
            if not positive_definite(Ball(M.mid, coarse * M.rad)):
                return False
    return True


def _embedded(real: Ball, imaginary: Ball) -> Ball:
    """The real matrix [Re, −Im; Im, Re], which is definite where the Hermitian one is."""
    return Ball(
        np.block([[real.mid, -imaginary.mid], [imaginary.mid, real.mid]]),
        np.block([[real.rad, imaginary.rad], [imaginary.rad, real.rad]]),
    )


def _scaled(X: Ball, n: int, scales: Ball) -> Ball:
    """The symbol with its output rows multiplied by the head's scales."""
    outputs = X[n:] * scales
    return Ball(np.vstack([X.mid[:n], outputs.mid]), np.vstack([X.rad[:n], outputs.rad]))


def _head_holds(head: Array, scales: Array) -> bool:
    """Whether Σ_c H_c H_cᵀ / t_c² ⪯ I, H (q, p, pixels), t (p, 1)."""
    inverse = (1 + 8 * UNIT) / scales
    if not ((Ball(inverse) * Ball(scales)).lower >= 1).all():
        return False
    D = Ball(head.transpose(1, 2, 0)) * Ball(inverse[:, None])
    flat = Ball(D.mid.reshape(-1, len(head)), D.rad.reshape(-1, len(head)))
    return positive_definite(conditions.linear(D=flat, rho=Ball(1.0)))


@dataclass(frozen=True)
class _Problem:
    """The systems of all frequencies, scaled to gains of about 1.

    W is (F, n + p, m + n), complex; unit (n,) and gain lead back to the original.
    """

    data: Torus
    W: Tensor
    unit: Tensor
    gain: float
    head: Tensor | None
    head_gain: float

    @classmethod
    def of(cls, data: Torus, device: str | torch.device) -> _Problem:
        k, shape = data.frequencies(), data.weights.shape[1:]
        if len(k) * shape[0] * shape[1] > LARGEST:
            raise InvalidInput(
                f"The torus has {len(k)} frequencies with matrices of order {shape[1]}, which take "
                "too much memory. Verify it on smaller images, or with fewer channels."
            )
        cos, sin = (torch.as_tensor(wave.mid, device=device) for wave in data.waves(k))
        flat = torch.as_tensor(data.weights.mid, device=device).flatten(1)
        W = torch.complex(cos @ flat, sin @ flat).unflatten(1, shape)
        n, m = data.units, data.inputs
        W[torch.as_tensor(k.any(1) & data.mean), n:] = 0
        unit = torch.ones(n, dtype=torch.float64, device=device)
        for layer in data.layers:
            rows = W[:, layer].clone()
            rows[:, :, m:] *= unit
            unit[layer] = _largest(rows)
        W[:, :, m:] *= unit
        W[:, :n] /= unit[:, None]
        gain, head, head_gain = _largest(W[:, n:]), None, 1.0
        W[:, n:] /= gain
        if data.head is not None:
            head = torch.as_tensor(data.head.copy(), device=device)
            head_gain = _largest(head)
            head = head / head_gain
        if not (W.isfinite().all() and math.isfinite(gain * head_gain)):
            raise CertificationError(
                "The gains of the network leave the range of float64. Rescale the weights."
            )
        return cls(data, W, unit, gain * head_gain, head, head_gain)

    @property
    def signed(self) -> Tensor:
        """Which variables (ρ, λ, g) must be bounded below by 0: where M ⪰ 0 alone does not."""
        mask = torch.zeros(len(self.start()), dtype=torch.bool, device=self.W.device)
        mask[1 : 1 + self.data.units] = bool((self.data.alpha * self.data.beta).any())
        return mask

    def bound(self, rho: float) -> float:
        return self.gain * math.sqrt(max(rho, 0.0))

    def families(self) -> list[Blocks]:
        """M(ω) for every ω and, with a head, [I, H; Hᵀ, diag(g)] in the coordinates H has."""
        n, m, W = self.data.units, self.data.inputs, self.W
        d, p = m + n, W.shape[1] - n
        alpha, beta = self._slopes
        V, F = W[:, :n], W[:, n:]
        units = torch.eye(d, dtype=W.dtype, device=W.device)[m:].expand(len(W), n, d)
        plain = not self.data.alpha.any()
        P, Q = units if plain else units - alpha * V, units - beta * V
        e = torch.zeros(1 + n, d, dtype=torch.float64, device=W.device)
        e[0, :m] = 1
        if self.head is None:
            return [Blocks(e, P, Q, F.mH @ F, slice(1, 1 + n), plain * n)]
        e = torch.cat([e, e.new_zeros(p, d)])
        P, Q = torch.cat([P, -F / 2], 1), torch.cat([Q, F], 1)
        first = Blocks(e, P, Q, torch.zeros_like(F.mH @ F), slice(1, 1 + n + p), plain * n)
        parts = [torch.linalg.qr(H.mT, mode="r")[1].mT for H in self.head.unbind(1)]
        side, order = len(self.head), len(self.head) + sum(part.shape[1] for part in parts)
        e = torch.zeros(1 + n + p, order, dtype=torch.float64, device=W.device)
        place = side
        for c, part in enumerate(parts):
            e[1 + n + c, place : place + part.shape[1]] = 1
            place += part.shape[1]
        G = torch.zeros(order, order, dtype=W.dtype, device=W.device)
        G[:side, side:] = -torch.cat(parts, 1)
        G = G + G.mH - torch.diag((torch.arange(order) < side).to(G))
        none = torch.zeros(1, 0, order, dtype=W.dtype, device=W.device)
        return [first, Blocks(e, none, none, G[None], slice(1, 1))]

    @property
    def _slopes(self) -> tuple[Tensor, Tensor]:
        low, high = (
            torch.as_tensor(s.copy(), device=self.W.device)[:, None]
            for s in (self.data.alpha, self.data.beta)
        )
        return low, high

    def start(self) -> Tensor:
        """A strictly feasible (ρ, λ, g): one multiplier per layer, as in `reduce.start`."""
        n, m, W = self.data.units, self.data.inputs, self.W
        alpha, beta = self._slopes
        F = W[:, n:]
        g = torch.zeros(0, dtype=torch.float64, device=W.device)
        if self.head is not None:
            g = torch.full((F.shape[1],), 1.5 * float(_top(self.head.flatten(1))) ** 2).to(W.real)
            F = g.sqrt()[:, None] * F
        R = F.mH @ F
        lam = torch.zeros(n, dtype=torch.float64, device=W.device)
        rest = torch.arange(m + n, device=W.device)
        for layer in reversed(self.data.layers):
            inside = torch.isin(rest, torch.as_tensor(m + layer, device=W.device))
            low, high = alpha[layer], beta[layer]
            corner, c = R[:, inside][:, :, inside], W[:, layer][:, :, rest[~inside]]
            floor = 1e-9 * float(R.abs().max()) + TINY
            size = 1.5 * max(float(torch.linalg.eigvalsh(corner)[:, -1].max()), floor)
            lam[layer] = size
            cross = size * (low + high) * c + R[:, inside][:, :, ~inside]
            inner = 2 * size * torch.eye(len(layer), dtype=W.dtype, device=W.device) - corner
            R = R[:, ~inside][:, :, ~inside] + cross.mH @ torch.linalg.solve(inner, cross)
            R = R - 2 * size * c.mH @ (low * high * c)
            rest = rest[~inside]
        rho = 1.5 * torch.linalg.eigvalsh(R)[:, -1].max().clamp_min(TINY)
        return torch.cat([rho[None], lam, g])

    def prove(self, blocks: Blocks, v: Tensor, start: Tensor) -> tuple[float, float, Array]:
        """The bound of v, or what lies between v and the start: proven, as solved; multipliers.

        With errors of `COARSE` times their size, so that other checkers, whose arithmetic may be
        coarser, can show it, too.
        """
        n = self.data.units
        for share in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0):
            u = (1 - share) * v + share * start
            least = _least(blocks, u, self.data.inputs).cpu().numpy()
            lam = u[1 : 1 + n] * (self.gain / self.unit).square()
            kept = torch.cat([lam, self.head_gain * u[1 + n :].sqrt()]).cpu().numpy()
            solved = self.bound(float(least.max()))
            for excess in 10.0 ** np.arange(-12, -5) if math.isfinite(solved) else ():
                bound = float(solved * (1 + excess))
                if _holds(self.data, bound, kept, np.argsort(-least), COARSE):
                    return float(solved * (1 + 10 * excess)), solved, kept
        raise CertificationError(
            f"Multipliers were found, but no bound could be proven with them in float64 ({n} units "
            "per pixel of the coarsest grid). Rescale the weights."
        )


def _least(blocks: Blocks, v: Tensor, inputs: int) -> Tensor:
    """The least ρ (F,) with M(ω) ⪰ 0 at the other variables of v; infinite where there is none."""
    M = blocks(torch.cat([torch.zeros_like(v[:1]), v[1:]]))
    factor, info = torch.linalg.cholesky_ex(M[:, inputs:, inputs:])
    half = torch.linalg.solve_triangular(factor, M[:, inputs:, :inputs], upper=False)
    rest = half.mH @ half - M[:, :inputs, :inputs]
    rest[info != 0] = 0
    least = torch.linalg.eigvalsh(rest)[:, -1].clamp_min(0)
    return torch.where(info == 0, least, float("inf"))


def _largest(rows: Tensor) -> float:
    """The largest Frobenius norm, 1 where all are 0."""
    return float(torch.linalg.vector_norm(rows.flatten(1), dim=1).max()) or 1.0


def _top(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, 2)
