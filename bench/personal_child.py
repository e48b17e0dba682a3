"""The device process of `harmony.bench.personal`: times training steps, or makes one copy of a bundle personal.

`python -m harmony.bench.personal_child JOB.json OUT.json`. It holds what a device holds that learns, and no torch, so
that its memory is a device's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from harmony.bench.child import reply
from harmony.core.bundle import open_device_bundle
from harmony.core.spec import Frozen
from harmony.core.training import BATCH, StepEngine, What
from harmony.device.memory import peak_bytes
from harmony.device.personal import Budget, Wish, personalize
from harmony.device.personal.data import read_data
from harmony.device.personal.front_end import training_of
from harmony.device.personal.lesson import FRONT_END_PLAN, HEAD_PLAN
from harmony.device.personal.steps import Floats, Step
from harmony.device.personal.teach import Pupil, open_front_end_step, open_head_step

STEPS: dict[What, int] = {"head": 200, "front-end": 20}
"""Steps of one reading: some hundred milliseconds."""
_RATE = 1e-3


class Way(Frozen):
    """What learns, and what trains it. The heads of a front end that learns are trained by the same engine."""

    what: What
    engine: StepEngine

    def __str__(self) -> str:
        return f"{self.what}, {self.engine}"


class Job(Frozen):
    """bundle: a copy that may be changed; data: as for `harmony personalize`; rounds: readings a way, of steps; None:
    learn, by the only way."""

    bundle: Path
    data: str
    ways: Annotated[tuple[Way, ...], Field(min_length=1)]
    seed: int
    rounds: int | None = None


class Readings(Frozen):
    """CPU milliseconds a step, one row a way, one number a round."""

    cpu_ms: tuple[tuple[float, ...], ...]


class Learnt(Frozen):
    """What came of learning once. cpu_s: of the whole process, its start included; before, after: see Outcome."""

    cpu_s: float
    peak_bytes: int
    steps: int
    adopted: bool
    before: float
    after: float
    own: tuple[str, ...]
    dropped: tuple[str, ...]


class _Timed(NamedTuple):
    """A step that is ready to run, and what it is fed."""

    step: Step
    steps: int
    feed: tuple[Floats, Floats, Floats]

    def cpu_ms(self) -> float:
        begin = time.process_time()
        for _ in range(self.steps):
            self.step.run(_RATE, *self.feed)
        return 1e3 * (time.process_time() - begin) / self.steps


def time_steps(job: Job, rounds: int) -> Readings:
    """Every way's steps in turns; who begins changes every round. Errors of `personalize`."""
    manifest = open_device_bundle(job.bundle)
    data = read_data(job.data, manifest.image, manifest.classes, job.seed)
    pupil = Pupil(job.bundle, manifest, training_of(manifest, job.bundle), data, Budget())
    timed = [_timed(pupil, way, np.random.default_rng(job.seed)) for way in job.ways]
    for one in timed:
        one.step.run(_RATE, *one.feed)
    found: list[list[float]] = [[] for _ in timed]
    for index in range(rounds):
        for turn in range(len(timed)):
            at = (turn + index) % len(timed)
            found[at].append(timed[at].cpu_ms())
    return Readings(cpu_ms=tuple(map(tuple, found)))


def _timed(pupil: Pupil, way: Way, random: np.random.Generator) -> _Timed:
    """Random weights and inputs of the right size: what they are changes nothing in what a step costs."""
    shape: tuple[int, ...]
    if way.what == "head":
        step, width = open_head_step(pupil, way.engine), pupil.training.embedding
        weights, shape = pupil.classes * (width + 1), (BATCH, width)
    else:
        step, parts = open_front_end_step(pupil)
        image = pupil.manifest.image
        weights, shape = sum(one.size for one in parts), (BATCH, image.channels, image.height, image.width)
    step.start(random.normal(0, 0.05, weights).astype(np.float32))
    target = np.zeros((BATCH, pupil.classes), np.float32)
    target[np.arange(BATCH), random.integers(0, pupil.classes, BATCH)] = 1 / BATCH
    batch = random.normal(size=shape).astype(np.float32)
    return _Timed(step, STEPS[way.what], (target, np.zeros(pupil.classes, np.float32), batch))


def learn(job: Job) -> Learnt:
    """Make the bundle personal, as the command does by default. Errors of `personalize`."""
    (way,) = job.ways
    heads, front_end = (plan._replace(seed=job.seed) for plan in (HEAD_PLAN, FRONT_END_PLAN))
    wish = Wish(what=way.what, engine=way.engine, heads=heads, front_end=front_end)
    outcome = personalize(job.bundle, job.data, wish, Budget())
    return Learnt(
        cpu_s=time.process_time(), peak_bytes=peak_bytes(), steps=outcome.steps, adopted=outcome.adopted,
        before=outcome.before, after=outcome.after, own=outcome.own_after, dropped=outcome.dropped,
    )  # fmt: skip


def measure(job: Job) -> Readings | Learnt:
    """What the job asks for. Errors of `personalize`."""
    return learn(job) if job.rounds is None else time_steps(job, job.rounds)


if __name__ == "__main__":
    sys.exit(reply(Job, measure))
