"""For checker.py: the condition of networks with many units in one level, which is eliminated.

For M = N - FᵀF with F = [D C] as there, M ≻ 0 if and only if T = [I F; Fᵀ N] ≻ 0. Between the units
of a level that feeds no unit with αβ ≠ 0, N is 2Λ > 0; so T ≻ 0 if and only if the rest of T, less
½YΛ⁻¹Yᵀ for the level's columns Y, is ≻ 0. It imports NumPy alone.
"""

# mypy: ignore-errors
import numpy as np

U, TINY, LARGE, WIDE, PART = 2.0**-53, 1e-150, 1e40, 1500, 512


def reduced(R, F, low, high, lam, bound, levels, condition):
    """The rest of T and how far its entries may be off; None where no level is that wide.

    R = [B A] and F for the units that matter, λ > 0 theirs. The sums of `condition` are of k
    roundings in succession at most; those over a level are taken in parts, and their errors are
    bounded by the norms of the rows of Y(2Λ)^(-1/2), which cost next to nothing."""
    n, d = R.shape
    m, p, wide, bent = d - n, len(F), np.zeros(n, bool), (low != 0) & (high != 0)
    for group in sorted(levels(R[:, m:]) or [], key=len, reverse=True):
        met = (R[:, m + group] != 0).any(1)
        far = not (met & bent).any()
        met |= (R[group, m:] != 0).any(0)
        wide[group] = len(group) >= WIDE and far and not (met[group].any() or met[wide].any())
    if not wide.any():
        return None
    rest, units = ~wide, np.append(np.zeros(m, bool), wide)
    inner, cross, bent = R[wide][:, ~units], (low + high) * lam, bent & wide
    Y = np.vstack([F[:, units], -inner.T * cross[wide]])
    Y[p + m :] -= cross[rest][:, None] * R[rest][:, units]
    Y /= np.sqrt(2 * lam[wide])
    parts, curved = [], R[bent][:, ~units]
    for of, sign in ((np.positive, -1), (abs, 1)):
        no_outputs = np.zeros((0, len(inner.T)))
        own = (of(R[rest][:, ~units]), no_outputs, low[rest], high[rest], lam[rest], bound, sign)
        N, G = condition(*own), of(F[:, ~units])
        bend = of((low * high)[bent]) * (2 * lam[bent])
        N = N + of(curved).T @ (bend[:, None] * of(curved))
        parts.append(np.block([[np.eye(p), G], [G.T, N]]))
    product, counts = np.zeros((len(Y), len(Y))), range(0, Y.shape[1], PART)
    for start in counts:
        product += Y[:, start : start + PART] @ Y[:, start : start + PART].T
    size = np.linalg.norm(Y, axis=1) * (1 + 1e-9)
    k = 10 + 2 * max((R != 0).sum(0).max(), (R != 0).sum(1).max())
    error = 1.01 * U * (k * parts[1] + (PART + len(counts) + 20) * np.outer(size, size))
    error += TINY * lam.max(initial=1)
    small = max(np.max(abs(v), initial=0) for v in (R, F, low, high, bound, np.sqrt(lam), Y))
    return parts[0] - product, error if small < LARGE else error + np.inf
