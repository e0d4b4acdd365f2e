"""The training loop: it learns, repeats itself, resumes exactly, and stops when it diverges."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sdplip.errors import InvalidInput, NotConverged
from sdplip.train import override, preset, train
from sdplip.train.config import SCHEDULES, EvalConfig, RunConfig, TrainConfig
from sdplip.train.fit import pick_device
from sdplip.train.optim import schedule
from sdplip.train.state import PREVIOUS_FILE, RESUME_FILE


def short(layer, splits, **changes):
    return override(preset(layer, splits), **{"width": 16, "epochs": 2, "depth": 1} | changes)


@pytest.mark.parametrize("layer", ["sll", "lben", "nemon", "torch-spectral"])
def test_two_epochs_learn_something(layer, splits, capsys):
    result = train(short(layer, splits, lr=1e-2), splits)
    assert len(result.history) == 2 and result.step_ms > 0
    assert result.history[1]["loss"] < result.history[0]["loss"]
    assert result.history[1]["accuracy"] > 0.3
    assert not result.model.training
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_same_seed_same_weights_other_seed_other_weights(splits):
    one, two, other = (
        train(short("aol", splits, epochs=1, seed=seed), splits).model.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("layer", ["sll", "torch-spectral"])
def test_interrupted_and_resumed_equals_straight_bit_for_bit(layer, splits, tmp_path):
    config = short(layer, splits, epochs=4)
    straight = train(config, splits)

    def interrupt(epoch, metrics):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, splits, resume_dir=tmp_path, on_epoch=interrupt)
    seen = []
    resumed = train(
        config, splits, resume_dir=tmp_path, on_epoch=lambda epoch, metrics: seen.append(epoch)
    )
    assert seen == [3, 4]
    assert resumed.history == straight.history
    expected = straight.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_state_on_disk_holds_no_code(splits, tmp_path):
    train(short("sll", splits), splits, resume_dir=tmp_path)
    torch.load(tmp_path / RESUME_FILE, weights_only=True)
    assert {p.name for p in tmp_path.iterdir()} == {RESUME_FILE, PREVIOUS_FILE}


def test_divergence_is_an_error_that_names_the_epoch(splits):
    broken = replace(splits, train=(splits.train[0] * math.nan, splits.train[1]))
    with pytest.raises(NotConverged, match="nan in epoch 1"):
        train(short("aol", splits), broken)


def rates_of(config, steps):
    """The rate of every step."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=config.lr)
    rule = schedule(optimizer, config, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rule.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_positive_and_end_low(name):
    rates = rates_of(TrainConfig(lr=0.1, schedule=name), 100)
    assert min(rates) > 0 and max(rates) <= 0.1 * (1 + 1e-12) and max(rates) > 0.09
    assert rates[-1] <= (0.1 if name == "constant" else 0.0015)


def test_multistep_divides_by_ten_at_every_milestone():
    config = TrainConfig(lr=1.0, schedule="multistep", milestones=(0.8, 0.5))
    assert rates_of(config, 10) == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("piecewise", {20: 0.5, 40: 1.0, 60: 0.525, 80: 0.05, 90: 0.025}),
        ("cosine", {25: 0.854, 50: 0.5, 75: 0.146}),
        ("step", {30: 1.0, 36: 0.1, 63: 0.1, 70: 0.01}),
    ],
)
def test_schedules_pass_through_their_published_rates(name, published):
    rates = rates_of(TrainConfig(lr=1.0, schedule=name), 100)
    assert [rates[k] for k in published] == pytest.approx(list(published.values()), abs=0.02)


def test_linf_penalty_lowers_the_bound(splits):
    bounds = [
        train(short("nemon", splits, linf_penalty=p, epochs=5), splits).model[-1].lipschitz
        for p in (1e-6, 0.1)
    ]
    assert bounds[1] < 0.5 * bounds[0]


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta"])
def test_devices_that_are_not_there(device):
    with pytest.raises(InvalidInput, match="device"):
        pick_device(device)
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"batch_size": 0},
        {"seed": -1},
        {"loss": "hinge"},
        {"schedule": "warm"},
        {"offset": math.inf},
        {"temperature": 0.0},
        {"radii": (0.1, -1.0)},
        {"images": 0},
        {"colour": "blue"},
        {"optimizer": "lion"},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"nesterov": True, "momentum": 0.0},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"milestones": (0.5, 1.5)},
        {"augment": "mixup"},
        {"precision": "16"},
        {"train_images": 0},
        {"attack_images": 0},
        {"data": "imagenet"},
        {"data": 3},
        {"seed": 2**40 + 1},
        {"seed": True},
        {"lr": 10**400},
        {"lr": True},
        {"nesterov": "no"},
        {"radii": 0.1},
        {"radii": ((0.1,),)},
        {"betas": ("0", "0")},
        {"verify": "no"},
    ],
)
def test_nonsense_recipes_are_refused(changes, splits):
    with pytest.raises(InvalidInput, match=next(iter(changes))):
        override(preset("sll", splits), **changes)


def test_configuration_survives_its_dictionary(splits):
    config = short("lben", splits, gamma=1 / 3, radii=(0.1, 1 / 7), images=5)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.evaluate == EvalConfig(radii=(0.1, 1 / 7), images=5)
    with pytest.raises(InvalidInput):
        RunConfig.from_dict({"model": 3})


@pytest.mark.parametrize(
    "values",
    [{"steps": None}, {"restarts": None}, {"verify_units": None}, {"verify": 1}, {"radii": None}],
)
def test_measurements_from_a_file_must_fit(values, splits):
    whole = preset("sll", splits).to_dict()
    whole["evaluate"] |= {"images": None, "attack_images": None}
    assert RunConfig.from_dict(whole).evaluate.images is None
    whole["evaluate"] |= values
    with pytest.raises(InvalidInput, match=f"evaluate: {next(iter(values))} is"):
        RunConfig.from_dict(whole)
