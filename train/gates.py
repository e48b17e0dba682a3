"""Every exit gate beside the others: how well each tells own classes from foreign ones, and what that is worth.

All are scores of exit 2, larger for own classes. The threshold of each is calibrated as the exits' are, on held-out
images of the client, so that all keep the same promise: the share `exits.offload` of own images is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.checkpoint import ClientRecord, open_checkpoint
from harmony.core.config import recorded_config
from harmony.core.data import Dataset
from harmony.core.mix import test_mix
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import Floats, conformal_threshold, energy, gen, max_logit, msp, neg_entropy, own_mass
from harmony.core.spec import Frozen
from harmony.train.answers import Answers, answers
from harmony.train.evaluate import ranking
from harmony.train.federation import federation
from harmony.train.models import load_back_end, load_front_end
from harmony.train.test_images import test_images

NEIGHBOUR = 10
"""Which neighbour's similarity counts; OpenOOD's default of 50 is for training sets that are 100 times larger."""
REMEMBERED = 200
"""Training images of a client that its memory, and its part of the prototypes, is made of."""


class Memory(NamedTuple):
    """What a gate may know besides the image: own (m, e) unit embeddings of the client's training images; prototypes
    (classes, e), the mean unit embedding of each class over all its holders.
    """

    own: Floats
    prototypes: Floats
    classes: NDArray[np.int64]


def knn(said: Answers, memory: Memory) -> Floats:
    """Cosine similarity to the k-th nearest own training image (Sun et al. 2022)."""
    similar = _unit(said.embedding) @ memory.own.T
    nearest = min(NEIGHBOUR, similar.shape[1])
    out: Floats = np.partition(similar, -nearest, axis=1)[:, -nearest]
    return out


def prototypes(said: Answers, memory: Memory) -> Floats:
    """Similarity to the nearest prototype of the own classes, less that to the nearest of all others'."""
    similar = _unit(said.embedding) @ memory.prototypes.T
    mine = np.zeros(len(memory.prototypes), bool)
    mine[memory.classes] = True
    out: Floats = similar[:, mine].max(1) - similar[:, ~mine].max(1)
    return out


Gate = Callable[[Answers, Memory], Floats]
GATES: Mapping[str, Gate] = {
    "entropy": lambda said, memory: neg_entropy(said.logits2),
    "msp": lambda said, memory: msp(said.logits2),
    "max_logit": lambda said, memory: max_logit(said.logits2),
    "energy": lambda said, memory: energy(said.logits2),
    "gen": lambda said, memory: gen(said.logits2),
    "knn": knn,
    "prototypes": prototypes,
    "own_mass": lambda said, memory: own_mass(_present(said.gate2), memory.classes),
    # What no device has: the server's own word. A gate can hardly do better.
    "server_mass": lambda said, memory: own_mass(said.server, memory.classes),
}


class GateJudgement(Frozen):
    """One gate, mean over clients, at the largest ρ: AUROC, FPR95; overall and in-distribution accuracy and the share
    of own images sent by its calibrated threshold; overall0: overall accuracy at ρ = 0.
    """

    name: str
    auroc: float
    fpr95: float
    overall: float
    overall0: float
    id_to_server: float


def judge_gates(checkpoint: Path, dataset: Dataset, *, seed: int = 0) -> tuple[GateJudgement, ...]:
    """Judge every gate that the run's method has, at ρ = 0 and ρ = 1 on test images. ContractMismatch as `evaluate`."""
    run = _Run(checkpoint, dataset)
    names = [name for name in GATES if run.manifest.gate or name != "own_mass"]
    means = run.prototypes()
    rows: dict[str, list[_Row]] = {name: [] for name in names}
    for record in run.manifest.clients:
        client = _Client(run, record, means, seed)
        for name in names:
            rows[name] += client.judge(GATES[name])
    return tuple(_mean(name, column) for name, column in rows.items() if column)


class _Row(NamedTuple):
    auroc: float
    fpr95: float
    overall: float
    overall0: float
    id_to_server: float


class _Run:
    """A checkpoint and the images of its clients."""

    def __init__(self, checkpoint: Path, dataset: Dataset) -> None:
        self.checkpoint, self.manifest = checkpoint, open_checkpoint(checkpoint)
        self.members = federation(recorded_config(self.manifest.config, where=checkpoint), dataset)
        self.preprocess, self.tests = Preprocessor(self.manifest.image), test_images(self.members.config, dataset)

    def said(self, record: ClientRecord, *images: NDArray[np.uint8]) -> list[Answers]:
        """Of each batch of images, what the client and its cloud say."""
        front_end = load_front_end(self.checkpoint, self.manifest, record)
        back_end = load_back_end(self.checkpoint, self.manifest, record)
        return [answers(front_end, back_end, record, self.preprocess, one) for one in images]

    def prototypes(self) -> Floats:
        """(classes, e): what the holders of a class, all together, make of it."""
        data = self.members.dataset
        sums: Floats | None = None
        for record in self.manifest.clients:
            images = _remembered(self.members.clients[record.index].train)
            (said,) = self.said(record, data.x_train[images])
            sums = np.zeros((data.classes, said.embedding.shape[1]), np.float32) if sums is None else sums
            np.add.at(sums, data.y_train[images], _unit(said.embedding))
        return _unit(_present(sums))


class _Client:
    """What a client and its cloud say of its memory, of its held-out images and of the mix at ρ = 1."""

    def __init__(self, run: _Run, record: ClientRecord, means: Floats, seed: int) -> None:
        own, tests = np.asarray(record.classes.own), run.tests
        rows = tests.of(record.index)
        mix = test_mix(tests.y[rows], record.classes.own, 1.0, seed)
        mixed, client, x = rows[mix.indices], run.members.clients[record.index], run.members.dataset.x_train
        memory, self.held_out, self.said = run.said(
            record, x[_remembered(client.train)], x[client.holdout], tests.x[mixed]
        )
        self.memory = Memory(_unit(memory.embedding), means, own)
        self.is_id, self.budget = mix.is_id, run.members.config.exits.offload
        self.right_local = own[self.said.logits2.argmax(1)] == tests.y[mixed]
        self.right_server = self.said.server.argmax(1) == tests.y[mixed]

    def judge(self, gate: Gate) -> list[_Row]:
        """One row; none of a client that holds all classes, and so has nothing to tell apart."""
        scores, inside = gate(self.said, self.memory), self.is_id
        auroc, fpr95 = ranking(scores[inside], scores[~inside])
        if auroc is None or fpr95 is None:
            return []
        sent = scores < np.float32(conformal_threshold(gate(self.held_out, self.memory), self.budget))
        right = np.where(sent, self.right_server, self.right_local)
        return [_Row(auroc, fpr95, float(right.mean()), float(right[inside].mean()), float(sent[inside].mean()))]


def _remembered(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Evenly spread over the client's images, which lie in the data set's order."""
    return images[np.linspace(0, len(images) - 1, min(REMEMBERED, len(images))).astype(np.int64)]


def _present(values: Floats | None) -> Floats:
    if values is None:
        raise ValueError("a method without gates has no such score")
    return values


def _unit(rows: Floats) -> Floats:
    out: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return out


def _mean(name: str, rows: list[_Row]) -> GateJudgement:
    return GateJudgement(name=name, **{field: float(np.mean(column)) for field, column in _columns(rows).items()})


def _columns(rows: list[_Row]) -> dict[str, tuple[float, ...]]:
    return dict(zip(_Row._fields, zip(*rows, strict=True), strict=True))
