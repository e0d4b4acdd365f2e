"""Sandwich layers: the published formula, and AAᵀ + BBᵀ = I for matrices and convolutions."""

import copy
import math

import numpy as np
import pytest
import torch
from conv_cases import DTYPES, WEIGHTS, applied, draw, norm
from torch.nn import functional as F

import sdplip
from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import ROUNDING, SandwichConv2d, SandwichLinear
from sdplip.layers.closed_forms import LOG_RANGE

MODES = ("zeros", "circular")
CASES = {
    "3": (3, 4, 3),
    "2x3": (4, 3, (2, 3)),
    "1": (3, 3, 1),
    "5": (2, 2, 5),
    "stride 2": (2, 5, 3, 2),
    "stride 2x3": (2, 3, 3, (2, 3)),
    "1 stride 2": (2, 3, 1, 2),
    "dilation": (3, 3, 3, 1, "same", 2),
    "groups": (4, 6, 3, 1, "same", 1, 2),
    "stride and groups": (4, 6, 3, 2, "same", 1, 2),
    "valid": (3, 3, 3, 1, "valid"),
    "wide padding": (3, 3, 2, 1, 2),
}
every_case = pytest.mark.parametrize("case", CASES)
every_mode = pytest.mark.parametrize("mode", MODES)


def build(case, mode="zeros", dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = SandwichConv2d(*CASES[case], padding_mode=mode, dtype=dtype, **options)
    with torch.no_grad():
        layer.log_psi.normal_()
    return layer


def cases(mode):
    return [case for case in CASES if not (mode == "circular" and case == "wide padding")]


def patterns(n, count=6):
    rng = np.random.default_rng(0)
    return [np.ones(n), *(rng.uniform(size=(count, n)) < 0.5), *rng.uniform(size=(2, n))]


def worst(s):
    return max(np.linalg.norm(s.C * S @ s.B, 2) for S in patterns(s.units))


def test_the_published_formula():
    layer = SandwichLinear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.log_psi.normal_()
    X = layer.weight.detach().mT
    U, V = X[:3], X[3:]
    Z = U - U.mT + V.mT @ V
    eye = torch.eye(3, dtype=torch.float64)
    inverse = torch.linalg.inv(eye + Z)
    At, Bt = inverse @ (eye - Z), -2 * V @ inverse
    psi = (LOG_RANGE * torch.tanh(layer.log_psi.detach() / LOG_RANGE)).exp()
    x = torch.randn(5, 4, dtype=torch.float64)
    h = torch.relu(math.sqrt(2) * (x @ Bt) / psi + layer.bias)
    torch.testing.assert_close(layer(x), math.sqrt(2) * (h * psi) @ At.mT, atol=1e-13, rtol=0)
    torch.testing.assert_close(At.mT @ At + Bt.mT @ Bt, eye, atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", [(5, 3), (3, 5), (4, 4), (70, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_dense_layers_for_every_pattern_of_units(size, dtype):
    for weights in WEIGHTS:
        layer = SandwichLinear(*size, dtype=dtype)
        draw(layer, weights)
        tolerance = ROUNDING if dtype == torch.float32 else 1e-12
        assert worst(layer.system()) <= 1 + tolerance, weights


@every_mode
def test_convolutions_for_every_pattern_of_units(mode):
    for case in cases(mode):
        for dtype, tolerance in ((torch.float32, 2 * ROUNDING), (torch.float64, 1e-12)):
            for weights in ("default", "huge", "zero", "rank one", "heavy tail", "constant"):
                layer = build(case, mode, dtype)
                draw(layer, weights)
                assert worst(layer.system(image=(4, 6))) <= 1 + tolerance, (case, weights)


@every_mode
def test_one_orthogonal_kernel(mode):
    """AA* + BB* as matrices: the identity on a torus, at most that with zeros."""
    for case in cases(mode):
        s = build(case, mode).system(image=(4, 6))
        psi = build(case, mode).witness()["Lam"].sqrt().detach().numpy()
        psi = np.repeat(psi, s.units // len(psi))
        A, B = s.C.T / psi[:, None] / math.sqrt(2), s.B * psi[:, None] / math.sqrt(2)
        values = np.linalg.eigvalsh(A @ A.T + B @ B.T)
        assert values.max() <= 1 + 1e-13, case
        assert mode == "zeros" or values.min() >= 1 - 1e-13, case


@every_case
@every_mode
def test_forward_is_the_system_on_images_of_any_size(case, mode):
    if case not in cases(mode):
        return
    layer = build(case, mode)
    for image in ((4, 6), (8, 12)) if mode == "circular" else ((4, 6), (5, 7), (7, 3)):
        x = torch.randn(2, layer.in_channels, *image, dtype=torch.float64)
        y = layer(x)
        s1, s2 = layer.stride
        assert y.shape[2:] == (-(-image[0] // s1), -(-image[1] // s2))
        exact = layer.system(image=image)(x.flatten(1))
        torch.testing.assert_close(y.flatten(1), torch.as_tensor(exact), atol=1e-12, rtol=0)
        torch.testing.assert_close(layer(x[0]), y[0])


@every_mode
def test_strides_see_blocks_as_channels(mode):
    """The same as a space-to-depth rearrangement before the layer with stride 1."""
    strided = build("stride 2", mode)
    blocks = SandwichConv2d(8, 5, 2, padding_mode=mode, dtype=torch.float64)
    for name, parameter in blocks.named_parameters():
        parameter.data.copy_(strided.get_parameter(name))
    x = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(strided(x), blocks(F.pixel_unshuffle(x, 2)), atol=1e-13, rtol=0)


@every_mode
def test_folded_layers_compute_the_same(mode):
    for case in cases(mode):
        layer = build(case, mode)
        folded = sdplip.fold(copy.deepcopy(layer))
        for image in ((8, 12), (4, 6)) if mode == "circular" else ((5, 7), (8, 6)):
            x = torch.randn(2, layer.in_channels, *image, dtype=torch.float64)
            torch.testing.assert_close(folded(x), layer(x), atol=1e-12, rtol=0)


def test_the_bound_is_nearly_attained():
    layer = SandwichConv2d(
        4, 4, 3, padding_mode="circular", activation="identity", dtype=torch.float64
    )
    assert 0.95 <= norm(applied(layer, (8, 8))) <= 1 + 1e-12


def test_psi_changes_the_map_and_stays_bounded():
    layer = SandwichLinear(4, 4, activation="tanh", dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    before = layer(x)
    with torch.no_grad():
        layer.log_psi += 1
    assert (layer(x) - before).abs().max() > 1e-3
    with torch.no_grad():
        layer.log_psi.fill_(1e6)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert layer.log_psi.grad.isfinite().all()
    assert layer.witness()["Lam"].max().item() == pytest.approx(math.exp(2 * LOG_RANGE))


@pytest.mark.parametrize("cls", [SandwichLinear, lambda *a, **k: SandwichConv2d(*a, 3, **k)])
def test_activations_outside_the_condition_are_refused(cls):
    with pytest.raises(InvalidInput, match="slope"):
        cls(3, 3, activation="leaky_relu(2)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_counted(dtype):
    for layer in (SandwichLinear(30, 20), SandwichConv2d(3, 4, 3, padding_mode="circular")):
        with torch.no_grad():
            layer.log_psi.normal_()
        layer = layer.to(dtype)
        s = layer.system(**({"image": (4, 4)} if isinstance(layer, SandwichConv2d) else {}))
        assert worst(s) <= layer.lipschitz
        assert 1 <= layer.lipschitz <= 1.2


def test_refusals():
    with pytest.raises(InvalidInput, match=r"dilation = 2 with stride = 2"):
        SandwichConv2d(3, 3, 3, 2, dilation=2)
    with pytest.raises(ShapeError, match="multiples of the stride"):
        build("stride 2", "circular")(torch.zeros(1, 2, 5, 6, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="another map"):
        build("stride 2").load_state_dict(build("1 stride 2").state_dict(), strict=False)
