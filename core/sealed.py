"""A sealed folder: files, a manifest that names each with size and SHA-256, and the manifest's own SHA-256. No torch.

    manifest.json     what this is, and every other file with size and hash
    manifest.sha256   the hash of manifest.json, in the format of sha256sum
    …                 exactly the files that the manifest names

One changed byte anywhere, a file too many or too few, is an error before anything is parsed further. Written inside
`sealing` (see `harmony.core.storage`), a folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import from_json

from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactTooNew, StorageError
from harmony.core.spec import Frozen
from harmony.core.storage import sealing, storing, sync, write_atomically

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "SEAL",
    "FileEntry",
    "FileName",
    "Manifest",
    "Sha256",
    "hash_file",
    "read_manifest",
    "reading",
    "require_files",
    "seal",
    "sealing",
    "storing",
    "sync",
    "unseal",
    "write_atomically",
]

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
MAX_MANIFEST_BYTES = 64 << 20
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Frozen):
    """One file of a sealed folder."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Manifest(Frozen):
    """Base of every manifest. A subclass sets FORMAT and VERSION; `files` is filled in when the folder is sealed."""

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]

    format: str
    format_version: int
    files: dict[FileName, FileEntry] = Field(default_factory=dict)


ManifestT = TypeVar("ManifestT", bound=Manifest)


def seal(folder: Path, manifest: ManifestT) -> ManifestT:
    """Write the manifest of the files in `folder`, and its hash. Returns the manifest with `files` filled in.

    StorageError if the manifest would be larger than what `unseal` reads.
    """
    files = {
        path.name: FileEntry(size=path.stat().st_size, sha256=hash_file(path)) for path in sorted(folder.iterdir())
    }
    sealed = type(manifest).model_validate({**manifest.model_dump(), "files": files})
    text = sealed.model_dump_json(indent=2).encode() + b"\n"
    if len(text) > MAX_MANIFEST_BYTES:
        problem = f"would have {len(text)} bytes, above the limit of {MAX_MANIFEST_BYTES}"
        raise StorageError(problem, where=folder / MANIFEST, mend="use fewer clients or classes")
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")
    return sealed


def unseal(folder: Path, kind: type[ManifestT]) -> ManifestT:
    """Check the folder byte by byte and return its manifest.

    Raises ArtifactMissing, ArtifactCorrupt or ArtifactTooNew, naming the file and what is wrong with it.
    """
    with reading(folder):
        manifest = read_manifest(folder, kind)
        _check_files(folder, manifest)
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
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


def read_manifest(folder: Path, kind: type[ManifestT]) -> ManifestT:
    """The manifest alone, checked against its own hash and its schema, without reading the other files."""
    with reading(folder):
        if not folder.is_dir():
            raise ArtifactMissing(f"no {kind.FORMAT} here", where=folder, mend="check the path")
        text = _read_small(folder / MANIFEST, MAX_MANIFEST_BYTES)
        stated = _read_small(folder / SEAL, 256)
    if stated != f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode():
        raise ArtifactCorrupt(
            "was changed after it was sealed", where=folder / MANIFEST, mend="copy or write the folder again"
        )
    return _parse(text, kind, folder / MANIFEST)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn the disk's refusals inside the block into an ArtifactMissing."""
    try:
        yield
    except OSError as error:
        where, mend = error.filename or folder, "check its permissions, or copy the folder again"
        raise ArtifactMissing(f"cannot be read: {error.strerror}", where=where, mend=mend) from error


def _parse(text: bytes, kind: type[ManifestT], where: Path) -> ManifestT:
    try:
        value = from_json(text, allow_inf_nan=False)  # unlike json's: no half characters, and a limit to nesting
    except ValueError:
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
        raise ArtifactMissing("no such plain file", where=path, mend="check the path, or copy the folder again")
    if path.stat().st_size > limit:
        raise ArtifactCorrupt(f"is larger than {limit} bytes", where=path)
    return path.read_bytes()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_files(manifest: Manifest, names: Mapping[str, str], where: Path) -> None:
    """ArtifactCorrupt unless every file in `names` (role → file name) is one that the manifest seals."""
    for role, name in names.items():
        if name not in manifest.files:
            raise ArtifactCorrupt(f"names '{name}', which is not among its files", where=where, field=role)
