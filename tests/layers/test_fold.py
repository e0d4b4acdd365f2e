"""Folded networks: the same outputs from plain modules."""

import copy
import math

import pytest
import torch
from layer_cases import EXTREMES, OPTIONS, make, put, variants
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from sdplip.activations import ACTIVATIONS
from sdplip.errors import InvalidInput, NotConverged, ShapeError
from sdplip.layers import (
    CONVOLUTIONS,
    LAYERS,
    AOLConvTranspose2d,
    AOLLinear,
    LBENLinear,
    NEMONLinear,
    SLLLinear,
)
from sdplip.layers._state import pack, unpack
from sdplip.layers._unrolled import MAX_STEPS, FoldedEquilibrium, Unrolled
from sdplip.layers.basic import Normalize, Scale
from sdplip.layers.containers import Concatenate, ConvexResidual, Residual
from sdplip.layers.custom import ClosedFormResidual
from sdplip.layers.folding import fold
from sdplip.layers.head import NormalizedLinear
from sdplip.layers.pooling import AvgPool2d
from sdplip.layers.shaping import ChannelPad, SpaceToDepth
from sdplip.layers.sorting import MaxMin

VARIANTS = dict(variants())
PLAIN = (
    nn.Linear,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Sequential,
    Residual,
    FoldedEquilibrium,
    Unrolled,
)
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
RESIDUAL = [name for name, cls in LAYERS.items() if cls.condition == "residual"]
EQUILIBRIA = [name for name, cls in LAYERS.items() if hasattr(cls, "solve")]


def agrees(folded, model, x, relative=None):
    expected, found = model.eval()(x), folded(x)
    allowed = (relative or EXACT[x.dtype]) * expected.detach().abs().max()
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= allowed


@pytest.mark.parametrize("dtype", EXACT, ids=["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_becomes_plain_modules_with_the_same_outputs(variant, dtype):
    layer = VARIANTS[variant](dtype)
    folded = fold(layer, tol=1e-7 if dtype == torch.float32 else 1e-13)
    agrees(folded, layer, torch.randn(2, 3, layer.in_features, dtype=dtype))
    kinds = {type(m) for m in folded.modules()}
    assert all(kind in PLAIN or kind.__module__.startswith("torch.nn.") for kind in kinds)
    assert not any(p.requires_grad for p in folded.parameters())
    assert not folded.training


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("family", LAYERS)
def test_extreme_weights_fold_or_are_refused(family, extreme):
    layer = make(LAYERS[family], dtype=torch.float64)
    put(layer, extreme)
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    try:
        folded = fold(layer, tol=1e-13)
    except InvalidInput as error:
        assert hasattr(layer, "solve") and f"more than {MAX_STEPS} steps" in str(error)
        return
    agrees(folded, layer, x, 1e-9)


@pytest.mark.parametrize("sigma", [*ACTIVATIONS, "leaky_relu(0.3)"])
@pytest.mark.parametrize("family", [*RESIDUAL, *EQUILIBRIA])
def test_every_activation(family, sigma):
    layer = make(LAYERS[family], dtype=torch.float64, activation=sigma)
    x = 3 * torch.randn(20, layer.in_features, dtype=torch.float64)
    agrees(fold(layer, tol=1e-14), layer, x, 1e-11)


GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": 2},
    {"kernel_size": (5, 2)},
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 4, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 2, "stride": (3, 2)},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "bias": False},
]


FEEDFORWARD = [name for name, cls in CONVOLUTIONS.items() if not hasattr(cls, "solve")]


def images(height=12, width=6):
    return torch.randn(2, 4, height, width, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("family", FEEDFORWARD)
def test_convolutions(family, options, mode):
    try:
        layer = CONVOLUTIONS[family](4, 4, padding_mode=mode, dtype=torch.float64, **options)
    except InvalidInput:  # a geometry for which the family has no proof
        return
    folded = fold(layer)
    for x in (images(), images(24, 12)):
        agrees(folded, layer, x, 1e-11)
    agrees(folded, layer, images()[0], 1e-11)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_transposed_convolutions(options, mode):
    if "padding" in options:  # the layer then takes no image without output_size
        return
    layer = AOLConvTranspose2d(4, 4, padding_mode=mode, dtype=torch.float64, **options)
    agrees(fold(layer), layer, images())


def test_transposed_convolutions_that_need_a_size_are_refused():
    layer = AOLConvTranspose2d(4, 4, 5, stride=2, padding=0)
    with pytest.raises(InvalidInput, match="no image of stride times the size"):
        fold(layer)


def network():
    return nn.Sequential(
        Normalize((0.1, 0.2), 0.5, dim=-3),
        ChannelPad(4),
        SpaceToDepth(),
        MaxMin(),
        AvgPool2d(2),
        nn.Flatten(),
        Residual(SLLLinear(16), nn.Sequential(AOLLinear(16, 16), nn.Dropout(0.5))),
        Concatenate(ConvexResidual(AOLLinear(16, 16)), LBENLinear(16, 5, 4), dim=-1),
        parametrizations.spectral_norm(nn.Linear(20, 6)),
        Scale(3.0),
        NormalizedLinear(6, 3),
    )


def test_a_network_folds_and_is_left_as_it_was():
    model = network()
    state = copy.deepcopy(model.state_dict())
    folded = fold(model, tol=1e-7)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert isinstance(model[6].f, SLLLinear)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    agrees(folded, model, torch.rand(5, 2, 4, 4))
    assert isinstance(folded[6].skip[0], nn.Linear)
    assert type(folded[8]) is nn.Linear


def test_a_module_used_twice_is_folded_once():
    layer = AOLLinear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    folded = fold(model)
    assert folded[0] is folded[2]
    agrees(folded, model, torch.randn(3, 4))


class Own(nn.Module):
    def forward(self, x):
        return x


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Own(), r'Own \(at "1.0"\) is not known'),
        (hooked(nn.ReLU()), r'ReLU \(at "1.0"\) has hooks'),
        (hooked(AOLLinear(3, 3)), r'AOLLinear \(at "1.0"\) has hooks'),
    ],
    ids=["unknown", "hook", "layer with hook"],
)
def test_what_folding_cannot_keep_is_named(module, message):
    with pytest.raises(InvalidInput, match=message):
        fold(nn.Sequential(nn.Identity(), nn.Sequential(module)))


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_spectral_norm_by_hook_is_refused():
    with pytest.raises(InvalidInput, match="Linear has hooks"):
        fold(spectral_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize("family", LAYERS)
def test_layers_without_a_value_are_refused(family):
    layer = make(LAYERS[family])
    with torch.no_grad():
        next(layer.parameters()).view(-1)[0] = math.nan
    with pytest.raises(InvalidInput, match="contains NaN or Inf"):
        fold(nn.Sequential(layer))
    with pytest.raises(InvalidInput, match="meta device"):
        fold(make(LAYERS[family], device="meta"))


@pytest.mark.parametrize("family", LAYERS)
def test_half_precision(family):
    layer = make(LAYERS[family]).to(torch.bfloat16)
    x = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
    agrees(fold(layer), layer, x, 0.03)


class Handmade(ClosedFormResidual):
    free = {"V": ("features", "hidden")}  # noqa: RUF012

    @staticmethod
    def closed_form(V):
        W = V / torch.linalg.matrix_norm(V, ord=2)
        H = 0.5 * torch.eye(len(V), dtype=V.dtype)
        return {"H": H, "G": W / 2, "W": W, "Lam": V.new_ones(V.shape[1]), "rho": V.new_ones(())}


def test_layers_by_closed_form_fold():
    layer = Handmade(5, 4, 5, dtype=torch.float64)
    agrees(fold(layer), layer, torch.randn(3, 5, dtype=torch.float64))


class Unfoldable(AOLLinear):
    _folded = None

    def _system(self):
        raise InvalidInput("no system")


def test_layers_of_which_only_the_system_is_known():
    class Known(SLLLinear):
        _folded = None

    layer = Known(5, 4, dtype=torch.float64)
    agrees(fold(layer), layer, torch.randn(3, 5, dtype=torch.float64))
    with pytest.raises(InvalidInput, match=r'Unfoldable \(at "0"\) is not known and gives no'):
        fold(nn.Sequential(Unfoldable(3, 3)))


# --- equilibria ---


def iterates(folded, x, steps):
    """u_0, …, u_steps and v, written out."""
    v = folded.drive(x)
    start = v @ folded.inner.V.mT
    found = [start]
    for _ in range(steps):
        z = folded.inner.sigma.resolvent(found[-1], folded.inner.step)
        found.append((2 * z - found[-1]) @ folded.inner.R.mT + start)
    return found, v


@pytest.mark.parametrize("family", EQUILIBRIA)
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_the_steps_without_samples_are_enough_for_every_input(family, tol):
    """‖u_k - u*‖_Λ ≤ tol·‖u_0 - u*‖_Λ, which bounds the distance of z as well."""
    for options in OPTIONS.get(family, [{}]):
        layer = make(LAYERS[family], dtype=torch.float64, **options)
        folded = fold(layer, tol=tol)
        inner = folded.inner
        assert 0 < inner.rate < 1
        x = torch.randn(200, layer.in_features, dtype=torch.float64)
        x[:100] *= 1e3
        layer.tol = 1e-14
        z = layer.solve(x).z
        root = layer._metric(layer._tensors()).detach().sqrt()
        found, v = iterates(folded, x, inner.steps)
        limit = z + inner.step * (z @ inner.A.mT + v - z)  # of u: z = J(u) for ReLU
        far, near = (((u - limit) * root).norm(dim=-1) for u in (found[0], found[-1]))
        assert (near <= tol * far * (1 + 1e-6) + 1e-11 * far).all()
        expected = folded.read(found[-1].relu())
        if layer.feedthrough:
            expected = expected + folded.direct(x)
        torch.testing.assert_close(folded(x), expected)


@pytest.mark.parametrize("family", EQUILIBRIA)
def test_with_samples_as_many_steps_as_these_need(family):
    layer = make(LAYERS[family], dtype=torch.float64)
    x = torch.randn(50, layer.in_features, dtype=torch.float64)
    folded = fold(nn.Sequential(nn.Identity(), layer), x, tol=1e-8)[1]
    steps = folded.inner.steps
    assert 1 < steps <= fold(layer, tol=1e-8).inner.steps + 10
    found, v = iterates(folded, x, steps)

    def residual(u):
        z = u.relu()
        defect = (z - (z @ folded.inner.A.mT + v).relu()).norm(dim=-1)
        return (defect / (1 + z.norm(dim=-1))).max()

    assert residual(found[-1]) <= 1e-8 < residual(found[-2])
    assert not folded._forward_pre_hooks


@pytest.mark.parametrize("family", EQUILIBRIA)
def test_a_sample_with_nan_leaves_the_others_alone(family):
    layer = make(LAYERS[family])
    x = torch.randn(6, layer.in_features)
    broken = x.clone()
    broken[2, 0], broken[4, 1] = math.nan, math.inf
    for folded in (fold(layer), fold(layer, broken)):
        y = folded(broken)
        assert y[2].isnan().all() and not y[4].isfinite().any()
        torch.testing.assert_close(y[[0, 1, 3, 5]], folded(x)[[0, 1, 3, 5]])
        assert y[[0, 1, 3, 5]].isfinite().all()


def test_slow_equilibria_are_refused_or_measured():
    layer = LBENLinear(4, 6, 3, gamma=math.inf, eps=1e-6, dtype=torch.float64)
    with torch.no_grad():
        layer.S.mul_(1e5)
        layer.V.mul_(1e-3)
    with pytest.raises(InvalidInput, match=rf"more than {MAX_STEPS} steps.*Give samples"):
        fold(layer)
    with pytest.raises(NotConverged, match=rf"after {MAX_STEPS} steps a sample has the residual"):
        fold(layer, torch.randn(3, 4, dtype=torch.float64), tol=1e-12)


@pytest.mark.parametrize("tol", [0.0, -1.0, 1.0, math.nan])
def test_a_tolerance_that_is_none_is_refused(tol):
    with pytest.raises(InvalidInput, match="fold: tol = "):
        fold(nn.Identity(), tol=tol)


def test_precision_follows_the_tolerance():
    layer = NEMONLinear(4, 5, 3)
    assert fold(layer, tol=1e-4).inner.A.dtype == torch.float32
    assert fold(layer, tol=1e-9).inner.A.dtype == torch.float64
    assert fold(layer, tol=1e-9)(torch.randn(2, 4)).dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"padding_mode": "circular", "readout": "pool"}], ids=str)
@pytest.mark.parametrize("family", [n for n, c in CONVOLUTIONS.items() if hasattr(c, "solve")])
def test_equilibrium_convolutions_fold_for_one_size(family, options):
    layer = CONVOLUTIONS[family](2, 4, 3, 3, dtype=torch.float64, **options)
    layer.tol = 1e-13
    model = nn.Sequential(layer, nn.ReLU())
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    folded = fold(model, x, tol=1e-13)
    agrees(folded, model, x, 1e-10)
    agrees(folded[0], layer, x[0], 1e-10)
    broken = x.clone()
    broken[1, 0, 2, 2] = math.nan
    torch.testing.assert_close(folded(broken)[[0, 2]], folded(x)[[0, 2]])
    with pytest.raises(ShapeError, match="folded for 6 x 5"):
        folded(x[..., :4, :])
    with pytest.raises(InvalidInput, match=r"one size of images\. Give samples"):
        fold(model)


CASTS = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "to float64": lambda m: m.to(torch.float64),
    "to float32": lambda m: m.to(torch.float32),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_neither_rounds_the_iteration_nor_drops_imaginary_parts(cast):
    """Module.to(torch.float64) takes the real parts of symbols, which gives another map."""
    for layer in (LBENLinear(4, 6, 3), NEMONLinear(4, 6, 3), *equilibrium_convolutions()):
        x = torch.randn(3, *((2, 6, 5) if hasattr(layer, "geometry") else (4,)))
        layer.tol = 1e-7
        folded = fold(layer, x, tol=1e-8)
        steps, precision = folded.inner.steps, folded.inner.A.dtype
        assert precision in (torch.float64, torch.complex128)
        moved = CASTS[cast](copy.deepcopy(folded))
        assert (moved.inner.steps, moved.inner.A.dtype) == (steps, precision)
        for dtype in (torch.float32, torch.float64, torch.float16):
            y = moved(x.to(dtype))
            close = 1e-2 if cast == "half" or dtype == torch.float16 else 1e-5
            assert y.dtype == dtype
            torch.testing.assert_close(y, folded(x).to(dtype), rtol=close, atol=close)


def equilibrium_convolutions():
    for cls in CONVOLUTIONS.values():
        if hasattr(cls, "solve"):
            yield cls(2, 4, 2, 3)


def test_one_convolution_for_two_sizes_of_images_is_refused():
    for layer in equilibrium_convolutions():
        with pytest.raises(InvalidInput, match=r"for images of 6 x 4 and of 3 x 2, but folded"):
            fold(nn.Sequential(layer, AvgPool2d(2), layer), torch.randn(3, 2, 6, 4))
        model = nn.Sequential(layer, AvgPool2d(2), copy.deepcopy(layer))
        layer.tol = model[2].tol = 1e-6
        x = torch.randn(3, 2, 6, 4)
        agrees(fold(model, x), model, x, 1e-4)


@pytest.mark.parametrize("count", [0, 2])
def test_samples_of_which_none_is_finite_are_refused(count):
    with pytest.raises(InvalidInput, match="fold: no sample is finite"):
        fold(nn.Sequential(LBENLinear(4, 6, 3)), torch.full((count, 4), math.nan))
    with pytest.raises(InvalidInput, match="fold: no sample is finite"):
        fold(CONVOLUTIONS["lben"](2, 4, 3, 3), torch.full((count, 2, 5, 5), math.nan))


@pytest.mark.parametrize("family", EQUILIBRIA)
def test_the_state_of_a_folded_equilibrium_says_all_of_it(family):
    def folded(tol, scale, sigma="relu"):
        torch.manual_seed(int(scale))
        layer = make(LAYERS[family], dtype=torch.float64, activation=sigma)
        with torch.no_grad():
            for p in layer.parameters():
                p.mul_(scale)
        return fold(layer, tol=tol)

    source, target = folded(1e-10, 1.0), folded(1e-2, 3.0)
    x = torch.randn(7, source.drive.in_features, dtype=torch.float64)
    assert target.inner.steps != source.inner.steps and target.inner.step != source.inner.step
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x)) and target.inner.rate == source.inner.rate
    with pytest.raises(InvalidInput, match=r"activation = 'relu'.*activation = 'tanh'"):
        folded(1e-2, 1.0, "tanh").load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"steps": 10**9}, {"steps": 2.5}, {"steps": True}, {"step": -1.0}]
)
def test_a_state_that_no_fold_writes_is_refused(changes):
    folded = fold(LBENLinear(4, 6, 3))
    state = folded.state_dict()
    state["inner._extra_state"] = pack(unpack("", state["inner._extra_state"]) | changes)
    with pytest.raises(InvalidInput, match=rf"Unrolled: {next(iter(changes))} = "):
        folded.load_state_dict(state)


def test_the_state_of_a_folded_convolution_is_of_one_size():
    def folded(width, tol, seed):
        torch.manual_seed(seed)
        layer = CONVOLUTIONS["lben"](2, 4, 3, 3, dtype=torch.float64, padding_mode="circular")
        return fold(layer, torch.randn(3, 2, 6, width, dtype=torch.float64), tol=tol)

    source, target = folded(4, 1e-9, 0), folded(4, 1e-3, 1)
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    assert torch.equal(target(x), source(x)) and target.inner.steps == source.inner.steps
    # The symbols of rfft2 have the same shape for widths 4 and 5.
    with pytest.raises(InvalidInput, match=r"image = '6 x 4'.*image = '6 x 5'"):
        folded(5, 1e-3, 1).load_state_dict(source.state_dict())
