"""What a front end is worth on held-out images, and the thresholds and scores that belong to it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.adaptive import SUREST, HeldOut
from harmony.core.bundle import Exit
from harmony.core.calibration import thresholds
from harmony.core.scores import score
from harmony.device.personal.front_end import Heads, Seen
from harmony.device.personal.steps import Floats

Labels = NDArray[np.int64]


class Judgement(NamedTuple):
    """accuracy: of the device alone, by its early exits; loss: cross-entropy over both exits, infinite where an image's
    class is not an own one; exits, held_out: what belongs to it."""

    accuracy: float
    loss: float
    exits: tuple[Exit, Exit]
    held_out: HeldOut | None

    def better_than(self, other: Judgement) -> bool:
        """More right answers; at a draw, the smaller loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def judge(
    seen: Seen, labels: Labels, heads: Heads, own: tuple[int, ...], exits: Sequence[Exit], *, recalibrate: bool
) -> Judgement:
    """seen: of held-out images with these labels, (n,); heads: rows of the own classes. recalibrate: set thresholds
    anew for the shares that the exits promise; those that were set by hand (without a share) stay."""
    logits = [head(embedding) for head, embedding in zip(heads, seen.embeddings, strict=True)]
    gates = seen.gates or (None, None)
    scores = [
        score(exit_.score, logit, gate, np.asarray(own))
        for exit_, logit, gate in zip(exits, logits, gates, strict=True)
    ]
    first, second = _recalibrated(exits, scores) if recalibrate else (exits[0], exits[1])
    left = scores[0] >= np.float32(first.threshold)
    answers = np.asarray(own)[np.where(left, logits[0].argmax(1), logits[1].argmax(1))]
    return Judgement(
        accuracy=float((answers == labels).mean()),
        loss=sum(_loss(logit, labels, own) for logit in logits),
        exits=(first, second),
        held_out=HeldOut.of(np.where(left, np.float32(SUREST), scores[1])),
    )


def _recalibrated(exits: Sequence[Exit], scores: Sequence[Floats]) -> tuple[Exit, Exit]:
    first, second = exits
    if first.budget is None or second.budget is None:
        return first, second
    values = thresholds(scores[0], scores[1], first.budget, second.budget)
    return first.model_copy(update={"threshold": values[0]}), second.model_copy(update={"threshold": values[1]})


def _loss(logits: Floats, labels: Labels, own: tuple[int, ...]) -> float:
    if not set(labels.tolist()) <= set(own):
        return float("inf")
    columns = np.searchsorted(np.asarray(own), labels)
    return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), columns]).mean())


class Drift(NamedTuple):
    """How far features moved: the mean of |new − old| / |old|, and of the cosine between both."""

    relative: float
    cosine: float


def drift(before: Floats, after: Floats) -> Drift:
    """before, after: (n, …) features of the same images."""
    old, new = (one.reshape(len(one), -1).astype(np.float64) for one in (before, after))
    size_old, size_new = np.linalg.norm(old, axis=1), np.linalg.norm(new, axis=1)
    tiny = np.finfo(np.float64).tiny
    moved = np.linalg.norm(new - old, axis=1) / np.maximum(size_old, tiny)
    cosine = (old * new).sum(1) / np.maximum(size_old * size_new, tiny)
    return Drift(float(moved.mean()), float(cosine.mean()))
