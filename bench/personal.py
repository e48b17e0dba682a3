"""What learning on the device costs, and what it brings: steps by engine, memory, accuracy, and the cloud's loss.

Everything that is timed runs in device processes without torch (`harmony.bench.personal_child`): one times the steps of
every way in turns, and then each way makes fresh copies of the bundle personal, one a round, in turns. CPU time counts.
A front end that learns moves its features; so the back end is asked before and after for test images of the user's
classes, and of all others, which are those that are sent to it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from harmony.bench.child import ask
from harmony.bench.host import Watch
from harmony.bench.personal_child import Job, Learnt, Readings, Way
from harmony.bench.personal_results import CloudCost, Learning, PersonalBench, PersonalSettings, StepCost
from harmony.bench.statistics import summarise
from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.data import Dataset, load
from harmony.core.errors import ConfigError, EngineUnavailable
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import TAR, digest_of
from harmony.core.spec import ClassMap, Frozen
from harmony.core.training import StepEngine
from harmony.device.engine import open_engine
from harmony.device.native_build import ensure_native
from harmony.device.personal.cloud import CloudJudge
from harmony.device.personal.data import read_data
from harmony.device.personal.front_end import training_of

CHILD = "harmony.bench.personal_child"
MOST_TEST_IMAGES = 1000
OnTurn = Callable[[str, int, int], None]
"""(what is done, turns done, of how many)."""
FrozenT = TypeVar("FrozenT", bound=Frozen)


class _Bench(NamedTuple):
    """Where copies of the bundle go, and the images that they learn from."""

    settings: PersonalSettings
    manifest: DeviceManifest
    data: str
    work: Path


def bench_personal(settings: PersonalSettings, on_turn: OnTurn = lambda what, done, total: None) -> PersonalBench:
    """Measure one bundle. Errors of `harmony.device.personal.personalize`, EngineError if a device process fails."""
    watch, bundle = Watch(), settings.bundle
    manifest = open_device_bundle(bundle)
    ways, skipped = _ways(manifest, bundle)
    with tempfile.TemporaryDirectory(prefix="harmony-bench-personal-") as folder:
        work = Path(folder)
        data = settings.data or _written(settings, manifest, work / "images.npz")
        read_data(data, manifest.image, manifest.classes, settings.seed)  # what is wrong with it is said at once
        bench = _Bench(settings, manifest, data, work)
        total = 1 + len(ways) * settings.rounds
        on_turn("steps", 0, total)
        readings = _child(bench, bundle, ways, Readings, rounds=settings.rounds)
        found: list[list[Learnt]] = [[] for _ in ways]
        clouds: list[CloudCost | None] = [None for _ in ways]
        for index in range(settings.rounds):
            for turn in range(len(ways)):
                at = (turn + index) % len(ways)
                on_turn(str(ways[at]), 1 + index * len(ways) + turn, total)
                copy = _copy(bundle, work)
                found[at].append(_child(bench, copy, (ways[at],), Learnt))
                if index == 0 and ways[at].what == "front-end":
                    clouds[at] = _cloud(bench, copy)
    return PersonalBench(
        settings=settings, digest=digest_of(bundle), architecture=str(manifest.architecture),
        parameters=manifest.parameters, own_before=tuple(manifest.classes.names[one] for one in manifest.classes.own),
        own_after=found[0][0].own,
        steps=tuple(StepCost(way=way, cpu_ms=summarise(ms)) for way, ms in zip(ways, readings.cpu_ms, strict=True)),
        learning=tuple(_summed(*one) for one in zip(ways, found, clouds, strict=True)),
        skipped=skipped, host=watch.host(),
    )  # fmt: skip


def _ways(manifest: DeviceManifest, bundle: Path) -> tuple[tuple[Way, ...], dict[str, str]]:
    """The ways that the bundle allows here, and why others are not gone."""
    training, ways, skipped = training_of(manifest, bundle), [], {}
    for engine in get_args(StepEngine):
        reason = None if engine in training.head else "the bundle has no training program for it"
        if reason is None and engine == "executorch":
            reason = _without_native()
        if reason is None:
            ways.append(Way(what="head", engine=engine))
        else:
            skipped[f"head, {engine}"] = reason
    if training.front_end is None:
        skipped["front-end, onnxruntime"] = "the bundle was not exported with --trainable front-end"
    else:
        ways.append(Way(what="front-end", engine="onnxruntime"))
    if not ways:
        raise EngineUnavailable(f"cannot learn here: {'; '.join(skipped.values())}", where=bundle)
    return tuple(ways), skipped


def _without_native() -> str | None:
    try:
        ensure_native()
    except EngineUnavailable as error:
        return str(error)
    return None


def _written(settings: PersonalSettings, manifest: DeviceManifest, path: Path) -> str:
    """An .npz of training images of the chosen classes: those of the bundle's data set."""
    data = _dataset(settings, manifest)
    own = manifest.classes.own
    others = [label for label in range(len(data.class_names)) if label not in own]
    labels = [*own[len(own) // 2 :], *others[: len(own) // 2]]
    if settings.classes is not None:
        labels = [_label(name, manifest.classes) for name in settings.classes]
    parts = []
    for place, label in enumerate(labels):
        images = data.x_train[data.y_train == label][: settings.images]
        parts.append((images, np.full(len(images), place)))
    x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = np.asarray([data.class_names[label] for label in labels])
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, class_names=names)  # nobody reads the test part
    return str(path)


def _label(name: str, classes: ClassMap) -> int:
    if name in classes.names:
        return classes.names.index(name)
    if name.isascii() and name.isdigit() and int(name) < len(classes.names):
        return int(name)
    raise ConfigError(f"there is no class '{name}'", where="--classes", mend=f"of {', '.join(classes.names)[:300]}")


def _dataset(settings: PersonalSettings, manifest: DeviceManifest) -> Dataset:
    data = load(manifest.dataset, data_dir=settings.data_dir)
    if data.class_names != manifest.classes.names:
        problem = f"its classes are not those of {settings.bundle}"
        raise ConfigError(problem, where=manifest.dataset, mend="name the images with --data")
    return data


def _copy(bundle: Path, work: Path) -> Path:
    """A fresh copy, in a folder of its own: versions are kept beside a bundle."""
    place = Path(tempfile.mkdtemp(dir=work)) / f"bundle{TAR if bundle.suffix == TAR else ''}"
    if bundle.is_dir():
        shutil.copytree(bundle, place)
    else:
        shutil.copyfile(bundle, place)
    return place


def _child(
    bench: _Bench, bundle: Path, ways: tuple[Way, ...], kind: type[FrozenT], *, rounds: int | None = None
) -> FrozenT:
    job = Job(bundle=bundle, data=bench.data, ways=ways, seed=bench.settings.seed, rounds=rounds)
    return ask(CHILD, job, kind, where=bench.settings.bundle)


def _cloud(bench: _Bench, changed: Path) -> CloudCost | None:
    """What the back end says of test images, by the features of the bundle, and of the changed copy."""
    settings, now = bench.settings, open_device_bundle(changed)
    if settings.back_end is None or now.personal is None:
        return None
    data = _dataset(settings, bench.manifest)
    chosen = np.linspace(0, len(data.x_test) - 1, min(len(data.x_test), MOST_TEST_IMAGES)).astype(np.int64)
    labels, images = data.y_test[chosen], data.x_test[chosen]
    mine, judge = np.isin(labels, now.classes.own), CloudJudge(settings.back_end, bench.manifest)
    before, after = (_features(one, images) for one in (settings.bundle, changed))
    found = [
        judge.accuracy(features[part], labels[part]) if part.any() else 0.0
        for part in (mine, ~mine)
        for features in (before, after)
    ]
    return CloudCost(own_before=found[0], own_after=found[1], other_before=found[2], other_after=found[3])


def _features(bundle: Path, images: NDArray[np.generic]) -> NDArray[np.float32]:
    """(n, *FeatureSpec.shape) of images (n, H, W, C), unscaled."""
    manifest = open_device_bundle(bundle)
    engine, scale = open_engine(bundle, manifest), Preprocessor(manifest.image)
    return np.concatenate([engine.exit2(engine.exit1(scale(image[None]))[0])[0].copy() for image in images])


def _summed(way: Way, runs: Sequence[Learnt], cloud: CloudCost | None) -> Learning:
    first = runs[0]
    return Learning(
        way=way, cpu_s=summarise([one.cpu_s for one in runs]), peak_bytes=summarise([one.peak_bytes for one in runs]),
        steps=first.steps, adopted=first.adopted, before=first.before, after=first.after, cloud=cloud,
        dropped=first.dropped,
    )  # fmt: skip
