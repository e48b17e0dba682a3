"""Teaches an opened bundle, and judges what came of it beside what was there. Writes nothing. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import ExitName, sealed_vectors
from harmony.core.training import StepEngine, What
from harmony.device.personal.cloud import CloudJudge
from harmony.device.personal.front_end import EXITS, Eyes, Heads, Programs, Seen, all_rows, own_rows, read_programs
from harmony.device.personal.judge import Drift, Judgement, drift, judge
from harmony.device.personal.learning import OnStep, Plan
from harmony.device.personal.onnx_weights import ExitProgram
from harmony.device.personal.outcome import Cloud
from harmony.device.personal.rewrite import rewritten, with_heads
from harmony.device.personal.teach import (
    Learnt,
    Pupil,
    open_front_end_step,
    open_head_step,
    teach_front_end,
    teach_heads,
)

if TYPE_CHECKING:
    from harmony.core.signing import Trust
    from harmony.core.signing_keys import SecretKey

HEAD_PLAN, FRONT_END_PLAN = Plan(epochs=40, rate=4e-3), Plan(epochs=10, rate=1e-3)


class Wish(NamedTuple):
    """What is wanted. heads, front_end: how long each is trained; keys: who signs the new version; back_end: a cloud
    bundle, to see what a change of features costs it."""

    what: What = "head"
    engine: StepEngine = "onnxruntime"
    heads: Plan = HEAD_PLAN
    front_end: Plan = FRONT_END_PLAN
    keys: Sequence[SecretKey] = ()
    back_end: Path | None = None
    trust: Trust | None = None


class Taught(NamedTuple):
    """Everything that was learnt and measured, before anything is written. heads: rows of the own classes."""

    files: dict[ExitName, bytes]
    old_heads: Heads
    heads: Heads
    before: Judgement
    after: Judgement
    steps: int
    seconds: float
    moved: Drift | None = None
    moved_others: Drift | None = None
    cloud: Cloud | None = None


def teach(pupil: Pupil, wish: Wish, on_step: OnStep) -> Taught:
    """Look at the images, train what is wished for, and judge it beside what was there."""
    programs, data, step = read_programs(pupil.bundle, pupil.manifest), pupil.data, open_head_step(pupil, wish.engine)
    whole = open_front_end_step(pupil) if wish.what == "front-end" else None
    eyes = Eyes(programs, pupil.manifest, pupil.training, pupil.bundle)
    cloud = None if wish.back_end is None else CloudJudge(wish.back_end, pupil.manifest)
    old = eyes.look(data.images, data.holdout, _told(on_step, "held-out images"), features=whole is not None)
    had = own_rows(programs, pupil.manifest, pupil.training)
    before = _judge(pupil, old, had, pupil.manifest.classes.own, recalibrate=False)
    seen = eyes.look(data.images, data.train, _told(on_step, "images"))
    pupil.budget.require_time("looking at the images")
    pupil.budget.require_memory()
    begun, start = time.perf_counter(), all_rows(programs, pupil.manifest, pupil.training, had)
    heads, steps = teach_heads(pupil, step, start, seen, wish.heads, on_step=_told(on_step, "steps, heads"))
    learnt = Learnt({}, heads, steps)
    if whole is not None:
        told = _told(on_step, "steps, front end")
        learnt = teach_front_end(pupil, whole, programs, heads, wish.front_end, on_step=told)
    seconds, mine = time.perf_counter() - begun, (learnt.heads[0].of(data.own), learnt.heads[1].of(data.own))
    files = rewritten(programs, with_heads(pupil.training, mine, learnt.tensors), len(data.own))
    if whole is None:
        after = _judge(pupil, old, mine, data.own, recalibrate=True)
        return Taught(files, had, mine, before, after, learnt.steps, seconds)
    new_eyes = Eyes(_parsed(pupil, files), pupil.manifest, pupil.training, pupil.bundle)
    new = new_eyes.look(data.images, data.holdout, _told(on_step, "held-out images"), features=True)
    after = _judge(pupil, new, mine, data.own, recalibrate=True)
    others = sealed_vectors(pupil.bundle, pupil.manifest)["image"]
    return Taught(
        files, had, mine, before, after, learnt.steps, seconds,
        moved=drift(old.features, new.features),
        moved_others=drift(eyes.look_scaled(others).features, new_eyes.look_scaled(others).features),
        cloud=_asked(cloud, old, new, data.labels[data.holdout]),
    )  # fmt: skip


def _told(on_step: OnStep, what: str) -> Callable[[int, int], None]:
    return lambda done, total: on_step(what, done, total)


def _judge(pupil: Pupil, seen: Seen, heads: Heads, own: tuple[int, ...], *, recalibrate: bool) -> Judgement:
    labels = pupil.data.labels[pupil.data.holdout]
    return judge(seen, labels, heads, own, pupil.manifest.exits, recalibrate=recalibrate)


def _parsed(pupil: Pupil, files: Mapping[ExitName, bytes]) -> Programs:
    where = pupil.manifest.engines["onnxruntime"]
    return {name: ExitProgram(files[name], pupil.bundle / where[name]) for name in EXITS}


def _asked(cloud: CloudJudge | None, old: Seen, new: Seen, labels: NDArray[np.int64]) -> Cloud | None:
    if cloud is None:
        return None
    return Cloud(cloud.accuracy(old.features, labels), cloud.accuracy(new.features, labels))
