"""Presets: the sizes that were published, and recipes that every part accepts."""

import pytest
import torch

from sdplip.errors import InvalidInput
from sdplip.train.convnets import families
from sdplip.train.data import Splits
from sdplip.train.experiments.presets import PRESETS, find_preset


def splits(side=32, classes=10, channels=3):
    images = torch.randint(0, 256, (classes, channels, side, side), dtype=torch.uint8)
    labels = torch.arange(classes)
    return Splits((images, labels), (images, labels), classes, (channels, side, side), "cifar10")


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published(name):
    preset = PRESETS[name]
    if preset.published is not None:
        assert preset.parameters() / 1e6 == pytest.approx(preset.published, rel=6e-3)
    config = preset.config(splits())
    assert config.model.layer in name and config.train.epochs >= 200
    assert len(config.model.mean) == 3 and config.evaluate.radii[0] == pytest.approx(36 / 255)


def test_counts_follow_from_the_layers():
    # 20 convolutions of 45 to 5 channels and 7 layers of 2880 to 2048, biases, log q, last layer.
    inner = 20 * (9 * 45 * 5 + 5 + 5) + 7 * (2880 * 2048 + 2048 + 2048)
    assert PRESETS["sll-small"].parameters() == inner + 2880 * 10 + 10
    # 5 blocks of 5 convolutions, the last 1x1, of 16, 32, ..., 256 channels.
    widths = [16 * 2**i for i in range(5)]
    kernels = sum(5 * (9 if w < 256 else 1) * w * w + 5 * w for w in widths)
    assert PRESETS["convnet-xs-aol"].parameters() == kernels + 16 * 16 + 16 + 512 * 512 + 512
    # 4x4 patches of 48 numbers, 12 convolutions of 192 channels, 14 dense layers of 64·16 units.
    body = 48 * 192 + 192 + 12 * (9 * 192**2 + 192) + 192**2 + 192
    assert PRESETS["aol-small"].parameters() == body + 14 * (1024**2 + 1024)


def test_every_family_and_size_has_its_convnet():
    names = {f"convnet-{s}-{f}" for s in ("xs", "s", "m", "l") for f in families()}
    assert names <= set(PRESETS)
    sizes = {f"{f}-{s}" for f in ("sll", "cpl") for s in ("small", "medium", "large", "xlarge")}
    assert sizes | {"aol-small", "aol-medium", "aol-large"} <= set(PRESETS)


def test_recipes_are_the_published_ones():
    sll = find_preset("sll-small").config(splits()).train
    assert (sll.optimizer, sll.lr, sll.betas, sll.schedule) == (
        "adam",
        0.01,
        (0.5, 0.9),
        "piecewise",
    )
    assert (sll.offset, sll.temperature, sll.augment) == (
        pytest.approx(2.1213, abs=1e-4),
        0.25,
        "colour",
    )
    convnet = find_preset("convnet-xs", "sll").config(splits()).train
    assert (convnet.optimizer, convnet.schedule, convnet.offset) == ("sgd", "onecycle", 0.3993)
    assert find_preset("cpl-large").config(splits()).train.loss == "multi_margin"


def test_images_of_64_pixels_start_from_half_as_many_channels():
    model = find_preset("convnet-s-aol").config(splits(64, 200)).model
    assert model.width == 16 and model.num_classes == 200


@pytest.mark.parametrize(
    "name, layer, message",
    [
        ("convnet-xs", None, "needs a family"),
        ("convnet-xs", "lben", "convnet-xs-lben.*not known"),
        ("resnet", None, r"resnet' is not known\. .*sll-small.*convnet-xs.*lben-mnist/"),
        ("sll-smal", None, "similar: sll-small"),
        ("lben-mnst/lben-gamma-1", None, "similar: lben-mnist/lben-gamma-1,"),
    ],
)
def test_unknown_presets_list_the_known(name, layer, message):
    with pytest.raises(InvalidInput, match=message):
        find_preset(name, layer)


@pytest.mark.parametrize("name", ["convnet-xs-aol", "sll-small", "aol-small"])
def test_images_that_do_not_fit_are_refused(name):
    with pytest.raises(InvalidInput, match="30x30"):
        find_preset(name).config(splits(30))
