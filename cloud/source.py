"""What a service shall serve, and who says so: a folder of bundles, or a registry."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from harmony.cloud.keys import KeyGrant
from harmony.cloud.lanes import LATEST, Alias
from harmony.cloud.models import Weights, find_bundles
from harmony.core.bundle import CloudManifest
from harmony.core.errors import ConfigError
from harmony.core.sealed import digest_of, read_manifest
from harmony.core.signing import Trust

_PATHS = ("folder", "store", "checkpoint")


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that a name points at. digest: SHA-256 of the manifest; loaded: whether it shall be served now;
    weights: what PyTorch runs instead of the bundle's ONNX file."""

    model: str
    version: str
    folder: Path
    digest: str
    loaded: bool
    weights: Weights | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One state of what shall be served.

    revision: grows with every change; grants: the keys kept beside it, None where none can be.
    """

    revision: int
    versions: tuple[WantedVersion, ...]
    aliases: tuple[Alias, ...]
    grants: tuple[KeyGrant, ...] | None = None


class Source(Protocol):
    """Says what shall be served. Every method may wait for a disk or a network: not for the event loop.

    shared: whether others can change it, so that it has to be looked at from time to time; trust: keys of which one
    must have signed what is served, None: whoever could write it is trusted.
    """

    shared: bool
    trust: Trust | None

    def revision(self) -> int:
        """The revision that `wanted` would have."""

    def wanted(self) -> Wanted:
        """What shall be served now."""

    def set_loaded(self, model: str, *, loaded: bool, who: str) -> None:
        """Load or unload a model. ConfigError if it is unknown."""

    def audit(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        """The newest admin acts first."""

    def close(self) -> None:
        """Let go of what is open."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where what shall be served lies: a folder of bundles, or a registry with, perhaps, the folder of its bundles.

    trust: public keys, as lines of their files; a bundle must be signed by one of them, if there are any. checkpoint:
    of the run whose back end the folder holds, to be run in PyTorch, or bfloat16 of it.
    """

    folder: Path | None = None
    registry: str | None = None
    store: Path | None = None
    trust: tuple[str, ...] = ()
    checkpoint: Path | None = None
    bfloat16: bool = False

    def document(self) -> dict[str, Any]:
        """For another process, as JSON."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """What `document` wrote."""
        paths = {name: None if document[name] is None else Path(document[name]) for name in _PATHS}
        return cls(**{**document, **paths, "trust": tuple(document["trust"])})

    def open(self) -> Source:
        """The source there. ConfigError unless there is one place; what FolderSource and Registry raise."""
        if (self.folder is None) == (self.registry is None):
            raise ConfigError("give either a folder of bundles, or --registry", where="harmony serve")
        trust = Trust.of_lines(self.trust) if self.trust else None
        if self.registry is None:
            assert self.folder is not None  # noqa: S101  # just checked
            weights = None if self.checkpoint is None else Weights(self.checkpoint, self.bfloat16)
            return FolderSource(self.folder, trust, weights)
        # A service that needs no database loads none.
        from harmony.cloud.registry.catalogue import Registry  # noqa: PLC0415
        from harmony.cloud.registry.location import locate  # noqa: PLC0415

        return Registry(locate(self.registry, self.store), trust=trust)


class FolderSource:
    """A folder of bundles, each the latest version of its model. Nothing is written: the folder may be read-only, and
    what was decided in one run of the service cannot surprise the next.

    Loading a model reads its folder again; a bundle that was replaced becomes the next version.
    """

    shared = False

    def __init__(self, path: Path, trust: Trust | None = None, weights: Weights | None = None) -> None:
        """ArtifactMissing, ArtifactCorrupt, ArtifactTooNew, ArtifactUntrusted or ConfigError for a path that cannot be
        served."""
        self._path, self.trust, self._weights = path, trust, weights
        self._lock = threading.Lock()
        self._revision = 1
        self._models = {one.model: replace(one, weights=weights) for one in _find(path, trust)}

    def revision(self) -> int:
        """Grows with every load and unload."""
        return self._revision

    def wanted(self) -> Wanted:
        """Every model that was found, as its latest version."""
        with self._lock:
            versions = tuple(self._models.values())
            aliases = [Alias(one.model, LATEST, one.version, cut=_cut(one.folder)) for one in versions]
            return Wanted(self._revision, versions, tuple(aliases))

    def set_loaded(self, model: str, *, loaded: bool, who: str) -> None:
        """Read the model's folder again, or stop serving it. ConfigError if no bundle is of that model."""
        with self._lock:
            found = {one.model: one for one in _find(self._path, self.trust)} if loaded else self._models
            new, old = found.get(model), self._models.get(model)
            if new is None:
                raise ConfigError(f"no bundle of model '{model[:64]}'", where=self._path)
            same = old is None or old.digest == new.digest
            version = "1" if old is None else old.version if same else str(int(old.version) + 1)
            self._models[model] = WantedVersion(model, version, new.folder, new.digest, loaded, self._weights)
            self._revision += 1

    def audit(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        """ConfigError: a log that must not be lost needs a registry to lie in."""
        raise ConfigError("an audit log is kept by a registry only", mend="serve with --registry")

    def close(self) -> None:
        """Nothing is open."""


def _find(path: Path, trust: Trust | None) -> list[WantedVersion]:
    """The bundles at a path, their signatures checked, not opened further. ConfigError if two are of one model."""
    found: dict[str, WantedVersion] = {}
    for folder in find_bundles(path):
        name = read_manifest(folder, CloudManifest, trust).model
        if name in found:
            problem = f"is named '{name}', and so is {found[name].folder}"
            raise ConfigError(problem, where=folder, mend="serve one of them")
        found[name] = WantedVersion(name, "1", folder, digest_of(folder), loaded=True)
    return list(found.values())


def _cut(folder: Path) -> str:
    return str(read_manifest(folder, CloudManifest).feature)
