"""Fashion-MNIST in its official form: four IDX files, gzipped or not (Xiao et al. 2017, arXiv 1708.07747)."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.data.bounded import LIMITS, Limits, inflate, read
from harmony.core.data.dataset import Dataset, check_labels, checked
from harmony.core.errors import DataForeign

NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it


def find_fashion(place: Path) -> Path | None:
    """`place` or its subfolder `fashion-mnist`, whichever holds all four files; else None."""
    for folder in (place, place / "fashion-mnist"):
        if all(_either(folder, name).exists() for name in FILES):
            return folder
    return None


def load_fashion(folder: Path, limits: Limits = LIMITS) -> Dataset:
    """The data set of the four files in `folder`; errors as `checked` and `read_idx` say."""
    paths = [_either(folder, name) for name in FILES]
    x_train, y_train, x_test, y_test = (
        read_idx(path, dims, limits) for path, dims in zip(paths, (3, 1, 3, 1), strict=True)
    )
    check_labels(y_train, len(NAMES), paths[1])
    check_labels(y_test, len(NAMES), paths[3])
    return checked(
        "fashion-mnist", (x_train, y_train), (x_test, y_test), NAMES, train_from=paths[0], test_from=paths[2]
    )


def read_idx(path: Path, dims: int, limits: Limits = LIMITS) -> NDArray[Any]:
    """The uint8 array of an IDX file of `dims` dimensions; gzipped if the name ends in .gz.

    DataForeign unless the magic number is 0x0800 + dims and the byte count is exactly what the header says.
    """
    data = inflate(path, limits) if path.suffix == ".gz" else read(path, min(limits.file_bytes, limits.data_bytes))
    mend = "give the official file; delete it and download it again"
    start = 4 + 4 * dims
    if len(data) < start or data[:4] != bytes((0, 0, 8, dims)):
        raise DataForeign(f"not an IDX file of bytes in {dims} dimension(s)", where=path, mend=mend)
    shape = struct.unpack(f">{dims}I", data[4:start])
    if len(data) - start != math.prod(shape):
        found, said = len(data) - start, math.prod(shape)
        problem = "truncated" if found < said else "longer than its header says"
        raise DataForeign(f"{problem}: {found} bytes for {said}", where=path, mend=mend)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _either(folder: Path, name: str) -> Path:
    """The raw file where it is, else the name of the gzipped one."""
    raw = folder / name
    return raw if raw.exists() else folder / f"{name}.gz"
