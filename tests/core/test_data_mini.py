"""The embedded data set."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from harmony.core.data import load, mini
from harmony.core.data.fashion import SYSTEM, find_fashion
from harmony.core.data.make_mini import first_of_each, packed, subset
from harmony.core.errors import DataForeign


def test_counts_balance_and_size() -> None:
    data = load("fashion-mnist-mini")
    assert data.x_train.shape == (10_000, 28, 28, 1)
    assert data.x_test.shape == (2_000, 28, 28, 1)
    assert data.x_train.dtype == np.uint8
    assert np.bincount(data.y_train).tolist() == [1_000] * 10
    assert np.bincount(data.y_test).tolist() == [200] * 10
    assert data.class_names[0] == "T-shirt/top"
    assert len(data.class_names) == 10
    assert mini.PATH.stat().st_size <= mini.MAX_BYTES


def test_no_two_images_of_a_class_follow_in_blocks() -> None:
    labels = load("fashion-mnist-mini").y_train[:100]
    assert len(np.unique(labels)) == 10, "the order of the files is kept, which mixes the classes"


def test_licence_lies_beside_it() -> None:
    text = mini.PATH.with_name("LICENSE-fashion-mnist").read_text()
    assert "MIT License" in text
    assert "2017 Zalando SE" in text


def test_an_edited_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(mini.PATH.read_bytes())
    data[len(data) // 2] ^= 1
    edited = tmp_path / "edited.npz"
    edited.write_bytes(data)
    monkeypatch.setattr(mini, "PATH", edited)
    with pytest.raises(DataForeign, match=r"edited\.npz: not the embedded data set"):
        load("fashion-mnist-mini")


def test_it_is_the_first_images_of_every_class_of_the_full_set() -> None:
    if find_fashion(SYSTEM) is None:
        pytest.skip("needs Debian's dataset-fashion-mnist")
    source, embedded = subset(SYSTEM), load("fashion-mnist-mini")
    np.testing.assert_array_equal(source["x_train"], embedded.x_train[..., 0])
    np.testing.assert_array_equal(source["y_test"], embedded.y_test)


def test_packing_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    arrays = {"x": np.arange(24).reshape(2, 3, 4)[:, ::-1], "names": np.array(["a", "bc"])}
    assert packed(arrays) == packed({key: array.copy() for key, array in arrays.items()})
    path = tmp_path / "packed.npz"
    path.write_bytes(packed(arrays))
    with zipfile.ZipFile(path) as archive:
        assert {member.date_time[0] for member in archive.infolist()} == {1980}
    with np.load(path, allow_pickle=False) as again:
        np.testing.assert_array_equal(again["x"], arrays["x"])


def test_first_of_each_keeps_the_order() -> None:
    assert first_of_each(np.array([1, 0, 1, 1, 0, 0]), 2).tolist() == [0, 1, 2, 4]
