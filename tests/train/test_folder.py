"""Folders of images: decoded once, exactly, and refused with the file's name."""

import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from image_folders import draw, draw_folder
from PIL import Image

from sdplip.errors import InvalidInput
from sdplip.train import load
from sdplip.train.data import Splits, pixels, short_name


def read(path):
    return torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())


def arrays(cache):
    return sorted((cache / "sdplip" / "decoded").glob("*"))


def test_images_are_those_of_the_files_and_classes_take_turns(tmp_path):
    draw_folder(tmp_path, train=3, test=2, classes=("bee", "ant", "cow"), size=(8, 6))
    splits = load(f"folder:{tmp_path}")
    images, labels = splits.train
    assert images.dtype == torch.uint8 and images.shape == (9, 3, 6, 8)
    assert splits.input_shape == (3, 6, 8) and splits.num_classes == 3
    assert labels.tolist() == [0, 1, 2] * 3 and splits.test[1].tolist() == [0, 1, 2] * 2
    for index, name in enumerate(("ant", "bee", "cow")):
        assert torch.equal(images[index], read(tmp_path / "train" / name / "000.png"))
        assert torch.equal(splits.test[0][3 + index], read(tmp_path / "test" / name / "001.png"))
    assert short_name(splits.name) == tmp_path.name
    exact = images.double() / 255
    assert splits.mean == pytest.approx(float(exact.mean()), rel=1e-12)
    assert splits.std == pytest.approx(float(exact.std()), rel=1e-12)
    assert splits.channel_means == pytest.approx(exact.mean((0, 2, 3)).tolist(), rel=1e-12)


def test_decoded_once_and_again_when_a_file_changes(tmp_path, cache):
    draw_folder(tmp_path / "data")
    seen = []
    name = f"folder:{tmp_path / 'data'}"
    first = load(name, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12) and len(arrays(cache)) == 2
    again = load(name, progress=lambda done, total: pytest.fail("decoded again"))
    assert torch.equal(again.train[0], first.train[0])
    changed = tmp_path / "data" / "train" / "ant" / "000.png"
    draw(changed, seed=99)
    os.utime(changed, ns=(1, 1))
    other = load(name)
    assert torch.equal(other.train[0][0], read(changed))
    assert not torch.equal(other.train[0][0], first.train[0][0])
    assert len(arrays(cache)) == 2


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_damaged_cache_is_written_anew(tmp_path, cache, content):
    draw_folder(tmp_path)
    first = load(f"folder:{tmp_path}").train[0].clone()
    for file in arrays(cache):
        file.write_bytes(file.read_bytes()[:-3] if content is None else content)
    assert torch.equal(load(f"folder:{tmp_path}").train[0], first)


def test_a_failed_decode_leaves_no_cache(tmp_path, cache):
    draw_folder(tmp_path)
    file = tmp_path / "test" / "bee" / "001.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InvalidInput, match=r"001\.png.*cannot be decoded"):
        load(f"folder:{tmp_path}")
    assert all("train" in path.name for path in arrays(cache))


def test_grey_stays_grey_and_transparency_is_dropped(tmp_path):
    draw_folder(tmp_path / "grey", mode="L")
    assert load(f"folder:{tmp_path / 'grey'}").input_shape == (1, 8, 8)
    mixed = draw_folder(tmp_path / "mixed")
    draw(mixed / "train" / "ant" / "000.png", mode="L")
    Image.open(mixed / "train" / "ant" / "001.png").convert("RGBA").save(
        mixed / "train" / "ant" / "001.png"
    )
    images = load(f"folder:{mixed}").train[0]
    assert images.shape[1:] == (3, 8, 8) and torch.equal(images[0, 0], images[0, 2])
    assert torch.equal(images[2], read(mixed / "train" / "ant" / "001.png")[:3])


def png(width, height, depth, kind, row):
    """The bytes of a PNG, of which Pillow writes no colours of 16 bits."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + row) * height)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def spoil(root, how):
    file = root / "train" / "bee" / "002.png"
    if how == "size":
        draw(file, size=(9, 8))
    elif how == "text":
        file.write_text("not an image")
    elif how == "deep":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(file)
    elif how == "deep colour":
        file.write_bytes(png(8, 8, depth=16, kind=2, row=bytes(48)))
    elif how == "deep grey":
        file.write_bytes(png(8, 8, depth=16, kind=4, row=bytes(32)))
    elif how == "deep ppm":
        file.write_bytes(b"P6 8 8 65535\n" + bytes(384))
    elif how == "plain ppm":
        file.write_bytes(b"P3 8 8 65535\n" + b"0 " * 192)
    elif how == "postscript":
        Image.new("RGB", (8, 8)).save(file, "EPS")
    elif how == "bomb":
        Image.new("1", (20_000, 20_000)).save(file)
    elif how == "empty":
        for image in (root / "train" / "bee").iterdir():
            image.unlink()
    elif how == "untested":
        for image in (root / "test" / "bee").iterdir():
            image.unlink()
        (root / "test" / "bee").rmdir()
    elif how == "unknown":
        draw(root / "test" / "wasp" / "000.png")
    elif how == "untrained":
        (root / "train").rename(root / "training")
    elif how == "single":
        for image in (root / "train" / "bee").iterdir():
            image.unlink()
        (root / "train" / "bee").rmdir()
    elif how == "unsplit":
        (root / "test").rename(root / "held-out")


@pytest.mark.parametrize(
    "how, message",
    [
        ("size", r"002\.png.*9x8 pixels.*8x8"),
        ("text", r"002\.png.*cannot be decoded"),
        ("deep", r"002\.png.*mode I"),
        ("deep colour", r"002\.png.*mode RGB, more than 8 bits"),
        ("deep grey", r"002\.png.*more than 8 bits"),
        ("deep ppm", r"002\.png.*mode RGB, more than 8 bits"),
        ("plain ppm", r"002\.png.*mode RGB, more than 8 bits"),
        ("postscript", r"002\.png.*cannot be decoded.*cannot identify"),
        ("bomb", r"002\.png.*cannot be decoded"),
        ("empty", "class 'bee' is empty"),
        ("untested", "class 'bee' is missing"),
        ("unknown", "class 'wasp' is not in train"),
        ("untrained", "no train folder"),
        ("single", "1 class folders"),
        ("unsplit", "neither a test nor a val folder"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, how, message):
    spoil(draw_folder(tmp_path), how)
    with pytest.raises(InvalidInput, match=message):
        load(f"folder:{tmp_path}")


def test_hostile_names_are_only_names(tmp_path):
    names = ["000 .png", "-rf.png", "a\nb.png", "ümlaut\u202e.png", "$(x).png", ".hidden.png"]
    for label in ("ant", "bee; rm"):
        for index, name in enumerate(names):
            draw(tmp_path / "train" / label / name, seed=index)
            draw(tmp_path / "test" / label / name, seed=index)
        (tmp_path / "train" / label / "notes.txt").write_text("no image")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "train" / "ant" / "pipe.png")
    assert len(load(f"folder:{tmp_path}").train[0]) == 2 * (len(names) - 1)
    (tmp_path / "train" / "ant" / "a\nb.png").write_text("damaged")
    with pytest.raises(InvalidInput) as caught:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value) and "a\\nb.png" in str(caught.value)


def test_tiny_imagenet_as_it_is_published(tmp_path):
    for label, name in enumerate(("n01", "n02")):
        for index in range(3):
            draw(tmp_path / "train" / name / "images" / f"{name}_{index}.png", seed=index)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("a box")
        draw(tmp_path / "val" / "images" / f"val_{label}.png", seed=50 + label)
    draw(tmp_path / "test" / "images" / "unlabelled.png")
    table = tmp_path / "val" / "val_annotations.txt"
    table.write_text("val_0.png\tn02\t0\t0\t62\t57\nval_1.png\tn01\t1\t1\t2\t2\n")
    splits = load(f"folder:{tmp_path}")
    assert splits.test[1].tolist() == [1, 0] and len(splits.train[0]) == 6
    assert torch.equal(splits.test[0][0], read(tmp_path / "val" / "images" / "val_0.png"))
    for line in ("val_9.png\tn01\t0", "../val_annotations.txt\tn01", "val_0.png\tn77", "", "x"):
        table.write_text(f"val_0.png\tn01\t0\n{line}\n" if line else "")
        with pytest.raises(InvalidInput, match=r"val_annotations\.txt"):
            load(f"folder:{tmp_path}")


def test_val_stands_in_for_test(tmp_path):
    draw_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(load(f"folder:{tmp_path}").test[0]) == 4


def test_cifar10_as_jpeg(data_dir, tmp_path):
    import tarfile

    archive = data_dir / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in SDPLIP_DATA")
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if m.name.endswith(("0000.jpg", "0001.jpg", "0002.jpg"))]
        tar.extractall(tmp_path, wanted, filter="data")
    splits = load(f"folder:{tmp_path}")
    assert splits.train[0].shape == splits.test[0].shape == (30, 3, 32, 32)
    assert splits.num_classes == 10 and 0.4 < splits.mean < 0.55


def test_a_subset_is_even_and_keeps_the_order():
    labels = torch.tensor([2, 2, 2, 2, 0, 0, 1, 1, 1, 1])
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    splits = Splits((images, labels), (images, labels), 3, (1, 1, 1), "here")
    chosen, kept = splits.first(7).train
    assert kept.bincount().tolist() == [2, 2, 3]
    assert chosen.flatten().tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert splits.first(None) is splits and len(splits.first(10).train[0]) == 10
    with pytest.raises(InvalidInput, match="train_images = 11, but here has 10"):
        splits.first(11)


def test_pixels():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert pixels(x).tolist() == [0, pytest.approx(0.2), 1]
    assert torch.equal(pixels(x), x.float() / 255)
    same = torch.rand(3)
    assert torch.equal(pixels(same), same) and pixels(x, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool], ids=str)
def test_other_integers_are_no_images(dtype):
    images, labels = torch.ones(2, 1, 1, 1, dtype=dtype), torch.tensor([0, 1])
    good = images.to(torch.uint8)
    for train, test in ((images, good), (good, images)):
        with pytest.raises(InvalidInput, match=f"images are {dtype}, but must be uint8"):
            Splits((train, labels), (test, labels), 2, (1, 1, 1), "here")
    with pytest.raises(InvalidInput, match="must be uint8"):
        pixels(images)


def test_a_cache_that_is_a_file_is_refused(tmp_path, cache):
    (cache / "sdplip").parent.mkdir(parents=True, exist_ok=True)
    (cache / "sdplip").write_text("")
    with pytest.raises(InvalidInput, match="decoded images cannot be kept there"):
        load(f"folder:{draw_folder(tmp_path / 'images')}")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "pgm", "png", "ppm", "tif", "webp"])
def test_every_format_with_8_bits_is_read(tmp_path, suffix):
    draw_folder(tmp_path)
    file = tmp_path / "train" / "ant" / "000.png"
    Image.open(file).convert("L" if suffix == "pgm" else "RGB").save(file.with_suffix("." + suffix))
    if suffix != "png":
        file.unlink()
    assert load(f"folder:{tmp_path}").input_shape == (3, 8, 8)


@pytest.mark.parametrize("content", [b"P1 8 8 " + b"1 " * 64, b"P3 8 8 255 " + b"7 " * 192])
def test_images_as_text_are_read(tmp_path, content):
    (draw_folder(tmp_path) / "train" / "ant" / "000.png").write_bytes(content)
    assert load(f"folder:{tmp_path}").input_shape == (3, 8, 8)


SMALL_DISK = """
mount -t tmpfs -o size=200k none {disk} || exit 77
export XDG_CACHE_HOME={disk}
{python} -c "from sdplip.train import load; load('folder:{images}')"
"""


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path):
    """A memory map of a file on a full disk would end the process with SIGBUS."""
    disk, images = tmp_path / "disk", draw_folder(tmp_path / "images", train=20, size=(64, 64))
    disk.mkdir()
    script = SMALL_DISK.format(disk=disk, images=images, python=sys.executable)
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    words = [unshare, "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip("mounting is not permitted")
    assert done.returncode == 1 and "decoded images need 1 MB" in done.stderr
