"""A trained federation on disk: every client's front end, the back end, and what is needed to export and judge them.

A sealed folder (see `harmony.core.sealed`): manifest.json, client-KKK.safetensors, and back_end.safetensors or, where
clients share none, back_end-KKK.safetensors. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harmony.core.adaptive import HeldOut
from harmony.core.bundle import Exit, check_exits
from harmony.core.errors import ArtifactMissing
from harmony.core.sealed import Manifest, reading, require_files, seal, sealing, unseal
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, Frozen, ImageSpec
from harmony.core.tensors import Tensors, load_tensors, save_tensors

__all__ = [
    "BACK_END",
    "CheckpointManifest",
    "ClientRecord",
    "Tensors",
    "back_end_file",
    "checkpoint_folder",
    "client_file",
    "load_tensors",
    "open_checkpoint",
    "save_checkpoint",
    "save_tensors",
]
BACK_END = "back_end.safetensors"


class ClientRecord(Frozen):
    """One client of a trained federation. Its tensors lie in `client_file(index)`.

    held_out: scores of the images that the exits were calibrated on, None in a checkpoint that is older than the field;
    own_back_end: the client has a back end of its own (see `back_end_file`), which nobody can serve to the others.
    """

    index: Annotated[int, Field(ge=0)]
    architecture: Architecture
    classes: ClassMap
    exits: tuple[Exit, Exit]
    held_out: HeldOut | None = None
    train_images: int
    holdout_images: int
    own_back_end: bool = False


class CheckpointManifest(Manifest):
    """What was trained, how, and from which data. `config` is the whole training config (see harmony.core.config)."""

    FORMAT: ClassVar[str] = "harmony-checkpoint"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-checkpoint"] = "harmony-checkpoint"
    format_version: Literal[1] = 1
    harmony_version: str
    run: str
    method: str
    round: Annotated[int, Field(ge=0)]
    config: dict[str, Any]
    dataset: str
    image: ImageSpec
    feature: FeatureSpec
    back_end_width: Annotated[int, Field(ge=4)]
    gate: bool
    clients: Annotated[tuple[ClientRecord, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({one.index for one in self.clients}) != len(self.clients):
            raise ValueError("two clients have the same index")
        for one in self.clients:
            check_exits(one.exits, gate=self.gate)
        return self


def client_file(index: int) -> str:
    """File name of a client's front end."""
    return f"client-{index:03d}.safetensors"


def back_end_file(client: ClientRecord) -> str:
    """File name of the back end that answers a client."""
    return f"back_end-{client.index:03d}.safetensors" if client.own_back_end else BACK_END


def save_checkpoint(
    folder: Path,
    manifest: CheckpointManifest,
    back_end: Tensors,
    clients: Mapping[int, Tensors],
    back_ends: Mapping[int, Tensors] | None = None,
) -> None:
    """Write the folder whole or not at all. RunExists if it is there already.

    back_end: empty where every client has one of its own, in `back_ends`.
    """
    records = {one.index: one for one in manifest.clients}
    with sealing(folder) as draft:
        if back_end:
            save_tensors(draft / BACK_END, back_end)
        for index, tensors in (back_ends or {}).items():
            save_tensors(draft / back_end_file(records[index]), tensors)
        for index, tensors in clients.items():
            save_tensors(draft / client_file(index), tensors)
        seal(draft, manifest)


def open_checkpoint(folder: Path) -> CheckpointManifest:
    """Check every byte of a checkpoint and return its manifest; a named ArtifactError otherwise."""
    manifest = unseal(folder, CheckpointManifest)
    roles = {f"client {one.index}": client_file(one.index) for one in manifest.clients}
    roles |= {f"the back end of client {one.index}": back_end_file(one) for one in manifest.clients if one.own_back_end}
    if not all(one.own_back_end for one in manifest.clients):
        roles |= {"back end": BACK_END}
    require_files(manifest, roles, folder / "manifest.json")
    return manifest


def checkpoint_folder(run: Path) -> Path:
    """The checkpoint of a run folder; a checkpoint folder is its own. ArtifactMissing if the run has not finished."""
    with reading(run):
        if (run / "checkpoint").is_dir():
            return run / "checkpoint"
        if (run / "config.toml").is_file():
            raise ArtifactMissing("the run has not finished", where=run, mend=f"harmony train --out {run} --resume")
        return run
