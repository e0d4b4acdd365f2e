"""T from products in bfloat16: T ⪰ WᵀW for the weights as they are, how much larger it is, its
derivatives, and the layers that offer it."""

import copy
import itertools

import conv_cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import EXTREMES
from torch import nn
from torch.func import vmap

from sdplip.errors import InvalidInput
from sdplip.layers import AOLConv2d, AOLLinear, SLLConv2d, SLLLinear
from sdplip.layers._correlation import _product
from sdplip.layers._geometry import Geometry
from sdplip.layers._state import pack, unpack
from sdplip.layers.closed_forms import dominated, normalised, ratios

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LAYERS = {
    "SLLLinear": (SLLLinear, (6, 9), (6,)),
    "AOLLinear": (AOLLinear, (6, 9), (6,)),
    "SLLConv2d": (SLLConv2d, (4, 6, 3), (4, 5, 5)),
    "AOLConv2d": (AOLConv2d, (4, 6, 3), (4, 5, 5)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def rounded(W, q=None, taps=0):
    return dominated(W, q, taps, "bfloat16")


def excess(W, T):
    """By how much ‖W T^(-1/2)‖² exceeds 1, in float64."""
    D = W.double() / T.double().sqrt()
    return torch.linalg.eigvalsh(D.mT @ D)[..., -1].max().item() - 1


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@every_dtype
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (40, 30), (30, 300)], ids=str)
def test_any_weights(shape, extreme, dtype):
    layer = nn.Linear(*shape, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(drawn(*shape[::-1]))
        torch.manual_seed(0)
        EXTREMES[extreme](layer)
    W = layer.weight.detach().mT
    for q in (None, ratios(3 * drawn(shape[1]).to(dtype))):
        assert excess(W, rounded(W, q)) <= 1e-14
        V = normalised(W)
        assert excess(V, rounded(V, q)) <= 1e-14


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    numbers=st.sampled_from(["halfway", "ones", "powers", "signs", "cancelling"]),
    scale=st.integers(-30, 30),
    seed=st.integers(0, 99),
)
def test_weights_that_rounding_hits_hardest(shape, numbers, scale, seed):
    W = drawn(*shape, seed=seed)
    W = {
        "halfway": W.bfloat16().double() * (1 + 2.0**-8 - 2.0**-20),
        "ones": torch.full_like(W, 1 + 2.0**-9 + 2.0**-17),
        "powers": W.sign() * 2.0 ** (8 * W).round() * (1 + 2.0**-8),
        "signs": W.sign() / 3,
        "cancelling": torch.linalg.qr(W).Q * (1 + 2.0**-7 * drawn(1, min(shape), seed=seed)),
    }[numbers] * 2.0**scale
    for dtype in (torch.float32, torch.float64):
        assert excess(W.to(dtype), rounded(W.to(dtype))) <= 1e-14


@every_dtype
@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 255 / 256])
@pytest.mark.parametrize("rows", [10, 784, 5000])
def test_long_sums_stay_above(rows, value, dtype):
    """Of numbers that rounding makes smaller every time; one column has T = ‖w‖² and no room."""
    w = value * (1 + torch.arange(rows)[:, None] % 7).to(dtype)
    assert rounded(w).item() >= w.double().square().sum().item()


@pytest.mark.parametrize("mode", conv_cases.MODES)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (2, 3)], ids=str)
def test_convolutions(kernel, mode):
    g = Geometry.of("Test", kernel, 1, "same", 1, 1, mode, {})
    for seed in range(4):
        K = drawn(5, 4, *kernel, seed=seed)
        K = torch.ones_like(K) / 3 if seed == 3 else K
        T = rounded(K, ratios(drawn(4, seed=seed)), taps=2)
        W = conv_cases.matrix(lambda x, K=K: g.convolve(K, x), 4, 5, 6, dtype=K.dtype)
        assert excess(W, T.repeat_interleave(30)) <= 1e-14


@every_dtype
@pytest.mark.parametrize("shape", [(300, 200), (90, 200), (40, 30, 3, 3)], ids=str)
def test_half_a_percent_above_exact_products(shape, dtype):
    """For orthogonal columns, where there is no room at all, it is 0.9 % at 2048."""
    W, taps = drawn(*shape).to(dtype), len(shape) - 2
    q = ratios(drawn(shape[1]).to(dtype))
    ratio = rounded(W, q, taps) / dominated(W, q, taps)
    assert (ratio >= 1).all() and (ratio <= 1.006).all()
    if not taps:
        Q = torch.linalg.qr(W).Q
        assert (rounded(Q) <= 1.008 * dominated(Q)).all()


@pytest.mark.parametrize("shape", [(300, 200), (600, 530), (40, 30, 3, 3)], ids=str)
def test_derivatives_are_close_to_those_of_exact_products(shape):
    W, taps = drawn(*shape).float().requires_grad_(), len(shape) - 2
    q = ratios(drawn(shape[1])).float().requires_grad_()
    g = drawn(shape[1], seed=7).float()
    found, expected = (torch.autograd.grad(f(W, q, taps), (W, q), g) for f in (rounded, dominated))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 0.02 * b.norm()


def test_second_derivatives():
    W = drawn(9, 7).requires_grad_()

    def second(f):
        (first,) = torch.autograd.grad(f(W).sum(), W, create_graph=True)
        return torch.autograd.grad(first.square().sum(), W)[0]

    expected = second(dominated)
    assert (second(rounded) - expected).norm() <= 0.05 * expected.norm() > 0


@pytest.mark.parametrize("shape", [(3, 2, 9, 7), (2, 5, 4, 3, 2)], ids=str)
def test_batches_and_vmap(shape):
    W = drawn(*shape)
    taps = 2 * (len(shape) == 5)
    flat = W.flatten(0, len(shape) - 3 - taps)
    expected = torch.stack([rounded(w, taps=taps) for w in flat])
    assert torch.equal(rounded(W, taps=taps).flatten(0, -2), expected)
    torch.testing.assert_close(
        vmap(lambda w: rounded(w, taps=taps))(flat), expected, rtol=1e-2, atol=0
    )


@pytest.fixture(params=[True, False], ids=["oneDNN", "plain"])
def onednn(request):
    (before,) = torch.backends.mkldnn.set_flags(request.param)[:1]
    yield
    torch.backends.mkldnn.set_flags(before)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(1, 1, 4096), (1, 3, 300), (2, 5, 700), (1, 70, 900)], ids=str)
def test_products_are_rounded_once(shape):
    """Summed in float32: what T counts on. A sum in bfloat16 of 4096 numbers stops at 256."""
    X = drawn(*shape).abs().bfloat16()
    signs = drawn(*shape, seed=1).sign().bfloat16()
    for Y in (X, X * signs):
        found = _product(X, Y.mT).double()
        exact, size = X.double() @ Y.double().mT, X.double() @ X.double().mT
        assert ((found - exact).abs() <= 2**-8 * exact.abs() + shape[2] * 2**-24 * size).all()


def make(name, dtype=torch.float32, **options):
    cls, sizes, _ = LAYERS[name]
    torch.manual_seed(0)
    layer = cls(*sizes, dtype=dtype, **{"products": "bfloat16"} | options)
    with torch.no_grad():
        layer.weight.normal_()
    return layer, torch.randn(3, *LAYERS[name][2], dtype=dtype)


@every_layer
def test_layers_say_which_products_they_use(name):
    layer, x = make(name)
    exact, _ = make(name, products="exact")
    assert "products=bfloat16" in repr(layer) and "products=exact" in repr(exact)
    T, smaller = layer.witness()["T"], exact.witness()["T"]
    assert (T / smaller).min() > 1 and (T / smaller).max() < 1.01
    torch.testing.assert_close(layer(x), exact(x), rtol=0.02, atol=0.02)
    assert layer.lipschitz == 1
    with pytest.raises(InvalidInput, match=f"{name}: products = 'half', but must be one of"):
        make(name, products="half")


@every_layer
def test_copies_and_checkpoints(name):
    layer, x = make(name)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    fresh, _ = make(name)
    nn.init.zeros_(fresh.weight)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), y)
    other, _ = make(name, products="exact")
    old = other.state_dict()
    old["_extra_state"] = pack(
        {k: v for k, v in unpack(name, old["_extra_state"]).items() if k != "products"}
    )
    other.load_state_dict(old)
    with pytest.raises(InvalidInput, match="products = 'exact'"):
        layer.load_state_dict(old)
    for one, two in itertools.permutations((layer, other)):
        with pytest.raises(InvalidInput, match="products = "):
            one.load_state_dict(two.state_dict())


@every_layer
def test_evaluation_notices_another_choice(name):
    layer, x = make(name)
    layer.eval()
    with torch.no_grad():
        before = layer(x)
        layer.products = "exact"
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), layer.train()(x))


@pytest.mark.parametrize("name", ["SLLLinear", "AOLConv2d"])
def test_compiled(name):
    torch.compiler.reset()
    layer, x = make(name)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    y.square().sum().backward()
    found = layer.weight.grad.clone()
    layer.weight.grad = None
    layer(x).square().sum().backward()
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)
    assert (found - layer.weight.grad).norm() <= 0.05 * found.norm()


@every_layer
def test_in_float64_the_same_map(name):
    """Products are rounded there, too: a copy in float64 has the same T, unless a number lies on
    the other side of a boundary."""
    layer, x = make(name)
    y, T = layer(x), layer.witness()["T"]
    layer.double()
    torch.testing.assert_close(layer.witness()["T"].float(), T, rtol=1e-4, atol=0)
    torch.testing.assert_close(layer(x.double()).float(), y, rtol=1e-3, atol=1e-4)
