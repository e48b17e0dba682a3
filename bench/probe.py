"""The stopwatch: `python -m harmony.bench.probe JOB OUT`, a device process that times itself. No torch.

Device path and bare engine calls take turns, image by image, and who goes first changes every round: measured one
after the other, noise and caches would favour one of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from numpy.typing import NDArray
from safetensors.numpy import load_file

from harmony.bench.bare import BareFrontEnd
from harmony.bench.child import reply
from harmony.bench.job import IMAGES, KEY_ENV, Job, Measured, Samples
from harmony.bench.results import AnswerPath
from harmony.core.adaptive import SENDS_NOTHING, SUREST, AdaptiveThreshold, HeldOut
from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.preprocess import Preprocessor
from harmony.device import Device, FallbackClient, open_engine
from harmony.device.decision import Loop

SPARSE_PAUSE_S = 0.02
WARM_UP = 10

Image = NDArray[Any]


class _Lap(NamedTuple):
    wall_s: float
    cpu_s: float


def lap(run: Callable[[Image], object], image: Image) -> _Lap:
    """Wall clock and CPU time of this thread for one call."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    run(image)
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return _Lap(wall / 1e9, cpu / 1e9)


def in_turns(
    device: Callable[[Image], object],
    bare: Callable[[Image], object] | None,
    pairs: Sequence[tuple[Image, Image]],
    *,
    rounds: int,
    pause_s: float,
) -> Samples:
    """Time both over the same images. pairs: (raw image for the device path, prepared input for the bare engine)."""
    device_laps: list[list[_Lap]] = [[] for _ in range(rounds)]
    bare_laps: list[list[_Lap]] = [[] for _ in range(rounds)]
    for index in range(rounds):
        for raw, prepared in pairs:
            turns = [(device_laps[index], device, raw)] + ([(bare_laps[index], bare, prepared)] if bare else [])
            for laps, run, value in turns[:: -1 if index % 2 else 1]:
                if pause_s:
                    time.sleep(pause_s)
                laps.append(lap(run, value))
    return Samples(
        wall_s=tuple(tuple(one.wall_s for one in row) for row in device_laps),
        cpu_s=tuple(tuple(one.cpu_s for one in row) for row in device_laps),
        bare_s=tuple(tuple(one.wall_s for one in row) for row in bare_laps) if bare else None,
    )


class _Pinned(AdaptiveThreshold):
    """Takes the time of following the stream, but has every image take the way on which it is to be timed."""

    def __init__(self, held_out: HeldOut, threshold: float) -> None:
        super().__init__(held_out, threshold)
        self._pinned = threshold

    def judge(self, score: float) -> float:
        super().judge(score)
        return self._pinned


def measure(job: Job) -> Measured:
    """Open the bundle, answer once, then time every path of the job. Errors: those of opening and answering."""
    images, manifest = load_file(job.images)[IMAGES], open_device_bundle(job.bundle)
    with _fallback(job, manifest) as fallback:
        engine = open_engine(job.bundle, manifest, job.engine)
        first = lap(Device(manifest, engine, fallback).answer, images[0])
        bare = _bare(job, manifest)
        prepare = Preprocessor(manifest.image)
        paths: dict[AnswerPath, Samples] = {}
        for path, rows in job.paths.items():
            pairs = [(images[row], prepare(images[row][None])) for row in rows]
            device = Device(manifest, Loop(manifest, engine, pinned(manifest, path)), fallback)
            warm_up(device.answer, bare.get(path), pairs)
            pause_s = SPARSE_PAUSE_S if job.regime == "sparse" else 0.0
            paths[path] = in_turns(device.answer, bare.get(path), pairs, rounds=job.rounds, pause_s=pause_s)
    return Measured(first_answer_s=first.wall_s, paths=paths)


def pinned(manifest: DeviceManifest, path: AnswerPath) -> AdaptiveThreshold | None:
    """A threshold that takes its time, but has every image that reaches exit 2 take this path; None if it is fixed."""
    if manifest.held_out is None:
        return None
    return _Pinned(manifest.held_out, SUREST if path == "cloud" else SENDS_NOTHING)


def _fallback(job: Job, manifest: DeviceManifest) -> AbstractContextManager[FallbackClient | None]:
    if job.server is None:
        return nullcontext()
    return FallbackClient(job.server, os.environ.get(KEY_ENV), manifest=manifest, deadline_s=job.deadline_s)


def _bare(job: Job, manifest: DeviceManifest) -> dict[AnswerPath, Callable[[Image], object]]:
    """The bare calls that do the same work; ExecuTorch's are not compared, and asking the cloud has none."""
    if job.engine != "onnxruntime":
        return {}
    bare = BareFrontEnd(job.bundle, manifest)
    return {"exit1": bare.exit1, "exit2": bare.exit2}


def warm_up(
    device: Callable[[Image], object], bare: Callable[[Image], object] | None, pairs: Sequence[tuple[Image, Image]]
) -> None:
    """A few calls of each that are not timed: the first ones allocate."""
    for raw, prepared in pairs[:WARM_UP]:
        device(raw)
        if bare is not None:
            bare(prepared)


if __name__ == "__main__":
    sys.exit(reply(Job, measure))
