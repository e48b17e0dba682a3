"""Which client holds which images: shards, Dirichlet, classes per client. No torch.

A split is a pure function of (labels, spec, seed). Every random choice has a stream of its own, so that changing one
setting (say, the share held out) does not reshuffle another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from harmony.core.errors import ConfigError
from harmony.core.spec import Frozen

Indices = NDArray[np.int64]
_Clients = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
_Count = Annotated[int, Field(ge=1, strict=True)]
_ASSIGN, _HOLD_OUT, _TEST = 0, 1, 2  # the streams of a seed
_DRAWS, _DEALS = 200, 16


class Shards(Frozen):
    """Label-sorted shards of equal size, dealt at random (McMahan et al. 2017, section 3; SplitGP's 50 × 2)."""

    kind: Literal["shards"] = "shards"
    clients: _Clients
    shards_per_client: _Count = 2


class Dirichlet(Frozen):
    """Each class's images shared out in proportions drawn from Dir(alpha) (Hsu et al. 2019; Yurochkin et al. 2019)."""

    kind: Literal["dirichlet"] = "dirichlet"
    clients: _Clients
    alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False, strict=True)]
    min_samples: _Count = 10


class ClassesPerClient(Frozen):
    """`classes` classes for each client, every class held about equally often (the pathological split).

    samples_per_class: images of each own class; None shares all images of a class among its holders.
    """

    kind: Literal["classes"] = "classes"
    clients: _Clients
    classes: _Count
    samples_per_class: _Count | None = None


PartitionSpec = Annotated[Shards | Dirichlet | ClassesPerClient, Field(discriminator="kind")]
_SPEC: TypeAdapter[Shards | Dirichlet | ClassesPerClient] = TypeAdapter(PartitionSpec)


def partition_spec(fields: Mapping[str, Any]) -> Shards | Dirichlet | ClassesPerClient:
    """The spec of plain fields, for example {"kind": "shards", "clients": 50}; ConfigError names the bad one."""
    try:
        return _SPEC.validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "kind"
        problem = f"{first['msg']}; got {first['input']!r}" if first["type"] != "missing" else "is missing"
        raise ConfigError(problem, where="partition", field=field, mend="see docs/data.md") from error


@dataclass(frozen=True, eq=False)
class ClientSplit:
    """One client's images, as ascending indices into the training set.

    train: (n,) to learn from; holdout: (m,) kept apart for calibration; test: (t,) kept apart to judge it, none unless
    asked for; the three are disjoint. own: labels held, ascending (the client's in-distribution classes).
    """

    train: Indices
    holdout: Indices
    own: tuple[int, ...]
    test: Indices = field(default_factory=lambda: np.zeros(0, np.int64))


def partition(
    labels: NDArray[np.integer[Any]],
    spec: Shards | Dirichlet | ClassesPerClient,
    *,
    classes: int,
    seed: int,
    holdout: float = 0.1,
    test: float = 0.0,
) -> tuple[ClientSplit, ...]:
    """Share images out among clients: disjoint, nobody empty, the same for the same seed.

    labels: (n,) in 0 … classes − 1; test: share of each client's images of each class that is kept apart to judge it,
    at least one where there are two; holdout: the same of the rest, for calibration. ConfigError where the images do
    not suffice.
    """
    known: Indices = np.asarray(labels, dtype=np.int64)
    if known.ndim != 1 or (known.size and not 0 <= known.min() <= known.max() < classes):
        raise ConfigError(f"labels must be one row of numbers in 0 … {classes - 1}", where="partition")
    if seed < 0:
        raise ConfigError(f"{seed} is negative", where="seed", mend="use 0 or more")
    for name, share in (("holdout", holdout), ("test", test)):
        if not 0 <= share < 1:
            raise ConfigError(f"{share} is not a share", where=name, mend="use 0 or more, and less than 1")
    random = np.random.default_rng((seed, _ASSIGN))
    if isinstance(spec, Shards):
        shares = _shards(known, spec, random)
    elif isinstance(spec, Dirichlet):
        shares = _dirichlet(known, spec, classes, random)
    else:
        shares = _classes(known, spec, classes, random)
    return tuple(_split(share, known, (holdout, test), seed, client) for client, share in enumerate(shares))


def _shards(labels: Indices, spec: Shards, random: np.random.Generator) -> list[Indices]:
    count = spec.clients * spec.shards_per_client
    if count > len(labels):
        raise ConfigError(
            f"{len(labels)} images cannot fill {count} shards",
            where="partition",
            mend=f"use at most {len(labels) // spec.shards_per_client} clients, or fewer shards a client",
        )
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    shards, hands = np.array_split(order, count), random.permutation(count).reshape(spec.clients, -1)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


def _dirichlet(labels: Indices, spec: Dirichlet, classes: int, random: np.random.Generator) -> list[Indices]:
    if spec.clients * spec.min_samples > len(labels):
        raise ConfigError(
            f"{len(labels)} images cannot give {spec.clients} clients {spec.min_samples} each",
            where="partition",
            mend="use fewer clients or a smaller min_samples",
        )
    by_class = [random.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    for _ in range(_DRAWS):
        shares = _draw(by_class, spec, random)
        if min(map(len, shares)) >= spec.min_samples:
            return shares
    raise ConfigError(
        f"{_DRAWS} draws with alpha {spec.alpha} left some client below {spec.min_samples} images",
        where="partition",
        mend="use a larger alpha, fewer clients or a smaller min_samples",
    )


def _draw(by_class: Sequence[Indices], spec: Dirichlet, random: np.random.Generator) -> list[Indices]:
    """One draw. A client that holds its fair share already gets nothing more, as is usual with this split."""
    fair = sum(map(len, by_class)) / spec.clients
    parts: list[list[Indices]] = [[] for _ in range(spec.clients)]
    held = np.zeros(spec.clients)
    for images in by_class:
        share = random.dirichlet(np.full(spec.clients, spec.alpha)) * (held < fair)
        if not share.sum() > 0:  # a tiny alpha gave all of the class to somebody who is full
            share = (held == held.min()).astype(np.float64)
        cuts = np.rint(np.cumsum(share / share.sum())[:-1] * len(images)).astype(np.int64)
        pieces = np.split(images, cuts)
        held += [len(piece) for piece in pieces]
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _classes(labels: Indices, spec: ClassesPerClient, classes: int, random: np.random.Generator) -> list[Indices]:
    if spec.classes > classes:
        raise ConfigError(
            f"{spec.classes} classes a client, but the data have {classes}", where="partition", mend="use fewer"
        )
    held = _varied(spec.clients, spec.classes, classes, random)
    parts: list[list[Indices]] = [[] for _ in range(spec.clients)]
    for label in range(classes):
        holders = np.flatnonzero(held[:, label])
        images = random.permutation(np.flatnonzero(labels == label))
        most = len(images) // max(1, len(holders))
        each = spec.samples_per_class or max(1, most)
        if len(holders) and each > most:
            raise ConfigError(
                f"class {label} has {len(images)} images, too few for {len(holders)} clients with {each} each",
                where="partition",
                mend=f"use at most {most} samples_per_class" if most else "use fewer clients or classes",
            )
        whole = images if spec.samples_per_class is None else images[: each * len(holders)]
        for client, piece in zip(holders, np.array_split(whole, max(1, len(holders))), strict=False):
            parts[client].append(piece)
    return [np.concatenate(part) for part in parts]


def _varied(clients: int, each: int, classes: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """(clients, classes) who holds what: of a few deals, the one with the most different hands."""
    deals = [_deal(clients, each, classes, random) for _ in range(_DEALS)]
    return max(deals, key=lambda held: len({hand.tobytes() for hand in held}))


def _deal(clients: int, each: int, classes: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Every client takes the classes with the fewest holders, ties at random: holders differ by one at most."""
    held = np.zeros((clients, classes), bool)
    holders = np.zeros(classes, np.int64)
    for hand in held:
        chosen = np.lexsort((random.random(classes), holders))[:each]
        hand[chosen] = True
        holders[chosen] += 1
    return held


def _split(share: Indices, labels: Indices, apart: tuple[float, float], seed: int, client: int) -> ClientSplit:
    holdout, test = apart
    rest, judged = (share, share[:0]) if test == 0 else _keep_apart(share, labels, test, (seed, _TEST, client))
    if test and not len(judged):
        mend = "use fewer clients, or a larger min_samples"
        raise ConfigError(f"client {client} has one image a class, none to test with", where="partition", mend=mend)
    train, held = _keep_apart(rest, labels, holdout, (seed, _HOLD_OUT, client))
    return ClientSplit(train, held, tuple(map(int, np.unique(labels[share]))), judged)


def _keep_apart(share: Indices, labels: Indices, portion: float, stream: tuple[int, ...]) -> tuple[Indices, Indices]:
    """(the rest, `portion` of each class): at least one image if there are two, and never the last one."""
    random = np.random.default_rng(stream)
    rest, apart = [], []
    for label in np.unique(labels[share]):
        images = random.permutation(np.sort(share[labels[share] == label]))
        count = 0 if portion == 0 else min(max(1, round(portion * len(images))), len(images) - 1)
        apart.append(images[:count])
        rest.append(images[count:])
    return np.sort(np.concatenate(rest)), np.sort(np.concatenate(apart))


@dataclass(frozen=True)
class Holding:
    """One row of the table of who holds what: images (train and holdout together) by class name."""

    client: int
    images: dict[str, int]
    train: int
    holdout: int

    @property
    def cells(self) -> tuple[str, str, int, int]:
        """The row under COLUMNS."""
        return (
            f"{self.client:03d}",
            ", ".join(f"{name} {n}" for name, n in self.images.items()),
            self.train,
            self.holdout,
        )


COLUMNS = ("client", "images by class", "train", "holdout")


def holdings(
    splits: Sequence[ClientSplit], labels: NDArray[np.integer[Any]], class_names: Sequence[str]
) -> tuple[Holding, ...]:
    """Who holds what, one row a client; labels: (n,) of the training set that was split."""
    return tuple(_holding(client, split, labels, class_names) for client, split in enumerate(splits))


def _holding(client: int, split: ClientSplit, labels: NDArray[np.integer[Any]], names: Sequence[str]) -> Holding:
    found, counts = np.unique(labels[np.concatenate([split.train, split.holdout])], return_counts=True)
    images = {names[label]: int(count) for label, count in zip(found, counts, strict=True)}
    return Holding(client, images, len(split.train), len(split.holdout))
