"""`python -m harmony.bench.sweep.probe unit|models ORDER [OUT]`: a process that times and scores one bundle. No torch
but where the Python bindings of ExecuTorch bring it.

Costs are the CPU time of this thread, so that other processes do not count, and the reference model takes its turn
before and after every round, so that the speed of the host, which changes from minute to minute, cancels out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from harmony.bench.bare import one_thread_session
from harmony.bench.job import IMAGES
from harmony.bench.probe import SPARSE_PAUSE_S
from harmony.bench.results import Regime
from harmony.bench.sweep.order import COSTS_FILE, SCORES_FILE, Costs, Models, ModelTimes, Order, Timed
from harmony.bench.sweep.schema import PathName
from harmony.core.bundle import DeviceManifest, open_cloud_bundle, open_device_bundle
from harmony.core.scores import score
from harmony.core.sealed import read_sealed
from harmony.core.wire import decode, encode
from harmony.device.engine import Engine, ExitOut, open_engine
from harmony.device.prepare import Prepare

PATHS: tuple[PathName, ...] = ("exit1", "exit2", "send")
_WARM_UP = 3
_BATCH = 64
Floats = NDArray[np.float32]
Score = Callable[[Floats, Floats | None], float]


class Reference:
    """The reference model, ready to be timed."""

    def __init__(self, bundle: Path, runtime: Any) -> None:
        manifest = open_device_bundle(bundle)
        self._engine = open_engine(bundle, manifest, runtime)
        spec = manifest.image
        shape = (1, spec.channels, spec.height, spec.width)
        self._image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for _ in range(_WARM_UP):
            self.seconds()

    def seconds(self) -> float:
        """CPU seconds of one inference."""
        started = time.thread_time_ns()
        self._engine.exit1(self._image)
        return (time.thread_time_ns() - started) / 1e9


class Laps(NamedTuple):
    """CPU seconds since the image came, at the end of each of PATHS."""

    exit1: float
    exit2: float
    send: float


class Subject:
    """What is measured: preparation, both segments with their scores, the frame."""

    def __init__(
        self,
        engine: Engine,
        *,
        prepare: Callable[[NDArray[Any]], Floats],
        scores: tuple[Score, Score],
        frame: Callable[[Floats], bytes],
    ) -> None:
        self._engine, self._prepare, self._frame = engine, prepare, frame
        self._score1, self._score2 = scores

    @classmethod
    def open(cls, bundle: Path, manifest: DeviceManifest, runtime: Any) -> Subject:
        """A bundle as it runs on a device."""
        codec, own = manifest.fallback.codec, np.asarray(manifest.classes.own, np.int64)
        first, second = (_scorer(one.score, own) for one in manifest.exits)
        return cls(
            open_engine(bundle, manifest, runtime),
            prepare=Prepare(manifest.image),
            scores=(first, second),
            frame=lambda feature: encode(feature, codec),
        )

    def walk(self, image: NDArray[Any]) -> Laps:
        """Take one image through everything that a device may do with it, whatever its scores say."""
        started = time.thread_time_ns()
        hidden, logits, gate = self._engine.exit1(self._prepare(image))
        self._score1(logits, gate)
        first = time.thread_time_ns()
        feature, logits, gate = self._engine.exit2(hidden)
        self._score2(logits, gate)
        second = time.thread_time_ns()
        self._frame(feature[0])
        third = time.thread_time_ns()
        return Laps(*((end - started) / 1e9 for end in (first, second, third)))

    def say(self, image: NDArray[Any]) -> tuple[float, float, int, int, Floats]:
        """Scores of both exits, the place of each one's label among the own classes, and the feature."""
        hidden, logits, gate = self._engine.exit1(self._prepare(image))
        score1, place1 = self._score1(logits, gate), int(logits.argmax())
        feature, logits, gate = self._engine.exit2(hidden)
        return score1, self._score2(logits, gate), place1, int(logits.argmax()), feature[0].copy()


def _scorer(name: str, own: NDArray[np.int64]) -> Score:
    def value(logits: Floats, gate: Floats | None) -> float:
        number: float = score(name, logits, gate, own).item()
        return number

    return value


class _EmptyEngine:
    """Answers at once."""

    image = None

    def __init__(self) -> None:
        self._out: ExitOut = (np.zeros((1, 1, 1, 1), np.float32), np.zeros((1, 2), np.float32), None)

    def exit1(self, image: Floats) -> ExitOut:
        """See Engine."""
        return self._out

    def exit2(self, hidden: Floats) -> ExitOut:
        """See Engine."""
        return self._out


def harness_s(calls: int = 2001) -> float:
    """CPU seconds that the stopwatch itself adds to an image: the median of walks in which nothing does anything."""
    nothing = Subject(
        _EmptyEngine(), prepare=lambda image: image, scores=(lambda *_: 0.0,) * 2, frame=lambda feature: b""
    )
    image = np.zeros((1, 1, 1, 1), np.float32)
    return float(np.median([nothing.walk(image).send for _ in range(calls)]))


def measure(order: Order) -> None:
    """Write costs and scores into the order's folder. The named errors of opening and running."""
    images = load_file(order.images)[IMAGES]
    started = time.process_time_ns()
    manifest = open_device_bundle(order.bundle)
    subject = Subject.open(order.bundle, manifest, order.runtime)
    subject.walk(images[0])
    first_s = (time.process_time_ns() - started) / 1e9
    reference = Reference(order.reference, order.runtime)
    timed = tuple(time_regime(subject, reference, images, one, order) for one in order.regimes)
    (order.out / COSTS_FILE).write_text(Costs(first_s=first_s, regimes=timed).model_dump_json())
    if order.scores:
        save_file(scores(subject, manifest, images, order.back_end), order.out / SCORES_FILE)


def time_regime(subject: Subject, reference: Reference, images: NDArray[Any], regime: Regime, order: Order) -> Timed:
    """Rounds of: the reference, some images, the reference again. The images change from round to round."""
    reference_s, rows = [], []
    for index in range(order.rounds):
        before = reference.seconds()
        chosen = np.arange(index * order.per_round, (index + 1) * order.per_round) % len(images)
        for _ in range(_WARM_UP):  # the reference has taken the caches
            subject.walk(images[chosen[0]])
        rows.append([_walk(subject, images[row], regime) for row in chosen])
        reference_s.append((before + reference.seconds()) / 2)
    columns = {name: tuple(tuple(lap[place] for lap in row) for row in rows) for place, name in enumerate(PATHS)}
    return Timed(regime=regime, reference_s=tuple(reference_s), paths=columns)


def _walk(subject: Subject, image: NDArray[Any], regime: Regime) -> Laps:
    if regime == "sparse":
        time.sleep(SPARSE_PAUSE_S)
    return subject.walk(image)


def scores(
    subject: Subject, manifest: DeviceManifest, images: NDArray[Any], back_end: Path | None
) -> dict[str, NDArray[Any]]:
    """What every part says to every image: score1, score2 (n,) float32; exit1, exit2 labels; with a back end also
    cloud, whose feature took the wire's codec, and cloud_image, whose feature did not; frame_bytes of each."""
    said = [subject.say(image) for image in images]
    features, own = np.stack([one[4] for one in said]), np.asarray(manifest.classes.own, np.int64)
    frames = [encode(one, manifest.fallback.codec) for one in features]
    found: dict[str, NDArray[Any]] = {
        "score1": np.asarray([one[0] for one in said], np.float32),
        "score2": np.asarray([one[1] for one in said], np.float32),
        "exit1": own[[one[2] for one in said]],
        "exit2": own[[one[3] for one in said]],
        "frame_bytes": np.asarray([len(frame) for frame in frames], np.int64),
    }
    if back_end is not None:
        sent = np.stack([decode(frame, manifest.feature) for frame in frames])
        found |= {"cloud": _cloud(sent, back_end, manifest), "cloud_image": _cloud(features, back_end, manifest)}
    return found


def _cloud(features: Floats, back_end: Path, manifest: DeviceManifest) -> NDArray[np.int64]:
    known = open_cloud_bundle(back_end)
    session = one_thread_session(read_sealed(back_end, known, known.program))
    parts = [features[start : start + _BATCH] for start in range(0, len(features), _BATCH)]
    tokens = [session.run(None, {"feature": part})[0].argmax(1) for part in parts]
    labels: NDArray[np.int64] = manifest.classes.label_of_token[np.concatenate(tokens)]
    return labels


def time_models(order: Models) -> ModelTimes:
    """All models in turns, so that they share whatever the host does."""
    models = {name: Reference(bundle, order.runtime) for name, bundle in order.bundles.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(order.rounds):
        for name, model in models.items():
            times[name].append(model.seconds())
    kept = {name: tuple(values) for name, values in times.items()}
    return ModelTimes(times=kept, harness_s=harness_s())


def main(what: str, order: str, out: str) -> None:
    """Do what the file `order` says; `models` writes to `out`, `unit` into the order's own folder."""
    text = Path(order).read_bytes()
    if what == "models":
        Path(out).write_text(time_models(Models.model_validate_json(text)).model_dump_json())
    else:
        measure(Order.model_validate_json(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
