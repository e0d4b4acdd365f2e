"""What layers keep in a state_dict, and what they do with values and devices they cannot use."""

import json
import math

import pytest
import torch
from layer_cases import OPTIONS, make
from safetensors.torch import load, save
from torch import nn

import sdplip
from sdplip.errors import InvalidInput, NotWellPosed
from sdplip.layers import (
    LAYERS,
    AOLLinear,
    CPLLinear,
    EquilibriumLayer,
    LBENLinear,
    NEMONLinear,
    Normalize,
    OrthogonalLinear,
    SLLLinear,
    SpectralLinear,
    lipschitz_bound,
)
from sdplip.layers.nemon import metzler, reach

every_family = pytest.mark.parametrize("family", LAYERS)


def edited(layer, **changes):
    """The layer's state with other options."""
    state = layer.state_dict()
    options = json.loads(bytes(state["_extra_state"].tolist())) | changes
    extra = torch.tensor(list(json.dumps(options).encode()), dtype=torch.uint8)
    return {**state, "_extra_state": extra}


def test_gamma_and_eps_come_back_with_the_checkpoint():
    """The public code keeps neither: a model trained for γ = 1 silently loads as 5."""
    trained, fresh = make(LBENLinear, gamma=0.1, eps=0.25), make(LBENLinear, gamma=5.0)
    fresh.load_state_dict(trained.state_dict())
    assert (fresh.lipschitz, fresh.eps) == (trained.lipschitz, 0.25)
    x = torch.randn(3, 5)
    assert torch.equal(fresh(x), trained(x))


def test_c_comes_back_with_the_checkpoint():
    fresh = make(NEMONLinear, c=0.0)
    fresh.load_state_dict(make(NEMONLinear, c=-1.0).state_dict())
    assert fresh.c == -1.0


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (NEMONLinear, "c", 3.0),
        (LBENLinear, "eps", -1.0),
        (LBENLinear, "gamma", -1.0),
        (LBENLinear, "gamma", math.nan),
        (LBENLinear, "gamma", "large"),
        (LBENLinear, "gamma", None),
    ],
)
def test_constants_out_of_range_are_refused_wherever_they_come_from(cls, name, value):
    """c = 3 would promise -0.47 and ε = -1 would promise 1 for a network that is ill-posed."""
    layer = make(cls)
    before = layer.lipschitz
    with pytest.raises(InvalidInput, match=f"{cls.__name__}: {name} = {value}, but must be in"):
        layer.load_state_dict(edited(layer, **{name: value}))
    with pytest.raises(InvalidInput, match=f"{name} = {value}"):
        setattr(layer, name, value)
    assert layer.lipschitz == before


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, 1e-12, 1e-25, 1e25, -math.inf])
def test_gamma_must_be_in_its_range(gamma, learned):
    """Beyond it γ² leaves float32, and a learned γ would be moved to the limit in silence."""
    with pytest.raises(InvalidInput, match=r"gamma = .*\[1e-9, 1e9\]"):
        LBENLinear(3, 4, 2, gamma=gamma, learn_gamma=learned)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("gamma", [1e-9, 1e9])
def test_gamma_at_the_ends_of_its_range(gamma, learned):
    layer = make(LBENLinear, gamma=gamma, learn_gamma=learned)
    assert abs(layer.lipschitz / gamma - 1) <= 3e-6
    rho = layer.witness()["rho"].item()
    assert abs(rho / gamma**2 - 1) <= 1e-5


def test_infinite_gamma_cannot_be_learned():
    with pytest.raises(InvalidInput, match="finite to be learned"):
        LBENLinear(3, 4, 2, gamma=math.inf, learn_gamma=True)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf, 1e39])
def test_eps_must_be_positive(eps):
    with pytest.raises(InvalidInput, match="eps = "):
        LBENLinear(3, 4, 2, eps=eps)


@pytest.mark.parametrize("c", [1.0, 2.0, math.nan, -math.inf, -1e39])
def test_nemon_measure_must_be_below_one(c):
    with pytest.raises(InvalidInput, match="c = "):
        NEMONLinear(3, 4, 2, c=c)


@pytest.mark.parametrize(
    ("saved", "other", "names"),
    [
        (make(LBENLinear, activation="tanh"), make(LBENLinear), "'tanh'.*'relu'"),
        (make(SLLLinear, activation="tanh"), make(SLLLinear), "'tanh'.*'relu'"),
        (make(CPLLinear, activation="leaky_relu(0.2)"), make(CPLLinear), "'leaky_relu.*'relu'"),
        (
            make(OrthogonalLinear, map="matrix_exp"),
            make(OrthogonalLinear),
            "'matrix_exp'.*'cayley'",
        ),
        (make(AOLLinear), make(SpectralLinear), "'AOLLinear'.*'SpectralLinear'"),
    ],
)
def test_the_state_of_another_map_is_refused(saved, other, names):
    with pytest.raises(InvalidInput, match=names):
        other.load_state_dict(saved.state_dict())


@every_family
def test_a_state_without_options_is_reported_as_torch_does(family):
    layer = make(LAYERS[family])
    state = layer.state_dict()
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        layer.load_state_dict(state)
    layer.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    "state",
    [b"[]", b"{", b"\xff", {"gamma": 1.0}, torch.rand(3), torch.tensor([999])],
    ids=str,
)
def test_damaged_options_are_refused(state):
    if isinstance(state, bytes):
        state = torch.tensor(list(state), dtype=torch.uint8)
    with pytest.raises(InvalidInput, match=r"LBENLinear: _extra_state .* damaged"):
        make(LBENLinear).set_extra_state(state)


@every_family
def test_a_state_is_all_tensors(family):
    for options in OPTIONS.get(family, [{}]):
        layer = make(LAYERS[family], **options)
        x = torch.randn(3, layer.in_features)
        layer(x)
        state = load(save(layer.state_dict()))
        fresh = make(LAYERS[family], **options)
        fresh.apply(lambda m: m.reset_parameters())
        fresh.load_state_dict(state)
        assert torch.equal(fresh(x), layer(x))


def test_casts_do_not_move_the_constants():
    """In bfloat16 c = 0.999 is 1, where nothing is left of the condition."""
    for c in (0.999, 1 - 1e-9, math.nextafter(1, 0)):
        layer = make(NEMONLinear, c=c)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            assert 0 < layer.to(dtype).lipschitz < math.inf
            assert layer.witness()["c"] < 1
        assert layer.c == c
    layer = make(LBENLinear, gamma=0.1, eps=1e-9).half().double()
    assert (layer.lipschitz, layer.eps) == (0.1, 1e-9)


@pytest.mark.parametrize("options", [{}, {"learn_gamma": True}])
def test_constants_survive_the_meta_device(options):
    layer = LBENLinear(4, 5, 3, gamma=0.3, eps=0.5, device="meta", **options)
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.fill_(7.0)
    layer.reset_parameters()
    assert abs(layer.lipschitz - 0.3) <= 1e-7
    assert layer.eps == 0.5
    other = NEMONLinear(4, 5, 3, c=0.5, device="meta").to_empty(device="cpu")
    other.reset_parameters()
    assert other.witness()["c"] == 0.5


@every_family
def test_meta_device(family):
    layer = make(LAYERS[family], device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert type(layer).__name__ in repr(layer)
    x = torch.empty(3, layer.in_features, device="meta")
    if isinstance(layer, EquilibriumLayer):
        with pytest.raises(InvalidInput, match="no equilibrium can be computed on the meta"):
            layer(x)
    else:
        assert layer(x).shape == (3, layer.out_features)
    for use in (lambda: layer.lipschitz, layer.system):
        with pytest.raises(InvalidInput, match="meta device and has no values"):
            use()


@every_family
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_parameters_that_are_not_finite_are_named(family, value):
    for name in dict(make(LAYERS[family]).named_parameters()):
        layer = make(LAYERS[family])
        with torch.no_grad():
            layer.get_parameter(name).view(-1)[0] = value
        for use in (
            lambda layer: layer.lipschitz,
            lambda layer: layer.system(),
            lambda layer: lipschitz_bound(nn.Sequential(layer), layer.norm),
            lambda layer: sdplip.lipschitz(layer, norm=layer.norm),
        ):
            with pytest.raises(InvalidInput, match=f"{type(layer).__name__}: {name} contains NaN"):
                use(layer)


@pytest.mark.parametrize("family", [n for n, c in LAYERS.items() if not hasattr(c, "solve")])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_forward_with_weights_that_are_not_finite_gives_nan(family, value):
    """As nn.Linear does, so that a training step that diverged is seen where it is looked for."""
    for name in dict(make(LAYERS[family], bias=False).named_parameters()):
        layer = make(LAYERS[family], bias=False)
        with torch.no_grad():
            layer.get_parameter(name).view(-1)[0] = value
        assert layer(torch.randn(2, layer.in_features)).isnan().any()


def test_normalize_refuses_what_a_checkpoint_brought():
    layer = Normalize(torch.zeros(2), torch.ones(2))
    for std in (-3.0, 0.0, math.nan):
        layer.load_state_dict({"mean": torch.zeros(2), "std": torch.tensor([1.0, std])})
        for use in (lambda: layer.lipschitz, layer.system):
            with pytest.raises(InvalidInput, match="Normalize: std"):
                use()


def test_nemon_promises_nothing_without_an_m_matrix():
    class IllPosed(NEMONLinear):
        def _closed_form(self):
            w = super()._closed_form()
            return {**w, "A": w["A"] + 5 * torch.eye(len(w["A"]))}

    with pytest.raises(NotWellPosed, match="IllPosed"):
        _ = make(IllPosed).lipschitz


def test_reach_solves_with_the_metzler_part():
    A, v = make(NEMONLinear, dtype=torch.float64).witness()["A"], torch.rand(9, 2).double()
    torch.testing.assert_close(reach(A, v) - metzler(A) @ reach(A, v), v)
