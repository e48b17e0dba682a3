"""Checkpoint tensors to modules, for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from harmony.core.checkpoint import CheckpointManifest, ClientRecord, back_end_file, client_file, load_tensors
from harmony.core.errors import ArtifactCorrupt
from harmony.core.models import BackEnd, FrontEnd

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def load_front_end(checkpoint: Path, manifest: CheckpointManifest, record: ClientRecord) -> FrontEnd:
    """A client's front end; head and gate rows by label."""
    classes = len(record.classes.names)
    gate = classes if manifest.gate else None
    front_end = FrontEnd(record.architecture, manifest.image, manifest.feature, outputs=classes, gate=gate)
    return _load(front_end, checkpoint / client_file(record.index))


def load_back_end(checkpoint: Path, manifest: CheckpointManifest, record: ClientRecord) -> BackEnd:
    """The back end that answers a client, its own or the one for all; rows by token."""
    tokens = len(manifest.clients[0].classes.names)
    back_end = BackEnd(manifest.feature, width=manifest.back_end_width, tokens=tokens)
    return _load(back_end, checkpoint / back_end_file(record))


def _load(module: ModuleT, path: Path) -> ModuleT:
    tensors = {name: torch.from_numpy(value) for name, value in load_tensors(path).items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactCorrupt(f"does not fit its architecture: {error}", where=path) from None
    return module
