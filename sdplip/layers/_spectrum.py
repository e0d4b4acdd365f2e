"""The largest singular value of matrices and convolutions, bounded from above.

For a convolution it is the supremum M over all frequencies ω of ‖K̂(ω)‖₂, K̂(ω) = Σ_t K_t e^{iωt}
the symbol. Let it be attained at ω* with unit vectors u, v. Along an axis of k taps the function
f(θ) = Re u*K̂(ω* + θ)v e^{-iθ(k - 1)/2} is real, of exponential type (k - 1)/2, and |f| ≤ M = f(0),
so that f(θ) ≥ M cos(θ(k - 1)/2) for |θ|(k - 1) ≤ 2π (M. Riesz 1914; Duffin, Schaeffer 1938). Of N
equal steps on the circle one lies within π/N of ω*; so, one axis after the other,

    M ≤ max over the grid of ‖K̂‖₂ / Π cos(π(k - 1) / 2N),    N > k - 1.

At a frequency G = K̂ᴴK̂ ⪯ T is proved by a Cholesky factorisation of T - G: if it runs to its end
then T - G + E ⪰ 0 with ‖E‖₂ ≤ c n u tr(T - G) (Higham, Accuracy and stability, Theorem 10.5;
Rump 2006). T is a Ritz value enlarged by more than that, so that no start vector and no cluster of
singular values can make it too small: where the test fails the iteration goes on, and ends with
all eigenvalues. Nothing is kept from one call to the next.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import InvalidInput

FREQUENCIES = 12
"""Frequencies per axis are this times k - 1: the bound exceeds the norm by less than 1.8 %."""

WIDE = 128
"""Channels beyond which layers take half as many, within 7.2 %."""

EXACT = 5e6
"""Grid points times the cube of the matrix up to which all eigenvalues cost no more than a test."""

SLACK = 1e-3
"""By how much a tested T exceeds the Ritz value: half of it is the error of the norm."""

STEPS = 8, 24
"""Dimensions of Krylov spaces: of all matrices for a choice, and of the one chosen."""

ATTEMPTS = 6
"""Tests that may fail before all eigenvalues are computed."""

SINGLE = 0.04
"""What rounding may cost for tests to run in float32."""

NUMBERS = 1 << 19
"""Entries of symbols that are held at a time."""

BLOCK = 512
"""Rows of blocks of large Gram matrices and Cholesky factors."""


def check_frequencies(owner: str, frequencies: int | None) -> int | None:
    if frequencies is not None and (not isinstance(frequencies, int) or frequencies < 2):
        raise InvalidInput(
            f"{owner}: frequencies = {frequencies}, but must be an integer of at least 2 for the "
            "bound to hold between them. Use 12, or 6 for speed."
        )
    return frequencies


def enough(K: Tensor) -> int:
    """Frequencies for training with kernels (*batch, p, m, k₁, k₂), whose cost is theirs times the
    cube of the smaller side."""
    return FREQUENCIES if min(K.shape[-4:-2]) <= WIDE else FREQUENCIES // 2


def norm_square(K: Tensor, frequencies: int = FREQUENCIES) -> Tensor:
    """sup over all frequencies of ‖K̂(ω)‖₂², bounded from above, in float64.

    Stateless. The gradient is that of ‖K̂(ω)v‖² with ω and v held where it is largest: exact where
    the maximum is simple, a subgradient and finite where it is not. Second derivatives leave out
    the motion of ω and v.

    Args:
        K: (*batch, p, m, k₁, k₂); a matrix is a kernel with one tap, and its bound is exact, or
            within SLACK where it is large.
        frequencies: frequencies per axis are this times k - 1, at least 2.

    Returns:
        (*batch,), zero for K = 0, NaN where the squares of K are not finite.
    """
    rows = K.double().flatten(-3)
    with torch.no_grad():
        R, T = _largest(K.detach().double(), frequencies)
    value = (rows @ R).square().sum(dim=(-2, -1))
    reached = value.detach()
    return value * (T / torch.where(reached == 0, 1, reached))


@torch.library.custom_op("sdplip::largest", mutates_args=())
def _largest(K: Tensor, frequencies: int) -> tuple[Tensor, Tensor]:
    """Where the norm is attained, and a bound for its square.

    An operator, so that its tests of numbers are not traced by compilers.

    Returns:
        R (*batch, m·k₁·k₂, 2), or 1 for one tap: ‖KR‖_F² = ‖K̂(ω)v‖². T (*batch,).
    """
    batch, (p, m, *taps) = K.shape[:-4], K.shape[-4:]
    K = K.reshape(-1, *K.shape[-4:])
    scale = K.abs().amax(dim=(1, 2, 3, 4), keepdim=True)
    finite = scale.square().isfinite()
    K = torch.where(finite & (scale > 0), K / scale, 0)
    angles = _grid(taps, frequencies, K)
    waves = _waves(angles, taps)
    flipped = p < m
    grams = _Grams(K.transpose(1, 2) if flipped else K, angles)
    T, at, v = _exact(grams) if len(waves) * min(p, m) ** 3 <= EXACT else _tested(grams)
    chosen = waves[at]
    v = v.to(chosen.dtype)
    if flipped:
        # Of a transposed symbol the vectors are conjugate, and of the other side.
        symbol = torch.einsum("bpmt,bt->bpm", K.flatten(3).to(chosen.dtype), chosen)
        v = _unit(torch.einsum("bpm,bp->bm", symbol.conj(), v.conj()))
    R = (v.unsqueeze(-1) * chosen.unsqueeze(-2)).flatten(1)
    R = torch.view_as_real(R) if R.is_complex() else R.unsqueeze(-1)
    factor = math.prod(math.cos(math.pi / (2 * frequencies)) ** -2 for k in taps if k > 1)
    T = T * factor * scale.flatten().square()
    bad = ~finite.flatten()
    R, T = R.masked_fill(bad[:, None, None], math.nan), T.masked_fill(bad, math.nan)
    return R.reshape(*batch, *R.shape[1:]), T.reshape(batch)


@_largest.register_fake
def _(K: Tensor, frequencies: int) -> tuple[Tensor, Tensor]:
    batch, (_, m, *taps) = K.shape[:-4], K.shape[-4:]
    entries = m * math.prod(taps)
    return K.new_empty(*batch, entries, 1 if taps == [1, 1] else 2), K.new_empty(batch)


@_largest.register_vmap
def _(info: Any, in_dims: tuple[int, None], K: Tensor, frequencies: int) -> tuple[Any, Any]:
    return _largest(K.movedim(in_dims[0], 0), frequencies), (0, 0)


def _grid(taps: list[int], frequencies: int, like: Tensor) -> Tensor:
    """The angles (F, 2) at which the norm is taken."""
    return _half([max(1, frequencies * (k - 1)) for k in taps], like)


def _half(counts: list[int], like: Tensor) -> Tensor:
    """A grid on the torus, of conjugate points one, zero first."""
    sizes = torch.tensor(counts)
    index = torch.cartesian_prod(*(torch.arange(n) for n in counts))
    place = torch.tensor([counts[1], 1])
    first = (index * place).sum(dim=1) <= ((-index).remainder(sizes) * place).sum(dim=1)
    return (2 * math.pi * index[first] / sizes).to(like)


def _waves(angles: Tensor, taps: list[int]) -> Tensor:
    """e^{iωt} (F, k₁·k₂), real for one tap."""
    if taps == [1, 1]:
        return torch.ones_like(angles[:, :1])
    t = torch.cartesian_prod(*(torch.arange(k) for k in taps)).to(angles)
    phase = angles @ t.mT
    return torch.complex(phase.cos(), phase.sin())


class _Grams:
    """K̂ᴴK̂ at given angles, for kernels (b, p, n, k₁, k₂).

    They are trigonometric polynomials of degree k - 1 per axis, so that those at 2k - 1 angles give
    all others by interpolation with Dirichlet kernels.
    """

    def __init__(self, K: Tensor, angles: Tensor) -> None:
        taps = list(K.shape[-2:])
        self.shape = len(K), len(angles), K.shape[2]
        self.summands = K[0, :, 0].numel()
        self.dtype = torch.double
        self.real = taps == [1, 1]
        nodes = _half([2 * k - 1 for k in taps], K)
        if self.real:
            self.parts = [_gram(K.flatten(2)).unsqueeze(1)]
            self.weights = [torch.ones_like(angles[:, :1])]
            return
        symbols = torch.einsum("bpnt,ft->bfpn", K.flatten(3).to(torch.cdouble), _waves(nodes, taps))
        grams = symbols.mH @ symbols
        self.parts = [grams.real.contiguous(), grams.imag.contiguous()]
        here, mirrored = (
            _dirichlet(angles[:, None, 0] - sign * nodes[:, 0], taps[0] - 1)
            * _dirichlet(angles[:, None, 1] - sign * nodes[:, 1], taps[1] - 1)
            for sign in (1, -1)
        )
        self.weights = [here + mirrored, here - mirrored]
        self.weights[0][:, 0] /= 2

    def to(self, dtype: torch.dtype) -> Self:
        """The same, rounded in the end."""
        other = copy.copy(self)
        other.dtype = dtype
        return other

    def lost(self, dtype: torch.dtype) -> float:
        """By how much, relative to T, rounding may exceed what a Cholesky test of these in `dtype`
        proves.

        In units of 2⁻ᵖ, p the precision: the factorisation (n + 1) tr(T - G), twice that in complex
        numbers, T - G itself, and √n as ‖G‖_F ≤ √n T; in float64, whose products no setting of
        PyTorch shortens, interpolation by the number of its terms, and their products by the number
        of summands and n, as ‖K̂‖_F² ≤ nT.
        """
        n, nodes = self.shape[-1], self.parts[0].shape[1]
        rounded = 1.25 * n * (n + 4) + 2 * math.sqrt(n)
        products = 8 * n * self.summands + 8 * nodes * math.sqrt(n)
        return rounded * torch.finfo(dtype).eps + products * torch.finfo(torch.double).eps

    def __call__(self, items: Tensor | slice, at: Tensor) -> Tensor:
        """(b', F', n, n) at the angles `at` (F',) for all, or one angle each (b', 1, n, n)."""
        n = self.shape[-1]
        parts = []
        for weights, grams in zip(self.weights, self.parts, strict=True):
            w = weights[at].unsqueeze(-2) if isinstance(items, Tensor) else weights[at]
            parts.append((w @ grams[items].flatten(2)).to(self.dtype))
        return (parts[0] if self.real else torch.complex(*parts)).unflatten(-1, (n, n))


def _dirichlet(x: Tensor, degree: int) -> Tensor:
    total = torch.ones_like(x)
    for d in range(1, degree + 1):
        total = total + 2 * (d * x).cos()
    return total / (2 * degree + 1)


def _gram(X: Tensor) -> Tensor:
    """XᵀX from the blocks of its lower triangle."""
    n = X.shape[-1]
    if n <= BLOCK:
        return X.mT @ X
    G = X.new_empty(len(X), n, n)
    for i in range(0, n, BLOCK):
        j = i + BLOCK
        panel = X[..., i:].mT @ X[..., i:j]
        G[..., i:, i:j] = panel
        G[..., i:j, j:] = panel[..., BLOCK:, :].mT
    return G


def _exact(grams: _Grams) -> tuple[Tensor, Tensor, Tensor]:
    """The largest eigenvalue (b,) of all matrices, where it is, and its vector (b, n)."""
    b, f, n = grams.shape
    every = torch.arange(f, device=grams.parts[0].device)
    count = max(1, NUMBERS // (f * n * n))
    values = [
        torch.linalg.eigvalsh(grams(slice(i, i + count), every))[..., -1]
        for i in range(0, b, count)
    ]
    at = torch.cat(values).argmax(dim=1)
    L, V = torch.linalg.eigh(grams(torch.arange(b, device=at.device), at).squeeze(1))
    slack = 4 * n * torch.finfo(torch.double).eps
    return L[:, -1].clamp(min=0) * (1 + slack), at, V[..., -1]


def _tested(grams: _Grams) -> tuple[Tensor, Tensor, Tensor]:
    """As `_exact`, a bound that is proved, and the vector of a Ritz value."""
    found = [_tested_one(grams, slice(i, i + 1)) for i in range(grams.shape[0])]
    T, at, v = (torch.stack(column) for column in zip(*found, strict=True))
    return T, at, v


def _tested_one(grams: _Grams, item: slice) -> tuple[Tensor, Tensor, Tensor]:
    _, f, n = grams.shape
    single = f > 1 and grams.lost(torch.float) < SINGLE
    grams = grams.to(torch.float) if single else grams
    every = torch.arange(f, device=grams.parts[0].device)
    sample = every[:: -(-f // 16)]
    best = _Ritz.of(grams(item, sample)[0], sample)
    count = max(1, NUMBERS // (n * n))
    for todo in every.split(count):
        for attempt in range(ATTEMPTS + 1):
            T = best.value * (1 + SLACK)
            G = grams(item, todo)[0]
            failed = ~_positive(T, G)
            if not failed.any():
                break
            todo = todo[failed]
            best = best.better(_Ritz.of(G[failed], todo, attempt + 1, attempt == ATTEMPTS))
    T = best.value.double() * (1 + SLACK)
    return T * (1 + grams.lost(grams.dtype)), best.at, best.v


class _Ritz(NamedTuple):
    """A lower bound for the largest eigenvalue of some matrices, and where it was found."""

    value: Tensor
    at: Tensor
    v: Tensor

    @classmethod
    def of(cls, G: Tensor, at: Tensor, seed: int = 0, exact: bool = False) -> _Ritz:
        """The largest over G (f, n, n), of frequencies `at` (f,)."""
        if exact:
            values = torch.linalg.eigvalsh(G)[:, -1]
            chosen = values.argmax()
            L, V = torch.linalg.eigh(G[chosen])
            return cls(L[-1], at[chosen], V[:, -1])
        i = torch.arange(1, G.shape[-1] + 1, dtype=torch.double, device=G.device)
        v = (i.square() * (math.sqrt(5) + seed) + i).cos().to(G.dtype)
        values, vectors = _krylov(G, v.expand(len(G), -1), STEPS[0])
        chosen = values.argmax()
        values, vectors = _krylov(G[chosen, None], vectors[chosen, None], STEPS[1])
        return cls(values[0], at[chosen], vectors[0])

    def better(self, other: _Ritz) -> _Ritz:
        return other if other.value > self.value else self


def _krylov(G: Tensor, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The largest Ritz values (f,) and vectors (f, n) of G on the Krylov spaces of v (f, n)."""
    basis = _unit(v).unsqueeze(-1)
    images = G @ basis
    for _ in range(min(steps, G.shape[-1]) - 1):
        w = images[..., -1:]
        size = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        for _ in range(2):
            w = w - basis @ (basis.mH @ w)
        rest = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        # In an invariant space nothing but rounding errors is left.
        lost = rest <= 16 * torch.finfo(w.dtype).eps * size
        w = torch.where(lost, 0, w / torch.where(lost, 1, rest))
        basis, images = torch.cat([basis, w], dim=-1), torch.cat([images, G @ w], dim=-1)
    L, V = torch.linalg.eigh(basis.mH @ images)
    return L[:, -1], (basis @ V[..., -1:]).squeeze(-1)


def _unit(v: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return v / torch.where(size > 0, size, 1)


def _positive(T: Tensor, G: Tensor) -> Tensor:
    """Whether T - G (f, n, n) passes Cholesky's algorithm: (f,).

    In float64 by blocks, since most of the work is then in products.
    """
    block = BLOCK if torch.finfo(G.dtype).bits == 64 else G.shape[-1]
    A = -G
    A.diagonal(dim1=-2, dim2=-1).add_(T)
    passed = torch.ones(len(A), dtype=torch.bool, device=A.device)
    for i in range(0, A.shape[-1], block):
        j = i + block
        L, info = torch.linalg.cholesky_ex(A[:, i:j, i:j])
        passed &= info == 0
        X = torch.linalg.solve_triangular(L, A[:, j:, i:j].mH, upper=False)
        for k in range(0, X.shape[-1], block):
            A[:, j + k :, j + k : j + k + block] -= X[..., k:].mH @ X[..., k : k + block]
    return passed
