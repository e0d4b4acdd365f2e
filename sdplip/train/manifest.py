"""What a run was made with, for whoever wants to make it again."""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .data import Splits
from .processes import together

PACKAGES = (
    "sdplip", "torch", "lightning", "numpy", "scipy", "cvxpy", "clarabel", "kornia", "pillow",
    "scikit-learn", "torchvision",
)  # fmt: skip
"""What results can depend on."""


def manifest(splits: Splits, device: str) -> dict[str, Any]:
    """Versions, commit (of a working copy, else None), machine, threads, processes that shared the
    training, and the data's SHA-256."""
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if "cuda" in device else None,
        "threads": torch.get_num_threads(),
        "processes": math.prod(together()),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None}
        | {"python": platform.python_version()},
        "commit": commit(),
        "data_sha256": checksum(splits),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the working copy that this package lies in, with "+" where it is changed."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(here), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # A package installed into some other project's working copy is no part of it.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return head if head is None or not git("status", "--porcelain", "--", str(here)) else head + "+"


def checksum(splits: Splits) -> str:
    """SHA-256 over the images and labels, training first."""
    found = hashlib.sha256()
    for tensor in (*splits.train, *splits.test):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # By parts: images may lie in a file that is larger than memory.
        for part in tensor.split(4096):
            found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()
