"""Row sums of |WᵀW|: value and derivatives against the plain formula in float64, and T ⪰ WᵀW."""

import functools
import itertools

import numpy as np
import pytest
import torch
from conv_cases import MODES, matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap
from torch.nn import functional as F

from sdplip.layers import AOLLinear, OrthogonalConv2d, _correlation
from sdplip.layers._conv import per_group, to_phases
from sdplip.layers._correlation import correlation_sums
from sdplip.layers._geometry import Geometry
from sdplip.layers.closed_forms import dominant, dominated, gershgorin, ratios

SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 1, 1),
    (7, 3, 1, 1),
    (4, 5, 3, 3),
    (5, 1, 1, 4),
    (2, 3, 2, 3),
    (6, 2, 5, 2),
    (1, 4, 3, 3),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
RELATIVE = 1e-10


@pytest.fixture(params=[1, 2, 3, 256], ids=lambda size: f"tile {size}")
def tile(request, monkeypatch):
    monkeypatch.setattr(_correlation, "TILE", request.param)


def plainly(K, q):
    """The autocorrelation by conv2d, all of it."""
    k1, k2 = K.shape[-2:]
    S = F.conv2d(K, K, padding=(k1 - 1, k2 - 1))
    return torch.einsum("ijyx,j->i", S.abs(), q)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    K = torch.randn(*shape, generator=generator, dtype=torch.float64)
    q = torch.rand(*shape[:-3], generator=generator, dtype=torch.float64) + 0.1
    return K, q


def close(found, expected):
    scale = expected.abs().max()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= RELATIVE * scale


def derivative(f, order, K, q):
    """Of a function with values that differ, `order` times along random directions."""
    generator = torch.Generator().manual_seed(9)
    inputs = [K.clone().requires_grad_(), q.clone().requires_grad_()]
    value = f(*inputs)
    value = (value * torch.rand(value.shape, generator=generator, dtype=value.dtype)).sum()
    for _ in range(order):
        found = torch.autograd.grad(value, inputs, create_graph=True)
        directions = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in found]
        value = sum((g * d).sum() for g, d in zip(found, directions, strict=True))
    return torch.cat([g.detach().flatten() for g in found])


@every_shape
def test_value(shape, tile):
    K, q = drawn(*shape)
    close(correlation_sums(K, q), plainly(K, q))


@every_shape
@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives(shape, order, tile):
    K, q = drawn(*shape)
    close(derivative(correlation_sums, order, K, q), derivative(plainly, order, K, q))


@every_shape
def test_one_derivative_at_a_time(shape):
    K, q = drawn(*shape)
    for f, x in (
        (lambda K: correlation_sums(K, q).square().sum(), K),
        (lambda q: correlation_sums(K, q).square().sum(), q),
    ):
        assert torch.autograd.gradcheck(f, x.clone().requires_grad_())


def test_matrices_are_kernels_of_one_tap():
    K, q = drawn(6, 9, 1, 1)
    W = K[..., 0, 0]
    close(correlation_sums(K, q), (W @ W.mT).abs() @ q)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (1, 1)], ids=str)
def test_batches(batch, tile):
    K, q = drawn(*batch, 4, 3, 3, 2)
    flat = zip(K.view(-1, 4, 3, 3, 2), q.view(-1, 4), strict=True)
    expected = torch.stack([plainly(*pair) for pair in flat]).view(*batch, 4)
    close(correlation_sums(K, q), expected)
    close(correlation_sums(K, q.new_ones(4)), correlation_sums(K, torch.ones_like(q)))


def test_vmap_over_kernels_and_weights():
    K, q = drawn(3, 4, 2, 3, 3)
    expected = torch.stack([plainly(*pair) for pair in zip(K, q, strict=True)])
    close(vmap(correlation_sums)(K, q), expected)
    close(vmap(correlation_sums, (0, None))(K, q[0]), torch.stack([plainly(k, q[0]) for k in K]))
    close(vmap(correlation_sums, (None, 0))(K[0], q), torch.stack([plainly(K[0], p) for p in q]))
    nested = vmap(vmap(correlation_sums))(K[None], q[None])
    close(nested[0], expected)


@pytest.mark.parametrize("argnums", [0, 1])
def test_function_transforms(argnums):
    K, q = drawn(3, 2, 2, 2)
    close(jacrev(correlation_sums, argnums)(K, q), jacrev(plainly, argnums)(K, q))

    def summed(f):
        return lambda K, q: (f(K, q).square()).sum()

    close(grad(summed(correlation_sums), argnums)(K, q), grad(summed(plainly), argnums)(K, q))
    many = K.expand(2, *K.shape) * torch.tensor([1.0, -2.0], dtype=K.dtype).view(2, 1, 1, 1, 1)
    found, expected = (
        vmap(grad(summed(f), argnums), (0, None))(many, q) for f in (correlation_sums, plainly)
    )
    close(found, expected)
    second = jacrev(jacrev(summed(correlation_sums), argnums), argnums)(K, q)
    close(second, jacrev(jacrev(summed(plainly), argnums), argnums)(K, q))


@pytest.mark.parametrize("shape", [(5, 3, 1, 1), (4, 2, 2, 2)], ids=str)
def test_compiled(shape):
    torch.compiler.reset()
    K, q = drawn(*shape)
    compiled = torch.compile(correlation_sums, backend="aot_eager", fullgraph=True)
    close(compiled(K, q), plainly(K, q))
    close(derivative(compiled, 1, K, q), derivative(plainly, 1, K, q))


def test_layouts():
    K, q = drawn(6, 4, 3, 3)
    expected = plainly(K, q)
    for same in (
        K.contiguous(memory_format=torch.channels_last),
        K.mT.contiguous().mT,
        K.flip(0).flip(0),
        F.pad(K, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    ):
        close(correlation_sums(same, q), expected)
    close(correlation_sums(K[:1].expand(6, -1, -1, -1), q), plainly(K[:1].repeat(6, 1, 1, 1), q))
    close(correlation_sums(K, q[:1].expand(6)), plainly(K, q[:1].repeat(6)))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["K", "q"])
def test_gradients_of_one_argument(wanted):
    K, q = (x.requires_grad_(flag) for x, flag in zip(drawn(5, 2, 3, 1), wanted, strict=True))
    correlation_sums(K, q).sum().backward()
    assert [x.grad is not None for x in (K, q)] == list(wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda K: K * 0,
        lambda K: K * 1e-150,
        lambda K: K * 1e150,
        lambda K: K * torch.logspace(-8, 4, len(K), dtype=K.dtype)[:, None, None, None],
        lambda K: K[torch.arange(len(K)) // 2],
        lambda K: K * (torch.arange(len(K)) != 1)[:, None, None, None],
        lambda K: torch.ones_like(K),
        lambda K: torch.distributions.StudentT(1.0).sample(K.shape).to(K),
    ],
    ids=["zero", "tiny", "huge", "rows", "duplicates", "zero row", "ones", "heavy tail"],
)
def test_extremes(change, tile):
    K, q = drawn(6, 3, 3, 2)
    K = change(K)
    found, expected = correlation_sums(K, q), plainly(K, q)
    assert ((found - expected).abs() <= RELATIVE * expected).all()
    K.requires_grad_()
    (gradient,) = torch.autograd.grad(correlation_sums(K, q).sum(), K)
    assert gradient.isfinite().all()


def test_what_is_not_finite_stays_so():
    K, q = drawn(3, 2, 2, 2)
    K[1, 0, 0, 0] = torch.nan
    assert correlation_sums(K, q).isnan().all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (6, 5, 4, 4)]),
    tile=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_shape_and_tile(shape, tile, seed):
    saved, _correlation.TILE = _correlation.TILE, tile
    try:
        K, q = drawn(*shape, seed=seed)
        close(correlation_sums(K, q), plainly(K, q))
        close(derivative(correlation_sums, 1, K, q), derivative(plainly, 1, K, q))
    finally:
        _correlation.TILE = saved


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2, (1, 2), 3], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_dominated_exceeds_the_operator(mode, stride, groups, dilation):
    """T ⪰ WᵀW on every image, W the strided convolution and T per channel, phase and q."""
    g = Geometry.of("Test", (3, 2), stride, "same", dilation, groups, mode, {})
    (s1, s2), (h, w) = g.stride, (6, 6)
    # Phases are those of the padded image.
    y, x = ((torch.arange(6) + b) % s for b, s in zip(g.before, g.stride, strict=True))
    for seed, constant in itertools.product(range(3), (True, False)):
        K, _ = drawn(4, 4 // groups, 3, 2, seed=seed)
        K = torch.ones_like(K) if constant else K
        phases = to_phases(per_group(K, groups), g)
        log_q = torch.randn(phases.shape[0], phases.shape[2], dtype=K.dtype) * (seed > 0)
        T = dominated(phases, ratios(log_q), taps=2)
        assert torch.equal(T, gershgorin(phases, log_q, taps=2))
        pixels = T.view(4, s1, s2)[:, y[:, None], x].flatten()
        W = matrix(lambda x, K=K: g.convolve(K, x), 4, h, w, dtype=K.dtype)
        gap = torch.diag(pixels) - W.mT @ W
        assert torch.linalg.eigvalsh(gap).min() >= -1e-12 * pixels.max()


@pytest.mark.parametrize("taps", [0, 2])
def test_dominated_is_dominant_of_the_gram_matrix(taps):
    W, q = drawn(5, 7, 1, 1)[0], torch.rand(7, dtype=torch.float64) + 0.1
    found = dominated(W if taps else W[..., 0, 0], q, taps)
    M = W[..., 0, 0]
    torch.testing.assert_close(found, dominant(M.mT @ M, q), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_tight_for_orthogonal_kernels(dtype):
    """There T is WᵀW, but for the rounding that it is raised by."""
    Q = torch.linalg.qr(torch.randn(8, 8, dtype=dtype)).Q
    eps = torch.finfo(dtype).eps
    for W in (Q[..., None, None], F.pad(Q[..., None, None], (1, 1, 1, 1))):
        T = dominated(W, taps=2)
        assert (T >= 1).all()
        assert (1 + 100 * eps >= T).all()
    W = OrthogonalConv2d(6, 6, 3, dtype=dtype).witness()["D"]
    T = dominated(W, taps=2)
    assert (1 - eps <= T).all() and (1 + 2000 * eps >= T).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rows", [10, 784, 3072])
def test_long_sums_stay_above(dtype, rows):
    """Of many numbers that rounding makes smaller; one column has T = ‖w‖² and no room."""
    slack = 1e-6 if dtype == torch.float32 else 1e-13
    for value in (1.0, 0.1, 1 / 3):
        w = torch.full((rows, 1), value, dtype=dtype) * (1 + torch.arange(rows)[:, None] % 7)
        exact = w.double().square().sum().item()
        assert dominated(w.to(dtype)).item() >= exact * (1 - slack)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_that_round_their_factors_keep_the_bound(precision):
    """PyTorch may be told to multiply float32 matrices in bfloat16, which costs T three digits."""
    torch.manual_seed(0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        for W in (torch.ones(256, 512), torch.rand(300, 400), torch.randn(200, 300)):
            T = dominated(W).double()
            gram = W.double().mT @ W.double() / (T.sqrt() * T.sqrt()[:, None])
            assert torch.linalg.eigvalsh(gram)[-1] <= 1
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_what_rounded_factors_lose_is_in_the_bound(precision):
    """What all columns have in common is below half a unit of bfloat16: products of rounded
    columns are those of a matrix with a norm 5 % smaller."""
    corner = torch.ones(4, 4) - 2 * torch.eye(4)
    W = functools.reduce(torch.kron, [corner] * 5) + (2**-12 if precision == "high" else 0.0019)
    torch.set_float32_matmul_precision(precision)
    try:
        T = dominated(W).double()
        D = AOLLinear(8, 8).witness()["D"]
    finally:
        torch.set_float32_matmul_precision("highest")
    # A regular Hadamard matrix keeps (1, …, 1), and so does what is added.
    top = torch.ones(len(W), dtype=torch.float64)
    assert (W.double() @ (top / T.sqrt())).norm() <= top.norm()
    assert D.dtype == torch.float64


def test_precisions_that_are_set_by_backend():
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        layer = AOLLinear(64, 64)
        D = layer.system().D
        assert layer(torch.randn(3, 64)).dtype == torch.float32
    finally:
        backend.fp32_precision = before
    assert np.linalg.norm(D, 2) <= 1
