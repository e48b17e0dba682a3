"""The two segments of a bundle as PyTorch modules, out of the run that it was exported from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from harmony.core.checkpoint import checkpoint_folder, client_file, load_tensors, open_checkpoint
from harmony.export.networks import Segment, front_end


def segments(run: Path, client: int) -> tuple[nn.Module, nn.Module]:
    """Exit 1's and exit 2's part of a client's front end, as the exporter sees them. ArtifactError."""
    folder = checkpoint_folder(run)
    manifest = open_checkpoint(folder)
    (record,) = (one for one in manifest.clients if one.index == client)
    path = folder / client_file(client)
    network = front_end(manifest, record, load_tensors(path), path)
    return Segment(network, "exit1").eval(), Segment(network, "exit2").eval()
