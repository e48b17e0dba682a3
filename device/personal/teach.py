"""Trains heads on what the front end saw, and the whole front end on images. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmony.core.bundle import DeviceManifest, ExitName
from harmony.core.errors import ConfigError, ContractMismatch, EngineUnavailable
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import read_sealed
from harmony.core.training import StepEngine, Training
from harmony.core.training_parts import Part, parts_of
from harmony.device.personal.budget import Budget
from harmony.device.personal.data import PersonalData
from harmony.device.personal.front_end import EXITS, Heads, Programs, Rows, Seen, heads_of
from harmony.device.personal.learning import Lesson, Plan, learn
from harmony.device.personal.steps import Floats, Form, OnnxStep, Step

OnSteps = Callable[[int, int], None]


class Pupil(NamedTuple):
    """Who learns from what: an opened bundle and the user's images."""

    bundle: Path
    manifest: DeviceManifest
    training: Training
    data: PersonalData
    budget: Budget

    @property
    def classes(self) -> int:
        """All there are."""
        return len(self.manifest.classes.names)


def open_head_step(pupil: Pupil, engine: StepEngine) -> Step:
    """The head's training program in an engine. EngineUnavailable if the bundle has none for it."""
    name = pupil.training.head.get(engine)
    if name is None:
        raise EngineUnavailable(
            f"holds no training program for {engine}, only for {', '.join(pupil.training.head)}", where=pupil.bundle,
            mend="choose another --engine, or export it again with that format",
        )  # fmt: skip
    width = pupil.training.embedding
    form = Form(weights=pupil.classes * (width + 1), sample=(width,), classes=pupil.classes)
    program = read_sealed(pupil.bundle, pupil.manifest, name)
    if engine == "executorch":
        from harmony.device.personal.native_step import NativeStep  # noqa: PLC0415  (may compile)

        return NativeStep(program, form, pupil.bundle / name)
    return OnnxStep(program, form, pupil.bundle / name)


def teach_heads(
    pupil: Pupil, step: Step, start: Heads, seen: Seen, plan: Plan, *, on_step: OnSteps
) -> tuple[Heads, int]:
    """Both heads, from a row for every class, on what the front end saw of the training images; and all steps."""
    heads, steps = [], 0
    for place, rows in enumerate(start):
        embedding = seen.embeddings[place]
        lesson = Lesson(embedding.__getitem__, pupil.data.labels[pupil.data.train], pupil.data.own, pupil.classes)
        flat = np.concatenate([rows.weight.reshape(-1), rows.bias])
        done_before = steps

        def count(done: int, total: int, before: int = done_before) -> None:
            on_step(before + done, len(start) * total)

        learnt, done = learn(step, flat, lesson, plan, pupil.budget, on_step=count)
        weight, bias = np.split(learnt, [rows.weight.size])
        heads.append(Rows(weight.reshape(rows.weight.shape), bias))
        steps += done
    return (heads[0], heads[1]), steps


class Learnt(NamedTuple):
    """A front end's weights: every tensor of each exit's file that changed but the heads, and those."""

    tensors: dict[ExitName, dict[str, Floats]]
    heads: Heads
    steps: int


def teach_front_end(pupil: Pupil, programs: Programs, start: Heads, plan: Plan, on_step: OnSteps) -> Learnt:
    """Everything but the gates, on images. ConfigError if the bundle was not exported for that."""
    step, parts = _open_front_end_step(pupil)
    prepare, images = Preprocessor(pupil.manifest.image), pupil.data.images
    chosen = pupil.data.train
    lesson = Lesson(
        lambda at: prepare(images[chosen[at]]), pupil.data.labels[chosen], pupil.data.own, pupil.classes
    )  # one batch at a time: scaled images are four times the size
    heads = _head_tensors(pupil.training, start)
    begun = [heads[one.exit].get(one.tensor, None) for one in parts]
    values = [programs[one.exit].tensor(one.tensor) if head is None else head
              for one, head in zip(parts, begun, strict=True)]  # fmt: skip
    if [value.size for value in values] != [one.size for one in parts]:
        raise ContractMismatch("trains weights of other sizes", where=pupil.bundle, mend="export the bundle again")
    flat = np.concatenate([value.reshape(-1) for value in values])
    learnt, steps = learn(step, flat, lesson, plan, pupil.budget, on_step=on_step)
    return _taken_apart(pupil.training, parts, values, learnt, steps)


def _open_front_end_step(pupil: Pupil) -> tuple[Step, tuple[Part, ...]]:
    name = pupil.training.front_end
    if name is None:
        problem = "holds no training program for the whole front end"
        raise ConfigError(problem, where=pupil.bundle, mend="harmony export --trainable front-end, or --what head")
    program, where, image = read_sealed(pupil.bundle, pupil.manifest, name), pupil.bundle / name, pupil.manifest.image
    parts = parts_of(program, where)
    sample = (image.channels, image.height, image.width)
    form = Form(sum(one.size for one in parts), sample, pupil.classes)
    return OnnxStep(program, form, where), parts


def _head_tensors(training: Training, heads: Heads) -> dict[ExitName, dict[str, Floats]]:
    found: dict[ExitName, dict[str, Floats]] = {}
    for name, rows in zip(EXITS, heads, strict=True):
        found[name] = {heads_of(training, name).weight: rows.weight, heads_of(training, name).bias: rows.bias}
    return found


def _taken_apart(
    training: Training, parts: tuple[Part, ...], begun: list[Floats], learnt: Floats, steps: int
) -> Learnt:
    pieces = np.split(learnt, np.cumsum([one.size for one in parts])[:-1])
    tensors: dict[ExitName, dict[str, Floats]] = {name: {} for name in EXITS}
    for one, old, piece in zip(parts, begun, pieces, strict=True):
        tensors[one.exit][one.tensor] = piece.reshape(old.shape)  # as it lies in the file, not in the network
    rows = []
    for name in EXITS:
        head = heads_of(training, name)
        rows.append(Rows(tensors[name].pop(head.weight), tensors[name].pop(head.bias)))
    return Learnt(tensors, (rows[0], rows[1]), steps)
