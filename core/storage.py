"""Writes that are whole or not there, and the disk's refusals by name. No torch.

A file or folder is written beside its place as a draft, synced, and renamed. A process that is killed leaves at most a
hidden draft, which the next write to the same place removes.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harmony.core.errors import RunExists, StorageError

MEND = "free some space or choose another folder"
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
_LIFE = secrets.token_hex(4)
"""Tells this process from a dead one that had its number: a restarted container counts from the same one again."""
_DRAFT = re.compile(r"\.(\d{1,9})-([0-9a-f]{8})-\d+\.part")


@contextmanager
def storing(path: Path, mend: str = MEND) -> Iterator[None]:
    """Turn the disk's refusals inside the block (full, read-only, forbidden, …) into a StorageError naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(f"cannot be written: {error.strerror}", where=path, mend=mend) from error


@contextmanager
def sealing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; at the end of the block it is synced and becomes `folder`.

    RunExists if `folder` is there already, at the begin or at the end: of two writers at once, one wins. If the block
    raises, or the process dies, no `folder` appears. StorageError if the disk refuses.
    """
    require_free(folder)
    with drafting(folder) as draft:
        draft.mkdir()
        yield draft
        for path in sorted(draft.rglob("*")):
            sync(path)
        sync(draft)
        _rename(draft, folder)
        sync(folder.parent)


def require_free(path: Path) -> None:
    """RunExists if there is anything at `path`."""
    if os.path.lexists(path):
        raise _exists(path)


@contextmanager
def drafting(path: Path, mend: str = MEND) -> Iterator[Path]:
    """A free name beside `path`; what is there at the end of the block is removed. Makes the folders above it."""
    with storing(path, mend):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft_of(path)
        try:
            yield draft
        finally:
            _remove(draft)


def write_atomically(path: Path, content: bytes, mend: str = MEND, *, beside: Path | None = None) -> None:
    """Replace the file `path` by `content`: after a crash it holds either the old bytes or the new ones.

    Makes the folders above it. beside: where the draft lies, next to `path` by default. StorageError if the disk
    refuses; the old bytes are then untouched.
    """
    with replacing(path, mend, beside=beside) as stream:
        stream.write(content)


@contextmanager
def replacing(path: Path, mend: str = MEND, *, beside: Path | None = None) -> Iterator[BinaryIO]:
    """As `write_atomically`, for what is written piece by piece; nothing is replaced if the block raises."""
    with drafting(beside or path, mend) as draft:
        with draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _draft_of(path: Path) -> Path:
    """A name beside `path` that no other thread or process uses. Drafts of `path` whose process died are removed."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        match = _DRAFT.fullmatch(old.name.removeprefix(f".{path.name}"))
        if match and not _alive(int(match[1]), match[2]):
            _remove(old)
    return path.parent / f".{path.name}.{os.getpid()}-{_LIFE}-{threading.get_ident()}.part"


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    import shutil  # noqa: PLC0415  (brings three compressors, and a device writes files alone)

    shutil.rmtree(path, ignore_errors=True)


def _alive(process: int, life: str) -> bool:
    if process == os.getpid():
        return life == _LIFE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _rename(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not os.path.lexists(folder):
            raise
        raise _exists(folder) from None


def _exists(path: Path) -> RunExists:
    what = "file" if path.is_file() else "folder"
    return RunExists(f"this {what} is there already", where=path, mend="choose another, or remove it first")
