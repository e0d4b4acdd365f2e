"""What every convolution promises, for weights, geometries and states that break the public
implementations of them."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from conv_cases import (
    ACTIVATED,
    DTYPES,
    EQUILIBRIA,
    FEEDFORWARD,
    GEOMETRIES,
    HIDDEN,
    MODES,
    REFUSED,
    WEIGHTS,
    applied,
    draw,
    geometries,
    holds,
    make,
    matrix,
    norm,
    units_on,
)
from layer_cases import HALF
from torch import nn
from torch.func import functional_call, vmap

from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import CONVOLUTIONS

IMAGE = 4, 6
CASES = [
    pytest.param(family, geometry, id=f"{family}-{geometry}")
    for family in CONVOLUTIONS
    for geometry in geometries(family)
]
SOME = "default", "tight", "heavy tail", "huge", "zero"

every_family = pytest.mark.parametrize("family", CONVOLUTIONS)
feedforward = pytest.mark.parametrize("family", FEEDFORWARD)
every_mode = pytest.mark.parametrize("mode", MODES)
every_case = pytest.mark.parametrize(("family", "geometry"), CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def images(layer, size=IMAGE, count=2, **options):
    dtype = next(layer.parameters()).dtype
    return torch.randn(count, layer.in_channels, *size, dtype=dtype, **options)


def covering(family, geometry):
    """(weights, dtype, padding mode): all weights, those that differ most twice, and so that every
    two of them and a geometry meet; test_matrix.py has every three."""
    turns = list(itertools.product(DTYPES.values(), MODES))
    first = list(GEOMETRIES).index(geometry)
    for i, name in enumerate(WEIGHTS if family in FEEDFORWARD else SOME):
        turn = (first + i) % 4
        for chosen in (turn, 3 - turn) if name in SOME else (turn,):
            yield name, *turns[chosen]


def image(family):
    """Smaller for equilibria, one of which is found for every pixel and channel."""
    return IMAGE if family in FEEDFORWARD else (2, 3)


@every_case
def test_the_applied_operator_keeps_the_bound(family, geometry):
    """All units on, in forward as it is."""
    for name, dtype, mode in covering(family, geometry):
        layer = make(family, geometry, dtype=dtype, padding_mode=mode, **units_on(family))
        draw(layer, name)
        assert holds(layer.eval(), image(family)), (name, dtype, mode)


@pytest.mark.parametrize("family", EQUILIBRIA)
@every_mode
def test_exact_equilibria_keep_the_bound(family, mode):
    """Of the system that forward solves, for every pattern of units."""
    for geometry, name in itertools.product(("2", "3"), WEIGHTS if mode == "zeros" else SOME):
        if geometry not in geometries(family) or (geometry == "2" and name not in SOME):
            continue
        layer = make(family, geometry, dtype=torch.float64, channels=(2, 1), padding_mode=mode)
        draw(layer, name)
        s = layer.system(image=(2, 2))
        rng = np.random.default_rng(0)
        for S in (np.ones(s.units), *rng.uniform(size=(3, s.units)).round()):
            inner = np.linalg.solve(np.eye(s.units) - S[:, None] * s.A, S[:, None] * s.B)
            found = np.linalg.norm(s.D + s.C @ inner, layer.norm)
            assert found <= layer.lipschitz * (1 + 1e-12), (geometry, name)


@every_case
def test_output_and_gradients_are_finite(family, geometry):
    for name, dtype, mode in covering(family, geometry):
        layer = make(family, geometry, dtype=dtype, padding_mode=mode)
        draw(layer, name)
        x = images(layer, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.isfinite().all(), (name, dtype, mode)
        assert x.grad.isfinite().all(), (name, dtype, mode)
        for parameter, value in layer.named_parameters():
            assert value.grad.isfinite().all(), (name, dtype, mode, parameter)


@every_family
@every_mode
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 5), (3, 3), (8, 2)], ids=str)
def test_images_smaller_than_the_kernel(family, mode, size):
    """On a torus the kernel wraps around, and its taps add up."""
    weights, arguments = ("default",), [{"kernel_size": 3}, {"kernel_size": (5, 3)}]
    if family in FEEDFORWARD:
        weights = "default", "constant", "tight", "huge"
        arguments += [{"kernel_size": 3, "stride": 2}, {"kernel_size": 2, "stride": (1, 3)}]
    for geometry, name in itertools.product(arguments, weights):
        options = {"padding_mode": mode, **units_on(family)}
        layer = make(family, geometry, dtype=torch.float64, **options)
        draw(layer, name)
        try:
            assert holds(layer, size), (geometry, name)
        except ShapeError as error:
            assert geometry != {"kernel_size": 3}
            refused = "smaller than the stride", "with circular padding its"
            assert any(reason in str(error) for reason in refused)


@pytest.mark.parametrize("family", [n for n in ACTIVATED if n in FEEDFORWARD])
@pytest.mark.parametrize(
    ("geometry", "mode"),
    [("3", "zeros"), ("3 stride 2", "zeros"), ("3 groups 2", "circular"), ("2", "circular")],
)
def test_every_pattern_of_units_keeps_the_bound(family, geometry, mode):
    for name in ("default", "tight", "heavy tail", "constant", "huge"):
        options = {"hidden": 2} if family in HIDDEN else {}
        layer = make(family, geometry, dtype=torch.float64, padding_mode=mode, **options)
        draw(layer, name)
        s = layer.system(image=(4, 2))
        rng = np.random.default_rng(0)
        patterns = [np.ones(s.units), np.zeros(s.units), *(rng.uniform(size=(4, s.units)) < 0.5)]
        patterns += [*rng.uniform(size=(2, s.units))]
        worst = max(np.linalg.norm(s.D + s.C * S @ s.B, 2) for S in patterns)
        assert worst <= layer.lipschitz * (1 + 1e-12), name


@pytest.mark.parametrize("family", [n for n in ACTIVATED if n in FEEDFORWARD])
def test_a_large_bias_turns_all_units_on(family):
    """Differences of outputs, with ReLU: what identity as the activation stands for."""
    layer = make(family, dtype=torch.float64)
    draw(layer, "tight")
    linear = make(family, dtype=torch.float64, **units_on(family))
    linear.load_state_dict(layer.state_dict() | {"_extra_state": linear.get_extra_state()})
    with torch.no_grad():
        layer.bias.fill_(1e3)
        start = layer(torch.zeros(1, layer.in_channels, *IMAGE, dtype=torch.float64))
        M = matrix(lambda x: layer(x) - start, layer.in_channels, *IMAGE, dtype=torch.float64)
    torch.testing.assert_close(M, applied(linear, IMAGE), atol=1e-11, rtol=0)
    assert norm(M) <= 1 + 1e-11


@every_family
@every_mode
def test_forward_is_the_system(family, mode):
    for geometry in geometries(family):
        layer = make(family, geometry, dtype=torch.float64, padding_mode=mode)
        x = images(layer)
        y = layer(x).detach().flatten(1)
        exact = layer.system(image=IMAGE)(x.flatten(1))
        assert (y - exact).abs().max() <= 1e-10 * exact.abs().max(), geometry


@every_family
def test_training_and_evaluation_compute_the_same(family):
    for geometry in geometries(family):
        layer = make(family, geometry)
        x = images(layer)
        expected = layer.train()(x)
        layer.eval()
        with torch.no_grad():
            assert torch.equal(layer(x), expected)
            assert torch.equal(layer(x), expected)


@feedforward
@every_mode
@pytest.mark.parametrize("geometry", ["1", "3", "3 stride 2"])
def test_products_under_autocast_stay_close_to_the_bound(family, geometry, mode):
    """The closed form is left alone: what is left is the rounding of the products."""
    for name in WEIGHTS:
        layer = make(family, geometry, padding_mode=mode, **units_on(family))
        draw(layer, name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = norm(applied(layer, IMAGE))
        assert found <= 1 + HALF[layer.condition], name


@every_family
def test_autocast_leaves_the_closed_form_alone(family):
    """The official SLL convolution has constant 1.008 under bfloat16 autocast."""
    layer = make(family)
    x = images(layer)
    arguments = {} if family in FEEDFORWARD else {"image": IMAGE}
    expected, witness = layer(x), layer.witness(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, inside = layer(x), layer.witness(**arguments)
        y.float().sum().backward()
    assert all(torch.equal(inside[name], witness[name]) for name in witness)
    assert (y - expected).abs().max() <= 0.05 * expected.abs().max()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@feedforward
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("geometry", ["3", "3 stride 2", "3 groups 2"])
def test_half_precision_is_counted(family, geometry, dtype):
    """`lipschitz` is that of the rounded kernels, applied without further rounding."""
    for name in ("default", "tight", "heavy tail", "tiny"):
        layer = make(family, geometry, **units_on(family)).to(dtype)
        draw(layer, name)
        s = layer.system(image=(4, 2))
        M = s.D if s.units == 0 else s.D + s.C @ s.B
        assert np.linalg.norm(M, 2) <= layer.lipschitz * (1 + 1e-12), name
        assert 1 <= layer.lipschitz < 1.25, name


@every_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_stays_close(family, dtype):
    layer = make(family)
    x = images(layer)
    expected = layer(x)
    y = layer.to(dtype)(x.to(dtype))
    y.float().sum().backward()
    assert y.dtype == dtype
    assert (y - expected).abs().max() <= 0.05 * expected.abs().max()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@every_family
@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric", "Zeros", ""])
def test_padding_that_expands_is_refused(family, mode):
    """In two public libraries these have constants of 1.06 to 1.83 for a claim of 1."""
    with pytest.raises(InvalidInput, match=rf"{CONVOLUTIONS[family].__name__}: padding_mode = "):
        make(family, padding_mode=mode)


@every_family
def test_refused_geometries(family):
    known = geometries(family)
    assert set(known) >= {"1", "3", "5"}
    for geometry in REFUSED.get(family, ()):
        with pytest.raises(InvalidInput, match=CONVOLUTIONS[family].__name__):
            make(family, geometry)
    assert set(REFUSED.get(family, ())) <= GEOMETRIES.keys()


@every_family
@every_mode
def test_any_batch_and_memory_format(family, mode):
    layer = make(family, padding_mode=mode)
    x = images(layer, count=3)
    y = layer(x)
    out = y.shape[1:]
    assert layer(x[:0]).shape == (0, *out)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(layer(x[0]), y[0], **close)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), y, **close)
    torch.testing.assert_close(layer(x.mT.contiguous().mT), y, **close)
    torch.testing.assert_close(layer(x[:1].expand(3, -1, -1, -1)), y[:1].expand_as(y), **close)
    torch.testing.assert_close(layer(x[::2]), y[::2], **close)
    moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(x), y, **close)
    moved.eval()
    with torch.no_grad():
        torch.testing.assert_close(moved(x), y, **close)


@feedforward
@every_mode
def test_a_sample_that_is_not_a_number_leaves_its_neighbours_alone(family, mode):
    layer = make(family, padding_mode=mode, dtype=torch.float64)
    x = images(layer, count=3)
    expected = layer(x)
    x[1, 0, 1, 1] = math.nan
    y = layer(x)
    torch.testing.assert_close(y[[0, 2]], expected[[0, 2]], atol=1e-13, rtol=0)
    assert y[1].isnan().any()


@every_family
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_parameters_that_are_not_finite_are_named(family, value):
    for name in dict(make(family).named_parameters()):
        layer = make(family)
        with torch.no_grad():
            layer.get_parameter(name).view(-1)[0] = value
        for use in (lambda layer: layer.lipschitz, lambda layer: layer.system(image=IMAGE)):
            with pytest.raises(InvalidInput, match=f"{type(layer).__name__}: {name} contains NaN"):
                use(layer)


@feedforward
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_forward_with_weights_that_are_not_finite_gives_nan(family, value):
    for name, p in make(family, bias=False).named_parameters():
        if p.ndim < 4 and value == math.inf:  # logarithms of weights saturate
            continue
        layer = make(family, bias=False)
        with torch.no_grad():
            layer.get_parameter(name).view(-1)[0] = value
        assert layer(images(layer)).isnan().any(), name


@every_family
@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 5, 4, 4), (5, 4, 4), (1, 2, 4, 4, 4)], ids=str)
def test_wrong_input_is_named(family, shape):
    with pytest.raises(ShapeError, match=f"{CONVOLUTIONS[family].__name__}.*in_channels = 4"):
        make(family)(torch.zeros(shape))


@every_family
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.complex64], ids=str)
def test_input_that_is_not_floating_point_is_refused(family, dtype):
    with pytest.raises(InvalidInput, match=f"input is {dtype}.*floating-point"):
        make(family)(torch.ones(1, 4, *IMAGE, dtype=dtype))


@every_family
def test_meta_device(family):
    layer = make(family, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert type(layer).__name__ in repr(layer)
    x = torch.empty(2, 4, *IMAGE, device="meta")
    if family in EQUILIBRIA:
        with pytest.raises(InvalidInput, match="meta"):
            layer(x)
    else:
        assert layer(x).shape == make(family)(torch.zeros(2, 4, *IMAGE)).shape
        with torch.no_grad():
            assert layer.eval()(x).is_meta
    with pytest.raises(InvalidInput, match="meta device and has no values"):
        _ = layer.lipschitz
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(2, 4, *IMAGE)).isfinite().all()


@every_family
def test_checkpoints_are_strict(family, tmp_path):
    layer = make(family)
    x = images(layer)
    layer(x).sum().backward()
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    fresh = make(family)
    fresh.apply(lambda m: m.reset_parameters())
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert torch.equal(fresh(x), layer(x))
    others = [{"kernel_size": 3, "padding_mode": "circular"}]
    if family in FEEDFORWARD:
        others.append({"kernel_size": 3, "padding": 0})
    for arguments in others:
        other = make(family, arguments)
        with pytest.raises(InvalidInput, match="another map"):
            other.load_state_dict(layer.state_dict())


@every_family
def test_functional_call_uses_the_given_parameters(family):
    layer = make(family)
    other = {n: p.detach() * 1.5 + 0.1 for n, p in layer.named_parameters()}
    x = images(layer)
    for training in (True, False):
        layer.train(training)
        with torch.no_grad():
            own = layer(x)
            y = functional_call(layer, other, (x,))
            assert torch.equal(layer(x), own)
        fresh = make(family)
        fresh.load_state_dict({**layer.state_dict(), **other})
        # Equilibria are found from another start, with another step.
        close = 0 if family in FEEDFORWARD else 1e-5
        torch.testing.assert_close(y, fresh(x), rtol=close, atol=close)


@feedforward
def test_an_ensemble_by_vmap(family):
    """Parameters of several layers, stacked; also in evaluation, where a cache could interfere."""
    layers = [make(family, dtype=torch.float64) for _ in range(3)]
    for layer in layers:
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(0.2 * torch.randn_like(p))
    x = images(layers[0])
    names = dict(layers[0].named_parameters())
    stacked = {n: torch.stack([dict(m.named_parameters())[n] for m in layers]) for n in names}
    expected = torch.stack([layer(x) for layer in layers]).detach()
    for training, gradient in itertools.product((True, False), (True, False)):
        host = make(family, dtype=torch.float64).train(training)
        with torch.set_grad_enabled(gradient):
            host(x)
            found = vmap(lambda p, host=host: functional_call(host, p, (x,)))(stacked)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@feedforward
def test_gradients_are_those_of_the_map(family):
    for geometry in [g for g in ("2", "3 stride 2", "3 groups 2") if g in geometries(family)]:
        options = {"activation": "tanh"} if family in ACTIVATED else {}
        layer = make(family, geometry, dtype=torch.float64, channels=(2, 4), **options)
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(0.1 * torch.randn_like(p))
        parameters = dict(layer.named_parameters())
        x = torch.randn(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)

        def f(x, *values, layer=layer, names=tuple(parameters)):
            return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        inputs = (x, *parameters.values())
        assert torch.autograd.gradcheck(f, inputs, atol=1e-6, fast_mode=True), geometry


@every_family
def test_duplicates_and_zero_weights_train(family):
    """The official layers have NaN gradients once one filter is zero: 8 of 16 published runs of
    two families ended at chance."""
    for name in ("duplicates", "zero row", "zero", "tiny"):
        layer = make(family)
        draw(layer, name)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        x = images(layer)
        for _ in range(3):
            optimizer.zero_grad()
            (layer(x) - 1).square().mean().backward()
            optimizer.step()
        assert all(p.isfinite().all() for p in layer.parameters()), name
        assert layer(x).isfinite().all(), name


def test_channels_that_groups_do_not_divide():
    for family in FEEDFORWARD:
        with pytest.raises(InvalidInput, match="groups = 3, but must divide"):
            make(family, {"kernel_size": 3, "groups": 3}, channels=(4, 5))


@every_family
def test_lipschitz_is_a_finite_float(family):
    layer = make(family)
    assert isinstance(layer.lipschitz, float)
    assert 0 < layer.lipschitz < math.inf
    assert isinstance(nn.Sequential(layer)[0].norm, (int, float))
