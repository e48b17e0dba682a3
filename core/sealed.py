"""A sealed folder: files, a manifest that names each with size and SHA-256, and the manifest's own SHA-256. No torch.

    manifest.json     what this is, and every other file with size and hash
    manifest.sha256   the hash of manifest.json, in the format of sha256sum
    …                 exactly the files that the manifest names

One changed byte anywhere, a file too many or too few, is an error before anything is parsed further. A folder appears
whole or not at all: it is written beside its place, synced, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field, ValidationError

from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactTooNew, RunExists, StorageError
from harmony.core.spec import Frozen

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILE_BYTES = 2 << 30
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Frozen):
    """One file of a sealed folder."""

    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256


class Manifest(Frozen):
    """Base of every manifest. A subclass sets FORMAT and VERSION; `files` is filled in when the folder is sealed."""

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]

    format: str
    format_version: int
    files: dict[FileName, FileEntry] = Field(default_factory=dict)


ManifestT = TypeVar("ManifestT", bound=Manifest)


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the disk's refusals inside the block (full, read-only, forbidden) into a StorageError naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        mend = "free some space or choose another folder"
        raise StorageError(f"cannot be written: {error.strerror}", where=path, mend=mend) from None


@contextmanager
def sealing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; at the end of the block it is synced and becomes `folder`.

    RunExists if `folder` is there already. If the block raises, or the process dies, no `folder` appears.
    """
    if folder.exists():
        raise RunExists("this folder is there already", where=folder, mend="choose another, or remove it first")
    with storing(folder):
        yield from _sealing(folder)


def _sealing(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.part"):  # what a killed process left behind
        if not _alive(stale.name.split(".")[-2]):
            shutil.rmtree(stale, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.rglob("*")):
            sync(path)
        sync(draft)
        draft.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def seal(folder: Path, manifest: ManifestT) -> ManifestT:
    """Write the manifest of the files in `folder`, and its hash. Returns the manifest with `files` filled in."""
    files = {
        path.name: FileEntry(size=path.stat().st_size, sha256=hash_file(path)) for path in sorted(folder.iterdir())
    }
    sealed = type(manifest).model_validate({**manifest.model_dump(), "files": files})
    text = sealed.model_dump_json(indent=2).encode() + b"\n"
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")
    return sealed


def unseal(folder: Path, kind: type[ManifestT]) -> ManifestT:
    """Check the folder byte by byte and return its manifest.

    Raises ArtifactMissing, ArtifactCorrupt or ArtifactTooNew, naming the file and what is wrong with it.
    """
    manifest = read_manifest(folder, kind)
    present = {path.name for path in folder.iterdir()}
    expected = {*manifest.files, MANIFEST, SEAL}
    for name in sorted(expected - present):
        raise ArtifactMissing(
            "the manifest names this file, but it is not there", where=folder / name, mend="copy the folder again"
        )
    for name in sorted(present - expected):
        raise ArtifactCorrupt(
            "the manifest does not name this file", where=folder / name, mend="remove it, or copy the folder again"
        )
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)
    return manifest


def read_manifest(folder: Path, kind: type[ManifestT]) -> ManifestT:
    """The manifest alone, checked against its own hash and its schema, without reading the other files."""
    if not folder.is_dir():
        raise ArtifactMissing(f"no {kind.FORMAT} here", where=folder, mend="check the path")
    text = _read_small(folder / MANIFEST, MAX_MANIFEST_BYTES)
    stated = _read_small(folder / SEAL, 256)
    if stated != f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode():
        raise ArtifactCorrupt(
            "was changed after it was sealed", where=folder / MANIFEST, mend="copy or write the folder again"
        )
    return _parse(text, kind, folder / MANIFEST)


def _parse(text: bytes, kind: type[ManifestT], where: Path) -> ManifestT:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ArtifactCorrupt("is not JSON", where=where) from None
    if not isinstance(value, dict) or value.get("format") != kind.FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise ArtifactCorrupt(
            f"is a '{found}', not a '{kind.FORMAT}'", where=where, field="format", mend="check the path"
        )
    version = value.get("format_version")
    if isinstance(version, int) and version > kind.VERSION:
        raise ArtifactTooNew(
            f"has format version {version}, this program knows up to {kind.VERSION}",
            where=where,
            field="format_version",
            mend="update harmony-sfl",
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactCorrupt(first["msg"], where=where, field=field) from None


def _check_file(path: Path, entry: FileEntry) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactCorrupt("is not a plain file", where=path)
    if status.st_size != entry.size:
        raise ArtifactCorrupt(
            f"has {status.st_size} bytes, the manifest says {entry.size}", where=path, mend="copy the folder again"
        )
    if hash_file(path) != entry.sha256:
        raise ArtifactCorrupt(
            "was changed after it was sealed (SHA-256 differs)", where=path, mend="copy the folder again"
        )


def _read_small(path: Path, limit: int) -> bytes:
    if not path.is_file() or path.is_symlink():
        raise ArtifactMissing("no such file", where=path, mend="check the path, or copy the folder again")
    if path.stat().st_size > limit:
        raise ArtifactCorrupt(f"is larger than {limit} bytes", where=path)
    return path.read_bytes()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`: after a crash it holds either the old bytes or the new ones."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with storing(path):
        try:
            with part.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def require_files(manifest: Manifest, names: Mapping[str, str], where: Path) -> None:
    """ArtifactCorrupt unless every file in `names` (role → file name) is one that the manifest seals."""
    for role, name in names.items():
        if name not in manifest.files:
            raise ArtifactCorrupt(f"names '{name}', which is not among its files", where=where, field=role)
