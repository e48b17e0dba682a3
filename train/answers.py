"""All that a device and its cloud say of some images: what every judgement of them is made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.checkpoint import ClientRecord
from harmony.core.models import BackEnd, FrontEnd
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import Floats, softmax

BATCH = 250


class Answers(NamedTuple):
    """Of n images; every class by label.

    logits1, logits2: (n, own) personal logits of both exits; gate1, gate2: (n, classes) logits of the gates, None
    where the method has none; embedding: (n, e) of exit 2, which both its heads look at; server: (n, classes) logits.
    """

    logits1: Floats
    logits2: Floats
    gate1: Floats | None
    gate2: Floats | None
    embedding: Floats
    server: Floats

    def fused(self, own: NDArray[np.int64]) -> Floats:
        """(n, classes) probabilities of both together: the cloud's, but its mass on the own classes is shared out
        among them as the device's exit 2 does, which knows those better.
        """
        probabilities = softmax(self.server)
        probabilities[:, own] = probabilities[:, own].sum(1, keepdims=True) * softmax(self.logits2)
        return probabilities


@torch.no_grad()
def answers(
    front_end: FrontEnd,
    back_end: BackEnd,
    record: ClientRecord,
    preprocess: Preprocessor,
    images: NDArray[np.uint8] | NDArray[np.float32],
) -> Answers:
    """Ask both. images: (n, H, W, C), at least one."""
    own, tokens = list(record.classes.own), list(record.classes.tokens)
    columns: list[tuple[Floats | None, ...]] = []
    for start in range(0, len(images), BATCH):
        inputs = torch.from_numpy(preprocess(images[start : start + BATCH]))
        hidden = front_end.lower(inputs.to(memory_format=torch.channels_last))
        feature = front_end.upper(hidden)
        embedding = front_end.exit2.embed(feature)
        logits1, gate1 = front_end.exit1(hidden)
        gate2 = None if front_end.exit2.gate is None else front_end.exit2.gate(embedding)
        parts = (logits1[:, own], front_end.exit2.head(embedding)[:, own], gate1, gate2, embedding)
        columns.append(tuple(None if part is None else part.numpy() for part in (*parts, back_end(feature)[:, tokens])))
    joined = (np.concatenate(column) if column[0] is not None else None for column in zip(*columns, strict=True))
    return Answers(*joined)  # type: ignore[arg-type]  # only the gates are ever None
