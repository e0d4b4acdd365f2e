"""Normalize and the bound of a chain of layers."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import (
    AOLLinear,
    LBENLinear,
    NEMONLinear,
    Normalize,
    OrthogonalLinear,
    SLLLinear,
    fold,
    lipschitz_bound,
)
from sdplip.system import System


def test_normalize_is_what_it_says():
    layer = Normalize(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))
    x = torch.randn(3, 2)
    torch.testing.assert_close(layer(x), (x - layer.mean) / layer.std)
    torch.testing.assert_close(layer.system()(x), layer(x))
    assert layer.lipschitz == 2.0
    assert set(layer.state_dict()) == {"mean", "std"}


def test_normalize_with_scalars_takes_any_shape_and_needs_a_width_for_its_system():
    layer = Normalize(0.1307, 0.3081)
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(layer(x), (x - 0.1307) / 0.3081)
    torch.testing.assert_close(
        layer.system(5)(x[0, 0, :, :1].expand(4, 5)), layer(x)[0, 0, :, :1].expand(4, 5)
    )
    with pytest.raises(InvalidInput, match="input width"):
        layer.system()


def test_normalize_refuses_what_is_no_normalisation():
    with pytest.raises(InvalidInput, match="std has the entry 0"):
        Normalize(0.0, torch.tensor([1.0, 0.0]))
    with pytest.raises(InvalidInput, match="mean"):
        Normalize(math.nan, 1.0)
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        Normalize(torch.zeros(2), torch.ones(3))
    with pytest.raises(InvalidInput, match="of 3 features"):
        Normalize(torch.zeros(2), torch.ones(2)).system(3)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_bound_is_the_product(norm):
    first, last = nn.Linear(4, 6), nn.Linear(6, 3)
    model = nn.Sequential(
        nn.Flatten(), Normalize(0.0, 0.25), nn.Sequential(first, nn.Sigmoid()), nn.Identity(), last
    )
    expected = (
        4
        * 0.25
        * math.prod(
            torch.linalg.matrix_norm(layer.weight.double(), ord=norm).item()
            for layer in (first, last)
        )
    )
    assert 0 <= lipschitz_bound(model, norm) / expected - 1 <= 1e-11


def test_bound_holds_for_the_system_of_the_model():
    model = nn.Sequential(SLLLinear(5, 7), LBENLinear(5, 6, 4, gamma=0.5), nn.Linear(4, 3))
    J = torch.autograd.functional.jacobian(model, torch.randn(5))
    assert torch.linalg.matrix_norm(J, ord=2) <= lipschitz_bound(model) * (1 + 1e-6)
    x = torch.randn(4, 5)
    torch.testing.assert_close(System.from_module(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_module_used_twice_counts_twice():
    layer = nn.Linear(4, 4)
    once = lipschitz_bound(layer)
    assert abs(lipschitz_bound(nn.Sequential(layer, layer)) / once**2 - 1) <= 1e-12


def test_no_promise_in_this_norm():
    model = nn.Sequential(nn.Flatten(), NEMONLinear(4, 5, 3))
    with pytest.raises(InvalidInput, match=r'NEMONLinear \(at "1"\).*norm = 2.*sdplip.lipschitz'):
        lipschitz_bound(model)
    assert lipschitz_bound(model, math.inf) == model[1].lipschitz
    with pytest.raises(InvalidInput, match=r"SLLLinear.*norm = inf"):
        lipschitz_bound(SLLLinear(4), math.inf)


def test_unknown_modules_are_named_with_their_place():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)))
    with pytest.raises(InvalidInput, match=r'BatchNorm1d \(at "1.1"\) has no known constant'):
        lipschitz_bound(model)
    with pytest.raises(InvalidInput, match="GELU"):
        lipschitz_bound(nn.GELU())


def test_dropout_counts_in_evaluation_only():
    model = nn.Sequential(nn.Dropout(0.5))
    with pytest.raises(InvalidInput, match="Dropout"):
        lipschitz_bound(model)
    assert lipschitz_bound(model.eval()) == 1.0


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Skip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Negated(nn.Flatten):
    def forward(self, x):
        return -9 * x


@pytest.mark.parametrize(
    "module", [Doubled(3, 3), Skip(nn.Linear(3, 3)), Negated()], ids=lambda m: type(m).__name__
)
def test_a_subclass_with_its_own_forward_is_unknown(module):
    with pytest.raises(InvalidInput, match=rf'{type(module).__name__} \(at "0"\) has no known'):
        lipschitz_bound(nn.Sequential(module))


def test_a_subclass_with_the_same_forward_is_known():
    class Net(nn.Sequential):
        pass

    assert lipschitz_bound(Net(nn.ReLU(), nn.Flatten())) == 1.0


HOOKABLE = [nn.Sequential(), nn.Linear(3, 3), nn.ReLU(), nn.Flatten(), SLLLinear(3)]


@pytest.mark.parametrize("module", HOOKABLE, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_refused(module, kind):
    handle = getattr(module, kind)(lambda module, inputs, output=None: None)
    with pytest.raises(InvalidInput, match=rf'{type(module).__name__} \(at "1"\) has hooks'):
        lipschitz_bound(nn.Sequential(nn.Identity(), module))
    handle.remove()
    assert lipschitz_bound(nn.Sequential(nn.Identity(), module)) > 0


def test_parametrised_weights_count_and_stay_as_they_are():
    layer = parametrizations.spectral_norm(nn.Linear(5, 4))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    bound = lipschitz_bound(layer)
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    assert layer.training
    assert bound == lipschitz_bound(layer.eval())
    assert 0 <= bound / torch.linalg.matrix_norm(layer.weight.double(), ord=2).item() - 1 <= 1e-11


def test_norms_by_name():
    layer = nn.Linear(3, 2)
    assert lipschitz_bound(layer, norm="inf") == lipschitz_bound(layer, math.inf)
    assert lipschitz_bound(layer, norm="2") == lipschitz_bound(layer)
    with pytest.raises(InvalidInput, match="norm = 'fro'"):
        lipschitz_bound(layer, norm="fro")


def test_other_norms_and_broken_weights_are_refused():
    with pytest.raises(InvalidInput, match="norm = 1"):
        lipschitz_bound(nn.Linear(2, 2), 1)
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    with pytest.raises(InvalidInput, match="Linear: weight contains NaN"):
        lipschitz_bound(layer)


def test_a_declared_constant_is_taken():
    class Scale(nn.Module):
        lipschitz, norm = 3.0, 2

    assert lipschitz_bound(nn.Sequential(Scale(), Scale())) == 9.0
    for nonsense in (-1.0, math.nan):
        Scale.lipschitz = nonsense
        with pytest.raises(InvalidInput, match="Scale declares lipschitz = "):
            lipschitz_bound(Scale())


def test_a_constant_map_stays_one_behind_an_unbounded_layer():
    zero = nn.Linear(4, 2)
    with torch.no_grad():
        zero.weight.zero_()
    assert lipschitz_bound(nn.Sequential(LBENLinear(3, 5, 4, gamma=math.inf), zero)) == 0.0


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))])
def test_a_replaced_forward_is_refused(module):
    module.forward = lambda x: 100 * x
    with pytest.raises(InvalidInput, match="replaced forward"):
        lipschitz_bound(nn.Sequential(module))


# --- torch.nn on images ---


def matrix(module, shape):
    """The module's matrix on images of this shape, from the identity basis, in float64."""
    n = math.prod(shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    zero = module(torch.zeros(1, *shape, dtype=torch.float64))
    return (module(basis) - zero).detach().reshape(n, -1).mT


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3},
    {"kernel_size": (3, 5), "padding": "same"},
    {"kernel_size": (2, 5), "padding": (0, 2)},
    {"kernel_size": 3, "padding": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 4), "stride": (3, 2), "padding": 1},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 3, "dilation": (1, 2), "padding": 1},
    {"kernel_size": 3, "dilation": 2, "stride": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 1},
]
KERNELS = {
    "default": lambda K: K,
    "constant": torch.ones_like,
    "tiny": lambda K: K * 1e-200,
    "huge": lambda K: K * 1e200,
    "zero": torch.zeros_like,
    "one filter": lambda K: K * (torch.arange(len(K)) == 0)[:, None, None, None],
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_count_with_a_bound_for_every_image_size(options, mode, kernel):
    conv = nn.Conv2d(2, 4, padding_mode=mode, dtype=torch.float64, **options)
    with torch.no_grad():
        conv.weight.copy_(KERNELS[kernel](conv.weight))
    if mode == "circular" and options.get("padding") == 2 and options.get("dilation") is None:
        with pytest.raises(InvalidInput, match="repeats pixels, which expands"):
            lipschitz_bound(conv)
        return
    bound, linf = lipschitz_bound(conv), lipschitz_bound(conv, math.inf)
    scale = conv.weight.detach().abs().max().clamp(min=1e-300)
    with torch.no_grad():
        conv.weight.div_(scale)
    worst = 0.0
    for size in ((5, 5), (6, 7), (12, 12)):
        J = matrix(conv, (2, *size))
        worst = max(worst, torch.linalg.matrix_norm(J, ord=2).item())
        assert worst <= bound / scale * (1 + 1e-9)
        assert torch.linalg.matrix_norm(J, ord=math.inf) <= linf / scale * (1 + 1e-9)
    if mode == "zeros" and kernel == "default":
        assert bound / scale <= 1.25 * worst  # a 12 x 12 image nearly attains it


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions_count_with_the_norm_of_their_adjoint(stride):
    conv = nn.ConvTranspose2d(4, 6, 3, stride, 1, stride - 1, groups=2, dtype=torch.float64)
    for norm in (2, math.inf):
        J = matrix(conv, (4, 4, 5))
        found = lipschitz_bound(conv, norm)
        assert torch.linalg.matrix_norm(J, ord=norm) <= found * (1 + 1e-9)
        room = 1.4 if norm == 2 else stride**2 * (1 + 1e-11)
        assert found <= room * torch.linalg.matrix_norm(J, ord=norm)


def test_a_convolution_on_tori_keeps_its_bound_whatever_the_stride():
    """9 x 7 images do not consist of whole strides."""
    conv = nn.Conv2d(2, 2, 3, 2, 1, padding_mode="circular", dtype=torch.float64)
    with torch.no_grad():
        conv.weight.fill_(1.0)
    for size in ((9, 7), (8, 8), (3, 3)):
        assert matrix(conv, (2, *size)).svd().S.max() <= lipschitz_bound(conv) * (1 + 1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_that_repeats_pixels_is_refused(mode):
    """1.06 to 1.83 in public layers that accept it."""
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)
    with pytest.raises(InvalidInput, match=rf'Conv2d \(at "0"\): padding_mode = \'{mode}\''):
        lipschitz_bound(nn.Sequential(conv))
    assert lipschitz_bound(conv, math.inf) > 0
    assert lipschitz_bound(nn.Conv2d(1, 1, 3, padding_mode=mode)) > 0


def test_a_convolution_with_another_map_behind_forward_is_unknown():
    class Twice(nn.Conv2d):
        def _conv_forward(self, *arguments):
            return 2 * super()._conv_forward(*arguments)

    with pytest.raises(InvalidInput, match="replaces _conv_forward"):
        lipschitz_bound(Twice(1, 1, 1))
    conv = nn.Conv2d(1, 1, 1)
    conv._conv_forward = lambda *arguments: 0
    with pytest.raises(InvalidInput, match="replaced forward"):
        lipschitz_bound(conv)


POOLS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 1),
    nn.AvgPool2d((3, 2), 2, padding=1),
    nn.AvgPool2d(2, divisor_override=1),
    nn.AvgPool2d(4, 4, ceil_mode=True, divisor_override=4),
    nn.AdaptiveAvgPool2d(1),
    nn.PixelUnshuffle(2),
    nn.ZeroPad2d((1, 0, 2, -1)),
    nn.ConstantPad2d(1, 5.0),
]


@pytest.mark.parametrize("module", POOLS, ids=repr)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_pools_keep_their_constant(module, norm):
    J = matrix(module, (1, 8, 6))
    assert torch.linalg.matrix_norm(J, ord=norm) <= lipschitz_bound(module, norm) * (1 + 1e-12)


REFUSED = [
    (nn.AvgPool2d(2, ceil_mode=True), "divides windows at the border by less"),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), "divides windows at the border by less"),
    (nn.AdaptiveAvgPool2d((2, 1)), "windows may overlap"),
    (nn.MaxPool2d(2, return_indices=True), "also returns indices"),
    (nn.Flatten(0), "the samples of a batch"),
    (nn.Unflatten(0, (2, 2)), "the samples of a batch"),
    (nn.Flatten(-4), "dimension -4, the samples of a batch"),
    (nn.Unflatten(-4, (2, 2)), "dimension -4, the samples of a batch"),
    (nn.Dropout2d(), "in training"),
]


@pytest.mark.parametrize(("module", "reason"), REFUSED, ids=lambda x: repr(x)[:30])
def test_options_without_a_bound_are_refused(module, reason):
    with pytest.raises(InvalidInput, match=rf"{type(module).__name__} .*{reason}"):
        lipschitz_bound(module)


def test_an_image_is_flattened_from_its_first_dimension_on():
    for module in (nn.Flatten(), nn.Flatten(-3), nn.Flatten(2, -1), nn.Unflatten(-3, (2, 2))):
        assert lipschitz_bound(module) == 1.0


@pytest.mark.parametrize("use", [lipschitz_bound, fold], ids=lambda use: use.__name__)
def test_what_is_no_module_or_has_no_shapes_yet_is_refused(use):
    for model in (3, None, [nn.ReLU()], nn.ReLU):
        with pytest.raises(InvalidInput, match=rf"^{use.__name__}: the model is .* torch.nn"):
            use(model)
    model = nn.Sequential(nn.Sequential(nn.LazyLinear(3)), nn.ReLU()).eval()
    with pytest.raises(InvalidInput, match=r'LazyLinear \(at "0.0"\) has parameters without a sha'):
        use(model)
    with pytest.raises(InvalidInput, match="LazyConv2d has parameters without a shape"):
        use(nn.LazyConv2d(3, 3))
    model(torch.ones(1, 4))
    use(model)


def test_maxima_count_their_overlap():
    assert lipschitz_bound(nn.MaxPool2d(2, ceil_mode=True)) == 1.0
    assert lipschitz_bound(nn.MaxPool2d(3, 2)) == 2.0
    assert lipschitz_bound(nn.MaxPool2d(3, 2), math.inf) == 1.0


def test_a_plain_image_classifier_has_a_bound():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    bound = lipschitz_bound(model.eval())
    x = torch.randn(3, 8, 8, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], x).flatten(1)
    assert 0 < J.svd().S.max() <= bound


class _Doubled(OrthogonalLinear):
    def forward(self, x):
        return 2 * super().forward(x)


class _Declared(OrthogonalLinear):
    lipschitz = 2.0

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_with_another_forward_does_not_inherit_the_promise():
    with pytest.raises(InvalidInput, match="_Doubled replaces forward"):
        lipschitz_bound(_Doubled(3, 3))
    with pytest.raises(InvalidInput, match=r"_Doubled .* replaces forward"):
        fold(nn.Sequential(_Doubled(3, 3)))
    assert lipschitz_bound(_Declared(3, 3)) == 2
    # The constant is its own, but what it folds into is that of the other forward.
    with pytest.raises(InvalidInput, match=r"_Declared .* replaces forward"):
        fold(nn.Sequential(_Declared(3, 3)))


def test_a_negative_divisor_does_not_make_a_negative_constant():
    assert lipschitz_bound(nn.AvgPool2d(2, divisor_override=-1)) == 2


def test_constants_far_apart_do_not_multiply_to_zero():
    weights = [1e-200, 1e-200, 1e200, 1e200, 1e200]
    network = nn.Sequential(*[nn.Linear(1, 1, dtype=torch.float64) for _ in weights])
    with torch.no_grad():
        for layer, weight in zip(network, weights, strict=True):
            layer.weight.fill_(weight)
    assert lipschitz_bound(network) == pytest.approx(1e200)
    assert lipschitz_bound(network[:2]) > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(3, 3),
        lambda: nn.Conv2d(2, 2, 3),
        lambda: nn.ConvTranspose2d(2, 2, 3),
        lambda: AOLLinear(3, 3),
    ],
)
def test_complex_weights_have_no_bound(build):
    """The norm of their real parts is less."""
    module = build()
    module.weight = nn.Parameter(module.weight.detach() * (1 + 1j))
    with pytest.raises(InvalidInput, match="holds complex numbers"):
        lipschitz_bound(module)


class TenTimes(nn.Linear):
    def __call__(self, x):
        return 10 * super().__call__(x)


@pytest.mark.parametrize("claim", [lipschitz_bound, fold])
@pytest.mark.parametrize("build", [TenTimes, lambda *n: nn.Sequential(TenTimes(*n))])
def test_a_class_that_is_called_in_another_way_is_refused(build, claim):
    with pytest.raises(InvalidInput, match="replaced forward"):
        claim(build(3, 3))
