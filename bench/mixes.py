"""From one stream of answers to accuracy and exit shares over every mix: mixes are nested, so nothing is run twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.bench.results import Accuracy, MixResult
from harmony.core.adaptive import SUREST, AdaptiveThreshold, sent_in_order
from harmony.core.mix import TestMix, test_mix

Labels = NDArray[np.int64]


class Replay(NamedTuple):
    """Labels that exit 2 and the back end give to every image, wherever its own answer came from."""

    exit2: Labels
    server: Labels


@dataclass(frozen=True, eq=False)
class Answers:
    """What a device said to n images, in the order of the stream.

    exits: "exit1", "exit2" or "cloud"; label: the answer; local: the device's own; unsure: no exit was sure enough;
    degraded: the cloud was asked and did not help; replay: what exit 2 and the back end would have said to every image,
    None if there was no back end to ask; surety: exit 2's scores, SUREST for what left at exit 1, None if nobody asks.
    """

    truth: Labels
    is_id: NDArray[np.bool_]
    exits: NDArray[np.str_]
    label: Labels
    local: Labels
    unsure: NDArray[np.bool_]
    degraded: NDArray[np.bool_]
    replay: Replay | None = None
    surety: NDArray[np.float32] | None = None

    def only(self, chosen: NDArray[np.bool_]) -> Answers:
        """The answers to some of the images."""
        return Answers(
            truth=self.truth[chosen],
            is_id=self.is_id[chosen],
            exits=self.exits[chosen],
            label=self.label[chosen],
            local=self.local[chosen],
            unsure=self.unsure[chosen],
            degraded=self.degraded[chosen],
            replay=None if self.replay is None else Replay(*(labels[chosen] for labels in self.replay)),
            surety=None if self.surety is None else self.surety[chosen],
        )

    def followed_by(self, adaptive: AdaptiveThreshold) -> Answers:
        """What a device whose threshold follows says to a stream of just these images; as it is without a replay."""
        if self.replay is None or self.surety is None:
            return self
        sent = sent_in_order(adaptive, self.surety)
        helped = sent & ~self.degraded
        local = np.where(self.surety == SUREST, "exit1", "exit2")
        return replace(
            self,
            exits=np.where(helped, "cloud", local),
            label=np.where(helped, self.replay.server, self.local),
            unsure=sent,
            degraded=sent & self.degraded,
        )


def limited(mix: TestMix, limit: int | None) -> TestMix:
    """At most `limit` images of the mix, ID and OOD in its proportion, in its order."""
    if limit is None or limit >= len(mix.indices):
        return mix
    inside = max(1, round(limit * float(mix.is_id.mean())))
    kept = _first(mix.is_id, inside) | _first(~mix.is_id, limit - inside)
    return TestMix(mix.indices[kept], mix.is_id[kept], mix.ood_wanted)


def _first(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    return mask & (np.cumsum(mask) <= count)


def by_rho(
    stream: TestMix,
    answers: Answers,
    *,
    labels: NDArray[np.integer[Any]],
    own: Sequence[int],
    rhos: Sequence[float],
    seed: int,
    follow: Callable[[], AdaptiveThreshold] | None = None,
) -> tuple[MixResult, ...]:
    """One result a ρ, out of the answers to `stream`, which is the mix of the largest ρ (or a part of it).

    labels: of the whole test set; seed: that of the mix; follow: a new threshold as the device had it at its start, if
    that followed the stream: at a smaller ρ it goes another way, which is replayed from the scores.
    """
    results = []
    for rho in sorted(set(rhos)):
        part = answers.only(np.isin(stream.indices, test_mix(labels, own, rho, seed).indices))
        whole = len(part.truth) == len(answers.truth)
        results.append(_result(rho, part if whole or follow is None else part.followed_by(follow())))
    return tuple(results)


def _result(rho: float, part: Answers) -> MixResult:
    sent = part.exits == "cloud"
    return MixResult(
        rho=rho,
        n_id=int(np.count_nonzero(part.is_id)),
        n_ood=int(np.count_nonzero(~part.is_id)),
        exit1=_share(part.exits == "exit1"),
        exit2=_share(part.exits == "exit2"),
        cloud=_share(sent),
        unsure=_share(part.unsure),
        degraded=_share(part.degraded),
        offload_id=_share(sent[part.is_id]),
        keep_ood=None if part.is_id.all() else _share(~sent[~part.is_id]),
        accuracy=accuracy(part),
    )


def accuracy(part: Answers) -> Accuracy:
    """Accuracy over these images; see the fields of `Accuracy`."""
    right, client = part.label == part.truth, part.local == part.truth
    server, oracle = None, None
    if part.replay is not None:
        knows = part.replay.server == part.truth
        server, oracle = _share(knows), _share(np.where(part.is_id, part.replay.exit2 == part.truth, knows))
    return Accuracy(
        overall=_share(right),
        id=_share(right[part.is_id]),
        ood=None if part.is_id.all() else _share(right[~part.is_id]),
        client=_share(client),
        server=server,
        oracle=oracle,
    )


def _share(mask: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(mask)) / max(1, len(mask))
