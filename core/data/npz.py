"""Data sets in one .npz file: x_train, y_train, x_test, y_test and, if wanted, class_names."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.data.bounded import LIMITS, Limits, size_of
from harmony.core.data.dataset import MAX_CLASSES, Dataset, check_labels, checked, named
from harmony.core.errors import DataForeign, DataMissing

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_MEND = "save it with numpy.savez_compressed(path, x_train=…, y_train=…, x_test=…, y_test=…)"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError)


def load_npz(path: Path, limits: Limits = LIMITS) -> Dataset:
    """The data set of an .npz file; nothing in it is unpickled.

    Images (n, H, W) or (n, H, W, C), uint8 or float32; sensor windows (n, T, C) are images of one channel. Without
    `class_names` (an array of str) the classes are "0", "1", … up to the largest training label.
    """
    size_of(path, limits.file_bytes)
    try:
        with path.open("rb") as file:
            arrays = read_arrays(file, path, limits)
    except OSError as error:
        raise DataMissing(f"cannot be read: {error.strerror}", where=path, mend="check its permissions") from error
    return from_arrays(named(path), arrays, path)


def from_arrays(name: str, arrays: dict[str, NDArray[Any]], where: object) -> Dataset:
    """The checked data set of the arrays that `read_arrays` gave."""
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise DataForeign(
            f"lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}", where=where, mend=_MEND
        )
    names = _class_names(arrays, where)
    return checked(
        name,
        (arrays["x_train"], arrays["y_train"]),
        (arrays["x_test"], arrays["y_test"]),
        names,
        train_from=f"{where}: train",
        test_from=f"{where}: test",
    )


def read_arrays(file: IO[bytes], where: object, limits: Limits) -> dict[str, NDArray[Any]]:
    """The arrays that a data set needs; others are left unread. DataForeign if the file is damaged or too large."""
    try:
        with zipfile.ZipFile(file) as archive:
            wanted = (key for key in (*ARRAYS, "class_names") if f"{key}.npy" in archive.namelist())
            return {key: _read_array(archive, key, where, limits) for key in wanted}
    except _BROKEN as error:
        raise DataForeign(f"not a whole .npz file: {error}", where=where, mend=_MEND) from error


def _read_array(archive: zipfile.ZipFile, key: str, where: object, limits: Limits) -> NDArray[Any]:
    """One array, after its header was held against the member's size: numpy allocates what a header claims."""
    member = archive.getinfo(f"{key}.npy")
    if member.file_size > limits.data_bytes:
        raise DataForeign(f"{member.file_size} bytes, above the limit of {limits.data_bytes}", where=where, field=key)
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataForeign(f"array format {version}", where=where, field=key, mend=_MEND)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise DataForeign("an array of Python objects is not read", where=where, field=key, mend=_MEND)
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise DataForeign(f"{shape} {dtype} does not fit its size on disk", where=where, field=key, mend=_MEND)
    with archive.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _class_names(arrays: dict[str, NDArray[Any]], where: object) -> tuple[str, ...]:
    given = arrays.get("class_names")
    if given is not None:
        if given.dtype.kind != "U" or given.ndim != 1:
            raise DataForeign("class_names is not a list of str", where=where, mend="save it as np.array(['cat', …])")
        return tuple(str(name) for name in given)
    labels = arrays["y_train"]
    if labels.dtype.kind not in "iu" or not labels.size:
        return ("0", "1")  # the checks that follow name what is wrong with the labels
    check_labels(labels.ravel(), MAX_CLASSES, f"{where}: train")
    return tuple(str(label) for label in range(max(2, int(labels.max()) + 1)))
