"""What `harmony serve` does for a run folder: its back end is exported first, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harmony.core.errors import ArtifactCorrupt, ArtifactError


def servable(folder: Path) -> Path:
    """The folder itself, with RUN/cloud in it if it is the folder of a finished run.

    ArtifactError if it cannot be exported, ArtifactCorrupt if RUN/cloud belongs to another checkpoint.
    """
    from harmony.core.bundle import CloudManifest
    from harmony.core.sealed import MANIFEST, hash_file, read_manifest

    checkpoint, place = folder / "checkpoint" / MANIFEST, folder / "cloud"
    if not checkpoint.is_file():
        return folder
    if not place.exists():
        _export(folder)
    if read_manifest(place, CloudManifest).checkpoint != hash_file(checkpoint):
        raise ArtifactCorrupt("was exported from another checkpoint", where=place, mend="remove it, and serve again")
    return folder


def _export(run: Path) -> None:
    # In a process of its own: the service would carry PyTorch for as long as it lives.
    command = [sys.executable, "-m", "harmony.cli.main", "export", str(run), "--out", str(run), "--client", "none"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1].removeprefix("harmony: ")
        mend = "see 'harmony export', which can write elsewhere and without the run's data"
        raise ArtifactError(f"its back end could not be exported: {said}", where=run, mend=mend)
