"""Published comparisons: the settings, what a budget does to them, and what stands beside them."""

from dataclasses import replace

import pytest
import torch
from small_runs import quick

from sdplip.errors import InvalidInput
from sdplip.train import Splits, build, load, override
from sdplip.train.checkpoint import write_json
from sdplip.train.experiments import EXPERIMENTS, affordable, settled, shrink
from sdplip.train.loss import lipschitz_margin
from sdplip.train.models import norm_product
from sdplip.train.runs import compare, folder_name


@pytest.fixture(scope="module")
def splits():
    return load("digits")


@pytest.fixture(scope="module")
def mnist():
    """Its shapes; the settings need no images."""
    x, y = torch.arange(47040).view(60, 1, 28, 28).byte(), torch.arange(60) % 10
    return Splits((x, y), (x[:20], y[:20]), 10, (1, 28, 28), "mnist")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_is_a_model_of_its_own(name, mnist, splits):
    experiment = EXPERIMENTS[name]
    configs = experiment.configs(mnist, width=7)
    assert len({folder_name(variant) for variant in configs}) == len(configs)
    for variant, config in configs.items():
        assert config.model.width == 7 and build(config.model, seed=0) is not None
        assert variant.startswith(config.model.layer) or config.model.layer == "unconstrained"
    with pytest.raises(InvalidInput, match="digits"):
        experiment.configs(splits)


def test_the_settings_are_the_published_ones(mnist):
    configs = EXPERIMENTS["lben-mnist"].configs(mnist)
    one = configs["lben γ=1"]
    assert (one.model.gamma, one.model.width, one.model.scale) == (1.0, 80, 0.3081)
    assert (one.train.epochs, one.train.lr, one.train.schedule) == (30, 1e-3, "step")
    assert configs["lben no bound"].model.gamma is None and configs["mon"].model.layer == "mon"
    assert EXPERIMENTS["lben-mnist"].published()["lben γ=1"]["error"] == 2.36


def test_a_share_of_the_epochs_is_said(splits):
    config = quick("aol", splits, epochs=40)
    half = shrink(config, 0.5)
    assert (half.train.epochs, half.train.of_epochs) == (20, 40)
    assert shrink(config, 1.0) == config
    assert shrink(config, 1e-9).train.epochs == 1
    for scale in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match="scale"):
            shrink(config, scale)


def test_a_budget_takes_epochs_then_images_and_never_adds_any(splits):
    configs = {name: quick(name, splits, epochs=50) for name in ("aol", "sll")}
    plenty = affordable(configs, splits, 1e4, "cpu")
    assert plenty == configs
    for minutes in (1e-3, 1e-5):
        for short in affordable(configs, splits, minutes, "cpu").values():
            assert short.train.epochs < 50 == short.train.of_epochs
    assert short.train.epochs == 1 and short.train.train_images < len(splits.train[0])
    for minutes in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="budget"):
            affordable(configs, splits, minutes, "cpu")


def test_what_was_begun_keeps_its_length(splits, tmp_path):
    config = quick("aol", splits, epochs=50)
    begun = override(config, epochs=7, of_epochs=50)
    write_json(tmp_path / "config.json", begun.to_dict())
    now = override(config, epochs=9, of_epochs=50)
    assert settled(now, tmp_path) == begun
    other = override(now, lr=0.5)
    assert settled(other, tmp_path) == other
    assert settled(now, tmp_path / "none") == now


def test_runs_of_one_family_stand_beside_each_other(splits, tmp_path):
    configs = {f"lben γ={g:g}": quick("lben", splits, gamma=g) for g in (0.5, 2.0)}
    result = compare(
        configs, splits, tmp_path, published={"lben γ=2": {"error": 3.0, "verified": 1.9}}
    )
    assert [row["variant"] for row in result["rows"]] == ["γ=0.5", "γ=2"]
    assert result["rows"][1]["published"] == {"error": 3.0, "verified": 1.9}
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "lben-gamma-0.5",
        "lben-gamma-2",
    ]
    assert any("tradeoff" in picture for picture in result["pictures"])


def test_models_without_a_promise_in_linf_are_measured_in_it_on_request(splits, tmp_path):
    config = quick("aol", splits)
    config = replace(config, evaluate=replace(config.evaluate, linf=True))
    rows = compare([config], splits, tmp_path)["rows"]
    assert [row["norm"] for row in rows] == [2, "inf"]
    assert rows[1]["promised"] is None and rows[1]["verified"] > 0


def test_lipschitz_margin_training_counts_the_product_of_norms(splits):
    model = build(quick("unconstrained", splits).model, seed=0)
    expected = 1.0
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            expected *= float(torch.linalg.svdvals(layer.weight.detach().double())[0])
    bound = norm_product(model)
    assert float(bound.detach()) == pytest.approx(expected, rel=1e-5)
    logits, labels = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    shifted = logits + torch.tensor([[0.0, 1.0, 1.0]]) * 0.5 * 2**0.5 * bound
    expected = torch.nn.functional.cross_entropy(shifted, labels)
    torch.testing.assert_close(lipschitz_margin(logits, labels, bound, weight=0.5), expected)
    lipschitz_margin(model(torch.rand(2, 1, 8, 8)), labels.expand(2), bound, weight=0.5).backward()
    assert all(p.grad is not None for p in model.parameters())
