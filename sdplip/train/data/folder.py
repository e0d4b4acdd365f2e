"""Folders of images, decoded once into a memory-mapped array.

PATH/train/<class>/* and PATH/test/<class>/* (or val/ instead of test/), images of one size. Also
Tiny-ImageNet as it is published: train/<class>/images/*, val/images/* with val_annotations.txt.

The decoded images are uint8 arrays (N, channels, height, width) in the cache folder, named after
the folder's path and a digest of the names, sizes and times of its files: a folder that changed
is decoded again, and its former arrays are removed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._arrays import write_atomically
from ...errors import InvalidInput

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""What counts as an image, in upper or lower case; other files are left alone."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name: Pillow would start Ghostscript for EPS."""

GREY = frozenset(("1", "L", "LA"))
COLOUR = frozenset(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
ANNOTATIONS = "val_annotations.txt"
CHUNK = 1024
"""Images decoded before any of them is written."""

Progress = Callable[[int, int], None]
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Listing:
    """The images of a split, in the order of the data set, and their labels."""

    files: list[Path]
    labels: list[int]


def load(
    path: Path, cache: Path, progress: Progress | None = None
) -> tuple[Split, Split, list[str]]:
    """The splits of the folder as memory-mapped uint8 images and labels, and the classes' names.

    Classes are numbered in the order of their names, and take turns, so that the first images are
    of all of them. Grey images stay grey (one channel) if all
    of them are; transparency is dropped, of an animation the first picture is taken.

    Raises InvalidInput, naming the file, for what is missing, empty, of another size, damaged, or
    has more than 8 bits per channel; for a cache that is no folder and cannot become one.
    """
    train, test, classes = _listed(path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"folder {str(cache)!r}: decoded images cannot be kept there ({error.strerror}). "
            "Remove what is in the way, or point the cache elsewhere."
        ) from error
    prefix = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    digest = _digest(path, chain(train.files, test.files))
    arrays = [cache / f"{prefix}-{digest}-{name}.npy" for name in ("train", "test")]
    images = _mapped(arrays, (train, test))
    if images is None:
        _decode((train, test), arrays, progress)
        images = _mapped(arrays, (train, test))
        for old in set(cache.glob(f"{prefix}-*.npy")) - set(arrays):
            old.unlink(missing_ok=True)
    if images is None:
        raise InvalidInput(
            f"folder {str(cache)!r}: what was written there cannot be read back. "
            "Check the disk, or point the cache elsewhere."
        )
    # Copy-on-write, because Torch warns of arrays that cannot be written to.
    first, second = (
        (torch.from_numpy(array), torch.tensor(part.labels, dtype=torch.int64))
        for array, part in zip(images, (train, test), strict=True)
    )
    return first, second, classes


def _listed(path: Path) -> tuple[_Listing, _Listing, list[str]]:
    root = path / "train"
    if not root.is_dir():
        raise InvalidInput(
            f"folder {str(path)!r}: there is no train folder in it. "
            "Lay images out as train/<class>/*.png and test/<class>/*.png."
        )
    classes = _subfolders(root)
    if len(classes) < 2:
        raise InvalidInput(
            f"folder {str(root)!r}: it holds {len(classes)} class folders, but at least 2 are "
            "needed. Lay images out as train/<class>/*.png."
        )
    train = _by_class(root, classes)
    if (path / "val" / ANNOTATIONS).is_file():
        return train, _annotated(path / "val", classes), classes
    held_out = next((path / n for n in ("test", "val") if (path / n).is_dir()), None)
    if held_out is None:
        raise InvalidInput(
            f"folder {str(path)!r}: there is neither a test nor a val folder in it. "
            "Add one with the same classes as train."
        )
    if unknown := sorted(set(_subfolders(held_out)) - set(classes)):
        raise InvalidInput(
            f"folder {str(held_out)!r}: class {unknown[0]!r} is not in train. "
            "Give both the same classes."
        )
    return train, _by_class(held_out, classes), classes


def _subfolders(root: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))


def _by_class(root: Path, classes: Sequence[str]) -> _Listing:
    found = [_images(root / name) for name in classes]
    for name, files in zip(classes, found, strict=True):
        if not files:
            what = "is empty" if (root / name).is_dir() else "is missing"
            raise InvalidInput(
                f"folder {str(root)!r}: class {name!r} {what}. Every class needs images "
                f"({', '.join(sorted(SUFFIXES))}) in train and test."
            )
    turns = sorted(
        (rank, label, file) for label, files in enumerate(found) for rank, file in enumerate(files)
    )
    return _Listing([file for _, _, file in turns], [label for _, label, _ in turns])


def _images(root: Path) -> list[Path]:
    """Regular files only: opening a pipe would wait for ever."""
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(root)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
        and not name.startswith(".")
        and Path(place, name).is_file()
    )


def _annotated(root: Path, classes: Sequence[str]) -> _Listing:
    """Tiny-ImageNet's validation images: a table of file name, class and a box."""
    number = {name: label for label, name in enumerate(classes)}
    table = root / ANNOTATIONS
    files: list[Path] = []
    labels: list[int] = []
    for place, line in enumerate(
        table.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        file = root / "images" / name
        if Path(name).name != name or label not in number or not file.is_file():
            raise InvalidInput(
                f"{str(table)!r}, line {place}: {line[:80]!r} does not name an image in images/ "
                "and a class of train. Unpack the data set again."
            )
        files.append(file)
        labels.append(number[label])
    if not files:
        raise InvalidInput(f"{str(table)!r} is empty. Unpack the data set again.")
    return _Listing(files, labels)


def _digest(path: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        entry = (os.fsencode(file.relative_to(path)), stat.st_size, stat.st_mtime_ns)
        total.update(repr(entry).encode())
    return total.hexdigest()[:24]


def _mapped(files: Sequence[Path], parts: Sequence[_Listing]) -> list[Any] | None:
    """The arrays in `files`, or None if they are not there or not what they should be."""
    try:
        arrays = [np.load(file, mmap_mode="c", allow_pickle=False) for file in files]
    except (OSError, ValueError, EOFError):
        return None
    shapes = {array.shape[1:] for array in arrays}
    fit = all(
        array.dtype == np.uint8 and array.ndim == 4 and len(array) == len(part.files)
        for array, part in zip(arrays, parts, strict=True)
    )
    return arrays if fit and len(shapes) == 1 else None


def _decode(parts: Sequence[_Listing], arrays: Sequence[Path], progress: Progress | None) -> None:
    from PIL import Image

    files = [file for part in parts for file in part.files]
    # Warnings' filters are the process's, not a thread's: set here, for all of them.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        shape, mode = _common(files, list(pool.map(_head, files)))
        _check_room(arrays[0].parent, len(files) * math.prod(shape))
        done = 0
        for part, target in zip(parts, arrays, strict=True):
            write = partial(_write, part.files, shape, mode, pool, done, len(files), progress)
            write_atomically(target, write)
            done += len(part.files)


def _common(
    files: Sequence[Path], heads: Sequence[tuple[tuple[int, int], str]]
) -> tuple[tuple[int, int, int], str]:
    """The shape (channels, height, width) and mode of all images."""
    width, height = heads[0][0]
    for file, (size, _) in zip(files, heads, strict=True):
        if size != (width, height):
            raise InvalidInput(
                f"image {str(file)!r} has {size[0]}x{size[1]} pixels, but {str(files[0])!r} has "
                f"{width}x{height}. Resize all images to one size."
            )
    grey = all(mode in GREY for _, mode in heads)
    return (1 if grey else 3, height, width), "L" if grey else "RGB"


def _check_room(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise InvalidInput(
            f"folder {str(cache)!r} has {free / 1e6:.0f} MB left, but the decoded images need "
            f"{needed / 1e6:.0f} MB. Make room, or point the cache elsewhere."
        )


def _write(
    files: Sequence[Path],
    shape: tuple[int, int, int],
    mode: str,
    pool: ThreadPoolExecutor,
    done: int,
    total: int,
    progress: Progress | None,
    target: Path,
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
    # Not by a memory map: where the disk is full, that would end the process without a word.
    with target.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            for image in pool.map(partial(_image, mode=mode), part):
                out.write(image.reshape(shape).tobytes())
            if progress is not None:
                progress(done + start + len(part), total)


def _head(file: Path) -> tuple[tuple[int, int], str]:
    with _opened(file) as image:
        return image.size, image.mode


def _image(file: Path, mode: str) -> Any:
    with _opened(file) as image:
        try:
            pixels = np.asarray(image.convert(mode))
        except _DAMAGED as error:
            raise _damaged(file, error) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, TypeError)


def _opened(file: Path) -> Any:
    from PIL import Image

    try:
        image = Image.open(file, formats=FORMATS)
    except (*_DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _damaged(file, error) from error
    if image.mode not in GREY | COLOUR or _deep(image):
        depth = ", more than 8 bits deep" if _deep(image) else ""
        image.close()
        raise InvalidInput(
            f"image {str(file)!r} has the mode {image.mode}{depth}, but 8 bits per channel "
            "are needed. Convert it to RGB or grey with 8 bits."
        )
    return image


def _deep(image: Any) -> bool:
    """Whether the file has more than 8 bits per channel, of which Pillow would keep the first 8.

    The arguments of its decoders say so: a raw mode as RGB;16B (but BGR;16 has 16 bits for all
    channels together), or, of PPM, the largest value.
    """
    for tile in image.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(re.search(r";16[A-Z]", a) for a in arguments if isinstance(a, str)):
            return True
        if tile[0] in ("ppm", "ppm_plain") and isinstance(arguments[-1], int):
            return arguments[-1] > 255
    return False


def _damaged(file: Path, error: BaseException) -> InvalidInput:
    return InvalidInput(
        f"image {str(file)!r} cannot be decoded: {str(error)!r}. Repair it, or remove it."
    )
