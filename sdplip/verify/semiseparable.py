"""Newton's equations of a chain's barrier in time and memory linear in the depth.

The inverse Z of a block tridiagonal M is semiseparable: what lies between layers k > l is a product
G_k … G_{l+1} of one matrix per layer. So a product with the Hessian tr(A_i Z A_j Z) is a sweep down
the layers and one back up. As (ρ, λ) nears the optimum a few eigenvalues of M vanish, those of Z
grow, and the Hessian is close to one of low rank,

    Z = KKᵀ + R,  tr(A_i Z A_j Z) = tr(A_i KKᵀ A_j KKᵀ) + (the rest, positive semidefinite),

with K by Nyström's approximation, for which R ⪰ 0. The preconditioner of conjugate gradients keeps
the first term and, of the rest, what lies within a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._arrays import Array

RANK = 12
"""Columns of K."""
MOST = 80
"""Conjugate gradients take at most this many steps; more would take longer than a dense solve."""


@dataclass(frozen=True)
class Sweeps:
    """The Hessian at a point, by stacks over L layers of width n, filled up with zeros.

    Attributes:
        inverses: (L + 1, n, n), inverses of the Schur complements from the last layer on.
        gains: (L, n, n), the G_k.
        P, Q: (L, n, n), G_k − αW_k and G_k − βW_k.
        weights: (L, n, n).
        slopes: (2, L, n, 1), α and β.
        real: mask (L, n) of the units there are.
        extra: (L, n), added to the Hessian's diagonal.
    """

    inverses: Array
    gains: Array
    P: Array
    Q: Array
    weights: Array
    slopes: Array
    real: np.ndarray
    extra: Array

    @classmethod
    def at(
        cls,
        inverses: list[Array],
        gains: list[Array],
        weights: list[Array],
        alpha: list[Array],
        beta: list[Array],
        extra: Array | None,
    ) -> Sweeps:
        width = max(map(len, inverses))
        real = np.arange(width) < np.array([len(W) for W in weights])[:, None]
        G, W = _stack(gains, width), _stack(weights, width)
        slopes = np.zeros((2, *real.shape, 1))
        slopes[:, real, 0] = np.concatenate(alpha), np.concatenate(beta)
        more = np.zeros(real.shape)
        if extra is not None:
            more[real] = extra
        return cls(
            _stack(inverses, width), G, G - slopes[0] * W, G - slopes[1] * W, W, slopes, real, more
        )

    @cached_property
    def Z(self) -> Array:
        """Diagonal blocks of Z (L + 1, n, n)."""
        Z = self.inverses.copy()
        for k, G in enumerate(self.gains):
            Z[k + 1] += G @ Z[k] @ G.T
        return Z

    @cached_property
    def own(self) -> tuple[Array, Array, Array]:
        """p_iᵀZp_j, p_iᵀZq_j and q_iᵀZq_j within each layer (L, n, n)."""
        Z, own, Qt = self.Z[:-1], self.inverses[1:], self.Q.swapaxes(1, 2)
        PZ = self.P @ Z
        return own + PZ @ self.P.swapaxes(1, 2), own + PZ @ Qt, own + self.Q @ Z @ Qt

    @cached_property
    def within(self) -> Array:
        """The Hessian within each layer (L, n, n)."""
        pp, pq, qq = self.own
        inside = 2 * (pq * pq.swapaxes(1, 2) + pp * qq)
        places = np.arange(inside.shape[1])
        inside[:, places, places] += self.extra
        return inside

    @cached_property
    def columns(self) -> tuple[Array, Array]:
        """Columns of Z within the layer of p_j, and of q_j (L, n, n)."""
        GZ = self.gains @ self.Z[:-1]
        low, high = ((s * self.weights).swapaxes(1, 2) for s in self.slopes)
        return self.Z[1:] - GZ @ low, self.Z[1:] - GZ @ high

    @cached_property
    def traces(self) -> Array:
        """tr(EZ) and tr(A_i Z)."""
        pairs = 2 * self.own[1].diagonal(axis1=1, axis2=2)[self.real]
        return np.concatenate([[self.Z[0].trace()], pairs])

    def spread(self, x: Array) -> Array:
        """(N, r) per unit as (L, r, 1, n)."""
        out = np.zeros((*self.real.shape, x.shape[1]))
        out[self.real] = x
        return out.swapaxes(1, 2)[:, :, None]

    def gather(self, x: Array) -> Array:
        """(L, r, n) as (N, r)."""
        return x.swapaxes(1, 2)[self.real]

    def __call__(self, x: Array) -> Array:
        """The Hessian times x (1 + N, r)."""
        first, v, G = self.Z[0], self.spread(x[1:]), self.gains
        up, uq = (U[:, None] for U in self.columns)
        P, Q = self.P[:, None], self.Q[:, None]
        down, depth = (up * v) @ uq.swapaxes(2, 3), len(G)
        down += down.swapaxes(2, 3)
        back = (P.swapaxes(2, 3) * v) @ Q
        back += back.swapaxes(2, 3)
        # What comes before each layer, and what comes after it.
        Y, X = np.empty_like(down), np.empty_like(back)
        Y[0] = x[0][:, None, None] * (first @ first)
        for k in range(1, depth):
            np.matmul(G[k - 1] @ Y[k - 1], G[k - 1].T, out=Y[k])
            Y[k] += down[k - 1]
        X[-1] = 0.0
        for k in range(depth - 2, -1, -1):
            np.matmul(G[k + 1].T @ X[k + 1], G[k + 1], out=X[k])
            X[k] += back[k + 1]
        top = G[0].T @ X[0] @ G[0] + back[0]
        out = 2 * np.einsum("lrij,lrij->lri", P @ Y, np.broadcast_to(Q, Y.shape))
        Xq = X @ uq
        Xq *= up
        out += 2 * Xq.sum(axis=2)
        out += (self.within[:, None] @ v.swapaxes(2, 3))[..., 0]
        corner = x[0] * np.vdot(first, first) + ((first @ top) * first).sum(axis=(1, 2))
        return np.vstack([corner, self.gather(out)])

    def apply(self, K: Array) -> Array:
        """Z times K (L + 1, n, r)."""
        T = K.copy()
        for k in range(len(self.gains) - 1, -1, -1):
            T[k] += self.gains[k].T @ T[k + 1]
        T = self.inverses @ T
        for k, G in enumerate(self.gains):
            T[k + 1] += G @ T[k]
        return T

    def nystrom(self, basis: Array) -> Array:
        """K (L + 1, n, r) with Z − KKᵀ ⪰ 0, close to Z where that is large, from any basis."""
        shape = basis.shape
        for _ in range(2):
            flat = np.linalg.qr(basis.reshape(-1, shape[2]))[0]
            image = self.apply(flat.reshape(shape)).reshape(flat.shape)
            basis = image
        values, V = np.linalg.eigh((flat.T @ image + image.T @ flat) / 2)
        kept = values > 1e-14 * values[-1]
        return (image @ (V[:, kept] / np.sqrt(values[kept]))).reshape(*shape[:2], -1)

    def preconditioner(self, K: Array) -> Callable[[Array], Array] | None:
        """An approximate inverse of the Hessian; None where rounding leaves none."""
        KW = self.weights @ K[:-1]
        p, q = K[1:] - self.slopes[0] * KW, K[1:] - self.slopes[1] * KW
        big = [a @ b.swapaxes(1, 2) for a, b in ((p, p), (p, q), (q, q))]
        pp, pq, qq = (whole - part for whole, part in zip(self.own, big, strict=True))
        bpp, bpq, bqq = big
        rest = pq * pq.swapaxes(1, 2) + pp * qq + bqq * pp + bpp * qq
        rest += bpq.swapaxes(1, 2) * pq + bpq * pq.swapaxes(1, 2)
        rest *= 2
        places = np.arange(rest.shape[1])
        rest[:, places, places] += self.extra + ~self.real
        rest[:, places, places] *= 1 + 1e-12
        try:
            half = np.linalg.inv(np.linalg.cholesky(rest))
        except np.linalg.LinAlgError:
            return None
        first, whole = K[0].T @ K[0], float(np.vdot(self.Z[0], self.Z[0]))
        corner = max(whole - float(np.vdot(first, first)), 1e-12 * whole) ** -0.5
        a, b = np.triu_indices(K.shape[2])
        weight = np.where(a == b, 1.0, 2**0.5)
        F = (p[..., a] * q[..., b] + p[..., b] * q[..., a]) * weight
        low = np.vstack([corner * first[a, b] * weight, (half @ F)[self.real]])
        basis, R = np.linalg.qr(low)
        values, V = np.linalg.eigh(np.eye(len(R)) + R @ R.T)
        basis, values = basis @ V, (1 - 1 / np.maximum(values, 1.0))[:, None]

        def scaled(x: Array, factor: Array) -> Array:
            units = (factor @ self.spread(x[1:]).swapaxes(2, 3)[:, :, :, 0].swapaxes(1, 2))
            return np.vstack([corner * x[0], units[self.real]])

        def solve(x: Array) -> Array:
            x = scaled(x, half)
            x = x - basis @ (values * (basis.T @ x))
            return scaled(x, half.swapaxes(1, 2))

        return solve


def _stack(blocks: list[Array], width: int) -> Array:
    out = np.zeros((len(blocks), width, width))
    for k, block in enumerate(blocks):
        out[k, : len(block), : block.shape[1]] = block
    return out


def solve(hessian: Sweeps, b: Array, K: Array, tol: float) -> Array | None:
    """H⁻¹b (1 + N, r) by conjugate gradients on every column; None where they do not converge.

    Args:
        tol: of the residual in the preconditioner's norm, relative to that of b.
    """
    inverse = hessian.preconditioner(K)
    if inverse is None:
        return None
    x, rest = np.zeros_like(b), b.copy()
    z = inverse(rest)
    step, size = z, (rest * z).sum(axis=0)
    goal = tol**2 * size
    for _ in range(MOST):
        image = hessian(step)
        length = size / (step * image).sum(axis=0)
        x += length * step
        rest = rest - length * image
        z = inverse(rest)
        after = (rest * z).sum(axis=0)
        if not (np.isfinite(after).all() and (after >= 0).all()):
            return None
        if (after <= goal).all():
            return x
        step = z + after / size * step
        size = after
    return None
