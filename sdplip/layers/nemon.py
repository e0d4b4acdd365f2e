"""Non-Euclidean monotone equilibrium layers: ℓ∞ instead of ℓ₂ [NEMON]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activations import Activation
from ..errors import NotWellPosed
from ._base import bounded, fill_uniform, soft_bound, wide
from ._equilibrium import Equilibrium, EquilibriumLayer
from ._state import Constant

SPREAD = 4.0
"""|log η| stays below: weights differ by at most e^8."""


def witness(T: Tensor, d: Tensor, c: Tensor) -> dict[str, Tensor]:
    """A = cI + [η]T[η]⁻¹ - diag(|T|1), η = e^{-d}, whose weighted ℓ∞ measure is at most c.

    Row i of (cI - ⌈A⌉)η is (|T_ii| - T_ii) η_i ≥ 0; the row sums are rounded upwards.

    For a convolution T has the n columns of every tap beside each other, an odd number of taps of
    which the middle one holds the diagonal: the rows of the unrolled matrix have the same entries,
    some left out by zero padding, some added up by wrapping around.

    Args:
        T: (*batch, n, taps·n), arbitrary. d: (*batch, n). c: scalar below 1, by rounding at least.

    Returns:
        A (*batch, n, taps·n), eta (*batch, n), c.

    Source: [NEMON], the parametrisation of its training problem.
    """
    margin = 16 * torch.finfo(T.dtype).eps
    c = c.clamp(max=1 - margin)
    n, taps = T.shape[-2], T.shape[-1] // T.shape[-2]
    T = bounded(T)
    eta = soft_bound(-d, SPREAD).exp()
    before, after = n * (taps // 2), n * (taps - 1 - taps // 2)
    diagonal = T[..., before : before + n].diagonal(dim1=-2, dim2=-1)
    off = T - F.pad(torch.diag_embed(diagonal), (before, after))
    size = T.abs().sum(dim=-1)
    # A sum of many taps is rounded more often.
    shift = size + max(1, taps / 16) * margin * (size + c.abs())
    ratio = eta.unsqueeze(-1) / torch.cat([eta] * taps, dim=-1).unsqueeze(-2)
    A = off * ratio + F.pad(torch.diag_embed(diagonal - shift + c), (before, after))
    return {"A": A, "eta": eta, "c": c}


def metzler(A: Tensor) -> Tensor:
    """⌈A⌉: the diagonal of A and the absolute values off it."""
    diagonal = torch.diag_embed(A.diagonal(dim1=-2, dim2=-1))
    return (A - diagonal).abs() + diagonal


def reach(A: Tensor, v: Tensor) -> Tensor:
    """(I - ⌈A⌉)⁻¹v for v (*batch, n, k)."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve(identity - metzler(A), v)


def metric(A: Tensor) -> Tensor:
    """Λ = diag(ξ/ζ), ξ = (I - ⌈A⌉)⁻ᵀ1, ζ = (I - ⌈A⌉)⁻¹1: then ΛA + AᵀΛ ≺ 2Λ (*batch, n)."""
    ones = torch.ones_like(A[..., :1])
    return (reach(A.mT, ones) / reach(A, ones)).squeeze(-1)


def linf_bound(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """‖ |C| (I - ⌈A⌉)⁻¹ |B| + |D| ‖_∞, a bound for ℓ∞ to ℓ∞ when μ_{∞,η}(A) < 1 for some η.

    |Δz| ≤ ⌈A⌉|Δz| + |B||Δx| entrywise for slopes in [0, 1], and I - ⌈A⌉ is an M-matrix, whose
    inverse is non-negative. No better weights η exist. Differentiable; shapes (*batch, ·, ·).
    """
    size = reach(A, B.abs().sum(dim=-1, keepdim=True))
    return ((C.abs() @ size).squeeze(-1) + D.abs().sum(dim=-1)).amax(dim=-1)


def checked_linf_bound(owner: str, w: dict[str, Tensor]) -> float:
    """`linf_bound` in float64 of A, B, C, D as they are.

    Raises:
        NotWellPosed: I - ⌈A⌉ is no M-matrix, after rounding.
    """
    with torch.no_grad():
        A, B, C, D = (w[name].double() for name in "ABCD")
        M = torch.eye(len(A), dtype=A.dtype, device=A.device) - metzler(A)
        right = B.abs().sum(dim=-1, keepdim=True)
        right = right + 1e-30 * right.max() + 1e-200

        def error(size: Tensor) -> Tensor:
            """More than the rounding of M @ size."""
            return 4 * len(A) * torch.finfo(A.dtype).eps * (M.abs() @ size.abs())

        # The solve spreads its rounding over all rows, also those of units without input.
        size = reach(A, right + 4 * error(reach(A, right)).max())
        # What M·size is at least: a ζ > 0 with Mζ > 0 makes M an M-matrix, and one with
        # Mζ ≥ |B|1 is at least as large as the reach, however inexact the solve was.
        reached = M @ size - error(size)
        if not ((size > 0) & (reached > 0)).all():
            raise NotWellPosed(
                f"{owner}: no weights show that the matrix measure is below 1. Lower its bound."
            )
        size = size * (right / reached).max().clamp(min=1)
        return float(((C.abs() @ size).squeeze(-1) + D.abs().sum(dim=-1)).max())


class Measured(Equilibrium):
    """The bound c on the matrix measure of a layer, and the ℓ∞ constant that its weights give."""

    condition = "measure"
    norm = math.inf
    c = Constant(lambda c: -1e9 <= c < 1, "must be in [-1e9, 1). Use e.g. 0.")

    def linf_bound(self) -> Tensor:
        """The Lipschitz constant from ℓ∞ to ℓ∞ that the present weights give, differentiable."""
        w = self._summed(self._tensors())
        return linf_bound(w["A"], w["B"], w["C"], w["D"])

    @property
    def lipschitz(self) -> float:
        """`linf_bound()` of the applied weights, in float64.

        Raises:
            InvalidInput: a parameter that is NaN or Inf, or on the meta device.
            NotWellPosed: I - ⌈A⌉ is no M-matrix, after rounding.
        """
        return super().lipschitz

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, c={self.c:g}"

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"c": self.c}

    def _promise(self) -> float:
        with torch.no_grad():
            w = {name: value.double() for name, value in self._tensors().items()}
            owner = f"{type(self).__name__} with c = {self.c}"
            return checked_linf_bound(owner, self._summed(w))

    def _summed(self, w: dict[str, Tensor]) -> dict[str, Tensor]:
        """A, B, C, D as matrices (·, ·) that have the same bound."""
        return w


class NEMONLinear(Measured, EquilibriumLayer):
    """x ↦ Cz + Dx + c at z = σ(Az + Bx + b), μ_{∞,η}(A) ≤ c < 1, is well-posed; slopes in [0, 1].

    `lipschitz` is the ℓ∞ constant that its weights give; to train it, add `linf_bound()` to the
    loss. Unlike the other layers it promises no constant in advance.

    Args:
        in_features, hidden, out_features: m, n, p.
        c: the bound on the matrix measure, in [-1e9, 1); it comes back with the state_dict.
        feedthrough: add the direct path D.
        activation: a name, or an `Activation`, with slopes in [0, 1]; `activations.per_unit` makes
            one of several, unit by unit.
        method, tol, max_steps: of `sdplip.equilibrium.solve`.

    Raises:
        InvalidInput: c out of range, slopes outside [0, 1].

    Source: Jafarpour, Davydov, Proskurnikov, Bullo, Robust implicit networks via non-Euclidean
    contractions (NeurIPS 2021).
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        c: float = 0.0,
        feedthrough: bool = False,
        bias: bool = True,
        activation: str | Activation = "relu",
        method: str = "peaceman_rachford",
        tol: float | None = None,
        max_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            hidden,
            out_features,
            bias=bias,
            feedthrough=feedthrough,
            activation=activation,
            method=method,
            tol=tol,
            max_steps=max_steps,
            device=device,
            dtype=dtype,
        )
        self.c = c
        self.T = nn.Parameter(torch.empty(hidden, hidden, device=device, dtype=dtype))
        self.d = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """nn.Linear's initialisation throughout, η = 1."""
        super().reset_parameters()
        fill_uniform(self.T, fan_in=self.hidden)
        nn.init.zeros_(self.d)

    def _closed_form(self) -> dict[str, Tensor]:
        B, C = wide(self.B), wide(self.C)
        D = C.new_zeros(self.out_features, self.in_features) if self.D is None else wide(self.D)
        c = C.new_full((), self.c)
        return {**witness(wide(self.T), wide(self.d), c), "B": B, "C": C, "D": D}

    def _metric(self, w: dict[str, Tensor]) -> Tensor:
        return metric(w["A"].detach().double())
