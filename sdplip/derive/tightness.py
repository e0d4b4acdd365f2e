"""How much a closed form gives away against the best that its condition allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CertificationError, InvalidInput

if TYPE_CHECKING:
    from ..layers import Layer

Witness = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Gap:
    """One witness against the optimum.

    Attributes:
        units: order of T.
        trace: Σ T_i over the least Σ T_i of all diagonal T ⪰ WᵀW; 1 is the best.
        norm: 1 / λ_max(T^{-1/2}WᵀWT^{-1/2}), how far T could be shrunk as a whole; 1 is tight.
    """

    label: str
    units: int
    trace: float
    norm: float


@dataclass(frozen=True)
class Tightness:
    """Gaps of several witnesses and sizes."""

    gaps: tuple[Gap, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(gap) for gap in self.gaps]

    def means(self) -> dict[tuple[str, int], tuple[float, float]]:
        """Per label and number of units the mean of `trace` and of `norm`."""
        groups: dict[tuple[str, int], list[Gap]] = {}
        for gap in self.gaps:
            groups.setdefault((gap.label, gap.units), []).append(gap)
        return {
            key: (float(np.mean([g.trace for g in gaps])), float(np.mean([g.norm for g in gaps])))
            for key, gaps in groups.items()
        }

    def text(self) -> str:
        """A table of the means."""
        lines = [f"{'closed form':<28}{'units':>6}{'trace / least':>15}{'1 / norm²':>11}"]
        for (label, units), (trace, norm) in self.means().items():
            lines.append(f"{label:<28}{units:>6}{trace:>15.3f}{norm:>11.3f}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Ratios of traces over the number of units, as a picture (needs matplotlib)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axes = figure.add_subplot()
        means = self.means()
        for label in dict.fromkeys(label for label, _ in means):
            points = [(n, trace) for (name, n), (trace, _) in means.items() if name == label]
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
        axes.axhline(1.0, color="0.6", linewidth=0.8)
        axes.set(xscale="log", xlabel="units", ylabel="ΣT over the least ΣT")
        axes.set_xticks(
            sorted({n for _, n in means}), [str(n) for n in sorted({n for _, n in means})]
        )
        axes.minorticks_off()
        axes.legend(frameon=False)
        figure.savefig(path, dpi=160)


def tightness(
    witness: Witness | Mapping[str, Witness],
    sizes: Sequence[int] = (16, 32, 64, 128, 256),
    *,
    weights: Callable[[int, np.random.Generator], np.ndarray] | Sequence[Any] | None = None,
    draws: int = 3,
    seed: int = 0,
) -> Tightness:
    """How far T of a closed form is from the best diagonal T ⪰ WᵀW.

    Args:
        witness: W (rows, units) as a float64 tensor ↦ a dictionary with "T", (units,), such as
            `sdplip.layers.aol.witness`; several by name.
        sizes: numbers of units for random weights.
        weights: (units, generator) ↦ W, by default square with Xavier's normal entries; or trained
            matrices, which then take the place of `sizes` and `draws`.
        draws: of random weights for every size.

    Raises:
        InvalidInput: a witness without T, or a T that is not ⪰ WᵀW.
    """
    import torch

    named = witness if isinstance(witness, Mapping) else {"closed form": witness}
    rng = np.random.default_rng(seed)
    if weights is None or callable(weights):
        draw = weights or (lambda n, g: g.normal(size=(n, n)) / np.sqrt(n))
        matrices = [draw(n, rng) for n in sizes for _ in range(draws)]
    else:
        matrices = [np.asarray(W, dtype=np.float64) for W in weights]
    gaps = []
    for W in matrices:
        if W.ndim != 2 or not np.isfinite(W).all() or not W.any():
            raise InvalidInput(f"tightness: weights of shape {W.shape} must be finite, not zero.")
        best = least_diagonal(W.T @ W).sum()
        for label, function in named.items():
            with torch.no_grad():
                found = function(torch.from_numpy(W))
            if "T" not in found:
                raise InvalidInput(f"tightness: {label} has no T; it has {', '.join(found)}.")
            # A witness may rescale W; what counts is T against the W that it used.
            used = np.asarray(found.get("W", W), dtype=np.float64)
            T = np.asarray(found["T"], dtype=np.float64)
            scale = np.linalg.norm(used) / np.linalg.norm(W)
            norm = np.linalg.norm(used / np.sqrt(T), 2) ** 2
            if norm > 1 + 1e-6:
                raise InvalidInput(f"tightness: {label} gives a T that is not ⪰ WᵀW ({norm:.6g}).")
            gaps.append(Gap(label, len(T), float(T.sum() / best / scale**2), float(1 / norm)))
    return Tightness(tuple(gaps))


def least_diagonal(S: np.ndarray, tol: float = 1e-9) -> np.ndarray:
    """The diagonal t of least sum with diag(t) ⪰ S, by a primal-dual interior point method.

    Args:
        S: (n, n), symmetric.

    Returns:
        (n,), strictly feasible, its sum within `tol` of the least, relatively.

    Raises:
        CertificationError: no convergence.

    Source: Helmberg, Rendl, Vanderbei, Wolkowicz, An interior-point method for semidefinite
    programming (SIAM J. Optim. 1996), whose max-cut problem is the dual.
    """
    n = len(S)
    size = np.abs(S).max()
    if size == 0:
        return np.zeros(n)
    S = (S + S.T) / (2 * size)
    t, X = 1.1 * np.abs(S).sum(axis=1) + 0.1, np.eye(n)
    Z = np.diag(t) - S
    for _ in range(100):
        gap = t.sum() - np.sum(S * X)
        if gap <= tol * abs(t.sum()):
            return t * size
        mu = np.sum(X * Z) / (4 * n)
        inverse = np.linalg.inv(Z)
        dt = np.linalg.solve(inverse * X, mu * inverse.diagonal() - 1)
        dX = -inverse @ (dt[:, None] * X) + mu * inverse - X
        dX = (dX + dX.T) / 2
        X = X + _step(X, dX) * dX
        step = _step(Z, np.diag(dt))
        t = t + step * dt
        Z = np.diag(t) - S
    raise CertificationError("least_diagonal did not converge; scale the matrix.")


def _step(matrix: np.ndarray, direction: np.ndarray) -> float:
    """A step that keeps positive definiteness with some room."""
    step = 1.0
    for _ in range(60):
        try:
            np.linalg.cholesky(matrix + step / 0.95 * direction)
        except np.linalg.LinAlgError:
            step *= 0.8
        else:
            return step
    return 0.0


def promise_ratio(layer: Layer, norm: float | None = None) -> float:
    """What a layer promises over what is verified for its present weights: 1 gives nothing away.

    Args:
        layer: random or trained.
        norm: 2 or inf; the layer's own by default.

    Raises:
        CertificationError, NotWellPosed: see `sdplip.lipschitz`.
    """
    from ..verify import lipschitz

    certificate = lipschitz(layer.system(), norm=layer.norm if norm is None else norm, lower=False)
    return float(layer.lipschitz / certificate.bound)
