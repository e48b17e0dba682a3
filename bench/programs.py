"""The files that an engine runs, of a bundle that is a folder or a .tar, and one name for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from harmony.core.bundle import DeviceManifest, EngineName
from harmony.core.sealed import read_sealed


def read_programs(bundle: Path, manifest: DeviceManifest, engine: EngineName) -> dict[str, bytes]:
    """By file name; ArtifactCorrupt if they are not those that the manifest seals."""
    return {name: read_sealed(bundle, manifest, name) for name in manifest.engines[engine].values()}


def digest_of_programs(programs: Mapping[str, bytes]) -> str:
    """SHA-256, as hex, of their bytes in the order of their names."""
    return hashlib.sha256(b"".join(programs[name] for name in sorted(programs))).hexdigest()
