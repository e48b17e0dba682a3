"""What a device and its cloud say of some images, and which of it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmony.core.adaptive import SUREST, AdaptiveThreshold, HeldOut, sent_in_order
from harmony.core.checkpoint import CheckpointManifest, ClientRecord
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import own_mass, score
from harmony.train.answers import answers
from harmony.train.models import load_back_end, load_front_end

Bools = NDArray[np.bool_]


class Verdict:
    """A client and n images, at least one. All arrays (n,).

    threshold, budget: of exit 2; mass: log-odds of the client's own classes in the cloud's answer; right_*: whether the
    answer is, of the device (local), the cloud (server), or both by another rule.
    """

    def __init__(
        self,
        checkpoint: Path,
        manifest: CheckpointManifest,
        record: ClientRecord,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        front_end = load_front_end(checkpoint, manifest, record)
        back_end = load_back_end(checkpoint, manifest, record)
        own = np.asarray(record.classes.own)
        said = answers(front_end, back_end, record, Preprocessor(manifest.image), images)
        first, second = record.exits
        score1 = score(first.score, said.logits1, said.gate1, own)
        self.score2 = score(second.score, said.logits2, said.gate2, own)
        right1, self.right2 = (own[logits.argmax(1)] == labels for logits in (said.logits1, said.logits2))
        self.right_server = said.server.argmax(1) == labels
        self.is_id = np.isin(labels, own)
        self.at1 = score1 >= np.float32(first.threshold)
        self.threshold, self.budget = second.threshold, second.budget
        self.sent = ~self.at1 & (self.score2 < np.float32(second.threshold))
        self.right_local = np.where(self.at1, right1, self.right2)
        self.right = self.right_if(self.sent)
        self.right_fused = np.where(self.sent, said.fused(own).argmax(1) == labels, self.right_local)
        self.mass = own_mass(said.server, own)
        self.right_switched = self.right_if(self.sent & (self.mass < 0))

    @property
    def surety(self) -> NDArray[np.float32]:
        """(n,) exit 2's score; SUREST for what left at exit 1."""
        return np.where(self.at1, np.float32(SUREST), self.score2)

    def sent_adaptively(self, part: Bools, held_out: HeldOut, threshold: float) -> Bools:
        """(n,) what a device sends of a stream of the images where `part` holds; nothing elsewhere.

        threshold: that of exit 2 where foreign inputs come.
        """
        sent = np.zeros(len(part), bool)
        sent[part] = sent_in_order(AdaptiveThreshold(held_out, threshold), self.surety[part])
        return sent

    def right_if(self, clouds: Bools) -> Bools:
        """(n,) whether the answer is right, had the cloud answered these and the device the others."""
        right: Bools = np.where(clouds, self.right_server, self.right_local)
        return right
