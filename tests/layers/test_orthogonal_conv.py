"""Orthogonal convolutions: every singular value of the operator is one, not only the largest."""

import itertools

import pytest
import torch
from conv_cases import DTYPES, WEIGHTS, applied, draw, matrix

from sdplip.errors import InvalidInput
from sdplip.layers import ROUNDING, OrthogonalConv2d, OrthogonalConvTranspose2d
from sdplip.layers.orthogonal import orthogonal_kernel

TOLERANCE = {torch.float32: ROUNDING, torch.float64: 1e-12}
IMAGE = 6, 12
CASES = {
    "square": (4, 4, 3),
    "more out": (3, 5, 3),
    "more in": (5, 3, 3),
    "even": (4, 4, 2),
    "rectangular": (4, 6, (2, 3)),
    "one axis": (4, 4, (1, 4)),
    "large": (2, 2, 5),
    "pointwise": (4, 6, 1),
    "stride 2": (3, 4, 3, 2),
    "stride 2 to more": (2, 10, 4, 2),
    "stride 3x2": (2, 3, (4, 3), (3, 2)),
    "patches": (3, 6, 2, 2),
    "kernel below the stride": (4, 3, 1, 2),
    "dilation": (4, 4, 3, 1, "same", 2),
    "groups": (4, 6, 3, 1, "same", 1, 2),
    "stride and groups": (4, 8, 3, 2, "same", 1, 2),
    "depthwise": (4, 4, 3, 1, "same", 1, 4),
}
every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def build(case, dtype=torch.float64, cls=OrthogonalConv2d, **options):
    torch.manual_seed(0)
    first, last, kernel, *rest = CASES[case]
    if cls.transposed:
        first, last = last, first
    names = "stride", "padding", "dilation", "groups"
    arguments = dict(zip(names, rest, strict=False)) | options
    return cls(first, last, kernel, dtype=dtype, **arguments)


def distance_from_one(M):
    return (torch.linalg.svdvals(M) - 1).abs().max().item()


@every_dtype
@every_case
def test_circular_convolutions_are_orthogonal(case, dtype):
    for weights in WEIGHTS:
        layer = build(case, dtype, padding_mode="circular").eval()
        draw(layer, weights)
        assert distance_from_one(applied(layer, IMAGE)) <= TOLERANCE[dtype], weights


@every_case
@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_zeros_only_cut_off(case, padding):
    """What is left of an orthogonal matrix."""
    for weights in WEIGHTS:
        layer = build(case, padding=padding)
        draw(layer, weights)
        assert torch.linalg.matrix_norm(applied(layer, (7, 9)), ord=2) <= 1 + 1e-12, weights


def test_full_zero_padding_keeps_distances():
    for kernel, dilation in ((3, 1), (2, 3), ((3, 1), 1)):
        k1, k2 = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = dilation * (k1 - 1), dilation * (k2 - 1)
        layer = OrthogonalConv2d(3, 4, kernel, 1, around, dilation, dtype=torch.float64)
        assert distance_from_one(applied(layer, (3, 5))) <= 1e-12


@every_case
def test_the_transposed_layer_is_the_adjoint(case):
    layer = build(case, padding_mode="circular", bias=False)
    other = build(case, cls=OrthogonalConvTranspose2d, padding_mode="circular", bias=False)
    for name, parameter in other.named_parameters():
        parameter.data.copy_(layer.get_parameter(name))
    M = applied(layer, IMAGE)
    small = layer.geometry.output_size(IMAGE)
    adjoint = matrix(lambda h: other(h, IMAGE), other.in_channels, *small, dtype=torch.float64)
    torch.testing.assert_close(adjoint, M.mT, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(48, 48), (16, 40), (40, 16)], ids=str)
def test_symbols_are_orthogonal_between_the_frequencies_of_any_torus(shape):
    X = torch.randn(*shape, 1, 1, dtype=torch.float64)
    N = torch.randn(5, max(shape), max(shape) // 2, dtype=torch.float64)
    K = orthogonal_kernel(X, N, (4, 3))
    for w in torch.rand(4, 2, dtype=torch.float64) * 6.3:
        t = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0)).double() @ w
        symbol = (K.flatten(-2) * torch.polar(torch.ones_like(t), t)).sum(dim=-1)
        assert distance_from_one(symbol) <= 1e-12


def test_all_taps_are_used():
    """An orthogonal kernel of one tap would be orthogonal too."""
    for stride in (1, 2):
        D = OrthogonalConv2d(16, 16, 5, stride).witness()["D"]
        energy = D.square().sum(dim=(0, 1))
        assert (energy > 1e-3 * energy.sum()).all()
        ramp = torch.arange(5.0)
        middle = torch.stack([(energy.sum(dim=i) * ramp).sum() for i in (0, 1)]) / energy.sum()
        assert (middle - 2).abs().max() < 0.2


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_one_channel_is_multiplied_by_a_sign_where_it_is(kernel):
    """Its projectors are zero; with padding "same" the tap is the pixel itself."""
    layer = OrthogonalConv2d(3, 3, kernel, groups=3, bias=False, dtype=torch.float64)
    M = applied(layer, (5, 6))
    torch.testing.assert_close(M.abs(), torch.eye(len(M), dtype=M.dtype), rtol=0, atol=1e-14)


def test_every_parameter_has_an_effect():
    for case, weight in itertools.product(("square", "more in", "stride 2", "groups"), range(2)):
        layer = build(case)
        parameter = list(layer.parameters())[weight]
        before = layer.witness()["D"].detach().clone()
        with torch.no_grad():
            parameter += 0.3 * torch.randn_like(parameter)
        assert (layer.witness()["D"] - before).abs().max() > 1e-2


def test_dilation_with_a_stride_is_refused():
    with pytest.raises(InvalidInput, match=r"dilation = \(2, 2\) with stride = \(2, 2\)"):
        OrthogonalConv2d(3, 3, 3, 2, dilation=2)


def test_large_layers_in_float32_keep_the_rounding():
    D = OrthogonalConv2d(96, 96, 3).witness()["D"].detach().double()
    symbols = torch.fft.fft2(D, s=(6, 6)).permute(2, 3, 0, 1)
    assert distance_from_one(symbols) <= ROUNDING
