"""Model files: exact, atomic, and refused when they are not what they say."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdplip._json import to_json
from sdplip.errors import InvalidInput
from sdplip.train import ModelConfig, build, load_model, save_model
from sdplip.train.checkpoint import FORMAT, read_json, write_atomically, write_json
from sdplip.train.models import families


@pytest.fixture
def saved(tmp_path):
    config = ModelConfig("sll", (1, 3, 2), 4, width=5, depth=1)
    path = tmp_path / "model.safetensors"
    save_model(path, build(config, seed=0), config)
    return path


def rewrite(path, change_tensors=lambda t: t, metadata=None):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kept = file.metadata()
    save_file(
        change_tensors(load_file(path)), path, metadata=kept if metadata is None else metadata
    )


@pytest.mark.parametrize("layer", families())
def test_round_trip_is_exact(layer, tmp_path):
    config = ModelConfig(layer, (1, 3, 2), 4, width=5, depth=1, gamma=0.3, normalise="std", std=0.4)
    model = build(config, seed=7).eval()
    save_model(tmp_path / "model.safetensors", model, config)
    loaded, read = load_model(tmp_path)
    assert read == config
    x = torch.rand(6, 1, 3, 2)
    assert torch.equal(loaded(x), model(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


def test_nan_is_refused_by_name(saved):
    def poison(tensors):
        key = next(iter(tensors))
        tensors[key].view(-1)[0] = float("nan")
        return tensors

    rewrite(saved, poison)
    with pytest.raises(InvalidInput, match="1 values that are not finite"):
        load_model(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {k: v for k, v in list(t.items())[1:]}, "missing"),
        (lambda t: t | {"extra": torch.zeros(1)}, "unexpected.*extra"),
        (lambda t: {k: v.double() for k, v in t.items()}, "float64"),
        (lambda t: {k: v[..., :-1].contiguous() for k, v in t.items()}, "the model has"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(InvalidInput, match=message):
        load_model(saved)


def metadata(**model):
    config = ModelConfig("sll", (1, 3, 2), 4, width=5, depth=1).to_dict()
    return {"sdplip": json.dumps({"format": FORMAT, "model": config | model})}


@pytest.mark.parametrize(
    "written, message",
    [
        ({}, "format None"),
        ({"sdplip": "not json"}, "not JSON"),
        ({"sdplip": "[1]"}, "format None"),
        ({"sdplip": json.dumps({"format": "sdplip-model-99"})}, "sdplip-model-99"),
        ({"sdplip": json.dumps({"format": FORMAT})}, "JSON object"),
        (metadata(layer="os.system"), "os.system"),
        (metadata(gamma=-1), "gamma"),
        (metadata(width=6), "fit|the model has"),
        (metadata(normalise="std", std=0.0), "std"),
        (metadata(surprise=1), "surprise"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(saved, written, message):
    rewrite(saved, metadata=written)
    with pytest.raises(InvalidInput, match=message):
        load_model(saved)


def test_what_is_no_model_file(tmp_path, saved):
    with pytest.raises(InvalidInput, match="no trained model"):
        load_model(tmp_path / "nowhere")
    empty = tmp_path / "run"
    empty.mkdir()
    with pytest.raises(InvalidInput, match="holds no"):
        load_model(empty)
    saved.write_bytes(saved.read_bytes()[:-7])
    with pytest.raises(InvalidInput, match="not a readable safetensors"):
        load_model(saved)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_has_no_nan():
    text = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "ℓ₂"})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": "ℓ₂"}


def test_torn_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(InvalidInput, match=r"x\.json"):
        read_json(tmp_path / "x.json")
