"""Data sets: images as uint8 (or float32 in [0, 1]), converted per batch, on the device.

`digits` ships with scikit-learn and needs no download; MNIST, FashionMNIST, CIFAR-10 and CIFAR-100
are read in torchvision's layout; `folder:PATH` is any folder of images (see `folder`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..._extras import need
from ...errors import InvalidInput
from . import folder

DATASETS = ("digits", "mnist", "fashionmnist", "cifar10", "cifar100")
FOLDER = "folder:"

_CHUNK = 4096


@dataclass(frozen=True)
class Splits:
    """A data set: `train` and `test` are pairs of images (N, *input_shape) and labels (N,).

    Images are uint8, or floating-point in [0, 1]: `pixels` turns a batch into what models take.
    Raises InvalidInput for images of another dtype or shape, and for labels that are not one class
    per image.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int
    input_shape: tuple[int, ...]
    name: str

    def __post_init__(self) -> None:
        for part, (images, labels) in (("training", self.train), ("test", self.test)):
            _check_dtype(images)
            found, wanted = tuple(images.shape[1:]), tuple(self.input_shape)
            if found != wanted or not len(images) == len(labels) > 0:
                raise InvalidInput(
                    f"{self.name}: there are {len(images)} {part} images of shape {found} with "
                    f"{len(labels)} labels, but each needs one label and the shape {wanted}. "
                    "Repair the data set, or fetch it again."
                )
            if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise InvalidInput(
                    f"{self.name}: {part} labels go from {int(labels.min())} to "
                    f"{int(labels.max())}, but must lie in 0…{self.num_classes - 1}. "
                    "Repair the data set, or fetch it again."
                )

    @property
    def mean(self) -> float:
        """The mean pixel of the training images."""
        images = self.train[0]
        if images.dtype != torch.uint8:
            return float(images.double().mean())
        return float(_first_moment(self._histogram().sum(0)))

    @property
    def std(self) -> float:
        """The standard deviation of all training pixels."""
        images = self.train[0]
        if images.dtype != torch.uint8:
            return float(images.double().std())
        counts = self._histogram().sum(0)
        deviation = torch.arange(256, dtype=torch.float64) / 255 - _first_moment(counts)
        return float((counts @ deviation.square() / (images.numel() - 1)).sqrt())

    @property
    def channel_means(self) -> tuple[float, ...]:
        """The mean of the training images, per channel."""
        images = self.train[0]
        if images.dtype != torch.uint8:
            return tuple(images.double().mean([0, *range(2, images.ndim)]).tolist())
        return tuple(_first_moment(self._histogram()).tolist())

    def _histogram(self) -> Tensor:
        """How often each of the 256 values occurs, per channel; float64, exact."""
        counts = [
            sum(
                torch.bincount(part[:, channel].flatten(), minlength=256)
                for part in self.train[0].split(_CHUNK)
            )
            for channel in range(self.input_shape[0])
        ]
        return torch.stack(cast(list[Tensor], counts)).double()

    def first(self, count: int | None) -> Splits:
        """With `count` training images only (None: all), as evenly from the classes as they allow.

        These are the first of every class in the order of the data set, which is kept.
        Raises InvalidInput where there are fewer.
        """
        images, labels = self.train
        if count is None or count == len(labels):
            return self
        if count > len(labels):
            raise InvalidInput(
                f"train_images = {count}, but {self.name} has {len(labels)} training images. "
                "Ask for fewer."
            )
        chosen = ranks(labels).sort(stable=True).indices[:count].sort().values
        return replace(self, train=(images[chosen], labels[chosen]))


def _first_moment(counts: Tensor) -> Tensor:
    return counts @ (torch.arange(256, dtype=torch.float64) / 255) / counts.sum(-1)


def pixels(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images of a data set as `dtype`, in [0, 1]; InvalidInput for integers other than uint8."""
    _check_dtype(x)
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def _check_dtype(images: Tensor) -> None:
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InvalidInput(
            f"images are {images.dtype}, but must be uint8, or floating-point in [0, 1]: of other "
            "integers nothing says which value is white. Convert them."
        )


def ranks(labels: Tensor) -> Tensor:
    """How many earlier images have the same label; (N,) int64."""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        of_class = labels == label
        rank[of_class] = torch.arange(int(of_class.sum()), device=labels.device)
    return rank


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets lie: `root`, else $SDPLIP_DATA, else the platform's user cache."""
    if root is not None:
        return Path(root)
    return Path(os.environ.get("SDPLIP_DATA") or user_cache())


def user_cache() -> Path:
    """The platform's cache folder for sdplip; $XDG_CACHE_HOME moves it on Linux.

    Raises InvalidInput for a user without a home, as in some containers.
    """
    variable, *below = {
        "win32": ("LOCALAPPDATA", "AppData", "Local"),
        "darwin": ("", "Library", "Caches"),
    }.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    try:
        return Path(os.environ.get(variable) or Path.home().joinpath(*below)) / "sdplip"
    except RuntimeError as error:
        raise InvalidInput(
            f"there is no home folder to keep data sets in ({error}). "
            "Set HOME, or SDPLIP_DATA and XDG_CACHE_HOME."
        ) from error


def known(name: str) -> bool:
    """Whether `load` takes this name."""
    return name in DATASETS or name.startswith(FOLDER)


def short_name(name: str) -> str:
    """The data set's name where a path would be in the way, as in run directories."""
    return Path(name.removeprefix(FOLDER)).resolve().name if name.startswith(FOLDER) else name


def load(
    name: str,
    root: str | Path | None = None,
    download: bool = False,
    *,
    progress: folder.Progress | None = None,
) -> Splits:
    """Read the data set `name`; int64 labels.

    `progress(done, total)` is called while a folder is decoded, which happens once: the images
    are then kept under `user_cache()`.

    Raises InvalidInput for an unknown name, for a data set that is not there (the message lists
    the files looked for and the command that gets them) and for images that cannot be used.
    Nothing is downloaded unasked.
    """
    if not known(name):
        raise InvalidInput(
            f"data set {name!r} is not known. The data sets are {', '.join(DATASETS)} and "
            f"{FOLDER}PATH."
        )
    if name == "digits":
        return _digits()
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER)).resolve()
        train, test, classes = folder.load(path, user_cache() / "decoded", progress)
        return Splits(train, test, len(classes), tuple(train[0].shape[1:]), f"{FOLDER}{path}")
    return _torchvision(name, data_root(root), download)


def _digits() -> Splits:
    need("The data set digits", "sklearn", extra="train")
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    # Every fourth image of each class is test: stratified, and the same for ever, because no
    # library's random generator is involved.
    test = ranks(labels) % 4 == 3
    return Splits(
        (images[~test], labels[~test]), (images[test], labels[test]), 10, (1, 8, 8), "digits"
    )


@dataclass(frozen=True)
class _Published:
    """A data set of torchvision: its class, the folder below the root, the files looked for."""

    cls: str
    folder: str
    files: tuple[str, ...]
    num_classes: int = 10
    sizes: tuple[int, int] = (50_000, 10_000)


_IDX = tuple(
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
_PUBLISHED = {
    "mnist": _Published("MNIST", "MNIST/raw", _IDX, sizes=(60_000, 10_000)),
    "fashionmnist": _Published("FashionMNIST", "FashionMNIST/raw", _IDX, sizes=(60_000, 10_000)),
    "cifar10": _Published(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": _Published("CIFAR100", "cifar-100-python", ("train", "test", "meta"), 100),
}


def _torchvision(name: str, root: Path, download: bool) -> Splits:
    need(f"The data set {name}", "torchvision", extra="train")
    import torchvision

    published = _PUBLISHED[name]
    place = root / published.folder
    missing = [file for file in published.files if not (place / file).is_file()]
    if missing and not download:
        raise InvalidInput(
            f"{published.cls} not found: looked for {', '.join(missing)} in {place}. "
            f"Point --data-root or SDPLIP_DATA at the folder that holds {published.folder}, "
            f"or fetch it: sdplip train --data {name} --data-root {root} --download"
        )
    dataset = getattr(torchvision.datasets, published.cls)
    try:
        # CIFAR's files are pickles: torchvision compares their checksums before it opens them.
        parts = [dataset(root, train=split, download=bool(missing)) for split in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise InvalidInput(
            f"{published.cls} in {place} cannot be read: {error!r}. "
            "Remove the damaged files and run again with --download."
        ) from error
    train, test = ((_channels_first(p.data), torch.as_tensor(p.targets).long()) for p in parts)
    if (len(train[0]), len(test[0])) != published.sizes:
        raise InvalidInput(
            f"{published.cls} in {place} has {len(train[0])} training and {len(test[0])} test "
            f"images, but {published.sizes[0]} and {published.sizes[1]} were published. Remove the "
            f"files and run again with --download, or use another name: --data {FOLDER}PATH."
        )
    return Splits(train, test, published.num_classes, tuple(train[0].shape[1:]), name)


def _channels_first(data: Any) -> Tensor:
    images = torch.as_tensor(data)
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
