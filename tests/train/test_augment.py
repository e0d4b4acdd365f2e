"""Augmentation: a function of the seed, different per image, and nothing but what it says."""

import pytest
import torch

from sdplip.errors import InvalidInput
from sdplip.train.data.augment import AUGMENTATIONS, Augmentation

MEAN = (0.5, 0.4, 0.3)


@pytest.fixture
def x():
    return torch.rand(16, 3, 12, 12)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_decides_and_the_global_generator_is_left_alone(name, x):
    change = Augmentation(name, x.shape[1:], MEAN)
    state = torch.get_rng_state()
    one, two, other = (change(x, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two) and one.shape == x.shape and one.dtype == x.dtype
    assert one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, other) == (name == "none")
    assert torch.equal(one, x) == (name == "none")


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_every_image_of_a_batch_is_changed_on_its_own(name, x):
    same = x[:1].expand(16, -1, -1, -1).clone()
    changed = Augmentation(name, x.shape[1:], MEAN)(same, 0)
    assert len(changed.flatten(1).unique(dim=0)) > 8


def windows(image, padded):
    """All crops of a padded image and of its mirror image."""
    size = image.shape[-1]
    steps = range(padded.shape[-1] - size + 1)
    crops = [padded[..., i : i + size, j : j + size] for i in steps for j in steps]
    return torch.stack([*crops, *(crop.flip(-1) for crop in crops)])


@pytest.mark.parametrize("name", ["crop", "crop-reflect"])
def test_crops_are_windows_of_the_padded_image(name, x):
    changed = Augmentation(name, x.shape[1:], MEAN)(x, 1)
    mean = torch.tensor(MEAN)[:, None, None]
    for image, result in zip(x, changed, strict=True):
        if name == "crop":
            padded = torch.nn.functional.pad(image - mean, [4] * 4) + mean
        else:
            padded = torch.nn.functional.pad(image[None], [4] * 4, mode="reflect")[0]
        distance = (windows(image, padded) - result).abs().flatten(1).amax(1)
        assert distance.min() < 1e-5


def test_about_half_are_mirrored():
    # Constant along columns but for the left half: mirroring shows, and shifts barely do.
    x = torch.zeros(200, 1, 12, 12)
    x[..., :6] = 1
    changed = Augmentation("crop", (1, 12, 12), 0.0)(x, 0)
    mirrored = changed[..., 6:].sum((1, 2, 3)) > changed[..., :6].sum((1, 2, 3))
    assert 0.35 < mirrored.float().mean() < 0.65


def test_colour_changes_stay_within_the_published_factors():
    # On grey images hue and saturation do nothing, and contrast keeps constants.
    grey = torch.full((100, 3, 12, 12), 0.5)
    changed = Augmentation("colour", (3, 12, 12), MEAN)(grey, 0)
    level = changed.mean((1, 2, 3))
    assert level.std() > 0.01
    assert (level >= 0.45 - 1e-4).all() and (level <= 0.55 + 1e-4).all()
    assert (changed - level[:, None, None, None]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("mixup", (3, 8, 8), "mixup.*none, crop"),
        ("crop", (64,), "shape"),
        ("crop-reflect", (1, 4, 9), "more than 4 pixels"),
        ("colour", (1, 8, 8), "3 colour channels"),
        ("affine", (4, 8, 8), "3 colour channels"),
    ],
)
def test_images_that_cannot_be_changed_so_are_refused(name, shape, message):
    with pytest.raises(InvalidInput, match=message):
        Augmentation(name, shape, 0.0)
