"""Convolutional architectures: shapes, promises, and what they refuse to be built from."""

import pytest
import torch
from torch import nn

from sdplip.errors import InvalidInput
from sdplip.layers import CONVOLUTIONS, NormalizedLinear, SpectralLinear, lipschitz_bound
from sdplip.train import ModelConfig, build, load_model, save_model
from sdplip.train.convnets import ARCHITECTURES, UNCONSTRAINED, families, families_of
from sdplip.train.evaluation.measure import exact_copy, promised_pairs
from sdplip.train.models import linf_bounds, logit_scale, norm_of, parameters

FAMILIES = families()
STACKED = [name for name in ARCHITECTURES if name != "equilibrium"]
ALL = [(a, f) for a in STACKED for f in (*FAMILIES, UNCONSTRAINED)]


def config(architecture, layer="aol", **changes):
    small = {
        "convnet": {"width": 4, "depth": 1},
        "residual": {"width": 4, "depth": 2, "hidden": 3, "dense_depth": 1, "dense_width": 6},
        "patchwise": {"width": 6, "depth": 1, "dense_depth": 2, "dense_width": 256},
    }[architecture]
    base = {"mean": (0.3, 0.4, 0.5), "architecture": architecture} | small
    return ModelConfig(layer, (3, 32, 32), 5, **base | changes)


def test_families_keep_the_image():
    assert {"aol", "sll"} <= set(FAMILIES) <= set(CONVOLUTIONS)
    assert not {"lben", "nemon"} & set(FAMILIES)


@pytest.mark.parametrize("architecture, layer", ALL)
def test_promise_holds_on_samples(architecture, layer):
    c = config(architecture, layer, normalise="std", std=0.5)
    exact = exact_copy(build(c, seed=1))
    x, y = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
    x[2:] = y[2:] + 1e-3 * (x[2:] - y[2:])
    with torch.no_grad():
        z, w = exact(x), exact(y)
    assert z.shape == (4, 5) and z.isfinite().all()
    if layer == UNCONSTRAINED:
        return
    promised = lipschitz_bound(exact)
    limit = promised if architecture == "residual" else 2.0
    assert promised == pytest.approx(limit, rel=1e-6)
    moved = torch.linalg.vector_norm((x - y).flatten(1), dim=1)
    assert (torch.linalg.vector_norm(z - w, dim=1) <= promised * moved * (1 + 1e-9)).all()
    pairs = promised_pairs(exact, promised, 5)
    change = (z[:, :, None] - z[:, None] - w[:, :, None] + w[:, None]).abs()
    assert (change <= pairs * moved[:, None, None] * (1 + 1e-9) + 1e-12).all()
    assert (pairs <= 2**0.5 * promised * (1 + 1e-9)).all()
    assert (change > 0).any()


@pytest.mark.parametrize("architecture", STACKED)
def test_seed_decides_and_files_rebuild_it(architecture, tmp_path):
    c = config(architecture, "sll")
    one, two, other = (build(c, seed=seed) for seed in (3, 3, 4))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(one(x), two(x)) and not torch.equal(one(x), other(x))
    save_model(tmp_path / "model.safetensors", one, c)
    loaded, read = load_model(tmp_path)
    assert read == c and torch.equal(loaded(x), one.eval()(x))
    assert parameters(c) == sum(p.numel() for p in one.parameters())


@pytest.mark.parametrize("architecture", STACKED)
@pytest.mark.parametrize("wide, products", [(3, "bfloat16"), (512, "exact")])
def test_convolutions_of_few_channels_keep_exact_products(
    architecture, wide, products, monkeypatch
):
    monkeypatch.setattr("sdplip.train.convnets.WIDE", wide)
    model = build(config(architecture, products="bfloat16"), seed=0)
    found = {(type(m).__name__, m.products) for m in model if hasattr(m, "products")}
    assert found == {("AOLConv2d", products), ("AOLLinear", "bfloat16")}


def small(layer, **changes):
    given = {"width": 4, "normalise": "std", "mean": 0.4, "std": 0.5, "architecture": "equilibrium"}
    return ModelConfig(layer, (3, 6, 6), 5, **given | changes)


@pytest.mark.parametrize("layer", families_of("equilibrium"))
def test_an_equilibrium_convolution_keeps_the_bound_of_the_whole(layer):
    norm, gamma = norm_of(layer), 0.7
    exact = exact_copy(build(small(layer, gamma=gamma, kernel=5), seed=1))
    promised = lipschitz_bound(exact, norm=norm)
    if norm == 2:
        assert promised == pytest.approx(gamma / 0.5)
        assert isinstance(exact[-1], SpectralLinear)
    else:
        (bound,) = linf_bounds(exact)
        assert float(bound.detach()) / 0.5 == pytest.approx(promised, rel=1e-6)
    x, y = torch.rand(2, 40, 3, 6, 6, dtype=torch.float64)
    x[20:] = y[20:] + 1e-3 * (x[20:] - y[20:])
    with torch.no_grad():
        change = torch.linalg.vector_norm(exact(x) - exact(y), ord=norm, dim=1)
    moved = torch.linalg.vector_norm((x - y).flatten(1), ord=norm, dim=1)
    assert (change <= promised * moved * (1 + 1e-6)).all() and (change > 0).any()


def test_equilibrium_convolutions_without_a_bound_and_without_an_equilibrium(tmp_path):
    for c in (small("lben", gamma=None), small("mon", gamma=None), small(UNCONSTRAINED)):
        model = build(c, seed=0)
        assert type(model[-1]) is nn.Linear and model(torch.rand(2, 3, 6, 6)).shape == (2, 5)
        assert parameters(c) == sum(p.numel() for p in model.parameters())
        save_model(tmp_path / "model.safetensors", model, c)
        loaded, read = load_model(tmp_path)
        x = torch.rand(2, 3, 6, 6)
        assert read == c and torch.equal(loaded(x), model.eval()(x))


def test_the_linf_bound_in_the_loss_has_gradients_of_every_part():
    model = build(small("nemon"), seed=0)
    (bound,) = linf_bounds(model)
    bound.backward()
    for name, parameter in model.named_parameters():
        assert ("bias" in name) == (parameter.grad is None), name


def test_the_last_linear_layer_gives_tighter_pairs():
    exact = exact_copy(build(config("convnet", "aol"), seed=0))
    W = exact[-2].weight
    with torch.no_grad():
        W[:, :] = 0.1 * torch.eye(*W.shape)
        W[1] = W[0] + 1e-3 * W[1]
    pairs = promised_pairs(exact, 1.0, 5)
    assert pairs[0, 1] < 0.3 < pairs[0, 2]


def test_the_margin_is_in_units_of_what_comes_before_unit_rows():
    c = config("residual", "sll", normalise="std", std=0.5)
    model = build(c, seed=0)
    assert isinstance(model[-1], NormalizedLinear)
    assert logit_scale(model, c) == pytest.approx(2.0)
    plain = config("residual", UNCONSTRAINED)
    assert logit_scale(build(plain, seed=0), plain) == 1.0


def test_larger_images_have_a_block_more_and_are_pooled():
    def blocks(side, width=8):
        c = ModelConfig("aol", (1, side, side), 3, width=width, depth=1, architecture="convnet")
        model = build(c, seed=0)
        assert model(torch.rand(1, 1, side, side)).shape == (1, 3)
        return sum(type(m).__name__ == "SpaceToDepth" for m in model)

    assert (blocks(32), blocks(64), blocks(128)) == (5, 6, 6)


def test_units_of_residual_families_are_counted():
    model = build(config("residual", "sll"), seed=0)
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim > 1]
    assert shapes == [(3, 4, 3, 3)] * 2 + [(6, 256), (5, 256)]
    plain = build(config("convnet", UNCONSTRAINED), seed=0)
    assert isinstance(plain[2], nn.Conv2d)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": "lben"}, "lben.*aol"),
        ({"layer": "torch-spectral"}, "torch-spectral"),
        ({"input_shape": (3072,), "mean": 0.0}, "takes images"),
        ({"input_shape": (3, 28, 28), "mean": 0.0}, "28x28.*multiples of 32"),
        ({"width": 2}, "3 channels"),
        ({"width": 5}, "even"),
        ({"width": 4, "num_classes": 1000}, "too small for 1000 classes"),
        ({"architecture": "vit"}, "vit.*dense, convnet, residual, patchwise, equilibrium"),
        ({"architecture": "equilibrium"}, "aol.*lben, nemon, mon"),
        ({"architecture": "equilibrium", "layer": "nemon", "kernel": 4}, "kernel is 4.*odd"),
        (
            {"architecture": "equilibrium", "layer": "lben", "input_shape": (3, 5, 6)},
            "5x6.*multiples of 2",
        ),
        ({"kernel": 0}, "kernel"),
        ({"mean": (0.1, 0.2)}, "mean has 2 entries"),
        ({"hidden": 0}, "hidden"),
        ({"dense_depth": -1}, "dense_depth"),
        ({"architecture": "patchwise", "dense_width": 100}, "multiple of the 64 patches"),
        ({"architecture": "patchwise", "dense_width": 64}, "dense_depth 0"),
        ({"architecture": "residual", "input_shape": (3, 30, 30)}, "multiples of 4"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(changes, message):
    values = config("convnet").to_dict() | {"input_shape": (3, 32, 32), "mean": (0.3, 0.4, 0.5)}
    with pytest.raises(InvalidInput, match=message):
        ModelConfig(**values | changes)


def test_configurations_without_the_later_entries_are_read():
    old = {"layer": "sll", "input_shape": [1, 4, 4], "num_classes": 3, "width": 5, "mean": 0.2}
    c = ModelConfig.from_dict(old)
    assert c.architecture == "dense" and build(c)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
