"""Lipschitz-bounded equilibrium layers [LBEN]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from .._tensors import certainly_at_most, only_recorded
from ..activations import Activation
from ..equilibrium.operators import frobenius
from ..errors import InvalidInput
from . import _fused
from ._base import LIMIT, fill_uniform, saturate, shown, soft_bound, wide
from ._equilibrium import Equilibrium, EquilibriumLayer, contracted
from ._state import Constant, coarse, pack, unpack

GAMMA = (1e-9, 1e9)
"""γ stays within, where neither γ² nor 1/γ leaves float32."""

SPREAD = 4.0
"""|ψ| stays below: the entries of Λ differ by at most e^8."""

CONTRACTION = 10.0
"""The free D saturates at this norm: ‖D‖₂ ≤ γ (1 + CONTRACTION⁻²)^{-1/2}."""


def witness(
    psi: Tensor | None,
    V: Tensor,
    S: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    gamma: float | Tensor,
    eps: float,
) -> dict[str, Tensor]:
    """A with Λ(I - A) = (CᵀC + NR⁻¹Nᵀ) / 2γ + VᵀV + εI + S - Sᵀ, which solves the condition.

    The free matrices saturate first, see `limits`; `solution` is the closed form itself.

    Args:
        psi: (*batch, n), or None for zeros. V, S: (*batch, n, n). B: (*batch, n, m).
        C: (*batch, p, n).
        D: the free X (*batch, p, m), or None for no direct path.
        gamma: a number, or a finite scalar; inf drops the bound and keeps well-posedness, and D is
            X itself.
        eps: positive.

    Returns:
        A, B, C, D, Lam (the condition's multiplier), rho = γ².

    Source: [LBEN], the direct parametrisation that follows Theorem 2; D = 0 there.
    """
    scale, outer = limits(V.shape[-1], gamma)
    if not _certainly_within([V, S, B, C], outer):
        V, S, B, C = saturate(V, scale), saturate(S, scale), saturate(B, outer), saturate(C, outer)
    X = D if D is None or unbounded(gamma) else saturate(D, CONTRACTION)
    return solution(psi, V, S, B, C, X, gamma, eps)


def _certainly_within(matrices: list[Tensor], limit: float | Tensor) -> bool:
    """Whether one look in training shows that none has to saturate."""
    if isinstance(limit, Tensor) or not only_recorded(matrices[0]):
        return False
    norms = torch._foreach_norm([X.detach() for X in matrices])
    return certainly_at_most(torch.linalg.vector_norm(torch.stack(norms)), limit)


def limits(units: int, gamma: float | Tensor) -> tuple[float, float | Tensor]:
    """The Frobenius norms at which V and S, and B and C, saturate: far above what training uses,
    and small enough that the equilibrium can be computed for any parameters."""
    scale = LIMIT * math.sqrt(units)
    if isinstance(gamma, Tensor):
        return scale, scale * gamma.double().clamp(max=1).sqrt()
    return scale, scale * math.sqrt(min(gamma, 1))


def unbounded(gamma: float | Tensor) -> bool:
    """Whether γ = ∞, which no learned one is."""
    return not isinstance(gamma, Tensor) and math.isinf(gamma)


def solution(
    psi: Tensor | None,
    V: Tensor,
    S: Tensor,
    B: Tensor,
    C: Tensor,
    X: Tensor | None,
    gamma: float | Tensor,
    eps: float,
) -> dict[str, Tensor]:
    """`witness` of saturated matrices, real or complex; Xᵀ is the adjoint then.

    A convolution on a torus is one complex system per frequency, with Λ and γ in common.

    Here Λ = diag(e^{-ψ}) is the condition's multiplier divided by γ, D = γK with ‖K‖₂ < 1,
    R = I - KᵀK and N = CᵀK + ΛB. The Schur complement of ρI - DᵀD = γ²R in the condition is
    γ(Λ(I - A) + (I - A)ᵀΛ) - CᵀC - NR⁻¹Nᵀ = 2γ(VᵀV + εI) ≻ 0. With K = L⁻¹X for the free X and
    LLᵀ = I + XXᵀ every strict contraction is reached and R⁻¹ = I + XᵀX: nothing is inverted.
    """
    plain = X is None and V.ndim == 2 and not isinstance(gamma, Tensor)
    if plain and only_recorded(V):
        D = None
        A, Lam = _Plain.apply(psi, V, S, B, C, gamma, eps)
    else:
        A, Lam, D = _solution(psi, V, S, B, C, X, gamma, eps)
    D = C.new_zeros(*C.shape[:-1], B.shape[-1]) if D is None else D
    multiplier = Lam if unbounded(gamma) else gamma * Lam
    rho = gamma.square() if isinstance(gamma, Tensor) else Lam.new_full((), gamma**2)
    return {"A": A, "B": B, "C": C, "D": D, "Lam": multiplier, "rho": rho}


def _solution(
    psi: Tensor | None,
    V: Tensor,
    S: Tensor,
    B: Tensor,
    C: Tensor,
    X: Tensor | None,
    gamma: float | Tensor,
    eps: float,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, Λ and D (None: zeros); what nothing records may be added up in place."""
    if psi is None:
        Lam = V.new_ones(V.shape[-1], dtype=V.dtype.to_real())
    else:
        Lam = soft_bound(-psi, SPREAD).exp()
    D, target = X, _less_gram(S.mH - S, V, 1.0, in_place)
    if not unbounded(gamma):
        D, rows = _bound(Lam, B, C, X, gamma)
        for Y in rows:
            target = _less_gram(target, Y, 0.5 / gamma, in_place)
    # Rounding of A must not eat up ε, so it grows with what is rounded.
    lost, size = 8 * torch.finfo(V.dtype).eps, frobenius(target.detach())
    if psi is None:
        A, moved = target, (1 - eps - lost) - lost * size
        moved = moved if moved.ndim == 0 else moved[..., None]
    else:
        A = target / Lam.unsqueeze(-1)
        moved = 1 - (eps + lost * (size + Lam.detach().amax(dim=-1)))[..., None] / Lam
    A.diagonal(dim1=-2, dim2=-1).add_(moved)
    return A, Lam, D


def _less_gram(target: Tensor, Y: Tensor, scale: float | Tensor, in_place: bool) -> Tensor:
    """target - scale·YᴴY."""
    if Y.ndim == 2 and not isinstance(scale, Tensor):
        add = Tensor.addmm_ if in_place else torch.addmm
        return add(target, Y.mT, Y, alpha=-scale)
    return target - scale * (Y.mH @ Y)


def _bound(
    Lam: Tensor, B: Tensor, C: Tensor, X: Tensor | None, gamma: float | Tensor
) -> tuple[Tensor | None, list[Tensor]]:
    """D, and rows whose grams add up to CᴴC + NR⁻¹Nᴴ."""
    N = Lam.unsqueeze(-1) * B
    if X is None:
        return None, [C, N.mH]
    identity = torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
    L = torch.linalg.cholesky_ex(identity + X @ X.mH).L  # cholesky raises on NaN
    K = torch.linalg.solve_triangular(L, X, upper=False)
    N = N + C.mH @ K
    P = N @ X.mH
    return gamma * K, [C, N.mH, P.mH]


class _Plain(torch.autograd.Function):
    """A and Λ of `solution` for a matrix without a direct path: what autograd would record of them,
    and undo one by one, takes longer than they do."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        psi: Tensor | None,
        V: Tensor,
        S: Tensor,
        B: Tensor,
        C: Tensor,
        gamma: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        A, Lam, _ = _solution(psi, V, S, B, C, None, gamma, eps, in_place=True)
        ctx.save_for_backward(V, B, C, A, Lam)
        ctx.plain = psi is None  # type: ignore[attr-defined]
        ctx.half = 0.5 / gamma  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return A, Lam

    @staticmethod
    def backward(
        ctx: FunctionCtx, by_A: Tensor | None, by_Lam: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        V, B, C, A, Lam = ctx.saved_tensors  # type: ignore[attr-defined]
        plain: bool = ctx.plain  # type: ignore[attr-defined]
        half: float = ctx.half  # type: ignore[attr-defined]
        by_psi = by_V = by_S = by_B = by_C = None
        learned = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        if by_A is not None:
            G = by_A if plain else by_A / Lam.unsqueeze(-1)  # by -Λ(I - A)
            turned = G.mT.clone(memory_format=torch.contiguous_format)
            by_S = turned - G
            twice = turned.add_(G).neg_()
            by_V = V @ twice
            if half:
                by_C = half * (C @ twice)
                by_B = (twice * (half if plain else torch.outer(half * Lam, Lam))) @ B
            if learned:  # Λ(I - A) is divided by Λ, and Λ is in N = ΛB
                moved = G.diagonal() - torch.linalg.vecdot(G, A)
                if by_B is not None:
                    moved = moved + torch.linalg.vecdot(by_B, B) / Lam
                by_Lam = moved if by_Lam is None else by_Lam + moved
        if by_Lam is not None and learned:
            by_psi = by_Lam * Lam * ((Lam.log() / SPREAD).square() - 1)
        return by_psi, by_V, by_S, by_B, by_C, None, None


class Bounded(Equilibrium):
    """γ and ε of a layer, and what it promises by them: its constants and its checkpoint."""

    condition = "equilibrium"
    gamma = Constant(
        lambda gamma: GAMMA[0] <= gamma <= GAMMA[1] or gamma == math.inf,
        "must be in [1e-9, 1e9] or inf. Give a bound such as 1.0, or inf for none.",
    )
    eps = Constant(lambda eps: 0 < eps <= 1e9, "must be in (0, 1e9]. Use e.g. 1.0.")
    psi: nn.Parameter | None

    def _set_bound(self, gamma: float, learn_gamma: bool, eps: float) -> None:
        """The logarithm is a parameter like the others."""
        self.gamma, self.eps = gamma, eps
        if learn_gamma and math.isinf(self.gamma):
            raise InvalidInput(
                f"{type(self).__name__}: gamma = inf, but must be finite to be learned. "
                "Give a bound such as 1.0, or learn_gamma=False."
            )
        if learn_gamma:
            like = next(self.parameters())
            self.log_gamma = nn.Parameter(like.new_empty(()))

    def _reset_bound(self) -> None:
        if self.psi is not None:
            nn.init.zeros_(self.psi)
        if hasattr(self, "log_gamma"):
            nn.init.constant_(self.log_gamma, math.log(self.gamma))

    def extra_repr(self) -> str:
        learned = ", learn_gamma=True" if hasattr(self, "log_gamma") else ""
        gamma = self._gamma()
        shape = shown(gamma) if isinstance(gamma, Tensor) else f"{gamma:g}"
        values = f"gamma={shape}, eps={self.eps:g}"
        return f"{super().extra_repr()}, {values}{learned}"

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"gamma": self.gamma, "eps": self.eps}

    def _promise(self) -> float:
        gamma = self._gamma()
        return float(gamma.detach()) if isinstance(gamma, Tensor) else gamma

    def _gamma(self) -> float | Tensor:
        if hasattr(self, "log_gamma"):
            low, high = (math.log(limit) for limit in GAMMA)
            return wide(self.log_gamma).clamp(low, high).exp()
        return self.gamma

    def _metric(self, w: dict[str, Tensor]) -> Tensor:
        return w["Lam"].detach()

    def _margin(self, metric: Tensor) -> float | None:
        """What the modulus is by construction, Λ(I - A) having a symmetric part of at least ε."""
        if coarse():
            return None  # products may be off by more than ε
        gamma = self._promise()
        scale = 1.0 if math.isinf(gamma) else gamma
        return (1 - 1e-6) * self.eps * scale / float(metric.max())


class LBENLinear(Bounded, EquilibriumLayer):
    """x ↦ Cz + Dx + c at z = σ(Az + Bx + b) is well-posed and γ-Lipschitz, slopes in [0, 1].

    Args:
        in_features, hidden, out_features: m, n, p.
        gamma: the Lipschitz constant, in [1e-9, 1e9]; inf for an equilibrium that is only
            well-posed. Learning starts from it.
        learn_gamma: learn the constant, through its logarithm, within the same range.
        eps: the margin of the condition, in (0, 1e9]. Smaller is freer and slower to solve.
        feedthrough: add the direct path D, with ‖D‖₂ < γ.
        contraction: in [0.1, 1]; below 1, Peaceman-Rachford splitting with its optimal step brings
            every equilibrium nearer by this factor in every iteration, whatever the parameters:
            see `contracted`. (In training the step is up to 50 solves old.) An iteration costs what
            it did, the closed form an eigenvalue problem more.
        activation: a name, or an `Activation`, with slopes in [0, 1]; `activations.per_unit` makes
            one of several, unit by unit.
        method, tol, max_steps: of `sdplip.equilibrium.solve`.

    `gamma`, `eps` and `contraction` come back with the state_dict. The bound is that of the exact
    equilibrium; two computed outputs can differ by what their residuals allow on top of it.
    With numba (the extra `fast`) a training step of at most 128 ReLU units, float32 on the CPU, is
    compiled, to the same results but for their rounding.

    Raises:
        InvalidInput: gamma, eps or contraction out of range, slopes outside [0, 1].

    Source: Revay, Wang, Manchester, Lipschitz bounded equilibrium networks (arXiv 2010.01732).
    """

    fusible = True  # not so what subclasses make of it
    contraction = Constant(
        lambda rate: 0.1 <= rate <= 1,
        "must be in [0.1, 1]. Use e.g. 0.9, or 1 for no bound on the number of iterations.",
    )

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        gamma: float = 1.0,
        learn_gamma: bool = False,
        eps: float = 1.0,
        feedthrough: bool = False,
        contraction: float = 1.0,
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
        self.contraction = contraction
        self.psi = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.V = nn.Parameter(torch.empty(hidden, hidden, device=device, dtype=dtype))
        self.S = nn.Parameter(torch.empty(hidden, hidden, device=device, dtype=dtype))
        self._set_bound(gamma, learn_gamma, eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """nn.Linear's initialisation throughout, as the authors', but ψ = 0.

        On MNIST with 80 units and γ = 1 this ends at 2.2 % test error, their ψ = 1 at 2.4 to 2.5 %.
        """
        super().reset_parameters()
        fill_uniform(self.V, self.S, fan_in=self.hidden)
        self._reset_bound()

    def _closed_form(self) -> dict[str, Tensor]:
        V, S, B, C = (wide(p) for p in (self.V, self.S, self.B, self.C))
        psi, D = (None if p is None else wide(p) for p in (self.psi, self.D))
        gamma = self._gamma()
        w = witness(psi, V, S, B, C, D, gamma, self.eps)
        if self.contraction < 1:
            m = self.eps * (1 if unbounded(gamma) else gamma) / w["Lam"].amax()
            w["A"] = contracted(w["A"], w["Lam"], m, self.contraction)
        return w

    def _fused(self, x: Tensor) -> Tensor | None:
        plain = self.D is None and self.contraction == 1 and not hasattr(self, "log_gamma")
        return _fused.output(self, x) if plain and "fusible" in vars(type(self)) else None

    def extra_repr(self) -> str:
        limit = f", contraction={self.contraction:g}" if self.contraction < 1 else ""
        return f"{super().extra_repr()}{limit}"

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"contraction": self.contraction}

    def set_extra_state(self, state: Tensor) -> None:
        # Those of before have none.
        super().set_extra_state(pack({"contraction": 1.0} | unpack(type(self).__name__, state)))
