"""What the early-exit loop says of an image, and the loop over an engine's two segments. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from harmony.core.adaptive import SUREST, AdaptiveThreshold
from harmony.core.bundle import DeviceManifest, Exit, ExitName
from harmony.core.errors import EngineError
from harmony.core.scores import NOTHING, score
from harmony.core.spec import ClassMap
from harmony.device.engine import Engine
from harmony.device.prepare import Prepare

Floats = NDArray[np.float32]
ThresholdChoice = Literal["adaptive", "fixed"]


class Decision(NamedTuple):
    """The device's own answer to one image.

    exit: where it was made; label; probability: its softmax over the own classes; scores: of the exits that were
    passed, in order; threshold: what the last of them was held against; feature: (C, H, W), to ask the cloud with, if
    no exit was sure enough, else None. It may be the engine's buffer: valid until the next image.
    """

    exit: ExitName
    label: int
    probability: float
    scores: tuple[float, ...]
    threshold: float
    feature: Floats | None


@runtime_checkable
class Decider(Protocol):
    """What runs the whole loop: an engine that can do it by itself, or `Loop`. Not thread-safe."""

    def decide(self, image: NDArray[Any]) -> Decision:
        """image: (H, W, C) as the manifest's ImageSpec says; InvalidInput otherwise."""


class Loop:
    """The loop over an engine that only runs segments.

    adaptive: the threshold of exit 2, which may be shared by the loops of several threads; by default one of its own
    that follows the stream by the manifest's held-out scores, or the fixed one where there are none.
    """

    def __init__(self, manifest: DeviceManifest, engine: Engine, adaptive: AdaptiveThreshold | None = None) -> None:
        self._engine, self._prepare = engine, Prepare(manifest.image, engine.image)
        self._own = manifest.classes.own
        self._score1, self._score2 = (_scorer(one, manifest.classes) for one in manifest.exits)
        self._threshold1, fixed = (one.threshold for one in manifest.exits)
        if adaptive is None and manifest.held_out is not None:
            adaptive = AdaptiveThreshold(manifest.held_out, fixed)
        self._judge: Callable[[float], float] = adaptive.judge if adaptive is not None else lambda score: fixed

    def decide(self, image: NDArray[Any]) -> Decision:
        """Leave at the first exit whose score reaches its threshold. EngineError for numbers that are not finite."""
        hidden, logits, gate = self._engine.exit1(self._prepare(image))
        score1 = self._score1(logits, gate)
        if score1 >= self._threshold1:
            self._judge(SUREST)
            return self._decision("exit1", logits, (score1,), self._threshold1, None)
        feature, logits, gate = self._engine.exit2(hidden)
        score2 = self._score2(logits, gate)
        threshold = self._judge(score2)
        sent = None if score2 >= threshold else feature[0]
        return self._decision("exit2", logits, (score1, score2), threshold, sent)

    def _decision(
        self, exit_: ExitName, logits: Floats, scores: tuple[float, ...], threshold: float, feature: Floats | None
    ) -> Decision:
        # Plain floats: for the few classes of a device they take a third of the time of four numpy calls.
        row: list[float] = logits[0].tolist()
        if not math.isfinite(sum(row)):  # float32 numbers have a finite sum in float64, unless one of them is not
            raise _not_finite(exit_)
        top = max(row)
        probability = 1 / sum([math.exp(one - top) for one in row])  # the softmax at its largest entry alone
        return Decision(exit_, self._own[row.index(top)], probability, scores, threshold, feature)


def with_threshold(manifest: DeviceManifest, choice: ThresholdChoice) -> DeviceManifest:
    """The manifest as a device should follow it: without held-out scores the threshold of exit 2 is fixed."""
    return manifest.model_copy(update={"held_out": None}) if choice == "fixed" else manifest


def _scorer(exit_: Exit, classes: ClassMap) -> Callable[[Floats, Floats | None], float]:
    name, own = exit_.score, np.asarray(classes.own, np.int64)
    quick = _own_mass(classes) if name == "own_mass" else None

    def value(logits: Floats, gate: Floats | None) -> float:
        number = float(score(name, logits, gate, own)[0]) if quick is None or gate is None else quick(gate)
        if not math.isfinite(number):
            raise _not_finite(exit_.name)
        return number

    return value


def _own_mass(classes: ClassMap) -> Callable[[Floats], float]:
    """`harmony.core.scores.own_mass` of one image, to the bit, in half its time: beside a front end of a twentieth of a
    millisecond it would be the largest part of the loop."""
    others = sorted({*range(len(classes.names))} - {*classes.own})
    order, starts = np.asarray((*classes.own, *others), np.intp), np.asarray((0, len(classes.own)), np.intp)
    row = np.full(len(order) + 1, NOTHING)  # the last stands for the own classes among the others
    ordered = row[:-1]

    def value(gate: Floats) -> float:
        gate.take(order, out=ordered, mode="clip")  # mode: writes without a copy
        energies = np.logaddexp.reduceat(row, starts)
        return float(energies[0] - energies[1])

    return value


def _not_finite(exit_: ExitName) -> EngineError:
    mend = "harmony verify it; if that passes, the network itself is broken"
    return EngineError(f"{exit_} gives numbers that are not finite", mend=mend)
