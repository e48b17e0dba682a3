"""Make the embedded data set from full Fashion-MNIST.

    python -m harmony.core.data.make_mini SOURCE_FOLDER OUT.npz

takes the first 1,000 training and 200 test images of every class, in the order of the files, and writes the same
bytes each time: fixed member order, timestamps and attributes. (Deflate is not unique: zlib's reference
implementation makes the bytes whose SHA-256 `mini` knows; other implementations make other bytes of equal content.)
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.data.fashion import load_fashion
from harmony.core.storage import write_atomically

TRAIN, TEST = 1_000, 200


def first_of_each(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of the first `count` items of every class, ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def subset(source: Path) -> dict[str, NDArray[Any]]:
    """The embedded arrays from the four official files in `source`; images as (n, 28, 28), labels as uint8."""
    full = load_fashion(source)
    train, test = first_of_each(full.y_train, TRAIN), first_of_each(full.y_test, TEST)
    return {
        "x_train": full.x_train[train, ..., 0],
        "y_train": full.y_train[train].astype(np.uint8),
        "x_test": full.x_test[test, ..., 0],
        "y_test": full.y_test[test].astype(np.uint8),
        "class_names": np.array(full.class_names),
    }


def packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    """An .npz file that depends on nothing but the arrays (numpy's own writer puts no fixed attributes)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for key, array in arrays.items():
            member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type, member.create_system, member.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(member, content.getvalue(), compresslevel=9)
    return out.getvalue()


def main(source: str, out: str) -> None:
    """Write OUT and say its size and SHA-256."""
    data = packed(subset(Path(source)))
    write_atomically(Path(out), data)
    sys.stdout.write(f"{out}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
