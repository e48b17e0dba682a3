"""CIFAR-10 and CIFAR-100 in their official binary layout (Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html).

A record is its label bytes (CIFAR-10: label; CIFAR-100: coarse, fine) and 3072 pixel bytes, 32 x 32 planes of red,
green, blue. Only fine labels are used.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmony.core.cache import CACHE_MEND
from harmony.core.data.bounded import LIMITS, Limits, read, size_of
from harmony.core.data.dataset import Dataset, check_labels, checked
from harmony.core.errors import DataForeign
from harmony.core.storage import write_atomically

_PIXELS = 3 * 32 * 32
_MAX_TAIL = 1 << 20
_MAX_MEMBERS, _MAX_MEMBER_BYTES = 64, 192 << 20  # the largest official member has 153,700,000 bytes


@dataclass(frozen=True)
class Layout:
    """Which files a CIFAR set consists of; the label is the last of `label_bytes`."""

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read."""
        return (*self.train, self.test, self.names)


CIFAR10 = Layout(
    name="cifar10",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    label_bytes=1,
    classes=10,
)
CIFAR100 = Layout(
    name="cifar100",
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    label_bytes=2,
    classes=100,
)


def find_cifar(layout: Layout, place: Path) -> Path | None:
    """The folder with all files of the set: `place` itself or its official subfolder; else None.

    Where only the official archive lies in `place`, it is unpacked there first.
    """
    for folder in (place / layout.folder, place):
        if all((folder / name).exists() for name in layout.files):
            return folder
    archive = place / layout.archive
    return unpack(layout, archive) if archive.is_file() else None


def load_cifar(layout: Layout, folder: Path, limits: Limits = LIMITS) -> Dataset:
    """The data set of the binary files in `folder`: images (n, 32, 32, 3) uint8. Errors as `checked` says."""
    train = [_records(layout, folder / name, limits) for name in layout.train]
    test = [_records(layout, folder / layout.test, limits)]
    return checked(
        layout.name,
        (_images(layout, train), np.concatenate([rows[:, layout.label_bytes - 1] for rows in train])),
        (_images(layout, test), test[0][:, layout.label_bytes - 1]),
        _names(layout, folder / layout.names),
        train_from=folder,
        test_from=folder / layout.test,
    )


def _records(layout: Layout, path: Path, limits: Limits) -> NDArray[np.uint8]:
    """(n, record bytes) of one binary file with any number of records, its labels checked."""
    size = layout.label_bytes + _PIXELS
    data = read(path, min(limits.file_bytes, limits.data_bytes))
    if not data or len(data) % size:
        raise DataForeign(
            f"{len(data)} bytes are not a whole number of {size}-byte records",
            where=path,
            mend=f"truncated, or not the binary version; unpack {layout.archive} again",
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    check_labels(rows[:, layout.label_bytes - 1], layout.classes, path)
    return rows


def _images(layout: Layout, files: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(n, 32, 32, 3) of the files' records; plane by plane, which is five times faster than a transposed copy."""
    images = np.empty((sum(map(len, files)), 32, 32, 3), np.uint8)
    start = 0
    for rows in files:
        planes = rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
        for channel in range(3):
            images[start : start + len(rows), ..., channel] = planes[:, channel]
        start += len(rows)
    return images


def _names(layout: Layout, path: Path) -> tuple[str, ...]:
    text = read(path, 1 << 16).decode("utf-8", errors="replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != layout.classes:
        mend = f"unpack {layout.archive} again"
        raise DataForeign(f"{len(names)} class names, not {layout.classes}", where=path, mend=mend)
    return names


def unpack(layout: Layout, archive: Path, limits: Limits = LIMITS) -> Path:
    """Write the set's files beside `archive`, in the official folder, and return that folder.

    Only members with the expected names are written, each a regular file of bounded size; links, other names and
    paths that lead elsewhere never reach the disk. DataForeign if one is missing; StorageError if the disk refuses.
    """
    size_of(archive, limits.file_bytes)
    members = dict(_members(layout, archive))  # all of it, before the first byte is written
    lacking = [name for name in layout.files if name not in members]
    if lacking:
        raise _foreign(archive, f"lacks {', '.join(lacking)}")
    target = archive.parent / layout.folder
    for name, data in members.items():
        write_atomically(target / name, data, CACHE_MEND)
    return target


def _members(layout: Layout, archive: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every expected member, read one after another; DataForeign if the archive is damaged."""
    wanted = {f"{layout.folder}/{name}": name for name in layout.files}
    try:
        with gzip.open(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count >= _MAX_MEMBERS or member.size > _MAX_MEMBER_BYTES:
                    raise _foreign(archive, f"member '{member.name}' is one too many or too large")
                name = wanted.get(member.name.removeprefix("./"))
                if name is None:
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise _foreign(archive, f"member '{member.name}' is not a regular file")
                yield name, content.read()
            # tar stops at its own end mark; the checksum of all that was read comes after it
            if len(stream.read(_MAX_TAIL + 1)) > _MAX_TAIL:
                raise _foreign(archive, "more follows the end of the archive")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _foreign(archive, f"damaged: {error}") from error


def _foreign(archive: Path, problem: str) -> DataForeign:
    return DataForeign(problem, where=archive, mend="delete it and download the official archive again")
