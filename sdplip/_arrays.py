"""Reading and checking arrays that come from outside."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import InvalidInput, ShapeError

Array = NDArray[np.float64]
MAX_FILE_BYTES = 4 << 30


def parse_norm(norm: Any) -> float:
    """2.0 or inf from 2, 2.0, "2", inf, "inf"."""
    try:
        value = float(norm)
    except (TypeError, ValueError):
        value = math.nan
    if value not in (2.0, math.inf):
        raise InvalidInput(f"norm = {norm!r} is not known; choose 2 or inf.")
    return value


def finite(name: str, value: Any) -> Array:
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
        if value.is_complex() or not plain:
            raise InvalidInput(
                f"{name} is a tensor of {value.dtype}, {value.layout}, on {value.device}, but must "
                "hold real numbers, all of them in memory."
            )
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InvalidInput(f"{name} has dtype {array.dtype}, but must hold real numbers.")
    array = np.array(array, dtype=np.float64)
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)].flat[0]
        raise InvalidInput(f"{name} contains {bad}; every entry must be finite.")
    return array


def matrix(name: str, value: Any) -> Array:
    array = finite(name, value)
    if array.ndim != 2:
        raise ShapeError(f"{name} has shape {array.shape}, but must be a matrix.")
    return array


def vector(name: str, array: Any, length: int) -> Any:
    if array.shape not in ((), (length,)):
        raise ShapeError(f"{name} has shape {array.shape}, but must be ({length},) or a scalar.")
    return np.broadcast_to(array, (length,)).copy()


def read_at_most(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file, of which as many are set aside as it has."""
    with path.open("rb") as file:
        return b"".join(islice(iter(partial(file.read, 1 << 20), b""), size >> 20))


def read_npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise InvalidInput(f"{path} unpacks to {size} bytes; the limit is {MAX_FILE_BYTES}.")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist.") from None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{path} is no readable system file ({error}). Write it with System.save or "
            "numpy.savez, without object arrays."
        ) from error


def write_named(path: Path, write: Callable[[Path], object]) -> None:
    """`write_atomically` of a file that a user named, in a folder that exists.

    Raises:
        InvalidInput: it does not, which is a slip rather than a wish for a new one.
    """
    if not path.parent.is_dir():
        raise InvalidInput(f"{path}: {path.parent} is no directory. Create it first.")
    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
