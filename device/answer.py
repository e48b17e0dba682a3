"""What a device says of an image, and what it may hear from the cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ExitTaken = Literal["exit1", "exit2", "cloud"]


class CloudAnswer(NamedTuple):
    """What the cloud said: a label, and the probability that it gives to it. sent, received: bytes of HTTP bodies."""

    label: int
    probability: float
    sent: int = 0
    received: int = 0


class Fallback(Protocol):
    """Who is asked where the device is not sure; FallbackClient is one."""

    def ask(self, feature: Floats) -> CloudAnswer:
        """feature (C, H, W) → the answer, or a FallbackError in time. The array is the caller's again afterwards."""


class AsyncFallback(Protocol):
    """As Fallback, for asyncio; AsyncFallbackClient is one."""

    async def ask(self, feature: Floats) -> CloudAnswer:
        """As there. The feature is read before anything is waited for."""


@dataclass(slots=True)
class Answer:
    """What a device says of one image.

    exit: where the answer was made; probability: its softmax there, over the own classes or, in the cloud, over all;
    scores: of the exits that were passed, in order; threshold: what the last of them was held against; local_label:
    what that exit said; would_offload: no exit was sure enough; degraded: it should have come from the cloud, but the
    local answer had to do, for the `reason`; ticket: under which the cloud's answer may still come (see
    `harmony.device.later`); seconds: all of it; bytes: of HTTP bodies.
    """

    label: int
    class_name: str
    exit: ExitTaken
    probability: float
    scores: tuple[float, ...]
    threshold: float
    local_label: int
    seconds: float
    would_offload: bool = False
    degraded: bool = False
    reason: str | None = None
    ticket: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
