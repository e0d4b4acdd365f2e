"""Data sets: what they hold, and what is said when they are not there."""

import hashlib
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from sdplip.errors import InvalidInput
from sdplip.train import Splits, load
from sdplip.train.data.datasets import _PUBLISHED, data_root


def test_digits_are_complete_stratified_and_in_the_unit_box():
    splits = load("digits")
    (x, y), (x_test, y_test) = splits.train, splits.test
    assert len(x) + len(x_test) == 1797 and x.shape[1:] == splits.input_shape == (1, 8, 8)
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    share = y_test.bincount() / (y.bincount() + y_test.bincount())
    assert ((share > 0.24) & (share < 0.26)).all()
    assert 0 < splits.mean < 1 and splits.std == pytest.approx(float(x.std()), rel=1e-5)


def test_digits_split_shares_no_image():
    splits = load("digits")
    rows = torch.cat([splits.train[0], splits.test[0]]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_mnist(data_dir):
    splits = load("mnist", data_dir)
    assert splits.train[0].shape == (60000, 1, 28, 28) and splits.test[1].shape == (10000,)
    assert splits.mean == pytest.approx(0.1307, abs=1e-4)
    assert splits.std == pytest.approx(0.3081, abs=1e-4)


def test_missing_data_set_names_files_and_command(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        load("mnist", tmp_path)
    message = str(caught.value)
    for part in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", str(tmp_path / "MNIST")):
        assert part in message
    assert f"sdplip train --data mnist --data-root {tmp_path} --download" in message
    assert not list(tmp_path.iterdir())


def test_damaged_data_set_is_named(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (folder / f"{split}-{kind}-ubyte").write_bytes(b"\0" * 20)
    with pytest.raises(InvalidInput, match="cannot be read"):
        load("fashionmnist", tmp_path)


@pytest.mark.parametrize("name, file", [("cifar10", "data_batch_5"), ("cifar100", "train")])
def test_missing_cifar_names_files_and_command(tmp_path, name, file):
    with pytest.raises(InvalidInput, match=file) as caught:
        load(name, tmp_path)
    assert f"sdplip train --data {name} --data-root {tmp_path} --download" in str(caught.value)
    assert not list(tmp_path.iterdir())


def write_cifar(root, monkeypatch):
    """Two images per file in torchvision's layout, and the checksums that torchvision expects."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    batches = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
        batches[name] = data
        entry = write(name, {"data": data, "labels": [3, 7]})
        kind = "test_list" if name == "test_batch" else "train_list"
        have = (
            []
            if name in ("data_batch_1", "test_batch")
            else torchvision.datasets.CIFAR10.train_list
        )
        monkeypatch.setattr(torchvision.datasets.CIFAR10, kind, [*have, entry])
    names = [f"class {i}" for i in range(10)]
    meta = write("batches.meta", {"label_names": names})
    entry = {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", entry)
    monkeypatch.setitem(_PUBLISHED, "cifar10", replace(_PUBLISHED["cifar10"], sizes=(10, 2)))
    return batches


def test_cifar_is_read_in_torchvisions_layout(tmp_path, monkeypatch):
    batches = write_cifar(tmp_path, monkeypatch)
    splits = load("cifar10", tmp_path)
    assert splits.train[0].shape == (10, 3, 32, 32) and splits.train[0].dtype == torch.uint8
    expected = torch.from_numpy(batches["data_batch_2"]).view(2, 3, 32, 32)
    assert torch.equal(splits.train[0][2:4], expected)
    assert splits.test[1].tolist() == [3, 7] and splits.num_classes == 10
    assert len(splits.channel_means) == 3


def test_cifar_that_is_not_what_was_published_is_never_unpickled(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InvalidInput, match="cannot be read"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "exploded").exists()


def write_mnist(root, images, labels):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        pixels = struct.pack(">4I", 0x803, images, 28, 28) + bytes(images * 784)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(pixels)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, labels) + bytes(labels)
        )


def test_part_of_mnist_is_not_mnist(tmp_path):
    write_mnist(tmp_path, 7, 7)
    with pytest.raises(InvalidInput, match="has 7 training and 7 test images, but 60000 and 10000"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x, y: (x[:5], y), "5 test images of shape .* 6 labels"),
        (lambda x, y: (x[:0], y[:0]), "0 test images"),
        (lambda x, y: (x[..., :7], y), r"shape \(1, 8, 7\)"),
        (lambda x, y: (x, y + 1), "test labels go from 1 to 6, but must lie in 0…5"),
        (lambda x, y: (x, y - 1), "from -1 to 4"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(change, said):
    good = torch.zeros(6, 1, 8, 8), torch.arange(6)
    with pytest.raises(InvalidInput, match=said):
        Splits(good, change(*good), 6, (1, 8, 8), "here")


def test_unknown_data_set_lists_the_known():
    with pytest.raises(InvalidInput, match=r"imagenet.*digits, mnist, fashionmnist, cifar10"):
        load("imagenet")


def test_data_root_prefers_argument_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SDPLIP_DATA", str(tmp_path))
    assert data_root("elsewhere") == Path("elsewhere")
    assert data_root() == tmp_path
    monkeypatch.delenv("SDPLIP_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert data_root().name == "sdplip"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs another user")
@pytest.mark.parametrize("cache, code", [({}, 1), ({"XDG_CACHE_HOME": "/x"}, 0)])
def test_a_user_without_a_home_is_told(cache, code):
    script = "import os; from sdplip.train.data import data_root; os.setuid(54321); data_root()"
    names = ("HOME", "SDPLIP_DATA", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | cache, capture_output=True, text=True
    )
    assert done.returncode == code
    assert ("InvalidInput: there is no home folder" in done.stderr) == bool(code)
