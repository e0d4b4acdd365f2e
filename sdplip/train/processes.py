"""The processes that share a training, as torchrun starts them."""

from __future__ import annotations

import os

import torch


def launched() -> bool:
    """Whether torchrun started this process."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def together() -> tuple[int, int]:
    """How many processes share this training on this machine, and on how many machines: as
    torchrun says, else (1, 1)."""
    if not launched():
        return 1, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def leads() -> bool:
    """Whether this process measures and writes: under torchrun one does."""
    return not launched() or os.environ["RANK"] == "0"
