"""What every layer family promises, for parameters that break the public implementations."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from layer_cases import DTYPES, EXTREMES, HALF, SHAPES, make, put, variants
from torch.func import functional_call

from sdplip import conditions
from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import LAYERS, ROUNDING

VARIANTS = dict(variants())
TOLERANCE = {torch.float32: ROUNDING, torch.float64: 1e-12}
FEEDFORWARD = [name for name, cls in LAYERS.items() if not hasattr(cls, "solve")]

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_family = pytest.mark.parametrize("family", LAYERS)
every_extreme = pytest.mark.parametrize("extreme", EXTREMES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def jacobians(layer, count=6):
    """∂y/∂x (count, p, m) of forward at random points, in float64."""
    x = torch.randn(count, layer.in_features, dtype=next(layer.parameters()).dtype)
    total = torch.autograd.functional.jacobian(lambda x: layer(x).sum(dim=0), x)
    return total.movedim(1, 0).double()


def operator_norm(J, norm):
    return torch.linalg.matrix_norm(J, ord=norm).max().item()


@every_dtype
@every_extreme
@every_variant
def test_output_and_gradients_are_finite(variant, extreme, dtype):
    layer = VARIANTS[variant](dtype)
    put(layer, extreme)
    x = torch.randn(4, layer.in_features, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name


@every_dtype
@every_extreme
@every_variant
def test_jacobians_keep_the_bound(variant, extreme, dtype):
    layer = VARIANTS[variant](dtype).eval()
    put(layer, extreme)
    for bias in ("bias", "out_bias"):
        if getattr(layer, bias, None) is not None:
            setattr(layer, bias, None)
    worst = operator_norm(jacobians(layer), layer.norm)
    assert worst <= layer.lipschitz * (1 + TOLERANCE[dtype])


@every_dtype
@every_extreme
@every_variant
def test_system_keeps_the_bound_for_every_pattern_of_units(variant, extreme, dtype):
    layer = VARIANTS[variant](dtype)
    put(layer, extreme)
    s = layer.system()
    rng = np.random.default_rng(0)
    n = s.units
    patterns = [
        np.ones(n),
        np.zeros(n),
        *(rng.uniform(size=(20, n)) < 0.5),
        *rng.uniform(size=(5, n)),
    ]
    worst = max(
        np.linalg.norm(
            s.D + s.C @ np.linalg.solve(np.eye(n) - S[:, None] * s.A, S[:, None] * s.B), layer.norm
        )
        for S in patterns
    )
    assert worst <= layer.lipschitz * (1 + TOLERANCE[dtype])


@every_dtype
@every_extreme
@every_variant
def test_witness_satisfies_its_condition(variant, extreme, dtype):
    layer = VARIANTS[variant](dtype)
    put(layer, extreme)
    condition = getattr(conditions, layer.condition)
    witness = {k: v.detach().double().numpy() for k, v in layer.witness().items()}
    values = {name: witness[name] for name in condition.symbols}
    scale = np.abs(condition(**values)).max() + np.abs(values.get("rho", 0.0)).max()
    assert condition.margin(**values) >= -TOLERANCE[dtype] * scale


@every_dtype
@every_variant
def test_forward_is_the_system(variant, dtype):
    layer = VARIANTS[variant](dtype)
    x = torch.randn(2, 3, layer.in_features, dtype=dtype)
    y = layer(x).detach().double()
    exact = layer.system()(x.double())
    relative = 1e-5 if dtype == torch.float32 else 1e-10
    assert (y - exact).abs().max() <= relative * exact.abs().max()


@every_family
def test_bound_holds_right_after_a_large_change_of_the_weights(family):
    """CPL's and spectral norm's power iterations lag behind: 1.2 to 17 in the public code."""
    layer = make(LAYERS[family], dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        layer(torch.randn(3, layer.in_features, dtype=torch.float64))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(50).add_(torch.randn_like(parameter))
        assert operator_norm(jacobians(layer), layer.norm) <= layer.lipschitz * (1 + 1e-12)


@every_family
def test_training_and_evaluation_compute_the_same(family):
    layer = make(LAYERS[family])
    x = torch.randn(3, layer.in_features)
    assert torch.equal(layer.train()(x), layer.eval()(x))


@every_family
def test_witness_is_differentiable(family):
    layer = make(LAYERS[family], dtype=torch.float64)
    sum(value.sum() for value in layer.witness().values()).backward()
    grads = {n: p.grad for n, p in layer.named_parameters() if "bias" not in n}
    assert all(g is not None and g.isfinite().all() for g in grads.values())


@every_family
def test_gradients_are_those_of_the_map(family):
    layer = make(LAYERS[family], shape="wide", dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parameters = dict(layer.named_parameters())
    x = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)

    def f(x, *values):
        return functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, (x, *parameters.values()), atol=1e-6)


@every_family
def test_copies_and_checkpoints_are_the_same_layer(family, tmp_path):
    """After a training step, when the public equilibrium modules can be neither."""
    layer = make(LAYERS[family])
    x = torch.randn(3, layer.in_features)
    layer(x).sum().backward()
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    fresh = make(LAYERS[family])
    fresh.apply(lambda m: m.reset_parameters())
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert torch.equal(fresh(x), expected)


@every_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_stays_close(family, dtype):
    layer = make(LAYERS[family])
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    y = layer.to(dtype)(x.to(dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert (y - expected).abs().max() <= 0.05 * expected.abs().max()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert all(w.dtype == torch.float32 for w in layer.witness().values())


@every_family
def test_autocast_leaves_the_closed_form_alone(family):
    """The official SLL convolution has constant 1.008 under bfloat16 autocast."""
    layer = make(LAYERS[family])
    x = torch.randn(3, layer.in_features)
    expected, witness = layer(x), layer.witness()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, inside = layer(x), layer.witness()
        y.sum().backward()
    assert all(torch.equal(inside[name], witness[name]) for name in witness)
    assert (y - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("family", FEEDFORWARD)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_under_autocast_stay_close_to_the_bound(family, shape):
    """All units on. The closed form is left alone: what is left is the rounding of the products."""
    cls = LAYERS[family]
    options = (
        {"activation": "identity"} if "activation" in inspect.signature(cls).parameters else {}
    )
    for extreme in EXTREMES:
        layer = make(cls, shape, bias=False, **options)
        put(layer, extreme)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            M = layer(torch.eye(layer.in_features)).double().mT
        assert operator_norm(M, 2) <= 1 + HALF[layer.condition], extreme


@every_family
def test_double_and_back_is_the_layer_in_double(family):
    layer = make(LAYERS[family])
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    if hasattr(layer, "tol"):
        layer.tol = 1e-12
    y = layer.double()(x.double())
    assert y.dtype == torch.float64
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


@every_family
def test_functional_call_uses_the_given_parameters(family):
    layer = make(LAYERS[family])
    other = {n: p.detach() + 0.5 for n, p in layer.named_parameters()}
    x = torch.randn(3, layer.in_features)
    y = functional_call(layer, other, (x,))
    layer.load_state_dict({**layer.state_dict(), **other})
    close = 0 if family in FEEDFORWARD else 1e-5  # a solver looks at its residual at other times
    torch.testing.assert_close(y, layer(x), rtol=close, atol=close)


@every_family
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)], ids=str)
def test_any_batch_shape(family, batch):
    layer = make(LAYERS[family])
    x = torch.randn(*batch, layer.in_features)
    y = layer(x)
    assert y.shape == (*batch, layer.out_features)
    if batch:
        rows = [layer(row) for row in x.reshape(-1, layer.in_features)]
        alone = torch.stack(rows) if rows else y
        torch.testing.assert_close(y.reshape(alone.shape), alone)


@every_family
@pytest.mark.parametrize("shape", [(3, 4), (4,), ()], ids=str)
def test_wrong_input_is_named(family, shape):
    layer = make(LAYERS[family])
    with pytest.raises(ShapeError, match=f"{type(layer).__name__}.*in_features = "):
        layer(torch.zeros(shape))


@every_family
def test_unknown_keyword_is_a_type_error(family):
    with pytest.raises(TypeError):
        make(LAYERS[family], epsilon=1e-6)


STACKED = [
    name for name, cls in LAYERS.items() if "hidden" not in inspect.signature(cls).parameters
]


@pytest.mark.parametrize("family", STACKED)
def test_arguments_come_as_those_of_torch(family):
    theirs = list(inspect.signature(torch.nn.Linear).parameters)
    assert list(inspect.signature(LAYERS[family]).parameters)[: len(theirs)] == theirs


@every_family
def test_no_bias(family):
    layer = make(LAYERS[family], bias=False)
    zero = layer(torch.zeros(2, layer.in_features))
    assert torch.equal(zero, torch.zeros_like(zero))
    assert not any("bias" in name for name, _ in layer.named_parameters())


@every_family
def test_repr_shows_the_arguments(family):
    layer = make(LAYERS[family])
    assert "bias=True" in repr(layer)
    assert f"features={layer.in_features}" in repr(layer)


@every_family
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_input_that_is_not_floating_point_is_refused(family, dtype):
    layer = make(LAYERS[family])
    with pytest.raises(InvalidInput, match=f"input is {dtype}.*floating-point"):
        layer(torch.ones(2, layer.in_features, dtype=dtype))


@every_family
def test_lipschitz_is_a_finite_float(family):
    layer = make(LAYERS[family])
    assert isinstance(layer.lipschitz, float)
    assert 0 < layer.lipschitz < math.inf
