"""A threshold that follows the stream: how many foreign inputs come is estimated, and what pays best is sent. No torch.

A fixed threshold keeps the promise that at most a share of own inputs is sent; where nothing foreign ever comes, every
one of those is sent in vain. This one asks first whether the stream looks different from the device's held-out images
at all. If not, nothing is sent. If so, the share of own inputs is estimated from the scores above the held-out median,
where hardly a foreign one lies (as Storey 2002 estimates the share of true null hypotheses), and the threshold is the
one that would have answered most of the stream rightly. Only scores of the stream are used, and never a label of it.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from harmony.core.scores import Floats

WINDOW, EVERY = 512, 16
"""Scores that are remembered, and how many come between two estimates."""
DOUBT = 3.5
"""Standard errors by which some low quantile must be exceeded before anything is taken to be foreign."""
CAUTION = 1.0
"""Standard errors by which the estimated share of own inputs is raised: what is sent in vain is lost for certain."""
SENDS_NOTHING = -np.inf


class AdaptiveThreshold:
    """Inputs whose score is below `threshold` are sent.

    scores: (m,) of held-out images of own classes; device, cloud: (m,) bool, who answered each rightly; foreign: how
    often the cloud is right on foreign inputs, for which its accuracy over all clients' held-out images stands;
    start: the threshold until enough inputs have come.
    """

    def __init__(
        self, scores: Floats, device: NDArray[np.bool_], cloud: NDArray[np.bool_], *, foreign: float, start: float
    ) -> None:
        order = np.argsort(scores, kind="stable")
        self._held_out, count = scores[order], len(scores)
        self._below = np.arange(count) / max(1, count)
        sent, kept = np.cumsum(cloud[order]), np.cumsum(device[order])
        # [k]: share of held-out images that are answered rightly if the k lowest are sent
        self._right = (np.append(0, sent)[:count] + device.sum() - np.append(0, kept)[:count]) / max(1, count)
        self._device, self._foreign, self.threshold = float(device.mean()) if count else 0.0, foreign, start
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self._count = 0

    def observe(self, score: float) -> None:
        """Take note of an input's score; inf for one that left at an earlier exit."""
        self._seen.append(score)
        self._count += 1
        if self._count % EVERY == 0 and len(self._held_out):
            self.threshold = self._best()

    def _best(self) -> float:
        seen = np.sort(np.asarray(self._seen))
        lower = np.searchsorted(seen, self._held_out, side="left") / len(seen)
        if not self._foreign_came(lower, len(seen)):
            return SENDS_NOTHING
        own = self._share_of_own(seen)
        # What is below a threshold beyond own inputs is foreign; the cloud gets `foreign` of it right, the device none.
        right = own * self._right + self._foreign * np.maximum(0, lower - own * self._below)
        best = int(np.argmax(right))
        return float(self._held_out[best]) if right[best] > own * self._device else SENDS_NOTHING

    def _foreign_came(self, lower: NDArray[np.float64], seen: int) -> bool:
        noise = (self._below * (1 - self._below) + 1 / len(self._below)) * (1 / len(self._below) + 1 / seen)
        excess = lower - self._below - DOUBT * np.sqrt(noise)
        return bool((excess[self._below <= 0.5] > 0).any())

    def _share_of_own(self, seen: NDArray[np.float64]) -> float:
        ranks = np.searchsorted(self._held_out, seen, side="right") / (len(self._held_out) + 1)
        return float(min(1.0, 2 * (ranks > 0.5).mean() + CAUTION / np.sqrt(len(self._held_out))))


def sent_in_order(adaptive: AdaptiveThreshold, scores: Floats) -> NDArray[np.bool_]:
    """Which of a stream's inputs are sent, (n,): each is judged before it is learnt from."""
    sent = np.zeros(len(scores), bool)
    for index, score in enumerate(scores.tolist()):
        sent[index] = score < adaptive.threshold
        adaptive.observe(score)
    return sent
