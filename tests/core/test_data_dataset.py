"""The checks that every loader's result passes, and the scale that is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.data.dataset import Dataset, checked
from harmony.core.errors import DataForeign, EmptyClass, LabelOutOfRange

NAMES = ("cat", "dog", "eel")


def images(n: int = 6, shape: tuple[int, ...] = (4, 5), dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 255, (n, *shape)).astype(dtype)


def build(
    x: NDArray[Any], y: Any, x_test: NDArray[Any] | None = None, y_test: Any = None, names: tuple[str, ...] = NAMES
) -> Dataset:
    test = (x if x_test is None else x_test, np.asarray(y if y_test is None else y_test))
    return checked("d", (x, np.asarray(y)), test, names, train_from="a.bin", test_from="b.bin")


def test_arrays_come_out_in_one_form() -> None:
    big_endian = images(dtype=">f4")[:, ::-1]
    big_endian.setflags(write=False)
    data = build(big_endian, np.array([[0], [1], [2], [0], [1], [2]], np.uint8))
    assert data.x_train.shape == (6, 4, 5, 1)
    assert data.x_train.dtype == np.float32
    assert data.x_train.dtype.isnative
    assert data.x_train.flags.c_contiguous
    assert data.x_train.flags.writeable
    assert data.y_train.dtype == np.int64
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == 3
    np.testing.assert_array_equal(data.x_train[..., 0], big_endian)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_scale_is_measured_on_training_images(dtype: Any) -> None:
    x = images(shape=(4, 5, 3), dtype=dtype)
    spec = build(x, [0, 1, 2] * 2, x_test=x[::-1] // 2).image_spec()
    values = x.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    assert (spec.height, spec.width, spec.channels, spec.dtype) == (4, 5, 3, np.dtype(dtype).name)
    np.testing.assert_allclose(spec.mean, values.mean((0, 1, 2)))
    np.testing.assert_allclose(spec.std, values.std((0, 1, 2)))


def test_small_spread_on_a_large_offset_keeps_its_digits() -> None:
    x = np.float32(1e4) + images(dtype=np.float32) / 255
    np.testing.assert_allclose(build(x, [0, 1, 2] * 2).image_spec().std, x.astype(np.float64).std(), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 0), (np.uint8, 77), (np.float32, -3.1)])
def test_constant_channel_is_shifted_but_not_scaled(dtype: Any, value: float) -> None:
    spec = build(np.full((3, 2, 2), value, dtype), [0, 1, 2]).image_spec()
    assert spec.std == (1.0,)


@pytest.mark.parametrize(("value", "part"), [(3, "train"), (-1, "train"), (2**63, "test")])
def test_label_out_of_range_names_file_value_and_index(value: int, part: str) -> None:
    bad = np.array([0, 1, 2, 0, value, 2], np.uint64 if value > 2**62 else np.int64)
    good = np.array([0, 1, 2] * 2)
    file = "a.bin" if part == "train" else "b.bin"
    with pytest.raises(LabelOutOfRange, match=rf"{file}: label {value} of image 4 is outside 0 … 2"):
        build(images(), bad if part == "train" else good, y_test=good if part == "train" else bad)


def test_empty_class_is_named_for_training_and_for_test() -> None:
    with pytest.raises(EmptyClass, match=r"a\.bin: class 1 'dog' has no image"):
        build(images(), [0, 2] * 3)
    with pytest.raises(EmptyClass, match=r"b\.bin: class 2 'eel' has no image"):
        build(images(), [0, 1, 2] * 2, y_test=[0, 1] * 3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (images(), [0, 1, 2], r"6 images, but labels of shape \(3,\)"),
        (images(), [0.0, 1.0, 2.0] * 2, "labels of type float64"),
        (images(dtype=np.float64), [0, 1, 2] * 2, "images of type float64"),
        (images(shape=(4,)), [0, 1, 2] * 2, r"images of shape \(6, 4\)"),
        (images(shape=(0, 4)), [0, 1, 2] * 2, r"images of shape \(6, 0, 4\)"),
        (images(n=0), np.zeros(0, int), r"images of shape \(0, 4, 5\)"),
        (images(n=1, shape=(1, 5000)), [0], "sides 1 to 4096"),
    ],
)
def test_foreign_arrays_are_named(x: NDArray[Any], y: Any, message: str) -> None:
    with pytest.raises(DataForeign, match=message):
        build(x, y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_by_image(value: float) -> None:
    x = images(dtype=np.float32)
    x[4, 1, 1] = value
    with pytest.raises(DataForeign, match=r"b\.bin: image 4 holds NaN or infinity"):
        build(images(dtype=np.float32), [0, 1, 2] * 2, x_test=x)


def test_training_and_test_images_must_be_alike() -> None:
    with pytest.raises(DataForeign, match=r"b\.bin: test images are 4x6x1 uint8, training images 4x5x1 uint8"):
        build(images(), [0, 1, 2] * 2, x_test=images(shape=(4, 6)))
    with pytest.raises(DataForeign, match="float32, training images 4x5x1 uint8"):
        build(images(), [0, 1, 2] * 2, x_test=images(dtype=np.float32))


@pytest.mark.parametrize("names", [("one",), ("a", "a", "b"), ("a", " ", "b")])
def test_class_names_are_two_or_more_and_all_different(names: tuple[str, ...]) -> None:
    with pytest.raises(DataForeign, match="class"):
        build(images(), [0, 1, 2] * 2, names=names)
