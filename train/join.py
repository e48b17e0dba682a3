"""A new client joins a finished run: a front end of any architecture, over the run's frozen back end θ.

    1. it begins as a slice of the run's front ends of its family, as far as there are any, else at random;
    2. it learns, on the newcomer's own images, to give the features that the run's largest front end gives (`distil`);
    3. it is made personal, and its exits are calibrated, as any client's are.

Nothing of the run changes: what comes out is a new checkpoint with one client more.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harmony.core.checkpoint import CheckpointManifest, ClientRecord, client_file, open_checkpoint, save_tensors
from harmony.core.config import TrainConfig, recorded_config
from harmony.core.data import Dataset
from harmony.core.errors import ConfigError, RunError
from harmony.core.models import FrontEnd
from harmony.core.partition import ClassesPerClient, partition
from harmony.core.sealed import seal, sealing
from harmony.core.spec import Architecture, ClassMap, Frozen
from harmony.core.storage import require_free
from harmony.train.distil import BATCH, distil, masters
from harmony.train.evaluate import check_kind
from harmony.train.federation import JOINING, Client, Federation, stream
from harmony.train.method import numpy_state, seeded
from harmony.train.models import load_back_end
from harmony.train.personalize import personal
from harmony.train.runs import client_record

DRAWS, WARPS = 1, 2  # the second words of the stream JOINING


class Newcomer(Frozen):
    """Who joins. own: labels, ascending; images: of all of them together, as equally as can be, None for all there are;
    steps, rate: batches of 64 images that it learns from, and the learning rate at their start.
    """

    architecture: Architecture
    own: Annotated[tuple[int, ...], Field(min_length=1)]
    images: Annotated[int, Field(ge=2)] | None = None
    steps: Annotated[int, Field(ge=0)] = 600
    rate: Annotated[float, Field(gt=0, le=10)] = 4e-3
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Joined(NamedTuple):
    """The outcome. begun: the architecture whose weights the front end began with, None for none."""

    checkpoint: Path
    client: ClientRecord
    begun: Architecture | None


def join(
    checkpoint: Path,
    newcomer: Newcomer,
    dataset: Dataset,
    out: Path,
    *,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> Joined:
    """Train a front end for the newcomer and write the checkpoint with it to the new folder `out`.

    dataset: the newcomer's training images are drawn from it, whoever else holds them. RunExists if `out` is there,
    RunError for a run that nobody can join, ContractMismatch for images or classes of another kind, ConfigError for
    classes that have too few images, and the errors of opening a checkpoint.
    """
    require_free(out)
    manifest = open_checkpoint(checkpoint)
    config = recorded_config(manifest.config, where=checkpoint)
    _check_open(manifest, config, checkpoint)
    check_kind(manifest, dataset, checkpoint, own_test=False)
    member = _federation_of_one(newcomer, config, dataset, manifest)
    torch.set_num_threads(config.threads)
    trained = masters(checkpoint, manifest)
    front_end, begun = _begun(newcomer, manifest, trained)
    back_end = load_back_end(checkpoint, manifest, manifest.clients[0]).requires_grad_(False)
    distil(
        front_end,
        max(trained.values(), key=lambda one: sum(value.numel() for value in one.parameters())),
        back_end,
        lambda step: _batch(member, step),
        steps=newcomer.steps,
        rate=newcomer.rate,
        random=torch.Generator().manual_seed(int(stream(newcomer.seed, JOINING, WARPS).integers(2**62))),
        on_step=on_step,
    )
    personal(member, 0, front_end)
    tensors = numpy_state(front_end)
    record = client_record(member.clients[0], member, tensors, manifest.gate).model_copy(
        update={"index": 1 + max(one.index for one in manifest.clients), "classes": _classes(newcomer, manifest)}
    )
    _write(checkpoint, manifest, record, tensors, out)
    return Joined(out, record, begun)


def own_labels(text: str, names: Sequence[str], seed: int) -> tuple[int, ...]:
    """The newcomer's classes as a user writes them, ascending.

    "3": so many, drawn by chance; "0,4,7", "Bag,Shirt" or "4,": these, by label or by name. ConfigError otherwise.
    """
    if text.strip().isdecimal():
        count = int(text)
        if not 1 <= count <= len(names):
            mend = f"choose 1 to {len(names)}, or write a label with a comma behind it"
            raise ConfigError(f"{count} of {len(names)} classes cannot be drawn", where="--classes", mend=mend)
        return tuple(sorted(int(label) for label in stream(seed, JOINING).choice(len(names), count, replace=False)))
    parts = [part.strip() for part in text.split(",")]
    labels = {_label(part, names) for part in parts if part}
    if not labels:
        raise ConfigError("names no class", where="--classes", mend="write a number of classes, or labels with commas")
    return tuple(sorted(labels))


def _label(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    raise ConfigError(f"'{text}' is no class", where="--classes", mend=f"choose from {shown}, or labels from 0")


def _check_open(manifest: CheckpointManifest, config: TrainConfig, where: Path) -> None:
    if not manifest.gate or any(one.own_back_end for one in manifest.clients):
        problem = f"nobody can join a run of {manifest.method}: its front ends have no common gate or back end"
        raise RunError(problem, where=where, mend="join a run of harmony")
    if config.data.own_test:
        problem = "its clients are judged by shares of the merged images, and a new one has none"
        raise RunError(problem, where=where, mend="join a run with data.own_test = 0")


def _classes(newcomer: Newcomer, manifest: CheckpointManifest) -> ClassMap:
    """The run's tokens: somebody who has the key tells it to the newcomer."""
    known = manifest.clients[0].classes
    return ClassMap(names=known.names, own=newcomer.own, tokens=known.tokens)


def _federation_of_one(
    newcomer: Newcomer, config: TrainConfig, dataset: Dataset, manifest: CheckpointManifest
) -> Federation:
    """The newcomer alone, as client 0. Checkpoints have rows by label, so here every token is its label."""
    labels, own = dataset.y_train, np.asarray(newcomer.own)
    each = None if newcomer.images is None else max(2, newcomer.images // len(own))
    for label in newcomer.own:
        if (held := int((labels == label).sum())) < (each or 2):
            mend = f"use at most {held * len(own)}" if held > 1 else "leave the class away"
            problem = f"class '{dataset.class_names[label]}' has {held} training images, {each or 2} are needed"
            raise ConfigError(problem, where="--images", mend=mend)
    places = np.flatnonzero(np.isin(labels, own))
    spec = ClassesPerClient(clients=1, classes=len(own), samples_per_class=each)
    ranks = np.searchsorted(own, labels[places])
    (split,) = partition(ranks, spec, classes=len(own), seed=newcomer.seed, holdout=config.data.holdout)
    classes = ClassMap(names=dataset.class_names, own=newcomer.own, tokens=tuple(range(dataset.classes)))
    client = Client(0, newcomer.architecture, classes, places[split.train], places[split.holdout])
    own_config = config.model_copy(update={"seed": newcomer.seed, "device": "cpu"})  # one small network, no GPU's work
    return Federation(own_config, dataset, (client,), manifest.image, manifest.feature)


def _batch(member: Federation, step: int) -> Tensor:
    train = member.clients[0].train
    random = stream(member.config.seed, JOINING, DRAWS, step)
    return member.inputs(member.dataset.x_train[random.choice(train, BATCH, replace=len(train) < BATCH)])


def _begun(
    newcomer: Newcomer, manifest: CheckpointManifest, trained: Mapping[Architecture, FrontEnd]
) -> tuple[FrontEnd, Architecture | None]:
    """A front end with the weights of the nearest of its family where both have them, and with everybody's exit 2."""
    mine, classes = newcomer.architecture, len(manifest.clients[0].classes.names)
    with seeded(newcomer.seed):
        front_end = FrontEnd(mine, manifest.image, manifest.feature, outputs=classes, gate=classes)
    family = [one for one in trained if one.family == mine.family]
    nearest = max(family, key=lambda one: _nearness(mine, one), default=None)
    state = front_end.state_dict()
    if nearest is not None:
        for name, value in trained[nearest].state_dict().items():
            if name in state:
                both = tuple(slice(0, min(sides)) for sides in zip(value.shape, state[name].shape, strict=True))
                state[name][both] = value[both]
    exits = [one.exit2.state_dict() for one in trained.values()]
    front_end.exit2.load_state_dict({name: torch.stack([one[name] for one in exits]).mean(0) for name in exits[0]})
    return front_end, nearest


def _nearness(mine: Architecture, other: Architecture) -> tuple[int, int]:
    """First how much of mine the other has, then how little beside."""
    return min(mine.width, other.width) * min(mine.depth, other.depth), -other.width * other.depth


def _write(
    checkpoint: Path, manifest: CheckpointManifest, record: ClientRecord, tensors: Mapping[str, np.ndarray], out: Path
) -> None:
    with sealing(out) as draft:
        for name in manifest.files:
            shutil.copyfile(checkpoint / name, draft / name)
        save_tensors(draft / client_file(record.index), dict(tensors))
        seal(draft, manifest.model_copy(update={"clients": (*manifest.clients, record)}))
