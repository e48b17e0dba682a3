"""Data sets as folders of images: ROOT/{train,test}/CLASS/*.png, *.jpg, *.jpeg."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harmony.core.data.bounded import LIMITS, Limits, size_of
from harmony.core.data.dataset import MAX_SIDE, Dataset, checked, named
from harmony.core.errors import DataForeign, DataMissing, EmptyClass

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_CHANNELS = {"L": 1, "RGB": 3}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
Shape = tuple[int, int, int]


def load_folder(root: Path, limits: Limits = LIMITS) -> Dataset:
    """The data set below `root`; classes are the folders' names in ascending order, labels count along them.

    Every image is 8-bit grey or RGB, and all are of one size. DataMissing: no train or test folder; EmptyClass: a
    class folder without images; DataForeign: an image of another size or channel count, one that cannot be read, or
    class folders that differ between train and test.
    """
    train, test = (_paths(root / part, limits) for part in ("train", "test"))
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())[0]
        side = "train" if odd in train else "test"
        raise DataForeign(
            f"class '{odd}' is only in {side}", where=root, mend="train and test need the same class folders"
        )
    if not train:
        raise DataMissing("no class folders", where=root / "train", mend="put images into train/CLASS/ and test/CLASS/")
    first = next(iter(train.values()))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        shape = _first_shape(first, limits)
        images = [_images(part, shape, first, limits) for part in (train, test)]
    labels = [_labels(part) for part in (train, test)]
    return checked(
        named(root),
        (images[0], labels[0]),
        (images[1], labels[1]),
        tuple(train),
        train_from=root / "train",
        test_from=root / "test",
    )


def _paths(folder: Path, limits: Limits) -> dict[str, list[Path]]:
    """Image paths by class name, both in ascending order."""
    if not folder.is_dir():
        raise DataMissing("no such folder", where=folder, mend="lay images out as ROOT/{train,test}/CLASS/*.png")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path.name: sorted(file for file in path.iterdir() if _is_image(file)) for path in classes}
    for name, paths in found.items():
        if not paths:
            mend = "add .png or .jpg images, or remove the folder from train and test"
            raise EmptyClass("no images", where=folder / name, mend=mend)
    if sum(map(len, found.values())) > limits.images:
        raise DataForeign(f"more than {limits.images} images", where=folder, mend="pack them into an .npz file")
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _labels(part: dict[str, list[Path]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(part), dtype=np.int64), [len(paths) for paths in part.values()])


def _first_shape(path: Path, limits: Limits) -> Shape:
    """(H, W, C) of the image that sets the size for all others."""
    shape = _pixels(path, None, limits).shape
    if max(shape) > MAX_SIDE:
        raise DataForeign(f"{shape[1]}x{shape[0]} pixels", where=path, mend=f"resize to at most {MAX_SIDE} a side")
    return shape[0], shape[1], shape[2]


def _images(part: dict[str, list[Path]], shape: Shape, first: Path, limits: Limits) -> NDArray[np.uint8]:
    paths = [path for group in part.values() for path in group]
    size = len(paths) * shape[0] * shape[1] * shape[2]
    if size > limits.data_bytes:
        raise DataForeign(f"{size} bytes of pixels, above {limits.data_bytes}", where=first, mend="resize the images")
    images = np.empty((len(paths), *shape), np.uint8)
    for index, path in enumerate(paths):
        images[index] = _pixels(path, (shape, first), limits)
    return images


def _pixels(path: Path, expected: tuple[Shape, Path] | None, limits: Limits) -> NDArray[Any]:
    """(H, W, C) uint8. The header is held against what is expected before a pixel is decoded."""
    size_of(path, limits.image_bytes)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            shape = image.height, image.width, _CHANNELS.get(image.mode, 0)
            if not shape[2]:
                raise DataForeign(f"colour mode {image.mode}", where=path, mend="convert it to 8-bit grey or RGB")
            if expected and shape != expected[0]:
                raise _another_size(path, shape, *expected)
            return np.asarray(image, np.uint8).reshape(shape)
    except Image.DecompressionBombWarning as error:
        raise DataForeign("far too many pixels", where=path, mend="resize it") from error
    except _BROKEN as error:
        mend = "remove it, or replace it by a whole PNG or JPEG"
        raise DataForeign("not a readable image", where=path, mend=mend) from error


def _another_size(path: Path, found: Shape, expected: Shape, first: Path) -> DataForeign:
    def text(shape: Shape) -> str:
        return f"{shape[1]}x{shape[0]} with {shape[2]} channel(s)"

    return DataForeign(
        f"{text(found)}, but {first.name} is {text(expected)}",
        where=path,
        mend="all images must have one size and one channel count",
    )
