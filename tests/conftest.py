"""Shared pieces: seeds, single-threaded arithmetic, and where real data and networks lie."""

import os
from pathlib import Path
from zlib import crc32

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def one_thread():
    """Two cores shared by many small matrices: threads cost more than they give."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


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


THINNED = {
    "test_conv_conformance.py": 4,
    "test_equilibrium_conv.py": 4,
    "test_fold.py": 3,
    "test_cache.py": 3,
    "test_emitted.py": 2,
}
"""Grids of cases of which one in k is run, unless --exhaustive asks for all of them."""


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="run the whole grids of cases")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--exhaustive") or len(items) < 5000:
        return
    kept, left = [], []
    for item in items:
        # By its name: every k-th in order would drop the same values of the innermost parameter.
        chosen = crc32(item.nodeid.encode()) % THINNED.get(item.path.name, 1) == 0
        (kept if chosen else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
