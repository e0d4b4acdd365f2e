"""Convolutional networks from folder to row: trained, resumed, measured, not taken on trust."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from image_folders import draw_folder

from sdplip.errors import InvalidInput, NotConverged
from sdplip.layers.aol import AOLLinear
from sdplip.train import ModelConfig, build, evaluate, load, override, train
from sdplip.train.config import EvalConfig, RunConfig, TrainConfig
from sdplip.train.evaluation.evaluate import full_float32
from sdplip.train.evaluation.measure import collapsed
from sdplip.train.reporting.tables import tables
from sdplip.train.runs import run

ROWS = 40


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = tmp_path_factory.mktemp("bright")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("own-cache")))
        draw_folder(root, train=24, test=ROWS // 2, classes=("dark", "light"))
        return load(f"folder:{root}")


def config(layer="sll", **changes):
    model = ModelConfig(
        layer, (3, 8, 8), 2, width=4, depth=1, architecture="residual", hidden=2,
        dense_depth=1, dense_width=4, mean=(0.4, 0.4, 0.4),
    )  # fmt: skip
    train = TrainConfig(data="cifar10", epochs=2, batch_size=16, lr=1e-2, augment="colour")
    measure = EvalConfig(radii=(0.1, 0.5), steps=5, restarts=1)
    return override(RunConfig(model, train, measure), **changes)


@pytest.mark.parametrize("layer", ["sll", "aol", "unconstrained"])
def test_it_learns_and_rows_are_consistent(layer, splits):
    c = config(layer, epochs=4, lr=3e-2)
    result = train(c, splits)
    (row,) = evaluate(result.model, c, splits, step_ms=result.step_ms)
    assert row.violations() == [] and row.images == ROWS and row.clean > 0.9
    assert "not verified" in row.note and "collapsed" not in row.note
    assert (row.promised is None) == (layer == "unconstrained")
    assert row.certified[0] == 0 if layer == "unconstrained" else row.certified[0] > 0.5
    assert row.sampled > 0 and row.slack == 1e-9


@pytest.mark.parametrize("augment", ["none", "crop", "colour", "affine"])
def test_interrupted_and_resumed_equals_straight_bit_for_bit(augment, splits, tmp_path):
    c = config(epochs=3, augment=augment)
    straight = train(c, splits)

    def interrupt(epoch, metrics):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(c, splits, resume_dir=tmp_path, on_epoch=interrupt)
    torch.rand(7)  # what else happens in the process must not matter
    resumed = train(c, splits, resume_dir=tmp_path)
    assert resumed.history == straight.history
    expected = straight.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_augmentation_and_subsets_change_what_is_learned(splits):
    def weights(**changes):
        return next(train(config(epochs=1, **changes), splits).model.parameters())

    plain = weights(augment="none")
    assert not torch.equal(plain, weights(augment="crop"))
    assert not torch.equal(plain, weights(augment="none", train_images=20))
    with pytest.raises(InvalidInput, match="train_images = 49"):
        weights(train_images=49)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "lr": 1e-2, "schedule": "onecycle", "weight_decay": 1e-4},
        {"optimizer": "sgd", "nesterov": True, "schedule": "multistep", "milestones": (0.5,)},
        {"loss": "multi_margin", "offset": 0.7},
        {"betas": (0.5, 0.9), "precision": "bf16-mixed"},
    ],
)
def test_every_published_recipe_runs(changes, splits):
    history = train(config(**changes), splits).history
    assert len(history) == 2 and history[1]["loss"] < history[0]["loss"]


def test_a_single_step_under_onecycle(splits):
    train(config(schedule="onecycle", epochs=1, batch_size=64), splits)


def test_divergence_is_seen_at_the_first_step(splits):
    images = splits.train[0].float() / 255
    broken = replace(splits, train=(images * torch.nan, splits.train[1]))
    with pytest.raises(NotConverged, match="nan in epoch 1"):
        train(config(augment="none"), broken)


class Boastful(AOLLinear):
    """Promises a hundredth of what it does."""

    lipschitz = 0.01


def test_a_broken_promise_is_seen(splits):
    c = config("aol", epochs=4, lr=3e-2, radii=(6.0,), steps=20)
    model = train(c, splits).model
    dense = next(m for m in model if isinstance(m, AOLLinear))
    assert not evaluate(model, c, splits)[0].violations()
    dense.__class__ = Boastful
    row = evaluate(model, c, splits)[0]
    assert row.certified[0] > 0.5 and row.unsound > 0
    said = " ".join(row.violations())
    assert "inside their certified radius" in said and "not in this order" in said
    assert "sampled bound" in said


def test_float32_states_a_slack_that_covers_its_rounding(splits, monkeypatch):
    c = config(epochs=1)
    model = train(c, splits).model
    exact = evaluate(model, c, splits)[0]
    monkeypatch.setattr(sys.modules["sdplip.train.evaluation.evaluate"], "AFFORDABLE", 0)
    single = evaluate(model, c, splits)[0]
    assert single.slack >= 1e-5 and exact.slack == 1e-9
    assert single.promised == exact.promised and single.violations() == []
    assert abs(single.clean - exact.clean) < 0.05
    assert all(a <= b + 0.05 for a, b in zip(single.certified, exact.certified, strict=True))


def test_attacking_fewer_images_is_said_and_compared_on_those(splits):
    c = config(epochs=2, attack_images=10)
    model = train(c, splits).model
    (row,) = evaluate(model, c, splits, step_ms=1.0, train_seconds=1.0)
    whole = evaluate(model, override(c, images=10, attack_images=None), splits)[0]
    assert row.images == ROWS and row.attack_images == 10
    assert (row.attack_clean, row.attack_certified) == (whole.clean, whole.certified)
    assert row.attacked == whole.attacked and whole.attack_images is None
    every, attacked = (list(table.columns[1].cells) for table in tables([row])[:2])
    assert (every, attacked) == ([str(ROWS)], ["10"])
    assert row.violations() == []
    assert replace(row, attacked=(1.1, 0.0)).violations()
    assert type(row).from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_a_collapsed_run_says_so(splits):
    c = config("aol", epochs=1)
    model = build(c.model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert "collapsed" in evaluate(model, c, splits)[0].note
    labels = torch.arange(1000) % 10
    assert collapsed(0.10, labels) and collapsed(0.12, labels) and not collapsed(0.2, labels)


def test_a_run_directory_of_images_is_read_back(splits, tmp_path):
    c = config(epochs=1)
    first = run(c, splits, tmp_path / "sll")
    assert not (tmp_path / "sll" / "certificate-2.json").exists()
    again = run(c, splits, tmp_path / "sll")
    assert again.already and again.rows == first.rows
    stored = json.loads((tmp_path / "sll" / "config.json").read_text())
    assert RunConfig.from_dict(stored) == c


def test_a_run_of_an_earlier_version_is_read_back(tmp_path):
    digits = load("digits")
    from sdplip.train import preset

    c = override(preset("aol", digits), width=8, depth=1, epochs=1, images=20, steps=2, restarts=1)
    first = run(c, digits, tmp_path / "aol")
    later = {"architecture", "hidden", "dense_depth", "dense_width", "optimizer", "betas"}
    later |= {"momentum", "nesterov", "weight_decay", "milestones", "augment", "precision"}
    later |= {"train_images", "attack_images", "attack_clean", "attack_certified"}

    def shorten(values):
        if isinstance(values, dict):
            return {k: shorten(v) for k, v in values.items() if k not in later}
        return [shorten(v) for v in values] if isinstance(values, list) else values

    for name in ("config.json", "metrics.json"):
        file = tmp_path / "aol" / name
        file.write_text(json.dumps(shorten(json.loads(file.read_text()))))
    again = run(c, digits, tmp_path / "aol")
    assert again.already and again.rows == first.rows
    with pytest.raises(InvalidInput, match=r"train\.weight_decay: 0\.0 there, 0\.1 asked"):
        run(override(c, weight_decay=0.1), digits, tmp_path / "aol")


def test_colour_changes_need_colour():
    with pytest.raises(InvalidInput, match="3 colour channels"):
        RunConfig(ModelConfig("aol", (1, 8, 8), 2), TrainConfig(augment="colour"))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_measurements_round_no_products_and_leave_the_switches_as_they_were(precision):
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul)
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    torch.set_float32_matmul_precision(precision)
    try:
        before = [kind.fp32_precision for kind in kinds]
        with full_float32():
            assert {kind.fp32_precision for kind in kinds} == {"ieee"}
            assert ((x @ x).double() - x.double() @ x.double()).abs().max() < 1e-3
        assert [kind.fp32_precision for kind in kinds] == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
