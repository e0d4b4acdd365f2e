"""The named conditions equal the published forms, written out here independently."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdplip import conditions

SEEDS = st.integers(0, 10**6)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


@given(SEEDS)
def test_residual_is_theorem_3_of_araujo(seed):
    H, G, W, lam = normal(seed, (3, 4), (3, 5), (4, 5), 5)
    L = np.diag(lam)
    published = np.block(
        [
            [2.5 * np.eye(4) - H.T @ H, -H.T @ G - W @ L],
            [-G.T @ H - L @ W.T, 2 * L - G.T @ G],
        ]
    )
    np.testing.assert_allclose(
        conditions.residual(H=H, G=G, W=W, Lam=lam, rho=2.5), published, atol=1e-12
    )


@given(SEEDS, st.integers(1, 4))
def test_feedforward_is_lipsdp_neuron(seed, depth):
    """Fazlyab et al., Theorem 2: [A; B]ᵀQ[A; B] + blkdiag(ρI, 0, −WᵀW) with the sign turned."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=depth + 2)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    lams = [rng.random(s) for s in sizes[1:-1]]
    low, high, rho = 0.1, 0.9, 3.0
    hidden = sum(sizes[1:-1])
    stacked = np.zeros((hidden, sizes[0] + hidden))
    row = col = 0
    for W in weights[:-1]:
        stacked[row : row + W.shape[0], col : col + W.shape[1]] = W
        row, col = row + W.shape[0], col + W.shape[1]
    shift = np.hstack([np.zeros((hidden, sizes[0])), np.eye(hidden)])
    T = np.diag(np.concatenate(lams))
    Q = np.block([[-2 * low * high * T, (low + high) * T], [(low + high) * T, -2 * T]])
    AB = np.vstack([stacked, shift])
    front = np.zeros((sizes[0] + hidden,) * 2)
    front[: sizes[0], : sizes[0]] = rho * np.eye(sizes[0])
    front[-sizes[-2] :, -sizes[-2] :] -= weights[-1].T @ weights[-1]
    values = {f"W{k}": W for k, W in enumerate(weights)}
    values |= {f"Lam{k + 1}": lam for k, lam in enumerate(lams)}
    M = conditions.feedforward(depth)(**values, rho=rho, alpha=low, beta=high)
    np.testing.assert_allclose(M, front - AB.T @ Q @ AB, atol=1e-12)


@given(SEEDS)
def test_equilibrium_is_the_lben_condition(seed):
    """With D = 0: M ⪰ 0 ⇔ 2Λ' − Λ'A − AᵀΛ' − (CᵀC + Λ'BBᵀΛ')/γ ⪰ 0, Λ = γΛ' (Schur)."""
    A, B, C, lam = normal(seed, (5, 5), (5, 3), (2, 5), 5)
    gamma, lam = 1.7, np.abs(lam) + 0.1
    M = conditions.equilibrium(A=A, B=B, C=C, D=np.zeros((2, 3)), Lam=gamma * lam, rho=gamma**2)
    schur = M[3:, 3:] - M[3:, :3] @ np.linalg.inv(M[:3, :3]) @ M[:3, 3:]
    L = np.diag(lam)
    published = 2 * L - L @ A - A.T @ L - (C.T @ C + L @ B @ B.T @ L) / gamma
    np.testing.assert_allclose(schur / gamma, published, atol=1e-10)
    np.testing.assert_allclose(
        conditions.wellposed(A=A, Lam=lam, alpha=0, beta=1), 2 * L - L @ A - A.T @ L, atol=1e-12
    )


@given(SEEDS)
def test_linear_is_the_norm_condition(seed):
    (D,) = normal(seed, (3, 4))
    top = np.linalg.norm(D, 2) ** 2
    assert conditions.linear.margin(D=D, rho=top * 1.001) > 0
    assert conditions.linear.margin(D=D, rho=top * 0.999) < 0


@given(SEEDS, st.floats(-2, 0.9))
def test_measure_is_the_weighted_matrix_measure(seed, shift):
    A, eta = normal(seed, (4, 4), 4)
    eta = np.abs(eta) + 0.1
    mu = max(
        A[i, i] + sum(abs(A[i, j]) * eta[j] / eta[i] for j in range(4) if j != i) for i in range(4)
    )
    assert (conditions.measure(A=A, eta=eta, c=mu + 1e-9) >= 0).all()
    assert (conditions.measure(A=A, eta=eta, c=mu - 1e-9) < 0).any()


def test_every_condition_states_its_claim_and_source():
    for name in ("lipschitz", "wellposed", "linear", "residual", "equilibrium", "measure", "linf"):
        condition = getattr(conditions, name)
        assert condition.name == name
        assert len(condition.claim) > 20 and len(condition.source) > 5


def test_a_network_without_hidden_layer_is_refused():
    with pytest.raises(ValueError, match="depth = 0"):
        conditions.feedforward(0)


@given(SEEDS)
def test_the_condition_bounds_real_differences(seed):
    """Where M ⪰ 0, no pair of inputs of a random residual network exceeds √ρ."""
    H, G, W, lam, X, Y = normal(seed, (3, 3), (3, 5), (3, 5), 5, (50, 3), (50, 3))
    lam = np.abs(lam) + np.linalg.norm(G, 2) ** 2
    values = {"H": H, "G": G, "W": W, "Lam": lam}
    inverse = np.linalg.inv(2 * np.diag(lam) - G.T @ G)
    corner = H.T @ G + W @ np.diag(lam)
    rho = np.linalg.eigvalsh(H.T @ H + corner @ inverse @ corner.T)[-1] * (1 + 1e-9)
    assert conditions.residual.margin(**values, rho=rho) >= -1e-8 * rho

    def f(x):
        return x @ H.T + np.maximum(x @ W + 0.3, 0) @ G.T

    rise = np.linalg.norm(f(X) - f(Y), axis=1)
    assert (rise <= np.sqrt(rho) * np.linalg.norm(X - Y, axis=1) * (1 + 1e-9)).all()
