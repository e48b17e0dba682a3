"""Bundles on disk, each in a folder named by the SHA-256 of its sealed manifest. A folder is whole or not there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harmony.cloud.models import open_model
from harmony.core.bundle import CloudManifest, open_cloud_bundle
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, RunExists
from harmony.core.sealed import (
    SEAL,
    digest_of,
    files_of,
    read_manifest,
    read_signatures,
    reading,
    sealing,
    write_signatures,
)
from harmony.core.signing import Trust
from harmony.core.storage import storing

Verify = Callable[[Path], CloudManifest]
_DOOMED = ".doomed"
_FOLDER = re.compile(r"[0-9a-f]{64}")


def verify(folder: Path) -> CloudManifest:
    """What a bundle must pass to be registered: every byte is what was sealed, the graph stays within itself and fits
    its manifest, and the test vectors come out right."""
    return open_model(folder, version="0").manifest


@dataclass(frozen=True)
class Stored:
    """A bundle in the store."""

    digest: str
    manifest: CloudManifest


class BundleStore:
    """The folder of bundles."""

    def __init__(self, root: Path, check: Verify = verify, trust: Trust | None = None) -> None:
        """check: a further condition on bundles; trust: keys of which one must have signed each."""
        self._root, self._check, self._trust = root, check, trust

    def folder(self, digest: str) -> Path:
        """Where the bundle lies, if it is there."""
        return self._root / digest

    def put(self, source: Path) -> Stored:
        """Copy a bundle in, and check the copy before it gets its name. What is there already is checked instead, and
        gets the signatures that it had not.

        The errors of `verify`, ArtifactUntrusted; StorageError if the disk refuses.
        """
        open_cloud_bundle(source, self._trust)  # first, so that no other folder is ever copied
        digest = digest_of(source)
        folder = self.folder(digest)
        if not folder.exists():
            try:
                with sealing(folder) as draft:
                    _copy(source, draft)
                    return self._checked(draft, digest, source)
            except RunExists:  # another process was first
                pass
        _add_signatures(source, folder)
        return self._checked(folder, digest, folder)

    def check(self, digest: str) -> CloudManifest:
        """The manifest of a stored bundle after every byte was compared; ArtifactMissing or ArtifactCorrupt."""
        folder = self.folder(digest)
        if not folder.is_dir():
            raise ArtifactMissing("the registry names this bundle, but it is not there", where=folder)
        if digest_of(folder) != digest:
            raise ArtifactCorrupt("is not the bundle that was registered", where=folder)
        return open_cloud_bundle(folder, self._trust)

    def remove_all_but(self, digests: Iterable[str]) -> list[str]:
        """Delete every bundle that is not named, and what a killed deletion left. Returns the digests of those."""
        keep = set(digests)
        if not self._root.is_dir():
            return []
        found = [path for path in sorted(self._root.iterdir()) if _FOLDER.fullmatch(path.name)]
        lost = [path for path in found if path.name not in keep]
        with storing(self._root):
            for path in lost:
                path.rename(path.with_name(path.name + _DOOMED))  # a folder with a digest's name is whole, always
            for path in self._root.glob(f"*{_DOOMED}"):
                shutil.rmtree(path)
        return [path.name for path in lost]

    def _checked(self, folder: Path, digest: str, named: Path) -> Stored:
        read_manifest(folder, CloudManifest, self._trust)
        manifest = self._check(folder)
        if digest_of(folder) != digest:
            raise ArtifactCorrupt("changed while it was being registered", where=named)
        return Stored(digest, manifest)


def _add_signatures(source: Path, folder: Path) -> None:
    new, old = read_signatures(source), read_signatures(folder)
    if new is not None and (old is None or set(new.by) - set(old.by)):
        write_signatures(folder, new if old is None else new.with_more(old.by, folder))


def _copy(source: Path, draft: Path) -> None:
    """The files of a folder or .tar. Errors of reading and of writing name the file that they met."""
    with reading(source):
        files = files_of(source)
        names = sorted(files.names() - {SEAL})
    for name in [*names, SEAL]:
        with reading(source):
            stream = files.open(name)
        with stream, (draft / name).open("xb") as out:
            shutil.copyfileobj(stream, out)
