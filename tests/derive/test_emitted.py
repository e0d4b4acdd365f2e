"""What every derivation of the folder gives: a proof, a readable module, a layer that conforms."""

import copy
import pickle

import numpy as np
import pytest
import torch
from layer_cases import EXTREMES, put

from sdplip import conditions, lipschitz
from sdplip.activations import Activation
from sdplip.derive import Derivation, replay
from sdplip.derive.instances import sized
from sdplip.derive.library import files, find
from sdplip.errors import InvalidInput, NotWellPosed, ShapeError
from sdplip.layers import ROUNDING

FOUND = {d.name: d for name in files() for d in find(name)[1] if isinstance(d, Derivation)}
CLASSES = {name: derivation.layer() for name, derivation in FOUND.items()}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TOLERANCE = {torch.float32: 2 * ROUNDING, torch.float64: 1e-10}

every = pytest.mark.parametrize("name", FOUND)
every_extreme = pytest.mark.parametrize("extreme", EXTREMES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def make(name, dtype="float64"):
    """A layer of the first shape that it takes."""
    torch.default_generator.manual_seed(0)
    for sizes in ((5, 7, 3), (6, 3, 7)):
        layer = sized(FOUND[name], CLASSES[name], sizes)
        try:
            layer.witness()
        except ShapeError:
            continue
        if hasattr(layer, "tol"):
            layer.tol = 1e-12 if dtype == "float64" else 1e-6
        return layer.to(DTYPES[dtype])
    raise AssertionError(name)


@every
def test_is_proved_and_its_file_replays(name):
    proof = FOUND[name].prove(quick=True)
    assert proof.proved, proof.broken
    assert replay(dict(proof.document)) == []


@every
@every_extreme
@every_dtype
def test_every_pattern_of_units_keeps_the_bound(name, extreme, dtype):
    layer = make(name, dtype)
    put(layer, extreme)
    try:
        promised = layer.lipschitz
    except NotWellPosed:
        # Rounded weights that no multipliers cover are refused, in float32 only.
        assert dtype == "float32"
        return
    s = layer.system()
    n, rng = s.units, np.random.default_rng(0)
    low, high = FOUND[name].slopes
    norm = 2 if FOUND[name].norm == 2 else np.inf
    for k in range(25):
        J = rng.choice([low, high], n) if k % 5 else rng.uniform(low, high, n)
        inner = np.eye(n) - J[:, None] * s.A
        K = s.D + s.C @ np.linalg.solve(inner, J[:, None] * s.B)
        assert np.linalg.norm(K, norm) <= promised * (1 + TOLERANCE[DTYPES[dtype]])


@every
def test_evaluation_computes_the_closed_form_once(name, monkeypatch):
    layer = make(name).eval()
    calls, compute = [], layer._closed_form
    monkeypatch.setattr(layer, "_closed_form", lambda: calls.append(1) or compute())
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
    assert len(calls) == 1
    layer.train()(x)
    assert len(calls) == 2


@every
@every_extreme
@every_dtype
def test_outputs_and_gradients_are_finite(name, extreme, dtype):
    layer = make(name, dtype)
    put(layer, extreme)
    x = torch.randn(4, layer.in_features, dtype=DTYPES[dtype], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@every
@every_extreme
def test_the_witness_satisfies_the_condition(name, extreme):
    layer = make(name)
    put(layer, extreme)
    condition = getattr(conditions, layer.condition)
    witness = {k: v.detach().numpy() for k, v in layer.witness().items()}
    values = {k: witness[k] for k in condition.symbols}
    scale = max(np.abs(v).max() for v in values.values())
    scale = max(scale, np.abs(condition(**values)).max())
    assert condition.margin(**values) >= -1e-10 * scale


@every
def test_forward_is_the_system(name):
    layer = make(name)
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    assert (layer(x) - layer.system()(x)).abs().max() <= 1e-9


@every
def test_copies_pickles_and_states_are_the_same_layer(name, tmp_path):
    layer = make(name, "float32")
    x = torch.randn(3, layer.in_features)
    layer(x).sum().backward()
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    fresh = make(name, "float32")
    fresh.apply(lambda module: module.reset_parameters())
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert torch.equal(fresh(x), expected)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_counts_its_rounding(name, dtype):
    layer = make(name, "float32")
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert (y - expected).abs().max() <= 0.05 * expected.abs().max().clamp(min=1)
    s = layer.system()
    J = np.random.default_rng(0).choice(FOUND[name].slopes, s.units)
    K = s.D + s.C @ np.linalg.solve(np.eye(s.units) - J[:, None] * s.A, J[:, None] * s.B)
    norm = 2 if FOUND[name].norm == 2 else np.inf
    assert np.linalg.norm(K, norm) <= layer.lipschitz * (1 + 2 * ROUNDING)


@every
def test_the_module_is_readable_source(name, tmp_path):
    text = FOUND[name].emit("Emitted")
    path = tmp_path / "emitted.py"
    path.write_text(text)
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    assert scope["Emitted"].closed_form is not None
    assert FOUND[name].title in text


@every
def test_gradients_are_those_of_the_map(name):
    layer = make(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    names = list(dict(layer.named_parameters()))
    x = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)

    def f(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, (x, *layer.parameters()), atol=1e-6)


def test_an_activation_of_ones_own_can_be_verified():
    """GELU's slopes leave [0, 1], which is what `slopes` is for."""
    torch.default_generator.manual_seed(0)
    gelu = Activation(
        "gelu",
        -0.13,
        1.13,
        torch.nn.functional.gelu,
        torch.func.grad(lambda v: torch.nn.functional.gelu(v).sum()),
        lambda v, step: v,
    )
    layer = CLASSES["slopes"](5, 7, activation=gelu, dtype=torch.float64)
    certificate = lipschitz(layer.system(), lower=False)
    assert certificate.proven
    assert certificate.bound <= layer.lipschitz * (1 + 1e-6)
    with pytest.raises(InvalidInput, match="slopes"):
        CLASSES["sll"](5, 7, activation=gelu)


def test_the_same_layer_twice_is_one_class():
    assert FOUND["sll"].layer() is CLASSES["sll"]
    assert FOUND["sll"].layer("Other") is not CLASSES["sll"]
