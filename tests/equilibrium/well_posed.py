"""Random matrices A for which z = σ(A z + v) has exactly one solution, with the proof's metric."""

import torch
from torch import Tensor

F64 = torch.float64


def lben(
    n: int, gamma: float, *, eps: float = 0.2, spread: float = 0.7, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A and Λ of a γ-Lipschitz equilibrium network [LBEN, section 3]."""
    g = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g, dtype=F64) / columns**0.5

    V, S, U, C = normal(n, n), normal(n, n), normal(n, 5), normal(4, n)
    Psi = torch.exp(spread * torch.randn(n, generator=g, dtype=F64))
    lipschitz = (C.mT @ C + (U @ U.mT) / Psi[:, None] / Psi) / (2 * gamma)
    eye = torch.eye(n, dtype=F64)
    return eye - Psi[:, None] * (lipschitz + V.mT @ V + eps * eye + S - S.mT), 1 / Psi


def mon(n: int, *, m: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A and Λ = I of a monotone operator network [MON, section 3]."""
    g = torch.Generator().manual_seed(seed)
    P, S = (torch.randn(n, n, generator=g, dtype=F64) / n**0.5 for _ in range(2))
    return (1 - m) * torch.eye(n, dtype=F64) - P.mT @ P + S - S.mT, torch.ones(n, dtype=F64)


def nemon(n: int, *, c: float = 0.3, spread: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A with weighted ℓ∞ measure c [NEMON, theorem 3], and the Λ in which it is monotone too."""
    g = torch.Generator().manual_seed(seed)
    T = torch.randn(n, n, generator=g, dtype=F64) / n**0.5
    eta = torch.exp(spread * torch.randn(n, generator=g, dtype=F64))
    A = eta[:, None] * T / eta - torch.diag(T.abs().sum(1)) + c * torch.eye(n, dtype=F64)
    metzler = A.abs() - torch.diag(A.diagonal().abs() - A.diagonal())
    inverse = torch.linalg.inv(torch.eye(n, dtype=F64) - metzler)
    return A, inverse.sum(0) / inverse.sum(1)


def drive(batch: int, n: int, *, scale: float = 2.0, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, n, generator=g, dtype=F64)
