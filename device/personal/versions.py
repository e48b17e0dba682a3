"""Versions of a bundle, changed over in one moment. No torch.

    bundles/client-000                      the version in use
    bundles/.client-000.versions/000000     the one that was exported; then 000001, …: those that were in use before

A new version is written into the place where the old one will lie, checked there, and both are exchanged by one call of
the system. Whenever the process is killed, the bundle's path holds the old version or the new one, whole; what lies in
the other places says in its manifest which version it is, and what does not belong there is removed next time.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import ArtifactError, ArtifactMissing, ConfigError, StorageError
from harmony.core.sealed import TAR, read_manifest
from harmony.core.storage import storing, sync

if TYPE_CHECKING:
    from harmony.core.signing import Trust

KEPT = 3
"""Versions before the one in use, besides the exported one, which always stays."""
_LOCK = ".lock"
_PLACE = re.compile(r"\d{6}(\.tar)?")
_AT_HERE, _EXCHANGE = -100, 2  # Linux's AT_FDCWD and RENAME_EXCHANGE


class Versions:
    """The versions of one bundle, a folder or a .tar. Use it within `locked`."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle.resolve()  # a link to a bundle stays a link to it
        self._suffix = TAR if self.bundle.suffix == TAR else ""
        self.home = self.bundle.parent / f".{self.bundle.name.removesuffix(TAR)}.versions"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with this bundle, leftovers of a killed process removed. ConfigError if another process changes it."""
        read_manifest(self.bundle, DeviceManifest)  # nothing is made beside what is no device's bundle
        with storing(self.home):
            self.home.mkdir(exist_ok=True)
            handle = os.open(self.home / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, self.bundle)
            self._tidy(version_of(read_manifest(self.bundle, DeviceManifest)))
            yield
        finally:
            os.close(handle)

    def place(self, version: int) -> Path:
        """Where a version lies that is not in use."""
        return self.home / f"{version:06d}{self._suffix}"

    def discard(self, version: int) -> None:
        """Remove what lies in the place of a version."""
        self._remove(self.place(version))

    def adopt(self, current: int) -> None:
        """Put the new version, which lies in the place of the current one, into use. It was checked, and synced."""
        exchange(self.place(current), self.bundle)
        self._prune(current)

    def roll_back(self, trust: Trust | None = None) -> DeviceManifest:
        """Put the version before the one in use into its place; the one in use is removed. Its manifest.

        ConfigError if there is none; an ArtifactError if it is not whole, and nothing is changed.
        """
        current = version_of(read_manifest(self.bundle, DeviceManifest))
        older = [version for version in self._versions() if version < current]
        if not older:
            raise ConfigError("there is no version before this one", where=self.bundle)
        place = self.place(max(older))
        manifest = open_device_bundle(place, trust)
        exchange(place, self.bundle)
        self._remove(place)
        return manifest

    def _versions(self) -> list[int]:
        return sorted(int(path.name[:6]) for path in self.home.iterdir() if _PLACE.fullmatch(path.name))

    def _tidy(self, current: int) -> None:
        """Remove drafts, and whatever is not the version that its place says, or not before the one in use."""
        for path in sorted(self.home.iterdir()):
            if path.name != _LOCK and not self._belongs(path, current):
                self._remove(path)

    def _belongs(self, path: Path, current: int) -> bool:
        if not _PLACE.fullmatch(path.name) or int(path.name[:6]) >= current:
            return False
        with suppress(ArtifactError):
            return version_of(read_manifest(path, DeviceManifest)) == int(path.name[:6])
        return False

    def _prune(self, current: int) -> None:
        for version in self._versions():
            if 0 < version <= current - KEPT:
                self._remove(self.place(version))

    def _remove(self, path: Path) -> None:
        """First out of its place, so that a half-removed version is never taken for one."""
        with storing(path):
            gone = self.home / f".{secrets.token_hex(8)}.gone"
            path.rename(gone)
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


def version_of(manifest: DeviceManifest) -> int:
    """0 for a bundle as it was exported."""
    return 0 if manifest.personal is None else manifest.personal.version


def exchange(one: Path, other: Path) -> None:
    """Let two files, or two folders, take each other's place at once. StorageError where the system cannot."""
    if _exchange(one, other):
        sync(one.parent)
        sync(other.parent)
        return
    if not (one.is_file() and other.is_file()):
        mend = "use the bundle as a .tar: harmony bundle pack"
        raise StorageError("this file system cannot exchange two folders at once", where=other, mend=mend)
    with storing(other):
        spare = one.with_name(f".{secrets.token_hex(8)}.spare")
        os.link(other, spare)
        one.replace(other)
        spare.replace(one)
        sync(one.parent)
        sync(other.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Linux's renameat2(2). False where there is no such call, or the file system does not know it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    paths = (ctypes.c_char_p(os.fsencode(one)), ctypes.c_char_p(os.fsencode(other)))
    if call(_AT_HERE, paths[0], _AT_HERE, paths[1], ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise StorageError(f"cannot be exchanged: {os.strerror(code)}", where=other, mend="check its permissions")


def _lock(handle: int, bundle: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError("another process is changing this bundle", where=bundle, mend="wait for it") from None
    except OSError as error:
        problem = f"this file system cannot lock files: {error.strerror}"
        raise StorageError(problem, where=bundle, mend="copy the bundle to a local disk") from None


def require_bundle(bundle: Path) -> None:
    """ArtifactMissing before anything is made beside a path where there is nothing."""
    if not bundle.exists():
        raise ArtifactMissing("no bundle here", where=bundle, mend="check the path")
