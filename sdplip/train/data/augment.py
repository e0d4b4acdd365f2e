"""Random changes of training images: on the batch, on its device, different for every image.

The operations are kornia's. They depend on a seed alone, so that a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInput

AUGMENTATIONS = {
    "none": "images as they are",
    "crop": "shifts by up to 4 pixels, filled with the mean colour, and mirroring [1LLC]",
    "crop-reflect": "shifts by up to 4 pixels, filled by reflection, and mirroring [CPL]",
    "colour": "crop-reflect, then brightness, contrast, saturation and hue [SLL]",
    "affine": "rotations by up to 5°, shifts by up to a tenth, mirroring and colours [AOL]",
}
"""Every recipe by name; [1LLC], [CPL], [SLL] and [AOL] are the code that it is taken from."""

PADDING = 4


def check(name: str, shape: Sequence[int]) -> None:
    """Raise InvalidInput where images of this shape cannot be changed so."""
    if name not in AUGMENTATIONS:
        raise InvalidInput(
            f"train: augment is {name!r}, but must be one of {', '.join(AUGMENTATIONS)}."
        )
    if name == "none":
        return
    if len(shape) != 3 or min(shape[1:]) <= PADDING:
        raise InvalidInput(
            f"train: augment is {name!r}, which needs images of more than {PADDING} pixels a "
            f"side, but they have the shape {tuple(shape)}. Use none."
        )
    if name in ("colour", "affine") and shape[0] != 3:
        raise InvalidInput(
            f"train: augment is {name!r}, which needs 3 colour channels, but the images have "
            f"{shape[0]}. Use crop or crop-reflect."
        )


class Augmentation:
    """`name` for images (N, *shape) in [0, 1], whose mean is `mean` (one, or one per channel)."""

    def __init__(self, name: str, shape: Sequence[int], mean: float | Sequence[float]) -> None:
        check(name, shape)
        self.pipeline = None if name == "none" else _pipeline(name, (shape[1], shape[2]))
        # The published code subtracts the mean first, and then fills with zeros.
        self.fill = torch.as_tensor(mean).reshape(-1, 1, 1) if name == "crop" else None

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """Changed images of the same shape, in [0, 1]; the global generator is left as it was."""
        if self.pipeline is None:
            return x
        fill = 0.0 if self.fill is None else self.fill.to(x)
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast(x.device.type, enabled=False),
            torch.no_grad(),
        ):
            torch.default_generator.manual_seed(seed)
            return (self.pipeline(x - fill) + fill).clamp(0, 1)


def _pipeline(name: str, size: tuple[int, int]) -> Any:
    import kornia.augmentation as K

    jitter = K.ColorJitter(brightness=0.1, contrast=(0.5, 2.0), saturation=(0.3, 2.0), hue=0.02)
    flip = K.RandomHorizontalFlip()
    if name == "affine":
        move = K.RandomAffine(5.0, translate=(0.1, 0.1), padding_mode="reflection", p=1.0)
        return torch.nn.Sequential(jitter, move, flip)
    mode = "constant" if name == "crop" else "reflect"
    crop = K.RandomCrop(size, padding=PADDING, padding_mode=mode)
    return torch.nn.Sequential(crop, flip, *([jitter] if name == "colour" else []))
