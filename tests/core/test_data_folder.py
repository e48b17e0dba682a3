"""Folders of images: ROOT/{train,test}/CLASS/*.png, *.jpg."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harmony.core.data import load
from harmony.core.data.bounded import Limits
from harmony.core.data.folder import load_folder
from harmony.core.errors import DataForeign, DataMissing, EmptyClass


def draw(path: Path, size: tuple[int, int] = (7, 5), mode: str = "RGB", value: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in "LP1" else (value, 2, 3) if mode == "RGB" else None).save(path)
    return path


def tree(root: Path, mode: str = "RGB") -> Path:
    for part in ("train", "test"):
        for number, name in enumerate(("eel", "cat", "dog")):
            draw(root / part / name / "b.png", mode=mode, value=number)
            draw(root / part / name / "a.JPG", mode=mode, value=100 + number)
    return root


def test_classes_are_folders_in_ascending_order(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets")
    (root / "train" / "cat" / "notes.txt").write_text("not an image, not looked at")
    (root / "train" / ".hidden").mkdir()
    data = load(str(root))
    assert data.name == "pets"
    assert data.class_names == ("cat", "dog", "eel")
    assert data.x_train.shape == (6, 5, 7, 3)
    assert data.y_train.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.x_train[3, 0, 0].tolist() == [2, 2, 3], "dog/b.png, losslessly"
    assert data.image_spec().dtype == "uint8"


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    assert load_folder(tree(tmp_path, "L")).x_test.shape == (6, 5, 7, 1)


@pytest.mark.parametrize(
    ("size", "mode", "message"),
    [
        ((5, 7), "RGB", r"5x7 with 3 channel\(s\), but a\.JPG is 7x5 with 3 channel\(s\)"),
        ((7, 5), "L", r"7x5 with 1 channel\(s\), but a\.JPG is 7x5 with 3 channel\(s\)"),
        ((7, 5), "RGBA", "colour mode RGBA"),
        ((7, 5), "P", "colour mode P"),
        ((7, 5), "I;16", "colour mode I;16"),
    ],
)
def test_another_size_or_channel_count_names_the_file(
    tmp_path: Path, size: tuple[int, int], mode: str, message: str
) -> None:
    path = draw(tree(tmp_path) / "test" / "dog" / "odd.png", size, mode)
    with pytest.raises(DataForeign, match=rf"{path}: {message}"):
        load_folder(tmp_path)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    path = tree(tmp_path) / "train" / "dog" / "b.png"
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[60] ^= 255
    for damaged in (whole[:-40], bytes(flipped), b"", b"GIF89a" + bytes(20), whole[:8] + b"junk" * 9):
        path.write_bytes(damaged)
        with pytest.raises(DataForeign, match=rf"{path}: not a readable image"):
            load_folder(tmp_path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [10_000, 40_000])
@pytest.mark.parametrize("name", ["a.JPG", "b.png"])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int, name: str) -> None:
    path = tree(tmp_path) / "train" / "cat" / name
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(DataForeign, match=str(path)):
        load_folder(tmp_path)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(DataForeign, match="above the limit of 10"):
        load_folder(tmp_path, Limits(image_bytes=10))
    with pytest.raises(DataForeign, match="630 bytes of pixels, above 600"):
        load_folder(tmp_path, Limits(data_bytes=600))
    with pytest.raises(DataForeign, match="more than 5 images"):
        load_folder(tmp_path, Limits(images=5))
    draw(tmp_path / "train" / "cat" / "a.JPG", (5000, 1))
    with pytest.raises(DataForeign, match=r"5000x1 pixels.*resize"):
        load_folder(tmp_path)


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    (tree(tmp_path) / "test" / "fox").mkdir()
    with pytest.raises(EmptyClass, match=rf"{tmp_path}/test/fox: no images"):
        load_folder(tmp_path)


def test_train_and_test_need_the_same_classes(tmp_path: Path) -> None:
    draw(tree(tmp_path) / "test" / "fox" / "a.png")
    with pytest.raises(DataForeign, match="class 'fox' is only in test"):
        load_folder(tmp_path)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=rf"{tmp_path}/train: no such folder.*CLASS"):
        load_folder(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataMissing, match="no class folders"):
        load_folder(tmp_path)
    draw(tmp_path / "train" / "one" / "a.png")
    draw(tmp_path / "test" / "one" / "a.png")
    with pytest.raises(DataForeign, match="1 classes"):
        load_folder(tmp_path)
