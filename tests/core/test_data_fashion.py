"""Fashion-MNIST's IDX files, in their official layout and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from harmony.core.data import fashion, load
from harmony.core.data.bounded import Limits
from harmony.core.data.fashion import FILES, find_fashion, load_fashion, read_idx
from harmony.core.errors import DataForeign, DataMissing, LabelOutOfRange


def idx(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(folder: Path, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    labels = np.arange(20, dtype=np.uint8) % 10
    for name in FILES:
        data = idx(random.integers(0, 256, (20, 6, 7)).astype(np.uint8) if "images" in name else labels)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sub", ["", "fashion-mnist"])
def test_official_files_load_flat_or_in_a_subfolder(tmp_path: Path, packed: bool, sub: str) -> None:
    write_set(tmp_path / sub, packed)
    data = load("fashion-mnist", data_dir=tmp_path)
    assert data.x_train.shape == (20, 6, 7, 1)
    assert data.y_test.tolist() == [*range(10), *range(10)]
    assert data.class_names[9] == "Ankle boot"


def test_the_cache_is_searched_too(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "nothing")
    with pytest.raises(DataMissing, match=rf"{own_cache}.*train-images-idx3-ubyte.*--download"):
        load("fashion-mnist")
    write_set(own_cache / "fashion-mnist")
    assert len(load("fashion-mnist").y_train) == 20


def test_the_full_set_where_the_system_keeps_it() -> None:
    if find_fashion(fashion.SYSTEM) is None:
        pytest.skip("needs Debian's dataset-fashion-mnist")
    data = load("fashion-mnist")
    assert data.x_train.shape == (60_000, 28, 28, 1)
    assert np.bincount(data.y_test).tolist() == [1_000] * 10


def test_an_incomplete_set_is_not_a_set(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / f"{FILES[1]}.gz").unlink()
    assert find_fashion(tmp_path) is None
    with pytest.raises(DataMissing, match="train-labels"):
        load_fashion(tmp_path)


IMAGES = idx(np.zeros((3, 2, 2), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an IDX file"),
        (idx(np.zeros(3, np.uint8)), "not an IDX file of bytes in 3"),
        (b"\0\0\x0d\x03" + IMAGES[4:], "not an IDX file"),
        (IMAGES[:-1], "truncated: 11 bytes for 12"),
        (IMAGES + b"\0", "longer than its header says: 13 bytes for 12"),
        (IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], "truncated"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_foreign_idx_files_are_named(tmp_path: Path, content: bytes, message: str, packed: bool) -> None:
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataForeign, match=rf"{path}: {message}.*download it again"):
        read_idx(path, 3)


def test_damaged_gzip_files_are_named(tmp_path: Path) -> None:
    path, whole = tmp_path / "images.gz", gzip.compress(IMAGES)
    path.write_bytes(whole[:-9])
    with pytest.raises(DataForeign, match="truncated gzip"):
        read_idx(path, 3)
    path.write_bytes(IMAGES)
    with pytest.raises(DataForeign, match="not a gzip file"):
        read_idx(path, 3)
    path.write_bytes(whole[:12] + b"\xff\xff\xff" + whole[15:])
    with pytest.raises(DataForeign, match=r"images\.gz"):
        read_idx(path, 3)


def test_sizes_are_bounded_before_and_while_reading(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(DataForeign, match="holds more than 1000 bytes"):
        read_idx(bomb, 3, Limits(data_bytes=1000, file_bytes=1_000_000))
    with pytest.raises(DataForeign, match="above the limit of 100"):
        read_idx(bomb, 3, Limits(file_bytes=100))
    with pytest.raises(DataForeign, match="not a regular file"):
        read_idx(tmp_path, 3)
    with pytest.raises(DataMissing, match="no such file"):
        read_idx(tmp_path / "none", 3)


def test_a_label_out_of_range_names_its_own_file(tmp_path: Path) -> None:
    write_set(tmp_path)
    labels = np.arange(20, dtype=np.uint8) % 10
    labels[7] = 10
    path = tmp_path / f"{FILES[3]}.gz"
    path.write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(LabelOutOfRange, match=rf"{path}: label 10 of image 7"):
        load_fashion(tmp_path)
