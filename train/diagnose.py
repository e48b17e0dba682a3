"""What a federation's features are like: between rounds on a few images, and architecture against architecture.

A *subject* is one client's networks, from a run that goes on or from its checkpoint. Classes are labels throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.checkpoint import open_checkpoint
from harmony.core.mix import test_mix
from harmony.core.models import BackEnd, FrontEnd
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import score
from harmony.core.spec import ClassMap, Frozen, ImageSpec
from harmony.train.federation import Federation
from harmony.train.method import Trained
from harmony.train.models import load_back_end, load_front_end
from harmony.train.similarity import linear_cka, mean_roc, principal_plane, probe
from harmony.train.test_images import TestImages

BATCH = 250
PER_ARCHITECTURE = 2
"""Clients of each architecture whose features are compared."""
CKA_IMAGES, GATE_IMAGES, SCATTER_POINTS = 500, 16_000, 480


class Midway(Frozen):
    """Between two rounds, mean over clients: the device on own classes, the cloud on own and on other classes."""

    round: int
    client_id: float
    server_id: float
    server_ood: float


class Pair(Frozen):
    """Two architectures on the same inputs: linear CKA of the features at the cut, and of θ's embedding of them."""

    first: str
    second: str
    cut: float
    server: float


class Scatter(Frozen):
    """θ's embeddings on their principal plane: x, y and, for each point, the label and the architecture's number."""

    architectures: tuple[str, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    label: tuple[int, ...]
    architecture: tuple[int, ...]


class Diagnosis(Frozen):
    """Architectures compared on the same test images.

    cka_cut, cka_server: means over `pairs`; probe: how often a linear classifier tells the architecture from θ's
    embedding of an image that it has not seen, chance: by guessing; all None with one architecture. gate: points
    (false, true positive rate) of exit 2's score at ρ = 1, mean over clients; empty before training.
    """

    pairs: tuple[Pair, ...]
    cka_cut: float | None
    cka_server: float | None
    probe: float | None
    chance: float | None
    gate: tuple[tuple[float, float], ...]
    scatter: Scatter | None


@dataclass(frozen=True, eq=False)
class Subject:
    """One client's networks. columns: those of the personal head that belong to the client's own classes, in order."""

    client: int
    architecture: str
    classes: ClassMap
    image: ImageSpec
    front_end: FrontEnd
    back_end: BackEnd
    columns: NDArray[np.int64]
    gate_score: str | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """What a subject makes of n images.

    feature: (n, C·H·W); embedding: (n, e); client, server: (n,) labels that they answer; gate: (n,) exit 2's score.
    """

    feature: NDArray[np.float32]
    embedding: NDArray[np.float32]
    client: NDArray[np.int64]
    server: NDArray[np.int64]
    gate: NDArray[np.float32] | None


def subjects_between(trained: Trained, members: Federation, clients: Sequence[int] | None = None) -> Iterator[Subject]:
    """Clients of a run that goes on, all of them by default; one at a time in memory."""
    classes = members.dataset.classes
    for index in range(len(members.clients)) if clients is None else clients:
        client = members.clients[index]
        tensors = trained.clients[index]
        gate = classes if any(".gate." in name for name in tensors) else None
        front_end = FrontEnd(client.architecture, members.image, members.feature, outputs=classes, gate=gate)
        back_end = BackEnd(members.feature, width=members.config.back_end_width, tokens=classes)
        _fill(front_end, tensors)
        _fill(back_end, trained.back_ends.get(index, trained.back_end))
        columns = client.classes.own_tokens  # during training the rows of heads are tokens
        yield Subject(index, str(client.architecture), client.classes, members.image, front_end, back_end, columns)


def _fill(module: FrontEnd | BackEnd, tensors: dict[str, NDArray[Any]]) -> None:
    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})


def subjects_of(checkpoint: Path, clients: Sequence[int] | None = None) -> Iterator[Subject]:
    """Clients of a checkpoint folder, all of them by default. A named ArtifactError if it is damaged."""
    manifest = open_checkpoint(checkpoint)
    for record in manifest.clients:
        if clients is None or record.index in clients:
            yield Subject(
                record.index,
                str(record.architecture),
                record.classes,
                manifest.image,
                load_front_end(checkpoint, manifest, record),
                load_back_end(checkpoint, manifest, record),
                np.asarray(record.classes.own),
                record.exits[1].score,
            )


@torch.no_grad()
def see(subject: Subject, images: NDArray[Any]) -> Seen:
    """Run a subject on (n, H, W, C) images of the data set."""
    own, label_of_token = np.asarray(subject.classes.own), subject.classes.label_of_token
    preprocess, parts = Preprocessor(subject.image), []
    for start in range(0, len(images), BATCH):
        inputs = torch.from_numpy(preprocess(images[start : start + BATCH]))
        out = subject.front_end(inputs.to(memory_format=torch.channels_last))
        embedding = subject.back_end.embed(out.feature)
        logits = out.logits2.numpy()[:, subject.columns]
        token = subject.back_end.classify(embedding).argmax(1).numpy()
        gate = None if out.gate2 is None else out.gate2.numpy()
        kept = np.zeros(0, np.float32) if subject.gate_score is None else score(subject.gate_score, logits, gate, own)
        parts.append(
            (out.feature.flatten(1).numpy(), embedding.numpy(), own[logits.argmax(1)], label_of_token[token], kept)
        )
    feature, embedded, client, server, gates = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Seen(feature, embedded, client, server, None if subject.gate_score is None else gates)


def midway(done: int, trained: Trained, members: Federation, tests: TestImages, images: int) -> Midway:
    """How the models do after `done` rounds, on about `images` test images over all clients together."""
    each = max(8, images // (2 * len(members.clients)))
    right = []
    for subject in subjects_between(trained, members):
        inside, outside = _mixed(tests, subject, each)
        rows = np.concatenate([inside, outside])
        seen, n = see(subject, tests.x[rows]), len(inside)
        client, server = seen.client == tests.y[rows], seen.server == tests.y[rows]
        right.append((client[:n].mean(), server[:n].mean(), server[n:].mean() if len(outside) else np.nan))
    client_id, server_id, server_ood = np.nanmean(np.asarray(right), 0)
    return Midway(round=done, client_id=client_id, server_id=server_id, server_ood=server_ood)


def _mixed(tests: TestImages, subject: Subject, each: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Up to `each` test images of a client's own classes and as many of the others, as indices."""
    rows = tests.of(subject.client)
    mix = test_mix(tests.y[rows], subject.classes.own, 1.0, 0)
    return rows[mix.indices[mix.is_id][:each]], rows[mix.indices[~mix.is_id][:each]]


def compared_clients(architectures: Sequence[str]) -> list[int]:
    """The first clients of each architecture, by the architectures of all clients in order."""
    chosen: dict[str, list[int]] = {}
    for index, architecture in enumerate(architectures):
        chosen.setdefault(architecture, []).append(index)
    return [index for ids in chosen.values() for index in ids[:PER_ARCHITECTURE]]


def diagnose_between(trained: Trained, members: Federation, tests: TestImages) -> Diagnosis:
    """The architectures of a run that goes on."""
    clients = compared_clients([str(client.architecture) for client in members.clients])
    return _diagnosis(list(subjects_between(trained, members, clients)), tests, ())


def diagnose(checkpoint: Path, tests: TestImages) -> Diagnosis:
    """The architectures of a checkpoint, and its clients' gates."""
    manifest = open_checkpoint(checkpoint)
    clients = compared_clients([str(record.architecture) for record in manifest.clients])
    return _diagnosis(
        list(subjects_of(checkpoint, clients)),
        tests,
        _gate(checkpoint, tests, GATE_IMAGES // (2 * len(manifest.clients))),
    )


def _gate(checkpoint: Path, tests: TestImages, each: int) -> tuple[tuple[float, float], ...]:
    scores: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    for subject in subjects_of(checkpoint):
        inside, outside = _mixed(tests, subject, each)
        gate = see(subject, tests.x[np.concatenate([inside, outside])]).gate
        if gate is not None and len(outside):
            scores[0].append(gate[: len(inside)])
            scores[1].append(gate[len(inside) :])
    points = mean_roc(*scores) if scores[0] else np.zeros((0, 2))
    return tuple((float(false), float(true)) for false, true in points)


def _diagnosis(subjects: Sequence[Subject], tests: TestImages, gate: tuple[tuple[float, float], ...]) -> Diagnosis:
    rows = tests.all[_balanced(tests.y[tests.all], CKA_IMAGES)]
    seen = [see(subject, tests.x[rows]) for subject in subjects]
    names = tuple(dict.fromkeys(subject.architecture for subject in subjects))
    pairs = _pairs(names, [subject.architecture for subject in subjects], seen)
    first = [seen[[subject.architecture for subject in subjects].index(name)] for name in names]
    return Diagnosis(
        pairs=pairs,
        cka_cut=mean(pair.cut for pair in pairs) if pairs else None,
        cka_server=mean(pair.server for pair in pairs) if pairs else None,
        probe=probe(np.stack([one.embedding for one in first])) if pairs else None,
        chance=1 / len(names) if pairs else None,
        gate=gate,
        scatter=_scatter(names, first, tests.y[rows]),
    )


def _pairs(names: Sequence[str], architectures: Sequence[str], seen: Sequence[Seen]) -> tuple[Pair, ...]:
    """Every pair of architectures, each the mean over its pairs of clients."""
    by_name = {name: [one for one, of in zip(seen, architectures, strict=True) if of == name] for name in names}
    pairs = []
    for first, second in combinations(names, 2):
        both = [(a, b) for a in by_name[first] for b in by_name[second]]
        cut = mean(linear_cka(a.feature, b.feature) for a, b in both)
        server = mean(linear_cka(a.embedding, b.embedding) for a, b in both)
        pairs.append(Pair(first=first, second=second, cut=cut, server=server))
    return tuple(pairs)


def _scatter(names: tuple[str, ...], seen: Sequence[Seen], labels: NDArray[np.int64]) -> Scatter:
    each = min(SCATTER_POINTS // len(seen), len(labels))
    plane = principal_plane(np.concatenate([one.embedding[:each] for one in seen]))
    return Scatter(
        architectures=names,
        x=tuple(map(float, plane[:, 0])),
        y=tuple(map(float, plane[:, 1])),
        label=tuple(map(int, np.tile(labels[:each], len(seen)))),
        architecture=tuple(map(int, np.repeat(np.arange(len(seen)), each))),
    )


def _balanced(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to `count` indices, class by class in turn: every prefix is balanced as far as the images last."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        rank[of_class] = np.arange(np.count_nonzero(of_class))
    return np.lexsort((labels, rank))[:count]
