"""The whole of it: the user's images in, and the bundle's next version in use, if it is better on held-out images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, ExitName, open_device_bundle, sealed_vectors
from harmony.core.sealed import digest_of, read_signatures
from harmony.core.training import Personal, StepEngine, What
from harmony.device.check import verify
from harmony.device.personal.budget import Budget, peak_bytes
from harmony.device.personal.cloud import CloudJudge
from harmony.device.personal.data import read_data
from harmony.device.personal.front_end import (
    EXITS,
    Eyes,
    Heads,
    Programs,
    Seen,
    all_rows,
    own_rows,
    read_programs,
    training_of,
)
from harmony.device.personal.judge import Drift, Judgement, drift, judge
from harmony.device.personal.learning import OnStep, Plan
from harmony.device.personal.onnx_weights import ExitProgram
from harmony.device.personal.outcome import Cloud, Outcome
from harmony.device.personal.rewrite import rewritten, with_heads, write_version
from harmony.device.personal.teach import Learnt, Pupil, open_head_step, teach_front_end, teach_heads
from harmony.device.personal.versions import Versions, require_bundle, version_of

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


def personalize(
    bundle: Path, data: str, wish: Wish, budget: Budget, on_step: OnStep = lambda what, done, total: None
) -> Outcome:
    """Train on the images in `data` (see `read_data`), and put the result into use if it is better on held-out ones.

    Nothing is changed unless a whole, verified new version is. ConfigError, DataError, InvalidInput, ArtifactError,
    EngineUnavailable, ContractMismatch, Diverged, StorageError.
    """
    started = time.perf_counter()
    require_bundle(bundle)
    versions = Versions(bundle)
    with versions.locked():
        manifest = open_device_bundle(versions.bundle, wish.trust)
        was_signed = read_signatures(versions.bundle) is not None
        training = training_of(manifest, bundle)
        images = read_data(data, manifest.image, manifest.classes, wish.heads.seed)
        pupil = Pupil(versions.bundle, manifest, training, images, budget)
        taught = _teach(pupil, wish, on_step)
        adopted = taught.after.better_than(taught.before)
        now = _adopt(pupil, wish, taught, versions) if adopted else manifest
    names = manifest.classes.names
    return Outcome(
        bundle=bundle, adopted=adopted, version=version_of(now), what=wish.what, engine=wish.engine,
        own_before=tuple(names[label] for label in manifest.classes.own),
        own_after=tuple(names[label] for label in images.own),
        train_images=len(images.train), holdout_images=len(images.holdout),
        before=taught.before.accuracy, after=taught.after.accuracy, exits=now.exits,
        steps=taught.steps, learning_s=taught.seconds, seconds=time.perf_counter() - started, peak_bytes=peak_bytes(),
        moved=taught.moved, moved_others=taught.moved_others, cloud=taught.cloud,
        dropped=tuple(one for one in manifest.engines if one not in now.engines),
        was_signed=was_signed, signed=bool(wish.keys) if adopted else was_signed,
    )  # fmt: skip


def roll_back(bundle: Path, trust: Trust | None = None) -> DeviceManifest:
    """Put the version before the one in use back into use, and remove that one. The manifest of what is in use now.

    ConfigError if there is none before it; ArtifactError if that is not whole, or signed by nobody in `trust`: nothing
    is changed then.
    """
    require_bundle(bundle)
    versions = Versions(bundle)
    with versions.locked():
        return versions.roll_back(trust)


class _Taught(NamedTuple):
    """Everything that was learnt and measured, before anything is written."""

    files: dict[ExitName, bytes]
    before: Judgement
    after: Judgement
    steps: int
    seconds: float
    moved: Drift | None = None
    moved_others: Drift | None = None
    cloud: Cloud | None = None


def _teach(pupil: Pupil, wish: Wish, on_step: OnStep) -> _Taught:
    programs, data, whole = read_programs(pupil.bundle, pupil.manifest), pupil.data, wish.what == "front-end"
    eyes, step = Eyes(programs, pupil.manifest, pupil.training, pupil.bundle), open_head_step(pupil, wish.engine)
    cloud = None if wish.back_end is None else CloudJudge(wish.back_end, pupil.manifest)
    old = eyes.look(data.images, data.holdout, _told(on_step, "held-out images"), features=whole)
    own = pupil.manifest.classes.own
    before = _judge(pupil, old, own_rows(programs, pupil.training), own, recalibrate=False)
    seen = eyes.look(data.images, data.train, _told(on_step, "images"))
    pupil.budget.require_time("looking at the images")
    pupil.budget.require_memory()
    begun, start = time.perf_counter(), all_rows(programs, pupil.manifest, pupil.training)
    heads, steps = teach_heads(pupil, step, start, seen, wish.heads, on_step=_told(on_step, "steps, heads"))
    learnt = Learnt({}, heads, steps)
    if whole:
        learnt = teach_front_end(pupil, programs, heads, wish.front_end, _told(on_step, "steps, front end"))
    seconds, mine = time.perf_counter() - begun, (learnt.heads[0].of(data.own), learnt.heads[1].of(data.own))
    files = rewritten(programs, with_heads(pupil.training, mine, learnt.tensors), len(data.own))
    if not whole:
        after = _judge(pupil, old, mine, data.own, recalibrate=True)
        return _Taught(files, before, after, learnt.steps, seconds)
    new_eyes = Eyes(_parsed(pupil, files), pupil.manifest, pupil.training, pupil.bundle)
    new = new_eyes.look(data.images, data.holdout, _told(on_step, "held-out images"), features=True)
    after = _judge(pupil, new, mine, data.own, recalibrate=True)
    others = sealed_vectors(pupil.bundle, pupil.manifest)["image"]
    return _Taught(
        files, before, after, learnt.steps, seconds,
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


def _adopt(pupil: Pupil, wish: Wish, taught: _Taught, versions: Versions) -> DeviceManifest:
    """Write the next version, check it as anybody would, and put it into use."""
    current = version_of(pupil.manifest)
    manifest = _next_manifest(pupil, wish, taught)
    place = versions.place(current)
    write_version(pupil.bundle, manifest, taught.files, place, others={}, keys=wish.keys)
    verify(place, "onnxruntime")
    versions.adopt(current)
    return manifest


def _next_manifest(pupil: Pupil, wish: Wish, taught: _Taught) -> DeviceManifest:
    old, data = pupil.manifest, pupil.data
    parent = digest_of(pupil.bundle)
    personal = Personal(
        version=version_of(old) + 1,
        parent=parent,
        origin=parent if old.personal is None else old.personal.origin,
        what=wish.what,
        engine=wish.engine,
        train_images=len(data.train),
        holdout_images=len(data.holdout),
        before=taught.before.accuracy,
        after=taught.after.accuracy,
    )
    rows = 2 * (pupil.training.embedding + 1) * (len(data.own) - len(old.classes.own))
    changes = {
        "classes": old.classes.model_copy(update={"own": data.own}),
        "exits": taught.after.exits,
        "held_out": taught.after.held_out if old.held_out is not None else None,
        "engines": {"onnxruntime": old.engines["onnxruntime"]},
        "parameters": old.parameters + rows,
        "personal": personal,
    }
    return old.model_copy(update=changes)
