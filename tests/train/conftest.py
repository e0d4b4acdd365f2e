"""A cache of their own for every test, and the digits."""

import pytest

from sdplip.train import load


@pytest.fixture(scope="session")
def splits():
    return load("digits")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """No test reads or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("LOCALAPPDATA", str(folder))
    return folder
