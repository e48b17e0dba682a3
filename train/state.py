"""A run between two rounds, on disk: what `--resume` goes on from, bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from harmony.core.checkpoint import load_tensors, save_tensors
from harmony.core.errors import ArtifactError, RunError
from harmony.core.sealed import Manifest, Sha256, seal, sealing, unseal

TENSORS = "state.safetensors"
KEPT = 2
"""States kept: the newest, and the one before it in case the newest is found damaged."""


class StateManifest(Manifest):
    """A state after `round` rounds.

    losses: by term and round, means over clients; data: SHA-256 of the images; key: digest of the token key.
    """

    FORMAT: ClassVar[str] = "harmony-state"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-state"] = "harmony-state"
    format_version: Literal[1] = 1
    round: Annotated[int, Field(ge=0)]
    config: dict[str, Any]
    data: Sha256
    key: Sha256
    losses: dict[str, tuple[float, ...]]


def save_state(run: Path, manifest: StateManifest, tensors: dict[str, Tensor]) -> None:
    """Add a state to the run folder, then drop the oldest ones."""
    with sealing(state_folder(run, manifest.round)) as draft:
        save_tensors(draft / TENSORS, {name: value.detach().cpu().numpy() for name, value in tensors.items()})
        seal(draft, manifest)
    for old in _folders(run)[:-KEPT]:
        shutil.rmtree(old)


def latest_state(run: Path) -> tuple[StateManifest, dict[str, Tensor]] | None:
    """The newest whole state, or None where there is none. A damaged one is passed over for the one before it.

    RunError if there are states and every one is damaged.
    """
    damage: ArtifactError | None = None
    for folder in reversed(_folders(run)):
        try:
            manifest = unseal(folder, StateManifest)
            tensors = load_tensors(folder / TENSORS)
        except ArtifactError as error:
            damage = damage or error
            continue
        return manifest, {name: torch.from_numpy(value) for name, value in tensors.items()}
    if damage is not None:
        raise RunError(f"no state can be read: {damage}", where=run, mend="start the run anew in another folder")
    return None


def state_folder(run: Path, rounds: int) -> Path:
    """Where the state after some rounds lies."""
    return run / "state" / f"round-{rounds:06d}"


def _folders(run: Path) -> list[Path]:
    return sorted((run / "state").glob("round-*"))
