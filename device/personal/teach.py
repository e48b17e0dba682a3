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


class FrontEndStep(NamedTuple):
    """The whole front end's training program, and what lies where in its flat vector."""

    step: Step
    parts: tuple[Part, ...]


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


def open_front_end_step(pupil: Pupil) -> FrontEndStep:
    """The front end's training program. ConfigError if the bundle was not exported for that, or cannot be."""
    name, image = pupil.training.front_end, pupil.manifest.image
    if name is None or pupil.manifest.precision != "fp32":
        raise ConfigError("holds no training program for the whole front end", where=pupil.bundle, mend=_mend(pupil))
    program, where = read_sealed(pupil.bundle, pupil.manifest, name), pupil.bundle / name
    parts = parts_of(program, where)
    sample = (image.channels, image.height, image.width)
    form = Form(sum(one.size for one in parts), sample, pupil.classes)
    return FrontEndStep(OnnxStep(program, form, where), parts)


def _mend(pupil: Pupil) -> str:
    if isinstance(pupil.manifest.architecture, str):
        return "--what head: a front end of a user's own learns by its heads alone"
    fp32 = "" if pupil.manifest.precision == "fp32" else " --precision fp32"
    return f"--what head, or harmony export --trainable front-end{fp32}"


def teach_heads(
    pupil: Pupil, step: Step, start: Heads, seen: Seen, plan: Plan, *, on_step: OnSteps
) -> tuple[Heads, int]:
    """Both heads, from a row for every class, on what the front end saw of the training images; and all steps."""
    heads, steps, width = [], 0, pupil.training.embedding
    for place, rows in enumerate(start):
        embedding = _filled_up(seen.embeddings[place], width, pupil.bundle)
        lesson = Lesson(embedding.__getitem__, pupil.data.labels[pupil.data.train], pupil.data.own, pupil.classes)
        flat = np.concatenate([_filled_up(rows.weight, width, pupil.bundle).reshape(-1), rows.bias])
        done_before = steps

        def count(done: int, total: int, before: int = done_before) -> None:
            on_step(before + done, len(start) * total)

        learnt, done = learn(step, flat, lesson, plan, pupil.budget, on_step=count)
        weight, bias = np.split(learnt, [pupil.classes * width])
        heads.append(Rows(weight.reshape(-1, width)[:, : rows.weight.shape[1]].copy(), bias))
        steps += done
    return (heads[0], heads[1]), steps


def _filled_up(values: Floats, width: int, where: Path) -> Floats:
    """(n, E) → (n, width). One program trains both heads, whatever they look at: a number that is always zero changes
    no logit, and its weight has no gradient, so that Adam leaves it at zero."""
    missing = width - values.shape[1]
    if missing < 0:
        problem = f"its training program is for {width} numbers, a head looks at {values.shape[1]}"
        raise ContractMismatch(problem, where=where, mend="export the bundle again")
    return np.pad(values, ((0, 0), (0, missing)))


class Learnt(NamedTuple):
    """A front end's weights: every tensor of each exit's file that changed but the heads, and those."""

    tensors: dict[ExitName, dict[str, Floats]]
    heads: Heads
    steps: int


def teach_front_end(
    pupil: Pupil, whole: FrontEndStep, programs: Programs, start: Heads, plan: Plan, *, on_step: OnSteps
) -> Learnt:
    """Everything but the gates, on images."""
    step, parts = whole
    prepare, images = Preprocessor(pupil.manifest.image), pupil.data.images
    chosen = pupil.data.train
    lesson = Lesson(
        lambda at: prepare(images[chosen[at]]), pupil.data.labels[chosen], pupil.data.own, pupil.classes
    )  # one batch at a time: scaled images are four times the size
    heads = _head_tensors(pupil.training, start)
    if not {(name, tensor) for name in EXITS for tensor in heads[name]} <= {(one.exit, one.tensor) for one in parts}:
        raise ContractMismatch("does not train the heads", where=pupil.bundle, mend="export the bundle again")
    begun = [heads[one.exit].get(one.tensor, None) for one in parts]
    values = [programs[one.exit].tensor(one.tensor) if head is None else head
              for one, head in zip(parts, begun, strict=True)]  # fmt: skip
    if [value.size for value in values] != [one.size for one in parts]:
        raise ContractMismatch("trains weights of other sizes", where=pupil.bundle, mend="export the bundle again")
    flat = np.concatenate([value.reshape(-1) for value in values])
    learnt, steps = learn(step, flat, lesson, plan, pupil.budget, on_step=on_step)
    return _taken_apart(pupil.training, parts, values, learnt, steps)


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
