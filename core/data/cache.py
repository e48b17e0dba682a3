"""The cache folder: where it is, and writes that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from harmony.core.errors import StorageError


def cache_dir() -> Path:
    """The folder for downloads: $HARMONY_CACHE, or the platform's own cache folder for `harmony-sfl`."""
    given = os.environ.get("HARMONY_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("harmony-sfl")


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        mend = "free some space, or set HARMONY_CACHE to a folder that can be written"
        raise StorageError(f"cannot be written: {error.strerror or error}", where=path, mend=mend) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write `path` so that it is there with all of `data` or not at all; StorageError otherwise."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(data)
                sync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def sync(descriptor: int) -> None:
    """Bytes on the disk, not in a buffer: a rename that survives a power cut must not survive its content."""
    os.fsync(descriptor)
