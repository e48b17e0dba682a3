"""A sealed folder: files, a manifest that names each with size and SHA-256, and the manifest's own SHA-256. No torch.

    manifest.json     what this is, and every other file with size and hash
    manifest.sha256   the hash of manifest.json, in the format of sha256sum
    manifest.sig      who signed manifest.json, if anybody did (see `harmony.core.signing`)
    …                 exactly the files that the manifest names

One changed byte anywhere, a file too many or too few, is an error before anything is parsed further. Written inside
`sealing` (see `harmony.core.storage`), a folder appears whole or not at all. What is read here may also be one file,
NAME.tar, with the same files in it (see `harmony.core.archive`).
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import from_json

from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactTooNew, StorageError
from harmony.core.spec import Frozen
from harmony.core.storage import sealing, storing, sync, write_atomically

if TYPE_CHECKING:  # a device that trusts whatever it was given carries none of it
    from harmony.core.signing import Signatures, Trust
    from harmony.core.signing_keys import SecretKey

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "SEAL",
    "SIGNATURES",
    "TAR",
    "FileEntry",
    "FileName",
    "Files",
    "Manifest",
    "Sha256",
    "digest_of",
    "files_of",
    "hash_file",
    "read_manifest",
    "read_sealed",
    "read_signatures",
    "reading",
    "require_files",
    "seal",
    "sealing",
    "sign_sealed",
    "storing",
    "sync",
    "unseal",
    "write_atomically",
    "write_signatures",
]

MANIFEST, SEAL, SIGNATURES = "manifest.json", "manifest.sha256", "manifest.sig"
TAR = ".tar"
MAX_MANIFEST_BYTES = 64 << 20
_MAX_SEAL_BYTES = 256
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


class Files(Protocol):
    """The files of a sealed folder, or of a .tar. Methods raise OSError if the disk refuses."""

    def names(self) -> set[str]:
        """Of everything that is there."""

    def size(self, name: str) -> int | None:
        """Bytes of a plain file; None if there is no plain file of that name."""

    def open(self, name: str) -> BufferedReader:
        """A plain file that is there."""


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> set[str]:
        return {path.name for path in self._path.iterdir()}

    def size(self, name: str) -> int | None:
        try:
            status = (self._path / name).lstat()
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, name: str) -> BufferedReader:
        return (self._path / name).open("rb")


def files_of(folder: Path, what: str = "folder, or .tar,") -> Files:
    """What lies in a folder or a .tar. ArtifactMissing if it is neither, ArtifactCorrupt for another kind of .tar."""
    with reading(folder):
        if folder.is_dir():
            return _Folder(folder)
        if folder.suffix == TAR and folder.is_file():
            from harmony.core.archive import Archive  # noqa: PLC0415  (rare, and weight on a device)

            return Archive(folder)
    raise ArtifactMissing(f"no {what} here", where=folder, mend="check the path")


def seal(folder: Path, manifest: ManifestT, keys: Sequence[SecretKey] = ()) -> ManifestT:
    """Write the manifest of the files in `folder`, its hash, and its signatures by `keys`. Returns the manifest with
    `files` filled in. StorageError if the manifest would be larger than what `unseal` reads.
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
    (folder / SEAL).write_bytes(_seal_of(text))
    if keys:
        sign_sealed(folder, type(manifest), keys)
    return sealed


def sign_sealed(folder: Path, kind: type[Manifest], keys: Sequence[SecretKey]) -> Signatures:
    """Sign the manifest of a sealed folder with each key, beside the signatures that are there. The errors of `unseal`
    for a folder that is not whole, and StorageError."""
    from harmony.core.signing import sign  # noqa: PLC0415  (as above)

    manifest = unseal(folder, kind)
    before = read_signatures(folder)
    text = (folder / MANIFEST).read_bytes()
    made = sign(text, manifest.format, manifest.format_version, keys, where=folder / SIGNATURES, before=before)
    write_signatures(folder, made)
    return made


def write_signatures(folder: Path, signatures: Signatures) -> None:
    """Put signatures into a sealed folder, in the place of those that are there. StorageError."""
    # The draft lies beside the folder, which must never hold a file too many: others may be reading it.
    write_atomically(folder / SIGNATURES, signatures.text(), beside=folder)


def unseal(folder: Path, kind: type[ManifestT], trust: Trust | None = None) -> ManifestT:
    """Check the folder, or .tar, byte by byte and return its manifest. trust: whose signature it must have.

    Raises ArtifactMissing, ArtifactCorrupt, ArtifactTooNew or ArtifactUntrusted, naming the file and what is wrong.
    """
    with reading(folder):
        manifest = read_manifest(folder, kind, trust)
        _check_files(folder, files_of(folder), manifest)
        if trust is None:
            read_signatures(folder)
    return manifest


def _check_files(folder: Path, files: Files, manifest: Manifest) -> None:
    present = files.names()
    expected = {*manifest.files, MANIFEST, SEAL}
    for name in sorted(expected - present):
        raise ArtifactMissing(
            "the manifest names this file, but it is not there", where=folder / name, mend="copy the folder again"
        )
    for name in sorted(present - expected - {SIGNATURES}):
        raise ArtifactCorrupt(
            "the manifest does not name this file", where=folder / name, mend="remove it, or copy the folder again"
        )
    for name, entry in manifest.files.items():
        _check_file(folder / name, files, entry)


def read_manifest(folder: Path, kind: type[ManifestT], trust: Trust | None = None) -> ManifestT:
    """The manifest alone, without the other files: checked against its own hash, the signature of somebody in `trust`,
    and its schema, in this order."""
    with reading(folder):
        files = files_of(folder, kind.FORMAT)
        text = _read_small(folder, files, MANIFEST, MAX_MANIFEST_BYTES)
        stated = _read_small(folder, files, SEAL, _MAX_SEAL_BYTES)
        if stated != _seal_of(text):
            raise ArtifactCorrupt(
                "was changed after it was sealed", where=folder / MANIFEST, mend="copy or write the folder again"
            )
        if trust is not None:
            trust.check(read_signatures(folder), text, kind.FORMAT, folder)
    return _parse(text, kind, folder / MANIFEST)


def digest_of(folder: Path) -> str:
    """SHA-256 of the manifest of a folder or .tar, as hex: the name of everything in it."""
    with reading(folder):
        return hashlib.sha256(_read_small(folder, files_of(folder), MANIFEST, MAX_MANIFEST_BYTES)).hexdigest()


def read_signatures(folder: Path) -> Signatures | None:
    """Who says that they signed the folder or .tar; nothing of it is checked but its form. None: nobody.
    ArtifactCorrupt if it is no list of signatures, or one of another manifest."""
    with reading(folder):
        files = files_of(folder)
        if SIGNATURES not in files.names():
            return None
        from harmony.core.signing import MAX_SIGNATURES_BYTES, Signatures  # noqa: PLC0415  (as above)

        text = _read_small(folder, files, SIGNATURES, MAX_SIGNATURES_BYTES)
        manifest = _read_small(folder, files, MANIFEST, MAX_MANIFEST_BYTES)
    found = Signatures.parse(text, folder / SIGNATURES)
    if found.manifest != hashlib.sha256(manifest).hexdigest():
        raise ArtifactCorrupt("signs another manifest", where=folder / SIGNATURES, mend="copy the folder again")
    return found


def read_sealed(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of one file, which are those that the manifest seals; ArtifactCorrupt otherwise."""
    with reading(folder):
        files, entry = files_of(folder), manifest.files[name]
        if files.size(name) == entry.size:
            with files.open(name) as stream:
                content = stream.read(entry.size)
            if hashlib.sha256(content).hexdigest() == entry.sha256:
                return content
    raise ArtifactCorrupt("was changed while it was read", where=folder / name, mend="copy the folder again")


def _seal_of(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


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


def _check_file(path: Path, files: Files, entry: FileEntry) -> None:
    size = files.size(path.name)
    if size is None:
        raise ArtifactCorrupt("is not a plain file", where=path)
    if size != entry.size:
        raise ArtifactCorrupt(
            f"has {size} bytes, the manifest says {entry.size}", where=path, mend="copy the folder again"
        )
    with files.open(path.name) as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != entry.sha256:
        raise ArtifactCorrupt(
            "was changed after it was sealed (SHA-256 differs)", where=path, mend="copy the folder again"
        )


def _read_small(folder: Path, files: Files, name: str, limit: int) -> bytes:
    size = files.size(name)
    if size is None:
        raise ArtifactMissing(
            "no such plain file", where=folder / name, mend="check the path, or copy the folder again"
        )
    if size > limit:
        raise ArtifactCorrupt(f"is larger than {limit} bytes", where=folder / name)
    with files.open(name) as stream:
        return stream.read(size)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_files(manifest: Manifest, names: Mapping[str, str], where: Path) -> None:
    """ArtifactCorrupt unless every file in `names` (role → file name) is one that the manifest seals."""
    for role, name in names.items():
        if name not in manifest.files:
            raise ArtifactCorrupt(f"names '{name}', which is not among its files", where=where, field=role)
