"""A device: the early-exit loop, and the cloud for what it does not know."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import FallbackError
from harmony.device.answer import Answer, AsyncFallback, CloudAnswer, Fallback
from harmony.device.decision import Decider, Loop, ThresholdChoice, with_threshold
from harmony.device.engine import Engine, EngineChoice, open_engine

if TYPE_CHECKING:
    from harmony.core.signing import Trust

Floats = NDArray[np.float32]


class Device:
    """An opened bundle. Not thread-safe.

    Its exit 2 follows the stream of images if the manifest has held-out scores: each device by itself, from the moment
    that it was opened.
    """

    def __init__(self, manifest: DeviceManifest, engine: Engine | Decider, fallback: Fallback | None = None) -> None:
        self.manifest = manifest
        self._decider = engine if isinstance(engine, Decider) else Loop(manifest, engine)
        self._fallback = fallback
        self._names = manifest.classes.names

    @classmethod
    def open(
        cls,
        bundle: Path,
        *,
        engine: EngineChoice = "onnxruntime",
        fallback: Fallback | None = None,
        trust: Trust | None = None,
        threshold: ThresholdChoice = "adaptive",
    ) -> Device:
        """Check every byte of a bundle, a folder or a .tar, and load it. ArtifactError, ContractMismatch,
        EngineUnavailable; with `trust`, ArtifactUntrusted unless one of its keys signed it. threshold: "fixed" has exit
        2's not follow the stream.
        """
        manifest = with_threshold(open_device_bundle(bundle, trust), threshold)
        return cls(manifest, open_engine(bundle, manifest, engine), fallback)

    def answer(self, image: NDArray[Any]) -> Answer:
        """image: (H, W, C) as the manifest's ImageSpec says; InvalidInput otherwise.

        Leaves at the first exit whose score reaches its threshold. Else the cloud is asked; where there is none, or it
        does not help, exit 2's answer stands.
        """
        started = time.perf_counter()
        answer, feature = self._decide(image, started)
        if self._fallback is None:
            return answer
        if feature is not None:
            try:
                self._offloaded(answer, self._fallback.ask(feature))
            except FallbackError as error:
                _degraded(answer, error)
            answer.seconds = time.perf_counter() - started
        _count(answer, self._fallback)
        return answer

    async def answer_async(self, image: NDArray[Any], fallback: AsyncFallback) -> Answer:
        """As `answer`, with a cloud that is waited for by asyncio: meanwhile other images may be answered.

        The device's own part is run here and now, for its milliseconds.
        """
        started = time.perf_counter()
        answer, feature = self._decide(image, started)
        if feature is not None:
            try:
                self._offloaded(answer, await fallback.ask(feature))
            except FallbackError as error:
                _degraded(answer, error)
            answer.seconds = time.perf_counter() - started
        _count(answer, fallback)
        return answer

    def _decide(self, image: NDArray[Any], started: float) -> tuple[Answer, Floats | None]:
        """The device's own answer, and the feature if no exit was sure enough."""
        decision = self._decider.decide(image)
        label = decision.label
        answer = Answer(
            label, self._names[label], decision.exit, decision.probability, decision.scores, decision.threshold, label,
            time.perf_counter() - started,
        )  # fmt: skip
        answer.would_offload = decision.feature is not None
        return answer, decision.feature

    def _offloaded(self, answer: Answer, said: CloudAnswer) -> None:
        """Replace the device's own answer by the cloud's."""
        answer.label, answer.class_name, answer.exit = said.label, self._names[said.label], "cloud"
        answer.probability, answer.bytes_sent, answer.bytes_received = said.probability, said.sent, said.received


def _degraded(answer: Answer, error: FallbackError) -> None:
    """The device's own answer stands; say why."""
    answer.degraded, answer.reason, answer.ticket = True, f"{type(error).__name__}: {error}", error.ticket
    answer.bytes_sent, answer.bytes_received = error.sent, error.received


def _count(answer: Answer, fallback: Fallback | AsyncFallback) -> None:
    """Tell a fallback that wants to know where the answer was made, as ours do, if that was here. What waits for the
    cloud still is the cloud's."""
    answered = getattr(fallback, "answered", None)
    if answered is not None and answer.exit != "cloud" and answer.ticket is None:
        answered(answer.exit)
