"""The user's own images with their labels, and which of them are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.data import Dataset, load
from harmony.core.data.bounded import LIMITS
from harmony.core.errors import DataForeign, DataMissing, EmptyClass, InvalidInput, LabelOutOfRange
from harmony.core.partition import Shards, partition
from harmony.core.spec import ClassMap, ImageSpec
from harmony.device.images import read_image
from harmony.device.prepare import describe

HELD_OUT = 0.2
"""Share of each class: enough to tell a better head from a worse one, and to set thresholds by."""
FEWEST = 2
MOST_IMAGES = 100_000
_SUFFIXES = {".png", ".jpg", ".jpeg", ".npy"}
Labels = NDArray[np.int64]


class PersonalData(NamedTuple):
    """images: (n, H, W, C) as the bundle's ImageSpec says; labels: (n,); train, holdout: indices of both parts, which
    share no image and each hold every class; own: the classes, ascending."""

    images: NDArray[Any]
    labels: Labels
    train: Labels
    holdout: Labels
    own: tuple[int, ...]


def read_data(source: str, image: ImageSpec, classes: ClassMap, seed: int = 0) -> PersonalData:
    """Images from DIR/CLASS/*.png (.jpg, .npy), or the training part of what `harmony.core.data.load` reads.

    A class is named as in the bundle, or by its label. DataMissing, DataForeign, EmptyClass, LabelOutOfRange,
    InvalidInput, naming the file: too few images, of another size, one class alone, a class that the bundle has not.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "train").is_dir():
        images, labels = _read_folder(path, image, classes)
    else:
        images, labels = _of_dataset(load(source), image, classes, source)
    return _split(images, labels, classes, source, seed)


def _read_folder(root: Path, image: ImageSpec, classes: ClassMap) -> tuple[NDArray[Any], Labels]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths: list[tuple[Path, int]] = []
    for folder in folders:
        label = _label(folder.name, classes, folder)
        found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES and path.name[0] != "."]
        if not found:
            raise EmptyClass("no images", where=folder, mend="add .png, .jpg or .npy images, or remove the folder")
        paths += [(path, label) for path in found]
    if not paths:
        raise DataMissing(
            "no class folders", where=root, mend="put images into DIR/CLASS/, for example DIR/Shirt/1.png"
        )
    size = len(paths) * image.height * image.width * image.channels * np.dtype(image.dtype).itemsize
    if len(paths) > MOST_IMAGES or size > LIMITS.data_bytes:
        raise DataForeign(f"holds {len(paths)} images", where=root, mend=f"give at most {MOST_IMAGES}")
    return np.stack([read_image(path, image) for path, _ in paths]), np.asarray([label for _, label in paths], np.int64)


def _of_dataset(data: Dataset, image: ImageSpec, classes: ClassMap, where: str) -> tuple[NDArray[Any], Labels]:
    shape = (image.height, image.width, image.channels)
    if data.x_train.shape[1:] != shape or data.x_train.dtype != np.dtype(image.dtype):
        problem = f"holds images of {describe(data.x_train[0])}, the model takes {image}"
        raise InvalidInput(problem, where=where, mend="resize or convert them first")
    labels = np.asarray([_label(name, classes, where) for name in data.class_names], np.int64)
    return data.x_train, labels[data.y_train]


def _label(name: str, classes: ClassMap, where: object) -> int:
    if name in classes.names:
        return classes.names.index(name)
    if name.isascii() and name.isdigit() and len(name) < 7 and int(name) < len(classes.names):
        return int(name)
    known = ", ".join(classes.names[:10]) + (", …" if len(classes.names) > 10 else "")
    raise LabelOutOfRange(
        f"the bundle has no class '{name}'", where=where, mend=f"use a label below {len(classes.names)}, or: {known}"
    )


def _split(images: NDArray[Any], labels: Labels, classes: ClassMap, where: str, seed: int) -> PersonalData:
    own, counts = np.unique(labels, return_counts=True)
    if len(own) < 2:
        problem = f"all images are of the class '{classes.names[own[0]]}'"
        raise DataForeign(problem, where=where, mend="a head tells classes apart: give two or more")
    if counts.min() < FEWEST:
        name = classes.names[own[counts.argmin()]]
        mend = f"give {FEWEST} or more a class, since one is held out"
        raise DataForeign(f"the class '{name}' has {counts.min()} image", where=where, mend=mend)
    everything = Shards(clients=1, shards_per_client=1)
    (split,) = partition(labels, everything, classes=len(classes.names), seed=seed, holdout=HELD_OUT)
    return PersonalData(images, labels, split.train, split.holdout, tuple(int(one) for one in own))
