"""A threshold that follows the stream: nothing is sent where nothing foreign comes. No torch.

A fixed threshold keeps the promise that at most a share of own inputs is sent; where nothing foreign ever comes, every
one of those is sent in vain. This one asks whether the scores of the last inputs lie lower than those of the device's
held-out images, by more than chance allows. If so, the fixed threshold holds, else nothing is sent. So the promise is
kept, and no label of the stream is used. `device/native/adaptive.cpp` does the same, to the bit.
"""

from __future__ import annotations

from threading import Lock
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from harmony.core.errors import ConfigError
from harmony.core.scores import Floats, rank_of
from harmony.core.spec import Finite, Frozen

WINDOW, EVERY = 512, 16
"""Scores that are remembered, and how many come between two looks at them."""
DOUBT = 3.5
"""Standard errors by which some low quantile must be exceeded before anything is taken to be foreign."""
MOST = 512
"""Held-out images that count one by one; of more than these, every second, third … stands for its neighbours."""
SUREST = float(np.finfo(np.float32).max)
"""The score of what left at exit 1."""
SENDS_NOTHING = float(np.finfo(np.float32).min)


class HeldOut(Frozen):
    """The lower half of a device's held-out images by exit 2's score: what a stream of own inputs looks like.

    images: how many were held out; scores: ascending, those of ranks 0, s, 2s … up to images / 2, where the step s is
    the least that leaves at most MOST ranks of all; SUREST for images that left at exit 1. Whoever changes exit 1, or
    what exit 2's score reads, has to measure them anew.
    """

    images: Annotated[int, Field(ge=1, le=1 << 31)]
    scores: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=MOST // 2 + 1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.scores) != (wanted := self.images // (2 * self.step) + 1):
            raise ValueError(f"of {self.images} held-out images, {wanted} scores are needed")
        if list(self.scores) != sorted(self.scores):
            raise ValueError("scores must be ascending")
        return self

    @classmethod
    def of(cls, surety: Floats) -> Self | None:
        """surety: (m,) scores of all held-out images, SUREST or infinite where they left at exit 1. None of none."""
        if not (count := len(surety)):
            return None
        ordered = np.sort(np.minimum(surety.astype(np.float64), SUREST))
        step = _step(count)
        return cls(images=count, scores=tuple(ordered[: count // 2 + 1 : step].tolist()))

    @property
    def step(self) -> int:
        """Ranks from one score to the next."""
        return _step(self.images)

    def threshold(self, budget: float) -> float:
        """Exit 2's fixed threshold for another promise, 0 … 0.5: at most this share of own inputs is sent.

        The same as `harmony.core.calibration` sets from all scores; where every s-th was kept, up to s − 1 ranks lower,
        so that the promise holds as well. ConfigError for a budget outside 0 … 0.5, whose scores are not kept.
        """
        if not 0 <= budget <= 0.5:
            raise ConfigError(f"a budget of {budget}", mend="choose a share from 0 to 0.5")
        rank = rank_of(budget, self.images)
        return SENDS_NOTHING if rank is None else self.scores[rank // self.step]


def _step(images: int) -> int:
    return -(-images // MOST)


class AdaptiveThreshold:
    """The threshold of exit 2 while a stream goes by. Several threads may share one.

    fixed: the threshold that holds until EVERY inputs have come, and wherever foreign inputs are among them.
    """

    def __init__(self, held_out: HeldOut, fixed: float) -> None:
        self._scores = np.asarray(held_out.scores, np.float64)
        self._below = np.arange(len(self._scores)) * held_out.step / held_out.images
        self._each = 1 / held_out.images
        self._spread = self._below * (1 - self._below) + self._each
        self._fixed = self._threshold = fixed
        self._seen = np.empty(WINDOW, np.float64)  # a ring: their order does not matter
        self._count = 0
        self._alone = Lock()

    def judge(self, score: float) -> float:
        """The threshold for an input: it is sent if its score is below. Then the score is learnt from.

        score: of exit 2; SUREST for what left at exit 1.
        """
        with self._alone:
            threshold = self._threshold
            self._seen[self._count % WINDOW] = score
            self._count += 1
            if self._count % EVERY == 0:
                self._threshold = self._fixed if self._foreign_came() else SENDS_NOTHING
            return threshold

    def _foreign_came(self) -> bool:
        seen = np.sort(self._seen[: self._count])
        lower: NDArray[np.float64] = np.searchsorted(seen, self._scores, side="left") / len(seen)
        noise = self._spread * (self._each + 1 / len(seen))
        return bool((lower - self._below - DOUBT * np.sqrt(noise) > 0).any())


def sent_in_order(adaptive: AdaptiveThreshold, scores: Floats) -> NDArray[np.bool_]:
    """Which of a stream's inputs are sent, (n,). scores: as `AdaptiveThreshold.judge` takes them."""
    return np.asarray([score < adaptive.judge(score) for score in scores.tolist()], bool)
