"""One expression, four kinds of matrix: they agree, and wrong shapes are named."""

import cvxpy as cp
import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdplip import conditions
from sdplip.errors import InvalidInput, ShapeError

SHAPES = {"A": "nn", "B": "nm", "C": "pn", "D": "pm", "Lam": "n", "alpha": "n", "beta": "n"}


def draw(seed, n=4, m=3, p=2, batch=()):
    rng = np.random.default_rng(seed)
    sizes = {"n": n, "m": m, "p": p}
    values = {k: rng.normal(size=(*batch, *(sizes[d] for d in s))) for k, s in SHAPES.items()}
    return {**values, "rho": rng.random(batch) if batch else float(rng.random())}


def literal(A, B, C, D, Lam, alpha, beta, rho):
    """Section 1 of the design, block by block, independently of the symbolic expression."""
    n, m = B.shape
    L, a, b = np.diag(Lam), np.diag(alpha), np.diag(beta)
    front = np.zeros((m + n, m + n))
    front[:m, :m] = rho * np.eye(m)
    F = np.hstack([D, C])
    U = np.block([[B, A], [np.zeros((n, m)), np.eye(n)]])
    K = np.block([[-2 * a @ b @ L, (a + b) @ L], [(a + b) @ L, -2 * L]])
    return front - F.T @ F - U.T @ K @ U


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_all_backends_evaluate_the_general_condition(seed, n, m, p):
    values = draw(seed, n, m, p)
    expected = literal(**values)
    numpy = conditions.lipschitz(**values)
    np.testing.assert_allclose(numpy, expected, atol=1e-12)
    tensors = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in values.items()}
    np.testing.assert_allclose(conditions.lipschitz(**tensors).numpy(), expected, atol=1e-12)

    lam, rho = cp.Variable(n), cp.Variable()
    affine = conditions.lipschitz(**{**values, "Lam": lam, "rho": rho})
    assert affine.is_affine()
    lam.value, rho.value = values["Lam"], values["rho"]
    np.testing.assert_allclose(affine.value, expected, atol=1e-12)


def test_sympy_is_exact():
    rational = sp.Matrix(2, 2, [sp.Rational(k + 1, 3) for k in range(4)])
    M = conditions.residual(
        H=sp.eye(2),
        G=rational,
        W=rational,
        Lam=sp.Matrix([1, sp.Rational(1, 7)]),
        rho=sp.Integer(2),
    )
    H, L = sp.eye(2), sp.diag(1, sp.Rational(1, 7))
    corner = -H.T * rational - rational * L
    expected = sp.Matrix.vstack(
        sp.Matrix.hstack(2 * sp.eye(2) - H.T * H, corner),
        sp.Matrix.hstack(corner.T, 2 * L - rational.T * rational),
    )
    assert expected == M
    assert all(entry.is_Rational for entry in M)


def test_batches_broadcast_and_gradients_flow():
    values = draw(0, batch=(5,))
    tensors = {k: torch.as_tensor(v).requires_grad_() for k, v in values.items()}
    M = conditions.lipschitz(**tensors)
    assert M.shape == (5, 7, 7)
    for i in range(5):
        one = {k: v[i] for k, v in values.items()}
        np.testing.assert_allclose(M[i].detach().numpy(), literal(**one), atol=1e-12)
    shared = conditions.lipschitz(**{**tensors, "B": tensors["B"][0], "rho": 1.0, "alpha": 0.0})
    assert shared.shape == (5, 7, 7)
    M.square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in tensors.values())


def test_gradient_is_that_of_the_matrix():
    values = {k: torch.as_tensor(v) for k, v in draw(3, 3, 2, 2).items()}
    free = values["A"].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda A: conditions.lipschitz(**{**values, "A": A}), (free,), atol=1e-8
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": np.ones((3, 3))}, r"B has shape \(3, 3\), but n = 4 \(from A\)"),
        ({"D": np.ones((2, 5))}, r"D has shape \(2, 5\), but m = 3 \(from B\)"),
        ({"Lam": np.ones(3)}, r"Lam has shape \(3,\), but n = 4"),
        ({"A": np.ones(4)}, r"A has shape \(4,\), but needs 2 dimensions"),
    ],
)
def test_a_wrong_shape_is_named(change, message):
    with pytest.raises(ShapeError, match=message):
        conditions.lipschitz(**{**draw(0), **change})


def test_missing_and_unknown_symbols_are_named():
    values = draw(0)
    values.pop("C")
    with pytest.raises(InvalidInput, match="lipschitz needs C"):
        conditions.lipschitz(**values)
    with pytest.raises(InvalidInput, match="no symbol Q; it has A, B"):
        conditions.lipschitz(**draw(0), Q=1)
    with pytest.raises(InvalidInput, match="no symbol Q"):
        conditions.lipschitz.substitute(Q=sp.Integer(1))


def test_substituting_a_wrong_shape_is_refused():
    with pytest.raises(ShapeError, match="but n = "):
        conditions.lipschitz.substitute(
            A=sp.ZeroMatrix(conditions.n, conditions.n), B=sp.ZeroMatrix(conditions.m, conditions.m)
        )


def test_margin_is_the_smallest_eigenvalue():
    values = draw(1)
    expected = np.linalg.eigvalsh(literal(**values))[0]
    assert conditions.lipschitz.margin(**values) == pytest.approx(expected)


def test_a_batch_of_single_units_is_no_column():
    values = draw(0, n=1, batch=(5,))
    M = conditions.lipschitz(**{k: torch.as_tensor(v) for k, v in values.items()})
    np.testing.assert_allclose(conditions.lipschitz(**values), M.numpy(), atol=1e-12)
    assert M.shape == (5, 4, 4)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, cp.Constant, sp.Matrix])
def test_a_diagonal_is_given_by_its_entries(convert):
    values = {k: convert(v) if np.ndim(v) == 2 else v for k, v in draw(0).items()}
    with pytest.raises(ShapeError, match="Lam has shape"):
        conditions.lipschitz(**{**values, "Lam": convert(np.diag(values["Lam"]))})


def test_batches_that_do_not_broadcast_are_named():
    values = draw(0, batch=(5,))
    with pytest.raises(ShapeError, match=r"D has the batch dimensions \(2,\)"):
        conditions.lipschitz(**{**values, "D": values["D"][:2]})


def test_kinds_of_numbers():
    whole = conditions.linear(D=torch.tensor([[1]]), rho=1.5)
    assert whole.item() == 0.5
    mixed = conditions.linear(D=torch.ones(1, 1), rho=np.array(0.1, dtype=np.float64))
    assert mixed.dtype == torch.float64
    assert conditions.linear(D=torch.ones(1, 1).half(), rho=2.0).dtype == torch.float16
    exact = conditions.linear(D=sp.eye(2), rho=sp.Rational(1, 3))
    assert exact == -sp.Rational(2, 3) * sp.eye(2)
    assert conditions.linear.margin(D=sp.eye(2), rho=sp.Rational(1, 3)) == pytest.approx(-2 / 3)
    both = conditions.residual(
        H=sp.eye(2), G=np.eye(2), W=np.eye(2), Lam=sp.Matrix([1, 1]), rho=sp.Integer(1)
    )
    assert both.shape == (4, 4)
    for bad in ("abc", np.array([[1j]]), np.array([[None]])):
        with pytest.raises(InvalidInput, match="D has dtype"):
            conditions.linear(D=bad, rho=1.0)
