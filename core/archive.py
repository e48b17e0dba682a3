"""A sealed folder as one file: a .tar of one form only, so that the same bundle is always the same bytes. No torch.

POSIX ustar (IEEE Std 1003.1, pax: "ustar Interchange Format"): for each file a header of 512 bytes and its content,
filled up with zeros to 512, and 1024 zeros at the end. First manifest.json, manifest.sha256 and manifest.sig, then the
others by name; mode 0644, time, owner and group 0, no folders. Any tar program can read it.

Read here is this form and no other: each header must be, byte by byte, the one that would be written for the name and
size that it states. There is no place left for a link, a device, a path, a name twice or hidden bytes.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, StorageError
from harmony.core.sealed import MANIFEST, SEAL, SIGNATURES, Files, files_of, reading
from harmony.core.storage import drafting, replacing, require_free, sealing

MAX_FILES = 1000
MAX_BYTES = 8 << 30
"""Of the whole archive: more than a bundle for a device can have, and what one file of this format can."""
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]{0,98}")
_FIRST = (MANIFEST, SEAL, SIGNATURES)
_KINDS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}
_MEND = "make it with 'harmony bundle pack'"


class _Place(NamedTuple):
    start: int
    size: int


class Archive:
    """The files of a .tar, read where they lie. ArtifactCorrupt for another form of tar; OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as stream:
            self._places = dict(_index(stream, path))

    def names(self) -> set[str]:
        """Of all files."""
        return set(self._places)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        place = self._places.get(name)
        return None if place is None else place.size

    def open(self, name: str) -> io.BufferedReader:
        """One file."""
        return io.BufferedReader(_Part(self._path, self._places[name]))


class _Part(io.RawIOBase):
    """A file within a file."""

    def __init__(self, path: Path, place: _Place) -> None:
        self._stream = path.open("rb")
        self._stream.seek(place.start)
        self._left = place.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any writable buffer
        wanted = memoryview(buffer)[: self._left]
        got = self._stream.readinto(wanted)
        self._left -= got
        return got

    def close(self) -> None:
        self._stream.close()
        super().close()


def pack(folder: Path, tar: Path) -> None:
    """Write the files of a sealed folder into a new .tar, whole or not at all. The folder is not checked here.

    RunExists if `tar` is there already, StorageError if the disk refuses, or for a name or size that the form has not.
    """
    require_free(tar)
    with reading(folder):
        files = files_of(folder)
        names = sorted(files.names(), key=_order)
    with replacing(tar) as out:
        for name in names:
            _append(out, files, name, folder)
        out.write(_END)


def unpack(tar: Path, folder: Path) -> None:
    """Write the files of a .tar into a new folder, whole or not at all. What the manifest says is not checked here.

    ArtifactMissing, ArtifactCorrupt for the archive, before anything is written; RunExists if `folder` is there.
    """
    with reading(tar):
        if not tar.is_file():
            raise ArtifactMissing("no such file", where=tar, mend="check the path")
        archive = Archive(tar)
    with sealing(folder) as draft:
        for name in archive.names():
            with archive.open(name) as part, (draft / name).open("xb") as out:
                shutil.copyfileobj(part, out)


@contextmanager
def packing(tar: Path) -> Iterator[Path]:
    """A new folder to write into; at the end of the block its files become `tar`. Otherwise as `sealing`."""
    require_free(tar)
    with drafting(tar.with_suffix("")) as draft:
        draft.mkdir()
        yield draft
        pack(draft, tar)


def _append(out: BinaryIO, files: Files, name: str, folder: Path) -> None:
    size = files.size(name)
    if size is None or not _NAME.fullmatch(name.encode()) or out.tell() + size > MAX_BYTES:
        mend = f"plain files with names of at most 99 letters, {MAX_BYTES >> 30} GiB in all"
        raise StorageError("has no place in a .tar", where=folder / name, mend=mend)
    out.write(_header(name.encode(), size))
    start = out.tell()
    with files.open(name) as stream:
        shutil.copyfileobj(stream, out)
    if out.tell() != start + size:
        raise ArtifactCorrupt("changed while it was read", where=folder / name)
    out.write(bytes(-size % _BLOCK))


def _index(stream: BinaryIO, where: Path) -> Iterator[tuple[str, _Place]]:
    """Name and place of each file; every byte between the contents is looked at."""
    total, before = os.fstat(stream.fileno()).st_size, (-1, "")
    if total > MAX_BYTES:
        raise ArtifactCorrupt(f"is larger than {MAX_BYTES} bytes", where=where)
    for count in itertools.count():
        block = stream.read(_BLOCK)
        if block == bytes(_BLOCK):
            break
        if count == MAX_FILES:
            raise ArtifactCorrupt(f"holds more than {MAX_FILES} files", where=where)
        name, size = _read_header(block, where)
        place, order, rest = _Place(stream.tell(), size), _order(name), -size % _BLOCK
        if order <= before:
            raise ArtifactCorrupt("stands twice, or not in its place", where=where / name, mend=_MEND)
        stream.seek(size, os.SEEK_CUR)
        if stream.read(rest) != bytes(rest) or stream.tell() > total:
            raise ArtifactCorrupt("is cut short, or has bytes behind it", where=where / name, mend=_MEND)
        yield name, place
        before = order
    if stream.read() != bytes(_BLOCK):
        raise ArtifactCorrupt("does not end as it should", where=where, mend=_MEND)


def _read_header(block: bytes, where: Path) -> tuple[str, int]:
    """Name and size of a file, if the header is the one that they have."""
    name, size = block[:100].rstrip(b"\0"), block[124:135]
    if (
        _NAME.fullmatch(name)
        and size.isdigit()
        and not size.strip(b"01234567")
        and _header(name, int(size, 8)) == block
    ):
        return name.decode(), int(size, 8)
    if block[257:262] != b"ustar":
        raise ArtifactCorrupt("is no tar of the form of a bundle, or is cut short", where=where, mend=_MEND)
    kind = _KINDS.get(block[156:157])
    problem = f"is {kind}" if kind else "has a header that no bundle has"
    raise ArtifactCorrupt(f"'{name[:100].decode(errors='replace')}' {problem}", where=where, mend=_MEND)


def _header(name: bytes, size: int) -> bytes:
    """The one header of a plain file. Numbers are octal; the checksum adds up all bytes, its own counted as blanks."""
    before = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * 0x20) + after


def _order(name: str) -> tuple[int, str]:
    return (_FIRST.index(name), "") if name in _FIRST else (len(_FIRST), name)
