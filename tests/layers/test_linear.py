"""Orthogonal, spectral and AOL layers, and the diagonal T that all but the first rest on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from layer_cases import DTYPES, EXTREMES, make, put

from sdplip.errors import InvalidInput
from sdplip.layers import AOLLinear, OrthogonalLinear, SpectralLinear
from sdplip.layers.closed_forms import FLOOR, gershgorin, spectral_square
from sdplip.layers.orthogonal import witness


@pytest.mark.parametrize("map", ["cayley", "matrix_exp"])
@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_orthogonal_to_rounding_for_every_weight(map, shape, extreme, dtype):
    """LBDN's Cayley layer reaches norm 97 and 470 in float32 for large weights."""
    layer = make(OrthogonalLinear, shape, dtype, map=map)
    put(layer, extreme)
    Q = layer.witness()["D"].detach().double()
    gram = Q.mT @ Q if Q.shape[0] >= Q.shape[1] else Q @ Q.mT
    error = torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=torch.float64), ord=2)
    assert error <= (1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("map", ["cayley", "matrix_exp"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_orthogonal_at_size_with_one_dominant_direction(map, dtype):
    X = torch.randn(300, 1, dtype=dtype) @ torch.randn(1, 200, dtype=dtype) * 1e6
    Q = witness(X, map)["D"].double()
    error = torch.linalg.matrix_norm(Q.mT @ Q - torch.eye(200, dtype=torch.float64), ord=2)
    assert error <= (1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("map", ["cayley", "matrix_exp"])
def test_orthogonal_closed_form_is_batched(map):
    X = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    Q = witness(X, map)["D"]
    assert Q.shape == X.shape
    torch.testing.assert_close(Q[1, 2], witness(X[1, 2], map)["D"])


def test_cayley_is_the_published_formula():
    X = torch.randn(7, 4, dtype=torch.float64)
    U, V, eye = X[:4], X[4:], torch.eye(4, dtype=torch.float64)
    A = U - U.mT + V.mT @ V
    R = torch.linalg.inv(eye + A)
    expected = torch.cat([R @ (eye - A), -2 * V @ R])
    torch.testing.assert_close(witness(X)["D"], expected)


def test_matrix_exponential_is_that_of_the_skew_matrix():
    X = torch.randn(6, 6, dtype=torch.float64)
    torch.testing.assert_close(witness(X, "matrix_exp")["D"], torch.matrix_exp(X - X.mT))


def test_orthogonal_refuses_other_maps():
    with pytest.raises(InvalidInput, match=r"householder.*cayley, matrix_exp"):
        OrthogonalLinear(3, 3, map="householder")


@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
def test_spectral_norm_is_one_exactly(shape):
    layer = make(SpectralLinear, shape, torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
    D = layer.witness()["D"]
    assert abs(torch.linalg.matrix_norm(D, ord=2).item() - 1) <= 1e-14
    torch.testing.assert_close(
        D, layer.weight / torch.linalg.matrix_norm(layer.weight, ord=2), rtol=1e-13, atol=0
    )


def test_spectral_gradient_with_repeated_singular_values():
    W = torch.eye(4, dtype=torch.float64, requires_grad=True)
    spectral_square(W).backward()
    assert W.grad.isfinite().all()
    assert abs(torch.linalg.matrix_norm(W.grad).item() - 2) <= 1e-12


def test_spectral_gradient_of_a_simple_singular_value():
    W = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spectral_square, W)


@pytest.mark.parametrize("layer", [SpectralLinear, AOLLinear])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e15])
def test_scale_of_the_weight_does_not_matter(layer, scale):
    layer = make(layer)
    expected = layer.witness()["D"]
    with torch.no_grad():
        layer.weight.mul_(scale)
    torch.testing.assert_close(layer.witness()["D"], expected)


@pytest.mark.parametrize("shape", ["tall", "square"])
def test_aol_starts_without_slack(shape):
    singular = torch.linalg.svdvals(make(AOLLinear, shape, torch.float64).witness()["D"])
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=1e-6, atol=0)


def test_aol_is_the_published_formula():
    layer = make(AOLLinear, dtype=torch.float64)
    with torch.no_grad():
        W = layer.weight.normal_()
    expected = W / (W.mT @ W).abs().sum(dim=0).sqrt()
    torch.testing.assert_close(layer.witness()["D"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("tight", [True, False])
@pytest.mark.parametrize("multiplier", [spectral_square, gershgorin])
def test_rounding_never_costs_the_bound(multiplier, tight, dtype):
    """Not even the last bits of float32: T is rounded upwards (the norm here has its own error)."""
    for seed in range(5):
        torch.manual_seed(seed)
        W = torch.randn(120, 80, dtype=dtype)
        W = torch.linalg.qr(W).Q if tight else W
        T = multiplier(W).double()
        applied = (W.double() / T.sqrt()).to(dtype).double()
        assert torch.linalg.matrix_norm(applied, ord=2) <= 1 + 1e-14


@pytest.mark.parametrize("cls", [OrthogonalLinear, SpectralLinear])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_counts_the_rounding_of_the_weights(cls, dtype):
    torch.manual_seed(0)
    layer = cls(64, 64).to(dtype)
    exact = np.linalg.norm(layer.system().D, 2)
    assert exact > 1
    assert exact <= layer.lipschitz <= exact * (1 + 1e-9)
    with torch.no_grad():
        layer.weight.zero_()
    assert layer.lipschitz >= 1


def test_gershgorin_of_a_zero_column_is_one_and_of_a_tiny_one_is_bounded_below():
    W = torch.tensor([[0.0, 1.0, 1e-20]])
    T = gershgorin(W)
    assert T[0] == 1
    assert T[2] >= FLOOR
    assert (1 / T).isfinite().all()


@given(
    arrays(np.float64, (4, 3), elements=st.floats(-1e9, 1e9)),
    arrays(np.float64, 3, elements=st.floats(-1e4, 1e4)),
)
def test_any_diagonal_T_dominates_any_gram_matrix(W, log_q):
    W, log_q = torch.from_numpy(W), torch.from_numpy(log_q)
    for T in (spectral_square(W).expand(3), gershgorin(W), gershgorin(W, log_q)):
        lowest = torch.linalg.eigvalsh(torch.diag(T) - W.mT @ W)[0]
        assert lowest >= -1e-12 * max(T.max(), 1e-300)


@pytest.mark.parametrize("log_q", [None, torch.tensor([3.0, -2.0, 0.5, 100.0])])
def test_gershgorin_dominates_the_gram_matrix(log_q):
    W = torch.randn(2, 6, 4, dtype=torch.float64)
    T = gershgorin(W, None if log_q is None else log_q.double())
    assert T.shape == (2, 4)
    lowest = torch.linalg.eigvalsh(torch.diag_embed(T) - W.mT @ W)[..., 0]
    assert (lowest >= -1e-15 * T.amax(dim=-1)).all()
