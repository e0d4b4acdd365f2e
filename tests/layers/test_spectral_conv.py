"""The largest singular value over all frequencies: never below, hardly above."""

import math

import pytest
import torch
from conv_cases import applied, matrix
from torch.func import vmap

from sdplip.errors import InvalidInput
from sdplip.layers import CPLConv2d, SpectralConv2d, SpectralConvTranspose2d, SpectralLinear
from sdplip.layers import _spectrum as spectrum
from sdplip.layers._spectrum import norm_square
from sdplip.layers.closed_forms import spectral_square

SHAPES = [
    (4, 4, 3, 3),
    (6, 3, 3, 3),
    (3, 6, 2, 3),
    (1, 1, 5, 5),
    (2, 3, 4, 1),
    (5, 2, 1, 2),
    (36, 40, 3, 3),
    (7, 36, 2, 2),
]
KINDS = {
    "normal": lambda K: K.normal_(),
    "constant": lambda K: K.fill_(1.0),
    "one tap": lambda K: K.zero_()[..., :1, :1].normal_(),
    "rank one": lambda K: K.copy_(torch.randn(len(K), 1, 1, 1) * torch.randn(K[:1].shape)),
    "heavy tail": lambda K: K.normal_().pow_(7),
    "scales": lambda K: K.normal_().mul_(
        torch.logspace(-8, 4, len(K), dtype=K.dtype)[:, None, None, None]
    ),
}


@pytest.fixture
def tested(monkeypatch):
    """Cholesky tests also where all eigenvalues would be cheaper."""
    monkeypatch.setattr(spectrum, "EXACT", 0)


def kernel(shape, kind="normal"):
    K = torch.empty(shape, dtype=torch.float64)
    KINDS[kind](K)
    return K


def largest(K, count=96):
    """By SVD on a fine grid."""
    counts = [count if k > 1 else 1 for k in K.shape[-2:]]
    symbols = torch.fft.fft2(K.double(), s=counts).permute(2, 3, 0, 1)
    return torch.linalg.svdvals(symbols[: count // 2 + 1]).max().item()


def room(K, frequencies):
    return math.prod(1 / math.cos(math.pi / 2 / frequencies) for k in K.shape[-2:] if k > 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("test", [False, True], ids=["eigenvalues", "tested"])
def test_bound_and_its_room(shape, kind, test, request):
    if test:
        request.getfixturevalue("tested")
    K = kernel(shape, kind)
    count = 96 if K.numel() < 1000 else 30
    exact = largest(K, count)
    slack = 1.0005 * (1 + spectrum.SINGLE / 2) if test else 1 + 1e-12
    missed = room(K, count / (max(shape[2:]) - 1))
    for frequencies in (2, 5, 12) if K.numel() < 1000 else (12,):
        bound = norm_square(K, frequencies).sqrt().item()
        assert exact * (1 - 1e-12) <= bound <= exact * room(K, frequencies) * slack * missed


@pytest.mark.parametrize("frequencies", [2, 3, 12])
def test_a_peak_between_the_frequencies(frequencies):
    """Two taps at the ends, 2 cos(ω - φ): the bound is attained half-way between two steps."""
    angle = math.pi / (2 * frequencies)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    K = torch.zeros(2, 2, 1, 3, dtype=torch.float64)
    K[..., 0, 0], K[..., 0, 2] = torch.eye(2), turn @ turn
    assert abs(largest(K, 16 * frequencies) - 2) <= 1e-6
    assert abs(norm_square(K, frequencies).sqrt().item() - 2) <= 1e-6


@pytest.mark.parametrize("n", [3, 60, 300])
def test_start_vectors_that_miss_the_top(n, tested):
    """The top singular vector is orthogonal to all start vectors: Krylov spaces never see it."""
    i = torch.arange(1, n + 1, dtype=torch.float64)
    seeds = range(spectrum.ATTEMPTS + 1)
    starts = torch.stack([(i.square() * (math.sqrt(5) + s) + i).cos() for s in seeds])
    Q = torch.linalg.qr(torch.cat([starts, torch.randn(n, n, dtype=torch.float64)]).mT).Q
    values = torch.linspace(1, 0.1, n, dtype=torch.float64)
    values[-1] = 3.0
    W = torch.diag(values) @ Q.mT
    found = norm_square(W[..., None, None]).sqrt().item()
    assert 3 <= found <= 3 * 1.001


@pytest.mark.parametrize(
    "values",
    [
        torch.ones(70),
        torch.cat([torch.ones(35) + 1e-9 * torch.arange(35), 0.5 * torch.ones(35)]),
        torch.cat([torch.tensor([1.0]), 1 - torch.logspace(-12, -1, 69)]),
        torch.cat([torch.tensor([1.0]), torch.full((69,), 1e-9)]),
        torch.logspace(0, -12, 70),
    ],
    ids=["equal", "cluster", "approached", "one", "decaying"],
)
def test_spectra(values, tested):
    values = values.double()
    U, V = (torch.linalg.qr(torch.randn(n, 70, dtype=torch.float64)).Q for n in (90, 70))
    W = (U * values) @ V.mT
    for K in (W, W.mT, 1e-150 * W, 1e150 * W):
        exact = torch.linalg.matrix_norm(K, ord=2).item()
        found = norm_square(K[..., None, None]).sqrt().item()
        assert exact <= found <= exact * (1 + 6e-4)


def test_large_matrices_have_norm_one_within_the_slack():
    layer = SpectralLinear(640, 700, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
        D = layer.witness()["D"]
    assert 1 - 6e-4 <= torch.linalg.matrix_norm(D, ord=2).item() <= 1


def test_a_value_that_is_too_small_fails_the_test():
    for dtype, n, slack in ((torch.double, 700, 1e-9), (torch.cfloat, 64, 1e-3)):
        A = torch.randn(2, n, n, dtype=dtype)
        G = A.mH @ A / n
        top = torch.linalg.eigvalsh(G)[:, -1]
        high, low = top.max(), top.min()
        assert spectrum._positive(high * (1 + slack), G).all()
        assert not spectrum._positive(low * (1 - slack), G).any()
        assert spectrum._positive((high + low) / 2, G).sum() == (high > low)


def test_zero_and_numbers_that_are_not_finite(tested):
    K = torch.randn(4, 3, 2, 3, 3, dtype=torch.float64)
    expected = norm_square(K)
    K[0] = 0
    K[2, 0, 0, 0, 0] = math.nan
    K[3, 0, 0, 0, 0] = math.inf
    found = norm_square(K)
    assert found[0] == 0
    assert found[1] == expected[1]
    assert found[2:].isnan().all()


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (4, 6, 1, 1), (3, 7, 2, 2)], ids=str)
def test_gradient(shape, tested, monkeypatch):
    """Of the tested bound: that of the maximum, as all eigenvalues give it."""
    K = kernel(shape).requires_grad_()
    (by_test,) = torch.autograd.grad(norm_square(K).log(), K)
    monkeypatch.setattr(spectrum, "EXACT", math.inf)
    (exact,) = torch.autograd.grad(norm_square(K).log(), K)
    torch.testing.assert_close(by_test, exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    assert torch.autograd.gradcheck(norm_square, K)


def test_gradient_of_a_square_is_homogeneous(tested):
    K = kernel((3, 4, 3, 3)).requires_grad_()
    value = norm_square(K)
    (gradient,) = torch.autograd.grad(value, K)
    torch.testing.assert_close((K * gradient).sum(), 2 * value)


def test_batches_and_vmap(tested):
    K = torch.randn(3, 2, 4, 3, 2, 2, dtype=torch.float64)
    alone = torch.stack([norm_square(k) for k in K.flatten(0, 1)]).view(3, 2)
    torch.testing.assert_close(norm_square(K), alone, rtol=1e-9, atol=0)
    torch.testing.assert_close(vmap(norm_square)(K), alone, rtol=1e-9, atol=0)
    inner = vmap(norm_square, in_dims=1, out_dims=1)(K)
    torch.testing.assert_close(inner, alone, rtol=1e-9, atol=0)


def test_compiles_as_one_graph(tested):
    torch.compiler.reset()
    K = kernel((4, 3, 3, 3)).requires_grad_()
    compiled = torch.compile(spectral_square, backend="aot_eager", fullgraph=True)
    found = compiled(K, 2)
    torch.testing.assert_close(found, spectral_square(K, 2))
    found.backward()
    assert K.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("cls", [SpectralConv2d, SpectralConvTranspose2d])
def test_operators_of_every_size(cls, stride, mode):
    """Close to one on images that are large against the kernel, at most one on all."""
    layer = cls(2, 2, 3, stride, bias=False, padding_mode=mode, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
    found = {}
    for size in ((6, 6), (6, 12), (12, 12), (18, 24)):
        image = size if not cls.transposed else layer.geometry.output_size(size)
        found[size] = torch.linalg.matrix_norm(applied(layer, image), ord=2).item()
    assert max(found.values()) <= 1 + 1e-12
    assert found[18, 24] >= (0.95 if mode == "zeros" else 0.97)


def test_adjoint():
    layer = SpectralConv2d(4, 6, (2, 3), 2, groups=2, bias=False, dtype=torch.float64)
    other = SpectralConvTranspose2d(6, 4, (2, 3), 2, groups=2, bias=False, dtype=torch.float64)
    other.weight.data.copy_(layer.weight)
    M = applied(layer, (6, 8))
    adjoint = matrix(lambda h: other(h, (6, 8)), 6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(adjoint, M.mT, rtol=0, atol=1e-14)


def test_groups_have_norms_of_their_own():
    layer = SpectralConv2d(
        4, 4, 3, groups=2, bias=False, padding_mode="circular", dtype=torch.double
    )
    with torch.no_grad():
        layer.weight[:2] *= 1e3
    for block in layer.witness()["D"].chunk(2):
        assert 0.98 <= largest(block) <= 1


def test_cpl_multiplies_by_the_norm_of_the_operator():
    layer = CPLConv2d(3, 3, 3, hidden=5, dtype=torch.float64)
    T = layer.witness()["T"]
    exact = largest(layer.weight.detach()) ** 2
    assert T.unique().numel() == 1
    assert exact <= T[0].item() <= exact * 1.04


@pytest.mark.parametrize("cls", [SpectralConv2d, CPLConv2d])
def test_frequencies(cls):
    for frequencies in (1, 0, 2.5):
        with pytest.raises(
            InvalidInput, match=rf"{cls.__name__}: frequencies = {frequencies}, but"
        ):
            cls(3, 3, 3, frequencies=frequencies)
    coarse, fine = (cls(3, 3, 3, frequencies=n, dtype=torch.float64) for n in (2, 24))
    with pytest.raises(InvalidInput, match="another map"):
        coarse.load_state_dict(fine.state_dict())
    coarse.weight.data.normal_()
    fine.weight.data.copy_(coarse.weight)
    assert coarse.witness()["T"].max() > fine.witness()["T"].max()


def test_wide_kernels_take_fewer_frequencies():
    assert spectrum.enough(torch.empty(2, 128, 500, 3, 3)) == 12
    assert spectrum.enough(torch.empty(129, 130, 3, 3)) == 6
    chosen, given = (SpectralConv2d(130, 129, 2, frequencies=n) for n in (None, 6))
    given.weight.data.copy_(chosen.weight)
    assert torch.equal(given.witness()["T"], chosen.witness()["T"])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_short_float32_products_do_not_reach_the_proof(precision, tested):
    K = torch.nn.init.orthogonal_(torch.empty(40, 40, 2, 2)).double()
    exact = largest(K, 24)
    torch.set_float32_matmul_precision(precision)
    try:
        found = norm_square(K).sqrt().item()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert exact <= found <= exact * room(K, 12) * 1.002
