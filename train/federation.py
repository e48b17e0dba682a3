"""Who takes part: the clients with their images, architectures and classes, and the batches they draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harmony.core.config import TrainConfig
from harmony.core.data import Dataset
from harmony.core.errors import ConfigError
from harmony.core.models import feature_spec
from harmony.core.partition import partition
from harmony.core.preprocess import Preprocessor
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.core.tokens import key_digest, randomised_response, read_token_key, simulated_key, token_permutation
from harmony.train.augment import augmented
from harmony.train.test_images import merge

# The first word of every random stream: one stream a purpose, so that adding a draw to one never moves another.
BATCHES, ROTATION, JOINING, HEADS, SUPPORT, PARTICIPANTS, FRONT_END, AUGMENTATION = range(8)


def stream(seed: int, *words: int) -> np.random.Generator:
    """The random stream of a purpose. It depends on its words alone, so a resumed run draws what the first did."""
    return np.random.default_rng((seed, *words))


@dataclass(frozen=True, eq=False)
class Client:
    """One device: its architecture, its view of the classes, and which training images are its own.

    train, holdout: indices into the data set's training images; the holdout calibrates exits and is never trained on.
    """

    index: int
    architecture: Architecture
    classes: ClassMap
    train: NDArray[np.int64]
    holdout: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Federation:
    """All clients over one data set. Labels stay here, on the clients' side; what leaves for the cloud are tokens.

    told: (training images,) the tokens that clients tell the cloud instead of the true ones; None: they tell the truth;
    key: digest of the key that tokens and what is told follow from.
    """

    config: TrainConfig
    dataset: Dataset
    clients: tuple[Client, ...]
    image: ImageSpec
    feature: FeatureSpec
    told: NDArray[np.int64] | None = None
    key: str = ""

    @cached_property
    def place(self) -> torch.device:
        """Where weights, batches and whatever else takes part in a round lie."""
        return torch.device(self.config.device)

    @cached_property
    def groups(self) -> dict[Architecture, list[int]]:
        """Clients by architecture, in the order in which the architectures first appear."""
        groups: dict[Architecture, list[int]] = {}
        for client in self.clients:
            groups.setdefault(client.architecture, []).append(client.index)
        return groups

    def participants(self, index: int) -> list[int]:
        """The clients that take part in a round, ascending: config.participation of all, at least one."""
        everybody = len(self.clients)
        count = max(1, round(self.config.participation * everybody))
        drawn = stream(self.config.seed, PARTICIPANTS, index).choice(everybody, count, replace=False)
        return sorted(int(client) for client in drawn)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """tokens[label]: the clients' common keyed permutation of the classes."""
        return np.asarray(self.clients[0].classes.tokens, dtype=np.int64)

    @cached_property
    def own(self) -> Tensor:
        """(clients, classes) bool: which tokens are a client's own."""
        mask = torch.zeros(len(self.clients), self.dataset.classes, dtype=torch.bool)
        for client in self.clients:
            mask[client.index, torch.from_numpy(client.classes.own_tokens)] = True
        return mask.to(self.place)

    @cached_property
    def _preprocess(self) -> Preprocessor:
        return Preprocessor(self.image)

    def inputs(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
        """Scaled model input (n, C, H, W) of images (n, H, W, C); channels last in memory, which convolves faster."""
        scaled = torch.from_numpy(self._preprocess(images))
        return scaled.to(self.place, memory_format=torch.channels_last)

    def batch(self, clients: Sequence[int], step: int, purpose: int = BATCHES) -> tuple[Tensor, Tensor]:
        """The batches of some clients at a step, end to end: inputs (clients · batch, C, H, W) and tokens.

        purpose: the first word of the random stream that draws them.
        """
        drawn = self._drawn(clients, step, purpose)
        return self.inputs(self._augmented(clients, drawn, step, purpose)), self.tokens_of(drawn)

    def tokens_of(self, images: NDArray[np.int64]) -> Tensor:
        """The true tokens of some training images."""
        return torch.from_numpy(self.tokens[self.dataset.y_train[images]]).to(self.place)

    def _augmented(
        self, clients: Sequence[int], drawn: NDArray[np.int64], step: int, purpose: int
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        images, settings = self.dataset.x_train[drawn], self.config.data
        if not settings.shift and not settings.mirror:
            return images
        parts = zip(clients, np.split(images, len(clients)), strict=True)  # a stream each: whoever else takes part
        return np.concatenate(
            [
                augmented(
                    part,
                    stream(self.config.seed, AUGMENTATION, purpose, client, step),
                    shift=settings.shift,
                    mirror=settings.mirror,
                )
                for client, part in parts
            ]
        )

    def told_tokens(self, clients: Sequence[int], step: int) -> Tensor:
        """What some clients tell the cloud of their batches at a step, end to end: (clients · batch,) tokens."""
        drawn = self._drawn(clients, step, BATCHES)
        return self.tokens_of(drawn) if self.told is None else torch.from_numpy(self.told[drawn]).to(self.place)

    def _drawn(self, clients: Sequence[int], step: int, purpose: int) -> NDArray[np.int64]:
        return np.concatenate([self._draw(self.clients[index], step, purpose) for index in clients])

    def _draw(self, client: Client, step: int, purpose: int) -> NDArray[np.int64]:
        size = self.config.batch
        random = stream(self.config.seed, purpose, client.index, step)
        drawn: NDArray[np.int64] = random.choice(client.train, size, replace=len(client.train) < size)
        return drawn


def federation(config: TrainConfig, dataset: Dataset) -> Federation:
    """Deal images and architectures to the clients, by the config's seed.

    ConfigError for images that are no larger than they are to be shifted.
    """
    if config.data.shift >= (side := min(dataset.x_train.shape[1:3])):
        raise ConfigError(f"images of {side} pixels cannot be moved by {config.data.shift}", field="data.shift")
    classes, image, share = dataset.classes, dataset.image_spec(), config.data.own_test
    dataset = merge(dataset) if share else dataset
    splits = partition(
        dataset.y_train, config.partition, classes=classes, seed=config.seed, holdout=config.data.holdout, test=share
    )
    settings = config.tokens
    key = read_token_key(Path(settings.key_file)) if settings.key_file else simulated_key(config.seed)
    tokens, told = token_permutation(key, classes), None
    if settings.epsilon is not None:
        told = randomised_response(np.asarray(tokens)[dataset.y_train], key, classes, settings.epsilon)
    architectures = [Architecture.parse(text) for text in config.architectures]
    clients = tuple(
        Client(
            index,
            architectures[index % len(architectures)],
            ClassMap(names=dataset.class_names, own=split.own, tokens=tokens),
            split.train,
            split.holdout,
        )
        for index, split in enumerate(splits)
    )
    return Federation(config, dataset, clients, image, feature_spec(image), told, key_digest(key))
