"""What a sweep is given: device bundles, folders of bundles as `harmony export` writes them, or runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harmony.core.bundle import CloudManifest, DeviceManifest, format_of
from harmony.core.errors import ArtifactMissing

CHECKPOINT = "checkpoint"


class Found(NamedTuple):
    """Device bundles, and the cloud bundles that lay beside them."""

    devices: tuple[Path, ...]
    clouds: tuple[Path, ...]


def find_bundles(paths: Sequence[Path], export: Callable[[Path], Path]) -> Found:
    """export: run folder → folder with its bundles. ArtifactMissing for a path with nothing of it."""
    devices: list[Path] = []
    clouds: list[Path] = []
    for path in paths:
        folder = export(path) if (path / CHECKPOINT).is_dir() else path
        inside = sorted(folder.iterdir()) if folder.is_dir() and not (folder / "manifest.json").exists() else [folder]
        kinds = {one: _kind(one) for one in inside}
        devices += [one for one, kind in kinds.items() if kind == DeviceManifest.FORMAT]
        clouds += [one for one, kind in kinds.items() if kind == CloudManifest.FORMAT]
        if not set(kinds.values()) & {DeviceManifest.FORMAT, CloudManifest.FORMAT}:
            raise ArtifactMissing(
                "no bundle, folder of bundles or run", where=path, mend="give what harmony export or train wrote"
            )
    if not devices:
        raise ArtifactMissing("no device bundle", where=paths[0], mend="give what harmony export wrote")
    return Found(tuple(dict.fromkeys(devices)), tuple(dict.fromkeys(clouds)))


def _kind(path: Path) -> object:
    try:
        return format_of(path)
    except ArtifactMissing:
        return None
