"""From a checkpoint's tensors to the networks that leave the house: a client's two segments, and the back end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harmony.core.checkpoint import CheckpointManifest, ClientRecord
from harmony.core.errors import ArtifactCorrupt
from harmony.core.models import BackEnd, FrontEnd
from harmony.core.scores import needs_gate
from harmony.core.spec import Architecture, FeatureSpec, ImageSpec

Tensors = Mapping[str, NDArray[Any]]
PERSONAL_HEADS = ("exit1.head.", "exit2.head.")
GATE_HEADS = ("exit1.gate.", "exit2.gate.")


class Shape(NamedTuple):
    """What decides the graph of a front end; clients of one Shape differ in their weights alone."""

    architecture: Architecture
    own: int
    gate: bool

    def __str__(self) -> str:
        return f"{self.architecture}, {self.own} classes"


class Segment(nn.Module):
    """One exit's part of a front end: (carried on, logits) or (carried on, logits, gate)."""

    def __init__(self, front_end: FrontEnd, exit_: str) -> None:
        super().__init__()
        self.front_end, self.exit = front_end, exit_

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """exit1: image → hidden, logits1[, gate1]; exit2: hidden → feature, logits2[, gate2]."""
        if self.exit == "exit1":
            carried = self.front_end.lower(x)
            logits, gate = self.front_end.exit1(carried)
        else:
            carried = self.front_end.upper(x)
            logits, gate = self.front_end.exit2(carried)
        return (carried, logits) if gate is None else (carried, logits, gate)


class Answers(nn.Module):
    """Back end with a softmax: feature (n, *FeatureSpec.shape) → probabilities (n, tokens)."""

    def __init__(self, back_end: nn.Module) -> None:
        super().__init__()
        self.back_end = back_end

    def forward(self, feature: Tensor) -> Tensor:
        """Probabilities by token."""
        return torch.softmax(self.back_end(feature), dim=1)


def shape_of(client: ClientRecord) -> Shape:
    """The client's Shape. The gate heads go along only if an exit's score reads them."""
    gate = any(needs_gate(one.score) for one in client.exits)
    return Shape(client.architecture, len(client.classes.own), gate)


def empty_front_end(image: ImageSpec, feature: FeatureSpec, classes: int, shape: Shape) -> FrontEnd:
    """A front end of that shape in eval mode, its weights not yet those of any client."""
    gate = classes if shape.gate else None
    return FrontEnd(shape.architecture, image, feature, outputs=shape.own, gate=gate).eval()


def front_end(manifest: CheckpointManifest, client: ClientRecord, tensors: Tensors, where: object) -> FrontEnd:
    """The client's front end, whose personal heads keep the rows of its own classes only, in the order of `own`."""
    own, rows = np.asarray(client.classes.own), len(client.classes.names)
    shape = shape_of(client)
    kept = {name: value for name, value in tensors.items() if shape.gate or not name.startswith(GATE_HEADS)}
    for name in [name for name in tensors if name.startswith(PERSONAL_HEADS)]:
        if len(tensors[name]) != rows:
            raise ArtifactCorrupt(f"has {len(tensors[name])} rows where {rows} classes are", where=where, field=name)
        kept[name] = tensors[name][own]
    network = empty_front_end(manifest.image, manifest.feature, rows, shape)
    _load(network, kept, where)
    return network


def back_end(manifest: CheckpointManifest, tensors: Tensors, where: object) -> Answers:
    """The back end, ending in a softmax."""
    tokens = len(manifest.clients[0].classes.names)
    network = BackEnd(manifest.feature, width=manifest.back_end_width, tokens=tokens).eval()
    _load(network, tensors, where)
    return Answers(network).eval()


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(one.numel() for one in network.parameters())


def _load(network: nn.Module, tensors: Tensors, where: object) -> None:
    try:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    except (RuntimeError, TypeError) as error:  # names or shapes of another architecture, or no float tensors
        raise ArtifactCorrupt(
            f"the tensors are not those of the network that the manifest names: {str(error)[:300]}", where=where
        ) from None
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise ArtifactCorrupt("holds weights that are not finite", where=where, mend="train again")
