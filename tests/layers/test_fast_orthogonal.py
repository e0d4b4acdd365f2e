"""Products with Q by one LU factorisation: the same map and derivatives as by forming Q."""

import math

import pytest
import torch
from conv_cases import DTYPES
from layer_cases import EXTREMES, put
from torch.func import functional_call, jacrev, vmap

from sdplip.layers import ROUNDING, OrthogonalLinear, SandwichLinear, _rotation, orthogonal
from sdplip.layers._rotation import rotated
from sdplip.layers.orthogonal import semi_orthogonal

SIZES = [(6, 6), (5, 9), (9, 5)]
TOLERANCE = {torch.float32: ROUNDING, torch.float64: 1e-12}
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
every_extreme = pytest.mark.parametrize("extreme", EXTREMES)


@pytest.fixture(autouse=True)
def solved(monkeypatch):
    """Also for layers so small that forming Q costs nothing."""
    monkeypatch.setattr(_rotation, "THIN", 1)


@pytest.fixture
def count(monkeypatch):
    """How often products go without Q."""
    calls = []
    monkeypatch.setattr(orthogonal, "rotated", lambda *a: calls.append(a) or rotated(*a))
    return calls


def explicit(X, x):
    return x @ semi_orthogonal(X).mT


def gradients(f, X, x, g):
    X, x = X.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    y = f(X, x)
    return y.detach(), *torch.autograd.grad(y, (X, x), g)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@every_size
@every_extreme
def test_the_applied_map_keeps_the_bound(size, dtype, extreme):
    layer = OrthogonalLinear(*size, bias=False, dtype=dtype)
    put(layer, extreme)
    m = size[0]
    Q = torch.cat([rotated(layer.weight, row) for row in torch.eye(m, dtype=dtype).split(1)])
    values = torch.linalg.svdvals(Q.detach().double())
    assert (values - 1).abs().max() <= TOLERANCE[dtype]


@every_size
@every_extreme
def test_agrees_with_the_explicit_formula(size, extreme):
    layer = OrthogonalLinear(*size, dtype=torch.float64)
    put(layer, extreme)
    X, x, g = layer.weight, torch.randn(4, size[0]).double(), torch.randn(4, size[1]).double()
    for found, expected in zip(
        gradients(rotated, X, x, g), gradients(explicit, X, x, g), strict=True
    ):
        assert found.isfinite().all()
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1e-30)


@every_size
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_first_and_second_derivatives(size, scale):
    """With 30 the weights saturate."""
    X = scale * OrthogonalLinear(*size, dtype=torch.float64).weight.detach()
    x = torch.randn(2, size[0], dtype=torch.float64)
    X, x = X.requires_grad_(), x.requires_grad_()
    assert torch.autograd.gradcheck(rotated, (X, x))
    assert torch.autograd.gradgradcheck(rotated, (X, x))
    assert torch.autograd.gradgradcheck(lambda x: rotated(X.detach(), x), (x,))


@pytest.mark.parametrize("size", [(300, 300), (150, 260), (260, 150)], ids=str)
def test_large_layers_in_float32(size):
    layer = OrthogonalLinear(*size, bias=False)
    with torch.no_grad():
        layer.weight.mul_(3)
    x = torch.randn(20, size[0])
    y = rotated(layer.weight, x).detach().double()
    exact = x.double() @ semi_orthogonal(layer.weight.detach().double()).mT
    assert (y - exact).norm() <= ROUNDING * x.norm()
    if size[0] <= size[1]:
        assert (y.norm(dim=-1) / x.double().norm(dim=-1) - 1).abs().max() <= ROUNDING


def test_training_goes_without_q_and_evaluation_with(count):
    layer = OrthogonalLinear(6, 6)
    x = torch.randn(3, 6)
    trained = layer(x)
    assert len(count) == 1
    layer.eval()
    layer(x)  # the weight wants a gradient: nothing is kept
    assert len(count) == 2
    with torch.no_grad():
        evaluated = layer(x)
    layer.train()(torch.randn(7, 6))  # a batch that is larger than Q
    assert len(count) == 2
    torch.testing.assert_close(trained, evaluated, atol=1e-6, rtol=0)


def test_what_is_left_to_the_explicit_product(count):
    layer = OrthogonalLinear(6, 6)
    x = torch.randn(3, 6)
    expected = layer(x)
    count.clear()
    torch.testing.assert_close(vmap(layer)(x), expected)
    torch.testing.assert_close(vmap(jacrev(layer))(x), jacrev(layer)(x[0]).expand(3, 6, 6))
    weights = {n: p.detach() for n, p in layer.named_parameters()}
    torch.testing.assert_close(functional_call(layer, weights, (x,)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.bfloat16()(x.bfloat16())
    OrthogonalLinear(6, 6, map="matrix_exp")(x)
    assert not count


def test_batched_gradients():
    layer = OrthogonalLinear(5, 7, dtype=torch.float64)
    x = torch.randn(2, 5, dtype=torch.float64)
    rows = torch.autograd.functional.jacobian(layer, x, vectorize=True)
    expected = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(rows, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(backend):
    torch.compiler.reset()
    layer = OrthogonalLinear(5, 7)
    x = torch.randn(3, 5, requires_grad=True)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    (found,) = torch.autograd.grad(y.square().sum(), layer.weight)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_numbers_that_are_not_finite():
    layer = OrthogonalLinear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    assert layer(torch.randn(2, 4)).isnan().all()
    layer = OrthogonalLinear(4, 4)
    x = torch.randn(3, 4)
    expected = layer(x)
    x[1, 0] = math.nan
    found = layer(x)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


def test_batch_shapes():
    layer = OrthogonalLinear(6, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    y = layer(x[:, :2])
    assert y.shape == (2, 2, 4)
    torch.testing.assert_close(layer(x[0, 0]), y[0, 0])
    assert layer(x[:0]).shape == (0, 3, 4)


@pytest.mark.parametrize("size", [(5, 3), (3, 5), (4, 4)], ids=str)
@pytest.mark.parametrize("extreme", ["default", "huge", "rank one", "zero", "heavy tail"])
def test_sandwich_layers_without_their_matrices(size, extreme, monkeypatch):
    layer = SandwichLinear(*size, activation="tanh", dtype=torch.float64)
    put(layer, extreme)
    x = torch.randn(2, size[0], dtype=torch.float64, requires_grad=True)
    inputs = x, *layer.parameters()
    y = layer(x)
    found = torch.autograd.grad(y.square().sum(), inputs)
    monkeypatch.setattr(_rotation, "THIN", math.inf)
    z = layer(x)
    expected = torch.autograd.grad(z.square().sum(), inputs)
    torch.testing.assert_close(y, z, atol=1e-12, rtol=0)
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 1e-10 * b.abs().max().clamp(min=1e-30)


def test_sandwich_derivatives():
    layer = SandwichLinear(3, 4, activation="tanh", dtype=torch.float64)
    layer.log_psi.data.normal_()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def f(x, *_):
        return layer(x)

    assert torch.autograd.gradcheck(f, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(f, (x, *layer.parameters()))
