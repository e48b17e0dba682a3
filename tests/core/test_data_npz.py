"""Data sets in one .npz file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.core.data import load
from harmony.core.data.bounded import Limits
from harmony.core.data.npz import load_npz
from harmony.core.errors import DataForeign, DataMissing, EmptyClass, LabelOutOfRange


def arrays(**changes: Any) -> dict[str, Any]:
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 5)).astype(np.uint8)
    y = np.array([0, 1, 2] * 2, np.uint8)
    return {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3]} | changes


def save(path: Path, **changes: Any) -> Path:
    np.savez_compressed(path, allow_pickle=True, **arrays(**changes))
    return path


def test_images_and_default_class_names(tmp_path: Path) -> None:
    data = load(str(save(tmp_path / "digits.npz", extra=np.zeros(3))))
    assert data.name == "digits"
    assert data.x_train.shape == (6, 4, 5, 1)
    assert data.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(data.x_test[..., 0], arrays()["x_test"])


def test_sensor_windows_and_class_names(tmp_path: Path) -> None:
    windows = np.random.default_rng(0).normal(size=(6, 128, 9)).astype(np.float32)
    names = np.array(["walk", "sit", "lie"])
    data = load_npz(save(tmp_path / "har.npz", x_train=windows, x_test=windows[:3], class_names=names))
    assert data.x_train.shape == (6, 128, 9, 1)
    assert data.image_spec().dtype == "float32"
    assert data.class_names == ("walk", "sit", "lie")


def test_colour_images_in_fortran_order(tmp_path: Path) -> None:
    x = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8))
    data = load_npz(save(tmp_path / "a.npz", x_train=x, x_test=x[:3]))
    assert data.x_train.flags.c_contiguous
    np.testing.assert_array_equal(data.x_train, x)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros(1), y_train=np.zeros(1))
    with pytest.raises(DataForeign, match=r"lacks x_test, y_test; it holds x_train, y_train \(save it with"):
        load_npz(tmp_path / "a.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trap",)

    path = save(tmp_path / "a.npz", y_train=np.array([Trap()] * 6))
    with pytest.raises(DataForeign, match="y_train: an array of Python objects is not read"):
        load_npz(path)
    assert not (tmp_path / "trap").exists()


def test_labels_are_checked_with_file_value_and_index(tmp_path: Path) -> None:
    with pytest.raises(LabelOutOfRange, match=r"a\.npz: train: label -1 of image 1"):
        load_npz(save(tmp_path / "a.npz", y_train=np.array([0, -1, 2, 0, 1, 2])))
    with pytest.raises(LabelOutOfRange, match=r"a\.npz: test: label 7 of image 2 is outside 0 … 2"):
        load_npz(save(tmp_path / "a.npz", y_test=np.array([0, 1, 7])))
    with pytest.raises(LabelOutOfRange, match="label 9000000000 of image 5"):
        load_npz(save(tmp_path / "a.npz", y_train=np.array([0, 1, 2, 0, 1, 9_000_000_000])))
    with pytest.raises(EmptyClass, match="class 3 '3' has no image"):
        load_npz(save(tmp_path / "a.npz", y_train=np.array([0, 1, 2, 0, 1, 4])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.zeros(6)}, "labels of type float64"),
        ({"y_train": np.zeros(0, int)}, "labels of shape"),
        ({"y_train": np.zeros(5, int)}, "6 images, but labels of shape"),
        ({"x_test": np.zeros((3, 4, 6), np.uint8)}, "test images are 4x6x1"),
        ({"class_names": np.array([1, 2, 3])}, "class_names is not a list of str"),
        ({"class_names": np.array([["a", "b", "c"]])}, "class_names is not a list of str"),
    ],
)
def test_foreign_arrays_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataForeign, match=rf"a\.npz.*{message}"):
        load_npz(save(tmp_path / "a.npz", **changes))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz")
    whole = path.read_bytes()
    middle = whole.index(b"x_train.npy") + 120
    for damaged in (whole[:-30], whole[:middle] + b"\xff" * 8 + whole[middle + 8 :], b"not a zip file", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataForeign, match=r"a\.npz: not a whole \.npz file"):
            load_npz(path)


def test_a_header_that_lies_about_its_size_allocates_nothing(tmp_path: Path) -> None:
    path, lie = tmp_path / "a.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(lie, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 2)})
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", lie.getvalue() + bytes(64))
    with pytest.raises(DataForeign, match=r"x_train.*does not fit its size on disk"):
        load_npz(path)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x_train=np.zeros((6, 400, 500), np.uint8))
    with pytest.raises(DataForeign, match="x_train: 1200128 bytes, above the limit of 1000000"):
        load_npz(path, Limits(data_bytes=1_000_000))
    with pytest.raises(DataForeign, match="above the limit of 100"):
        load_npz(path, Limits(file_bytes=100))


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(
        DataMissing, match=r"nothing\.npz: neither .* fashion-mnist-mini, fashion-mnist, cifar10, cifar100"
    ):
        load(str(tmp_path / "nothing.npz"))
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataForeign, match=r"a\.csv: neither a folder of images nor an \.npz file"):
        load(str(tmp_path / "a.csv"))
