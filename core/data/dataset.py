"""A data set in memory, and the checks that every loader's result passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import DataForeign, EmptyClass, LabelOutOfRange
from harmony.core.spec import ImageSpec

MAX_SIDE = 4096  # the same bound as ImageSpec's
MAX_CLASSES = 100_000  # the same bound as ClassMap's
_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, training and test apart.

    x_train, x_test: (n, height, width, channels) uint8 or float32, C-contiguous; y_train, y_test: (n,) int64 labels;
    class_names: one a label. Loaders build it through `checked`.
    """

    name: str
    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def image_spec(self) -> ImageSpec:
        """Shape, type and scale of the images: mean and deviation of each channel over the training images.

        uint8 is divided by 255 first. A constant channel gets deviation 1: it is shifted, not scaled.
        """
        _, height, width, channels = self.x_train.shape
        mean, std = _moments(self.x_train)
        return ImageSpec(
            height=height,
            width=width,
            channels=channels,
            dtype="uint8" if self.x_train.dtype == np.uint8 else "float32",
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
        )


def checked(
    name: str,
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    class_names: tuple[str, ...],
    *,
    train_from: object,
    test_from: object,
) -> Dataset:
    """A Dataset from (images, labels) pairs, or the named error that says what is wrong with which file.

    Images: (n, H, W) or (n, H, W, C), uint8 or float32; labels: (n,) or (n, 1) of any integer type.
    train_from and test_from name the files in errors: DataForeign (shape, type, count, values that are not finite),
    LabelOutOfRange (file, value, index), EmptyClass (a class without a training or without a test image).
    """
    _check_names(class_names, train_from)
    x_train, x_test = _images(train[0], train_from), _images(test[0], test_from)
    if (x_train.shape[1:], x_train.dtype) != (x_test.shape[1:], x_test.dtype):
        raise DataForeign(
            f"test images are {_kind(x_test)}, training images {_kind(x_train)}",
            where=test_from,
            mend="save both in one shape and type",
        )
    y_train = _labels(train[1], x_train, class_names, train_from)
    y_test = _labels(test[1], x_test, class_names, test_from)
    return Dataset(name, x_train, y_train, x_test, y_test, class_names)


def check_labels(labels: NDArray[Any], classes: int, where: object) -> None:
    """LabelOutOfRange, naming file, value and index, unless every label lies in 0 … classes − 1."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        index = int(outside[0])
        raise LabelOutOfRange(
            f"label {int(labels[index])} of image {index} is outside 0 … {classes - 1}",
            where=where,
            mend="labels count from 0; correct the label or the list of class names",
        )


def _check_names(names: tuple[str, ...], where: object) -> None:
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataForeign(f"{len(names)} classes", where=where, mend=f"a data set has 2 to {MAX_CLASSES} classes")
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataForeign("class names are empty or occur twice", where=where, mend="give every class its own name")


def _images(x: NDArray[Any], where: object) -> NDArray[Any]:
    """(n, H, W, C), native byte order, C-contiguous and writable (torch warns about arrays that are not)."""
    if x.dtype.newbyteorder("=") not in (np.uint8, np.float32):
        raise DataForeign(f"images of type {x.dtype}", where=where, mend="save them as uint8 or float32")
    if x.ndim not in (3, 4) or x.shape[0] == 0 or not all(1 <= side <= MAX_SIDE for side in x.shape[1:]):
        raise DataForeign(
            f"images of shape {x.shape}",
            where=where,
            mend=f"save them as (n, height, width[, channels]), sides 1 to {MAX_SIDE}",
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8:
        _check_finite(x, where)
    return np.require(x, x.dtype.newbyteorder("="), ["C", "W"])


def _labels(y: NDArray[Any], x: NDArray[Any], names: tuple[str, ...], where: object) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu":
        raise DataForeign(f"labels of type {y.dtype}", where=where, mend="save labels as integers")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (len(x),):
        raise DataForeign(f"{len(x)} images, but labels of shape {y.shape}", where=where, mend="one label an image")
    check_labels(y, len(names), where)
    labels = np.require(y, np.int64, ["C", "W"])
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if empty.size:
        label = int(empty[0])
        raise EmptyClass(
            f"class {label} '{names[label]}' has no image",
            where=where,
            mend="every class needs a training and a test image; add some or leave the class out",
        )
    return labels


def _kind(x: NDArray[Any]) -> str:
    return f"{'x'.join(map(str, x.shape[1:]))} {x.dtype}"


def _blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Blocks of rows: temporaries stay small whatever the data set's size."""
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]


def _check_finite(x: NDArray[Any], where: object) -> None:
    for image, pixels in enumerate(x):
        if not np.isfinite(pixels).all():
            raise DataForeign(f"image {image} holds NaN or infinity", where=where, mend="clean or drop that image")


def _moments(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each channel, (C,) each, of uint8 / 255 or of float values as they are."""
    flat = x.reshape(-1, x.shape[-1])
    mean, std = _of_bytes(flat) if x.dtype == np.uint8 else _of_floats(flat)
    constant = std <= 1e-7 * np.maximum(1e-30, np.abs(mean))
    return mean, np.where(constant, 1.0, std)


def _of_bytes(flat: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By histogram: exact, and eight times faster than arithmetic on every value."""
    histogram = np.zeros((flat.shape[1], 256))
    for block in _blocks(flat):
        for channel in range(flat.shape[1]):
            histogram[channel] += np.bincount(block[:, channel], minlength=256)
    values = np.arange(256) / 255
    mean = histogram @ values / len(flat)
    return mean, np.sqrt((histogram * np.square(values - mean[:, None])).sum(axis=1) / len(flat))


def _of_floats(flat: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """In two passes, so that a large offset costs no digits."""
    mean, squares = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
    for block in _blocks(flat):
        mean += block.sum(axis=0, dtype=np.float64) / len(flat)
    for block in _blocks(flat):
        squares += np.square(block - mean).sum(axis=0)
    return mean, np.sqrt(squares / len(flat))


def named(path: Path) -> str:
    """A data set's name from its path: `digits` for data/digits.npz or data/digits/."""
    return path.resolve().stem or "data"
