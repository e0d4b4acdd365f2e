"""Data sets as tensors in memory, pixels in [0, 1].

`digits` ships with scikit-learn and needs no download; MNIST and FashionMNIST are read in
torchvision's layout.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidInput

DATASETS = ("digits", "mnist", "fashionmnist")

_TORCHVISION = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}
_FILES = tuple(
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class Splits:
    """A data set: `train` and `test` are pairs of images (N, *input_shape) and labels (N,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int
    input_shape: tuple[int, ...]
    name: str

    @property
    def mean(self) -> float:
        """The mean pixel of the training images."""
        return float(self.train[0].double().mean())

    @property
    def std(self) -> float:
        """The standard deviation of all training pixels."""
        return float(self.train[0].double().std())


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets lie: `root`, else $SDPLIP_DATA, else the platform's user cache."""
    if root is not None:
        return Path(root)
    if "SDPLIP_DATA" in os.environ:
        return Path(os.environ["SDPLIP_DATA"])
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(cache) / "sdplip"


def load(name: str, root: str | Path | None = None, download: bool = False) -> Splits:
    """Read the data set `name`; float32 pixels in [0, 1], int64 labels.

    Raises InvalidInput for an unknown name, and for a data set that is not there: the message
    lists the files looked for and the command that gets them. Nothing is downloaded unasked.
    """
    if name not in DATASETS:
        raise InvalidInput(
            f"data set {name!r} is not known. The data sets are {', '.join(DATASETS)}."
        )
    return _digits() if name == "digits" else _torchvision(name, data_root(root), download)


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    # Every fourth image of each class is test: stratified, and the same for ever, because no
    # library's random generator is involved.
    rank = torch.zeros_like(labels)
    for label in range(10):
        of_class = labels == label
        rank[of_class] = torch.arange(int(of_class.sum()))
    test = rank % 4 == 3
    return Splits(
        (images[~test], labels[~test]), (images[test], labels[test]), 10, (1, 8, 8), "digits"
    )


def _torchvision(name: str, root: Path, download: bool) -> Splits:
    import torchvision

    folder = root / _TORCHVISION[name] / "raw"
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing and not download:
        raise InvalidInput(
            f"{_TORCHVISION[name]} not found: looked for {', '.join(missing)} in {folder}. "
            f"Point --data-root or SDPLIP_DATA at the folder that holds {_TORCHVISION[name]}/raw, "
            f"or fetch it: sdplip train --data {name} --data-root {root} --download"
        )
    dataset = getattr(torchvision.datasets, _TORCHVISION[name])
    try:
        parts = [dataset(root, train=split, download=bool(missing)) for split in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise InvalidInput(
            f"{_TORCHVISION[name]} in {folder} cannot be read: {error!r}. "
            "Remove the damaged files and run again with --download."
        ) from error
    train, test = ((p.data.unsqueeze(1).float() / 255, p.targets.long()) for p in parts)
    return Splits(train, test, 10, (1, 28, 28), name)
