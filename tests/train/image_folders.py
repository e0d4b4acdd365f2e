"""Small folders of images, written by PIL."""

import numpy as np
from PIL import Image


def draw(path, size=(8, 8), mode="RGB", seed=0, level=None):
    """Write one image of noise around a level, which is what classes differ by."""
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    noise = rng.integers(0, 256, shape)
    pixels = noise if level is None else np.clip(noise // 4 + level, 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8), "L" if mode == "L" else "RGB").save(path)


def draw_folder(root, train=4, test=2, classes=("ant", "bee"), size=(8, 8), mode="RGB"):
    """train/<class>/*.png and test/<class>/*.png, separable by their brightness."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            for index in range(count):
                level = 180 * label // max(len(classes) - 1, 1)
                draw(root / split / name / f"{index:03}.png", size, mode, seed, level)
                seed += 1
    return root
