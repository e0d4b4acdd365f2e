"""For checker.py: units of one slope, z = α(Az + Bx), in terms of x and of all other units.

Substituted, they need no multiplier; the best one would be infinite. There are many of them over a
region, where most relu are always on or always off. It imports the standard library and NumPy.
"""

# mypy: ignore-errors
import numpy as np

U, TINY = 2.0**-53, 1e-150


def substitution(R, slope, linear, columns, groups):
    """(x, z) from its entries `columns` as three matrices: E, |E|, and |E| with all errors added.

    R = [B A], `linear` are the units in question, and groups is None with cycles, through which
    they may feed themselves. None where no bound of the errors is found. In float64 by an
    approximate inverse X of N = I − αA: with F = I − XN and q = ‖F‖ < 1 by row sums N is regular,
    and the error δ of E with the residual r is Xr + Fδ, so that by columns
    |δ| ≤ |X||r| + |F| ‖Xr‖ / (1 − q). It grows with N⁻¹; that of a substitution level by level
    would grow with products of |A|.
    """
    n, d = R.shape
    E = np.zeros((d, len(columns)), dtype=R.dtype)
    E[columns, np.arange(len(columns))] = 1
    levels = [np.intersect1d(group, linear) for group in groups or ()]
    if R.dtype == object:
        if groups is None:
            return None
        for units in levels:
            E[d - n + units] = (slope[units][:, None] * R[units]) @ E
        return E, abs(E), abs(E)
    T, eye, met = slope[linear][:, None] * R[linear], np.eye(len(linear)), E != 0
    N, G = eye - T[:, d - n + linear], T[:, columns]
    off = 1.01 * U * (8 + max((T != 0).sum(1).max(), (N != 0).sum(0).max()))
    X = np.linalg.inv(N)
    solved = X @ G
    rest = abs(G - N @ solved) + off * (abs(G) + abs(N) @ abs(solved)) + TINY
    left = (abs(eye - X @ N) + off * (abs(X) @ abs(N) + eye)).sum(1)
    error, q = abs(X) @ rest, 1.01 * left.max()
    error = 1.01 * (error + left[:, None] * error.max(0, initial=0) / (1 - q))
    if not (q < 0.5 and np.isfinite(error).all()):
        return None
    E[d - n + linear] = solved
    most = abs(E)
    most[d - n + linear] += error
    met[d - n + linear] |= groups is None
    for units in levels:  # What is not met on the way is 0 exactly.
        met[d - n + units] = (slope[units] != 0)[:, None] & ((R[units] != 0) @ met)
    return E * met, abs(E) * met, most * met
