"""Real data: a short training run on MNIST reaches what it should, and its guarantees hold."""

import pytest

from sdplip.train import load, override, preset
from sdplip.train.runs import run


@pytest.mark.slow
def test_lben_learns_mnist_within_its_bound(data_dir, tmp_path):
    splits = load("mnist", data_dir)
    config = override(
        preset("lben", splits),
        width=80, normalise="std", loss="cross_entropy", epochs=3, images=500, steps=10,
    )  # fmt: skip
    (row,) = run(config, splits, tmp_path / "lben").rows
    assert row.violations() == [] and row.proven
    assert row.clean > 0.95
    assert row.promised == pytest.approx(1 / config.model.std, rel=1e-6)
    assert 0.5 * row.promised < row.sampled <= row.verified <= row.promised
    assert row.certified[0] > 0.9
