"""Reading files without trusting them: every size is known, or bounded, before bytes are held in memory."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harmony.core.errors import DataForeign, DataMissing
from harmony.core.spec import Frozen

_CHUNK = 1 << 20
_Bytes = Annotated[int, Field(ge=1)]


class Limits(Frozen):
    """What one data set may cost.

    file_bytes: one file on disk; data_bytes: one array, or the content of one file, in memory;
    image_bytes: one compressed image; images: image files of a folder.
    """

    file_bytes: _Bytes = 4 << 30
    data_bytes: _Bytes = 8 << 30
    image_bytes: _Bytes = 64 << 20
    images: _Bytes = 5_000_000


LIMITS = Limits()


def size_of(path: Path, limit: int) -> int:
    """Bytes of the regular file at `path`; DataMissing, or DataForeign if it is no file or above `limit` bytes."""
    try:
        is_file, size = path.is_file(), path.stat().st_size
    except FileNotFoundError:
        raise DataMissing("no such file", where=path, mend="check the path, or add --download") from None
    except OSError as error:
        raise DataMissing(f"cannot be read: {error.strerror}", where=path, mend="check its permissions") from error
    if not is_file:
        raise DataForeign("not a regular file", where=path, mend="give the data set's file or folder")
    if size > limit:
        raise DataForeign(f"{size} bytes, above the limit of {limit}", where=path, mend="is it the right file?")
    return size


def read(path: Path, limit: int) -> bytes:
    """The whole file, at most `limit` bytes. DataMissing or DataForeign as `size_of` says."""
    size = size_of(path, limit)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataMissing(f"cannot be read: {error.strerror}", where=path, mend="check its permissions") from error


def inflate(path: Path, limits: Limits) -> bytes:
    """The content of a .gz file, at most `limits.data_bytes`; DataForeign if it is truncated, damaged or larger."""
    size_of(path, limits.file_bytes)
    try:
        with gzip.open(path, "rb") as file:
            return _at_most(file, limits.data_bytes, path)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataForeign("damaged, or not a gzip file", where=path, mend="delete it and download it again") from error
    except EOFError as error:
        raise DataForeign("truncated gzip file", where=path, mend="delete it and download it again") from error
    except OSError as error:
        raise DataMissing(f"cannot be read: {error.strerror}", where=path, mend="check its permissions") from error


def _at_most(file: gzip.GzipFile, limit: int, path: Path) -> bytes:
    """Chunk by chunk, so that a file that lies about its size never costs more than `limit`."""
    chunks, held = [], 0
    while chunk := file.read(min(_CHUNK, limit + 1 - held)):
        held += len(chunk)
        if held > limit:
            raise DataForeign(f"holds more than {limit} bytes", where=path, mend="is it the right file?")
        chunks.append(chunk)
    return b"".join(chunks)
