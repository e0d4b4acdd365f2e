"""Shared pieces: seeds, single-threaded arithmetic, and where real data and networks lie."""

import os
from pathlib import Path

# Many small matrices: threads cost more than they give. Libraries read it when they are loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _afresh():
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture
def nets_dir():
    """Folder of really trained networks with known optima."""
    return _folder("SDPLIP_NETS")


@pytest.fixture
def data_dir():
    """Folder with data sets in torchvision's layout."""
    return _folder("SDPLIP_DATA")
