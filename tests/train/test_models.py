"""Every family by name: shapes, promises, and that what is verified is what is evaluated."""

import json
import math

import pytest
import torch
from torch import nn

from sdplip.errors import InvalidInput
from sdplip.layers import LAYERS, lipschitz_bound
from sdplip.system import System
from sdplip.train import BASELINES, ModelConfig, build
from sdplip.train.evaluation.evaluate import exact_copy
from sdplip.train.models import FAMILIES, families, norm_of, promises

ALL = (*FAMILIES, *BASELINES)


def config(layer, **changes):
    return ModelConfig(layer, (1, 4, 3), 5, **{"width": 9, "depth": 2, "mean": 0.3} | changes)


@pytest.mark.parametrize("layer", ALL)
def test_model_classifies_and_is_the_system_it_claims(layer):
    model = build(config(layer), seed=0)
    x = torch.rand(7, 1, 4, 3)
    assert model(x).shape == (7, 5)
    exact = exact_copy(model)
    system = System.from_module(exact, features=12)
    with torch.no_grad():
        torch.testing.assert_close(system(x.double().flatten(1)), exact(x.double()))


@pytest.mark.parametrize("layer", LAYERS)
def test_promise_holds_on_samples(layer):
    norm = norm_of(layer)
    exact = exact_copy(build(config(layer, normalise="std", std=0.4, gamma=0.7), seed=1))
    promised = lipschitz_bound(exact, norm=norm)
    if layer == "lben":
        assert promised == pytest.approx(0.7 / 0.4)
    elif norm == 2:
        assert promised == pytest.approx(1 / 0.4)
    x, y = torch.rand(2, 100, 1, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        change = torch.linalg.vector_norm(exact(x) - exact(y), ord=norm, dim=1)
    moved = torch.linalg.vector_norm((x - y).flatten(1), ord=norm, dim=1)
    assert (change <= promised * moved * (1 + 1e-9)).all()


@pytest.mark.parametrize("layer", ALL)
def test_seed_decides_and_leaves_the_global_generator_alone(layer):
    state = torch.get_rng_state()
    one, two, other = (build(config(layer), seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_depth_counts_hidden_layers():
    def hidden(layer, depth):
        return System.from_module(
            exact_copy(build(config(layer, depth=depth), seed=0)), features=12
        ).units

    assert hidden("aol", 1) == 9 and hidden("aol", 3) == 27 and hidden("sll", 3) == 27


def test_baselines_promise_nothing():
    assert not any(promises(config(name)) for name in BASELINES)
    assert not promises(config("lben", gamma=None)) and promises(config("mon"))
    assert set(families()) == {*LAYERS, *BASELINES}
    with pytest.raises(InvalidInput, match="without a bound"):
        config("sll", gamma=None)


def test_configuration_survives_json():
    c = config("lben", gamma=1 / 3, std=0.3081, normalise="std")
    assert ModelConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"depth": -1}, "depth"),
        ({"std": 0.0}, "std"),
        ({"mean": math.inf}, "mean"),
        ({"normalise": "minmax"}, "normalise.*none, mean, std"),
        ({"products": "half"}, "products.*exact, bfloat16"),
        ({"activation": "swish"}, "swish"),
        ({"layer": "resnet"}, "resnet.*orthogonal.*unconstrained"),
        ({"layer": ["sll"]}, "layer.*a string"),
        ({"width": 10**400}, "width.*an integer"),
        ({"width": True}, "width.*an integer"),
        ({"std": 10**400}, "std.*a number"),
        ({"gamma": True}, "gamma.*a number"),
        ({"input_shape": (1, "4")}, "input_shape.*a list, each an integer"),
        ({"input_shape": (), "mean": (1.0,)}, "input_shape is empty"),
        ({"mean": ("0",)}, "mean.*a number, or a list"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(changes, message):
    with pytest.raises(InvalidInput, match=message):
        ModelConfig(**config("sll").to_dict() | {"input_shape": (1, 4, 3)} | changes)


@pytest.mark.parametrize("values", [None, [], {"layer": "sll"}, {"layer": "sll", "weight": 3}])
def test_configuration_from_a_file_must_fit(values):
    with pytest.raises(InvalidInput, match="ModelConfig"):
        ModelConfig.from_dict(values)


def test_torch_spectral_is_torchs_own():
    model = build(config("torch-spectral"), seed=0)
    linear = next(m for m in model if isinstance(m, nn.Linear))
    assert "weight" in linear.parametrizations
