"""The whole export: a run folder in, one sealed bundle for each device and one for the cloud out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import CloudManifest, DeviceManifest, Precision, open_cloud_bundle, open_device_bundle
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, open_checkpoint
from harmony.core.config import recorded_config
from harmony.core.data import load
from harmony.core.errors import ArtifactError, ConfigError, RunExists
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import MANIFEST, TAR, hash_file, read_signatures
from harmony.core.signing_keys import SecretKey
from harmony.export.bundles import ENGINE_OF, Source, write_client, write_cloud
from harmony.export.client_images import RunImages
from harmony.export.int8 import MIN_AGREEMENT, Int8, check_agreement, write_int8_client
from harmony.export.lowering import Blueprint, Task, blueprints, tasks_of
from harmony.export.networks import Shape, shape_of
from harmony.export.report import FORMATS, ExportReport, Format, OnEvent, check_formats
from harmony.export.training import (
    Federation,
    Programs,
    Trainable,
    check_trainable,
    training_files,
    training_programs,
)

VECTORS_PER_BUNDLE = 8


def export_run(
    run: Path,
    out: Path,
    *,
    clients: Sequence[int] | None = None,
    formats: Sequence[Format] = FORMATS,
    jobs: int = 1,
    data_dir: Path | None = None,
    noise: bool = False,
    keys: Sequence[SecretKey] = (),
    tar: bool = False,
    trainable: Trainable = "head",
    precision: Precision = "fp32",
    min_agreement: float = MIN_AGREEMENT,
    on_event: OnEvent | None = None,
) -> list[ExportReport]:
    """Export `run` (a run folder, or a checkpoint itself) to OUT/client-KKK and OUT/cloud.

    clients: which ones, all by default. keys: each signs every bundle. tar: OUT/client-KKK.tar and OUT/cloud.tar
    instead of folders. trainable: what devices may make personal (see `harmony.export.training`); that needs the ONNX
    files, so without them nothing is. precision: of front ends; int8, whose heads alone can learn, is quantised for
    each client on its own training images, and refused where it agrees with fp32 on less than the share min_agreement
    of test images of its classes. jobs: processes that lower networks; more than 1 spawns, so a script needs its
    `if __name__ == "__main__"`. Parity is checked on test images of the run's data (found as in training, or in
    data_dir); on seeded noise if asked.

    Each bundle appears whole or not at all, so an export that was interrupted is simply run again: bundles of the same
    checkpoint with the same engines and signatures that are whole are kept. RunExists for any other folder in a
    bundle's place, before anything is written. Also: ArtifactError, DataError, ConfigError, EngineUnavailable,
    ParityFailed.
    """
    source = _open(run)
    chosen = _choose(source, clients)
    formats = check_formats(formats)
    int8 = _int8(source, precision, min_agreement, data_dir, noise=noise)
    learns = check_trainable(trainable, formats, whole=None if int8 is None else "of 8 bits")
    job = _Job(source, formats, out, jobs, tuple(keys), tar, learns, int8)
    kept = {client.index: _kept(job, client.index) for client in chosen}
    kept_cloud = _kept_cloud(job)
    todo = [client for client in chosen if kept[client.index] is None]
    report = _Progress(on_event, todo, formats, cloud=kept_cloud is None)
    found = [one for one in (*kept.values(), kept_cloud) if one is not None]
    if len(found) < len(chosen) + 1:
        images = vector_images(source.manifest, data_dir, noise=noise)
        if kept_cloud is None:
            found.append(write_cloud(source, images, job.place("cloud"), keys=keys))
            report("cloud")
        found += _write_clients(job, images, todo, report)
    return sorted(found, key=lambda one: (one.client is None, one.client))


def vector_images(
    manifest: CheckpointManifest, data_dir: Path | None = None, *, noise: bool = False
) -> NDArray[np.float32]:
    """The test vectors' images (n, C, H, W), scaled: spread over the run's test set, or seeded noise if asked."""
    spec = manifest.image
    if noise:
        values = np.random.default_rng(0).random((VECTORS_PER_BUNDLE, spec.height, spec.width, spec.channels))
        raw = (values * 255).astype(np.uint8) if spec.dtype == "uint8" else values.astype(np.float32)
        return Preprocessor(spec)(raw)
    data = recorded_config(manifest.config, where="the checkpoint's config").data
    folder = data_dir or (Path(data.folder) if data.folder else None)
    images = load(data.name, data_dir=folder).x_test
    spread = np.linspace(0, len(images) - 1, VECTORS_PER_BUNDLE).astype(np.int64)
    return Preprocessor(spec)(images[spread])


class _Progress:
    """Counts what is finished, for whoever watches."""

    def __init__(
        self, on_event: OnEvent | None, todo: Sequence[ClientRecord], formats: Sequence[Format], *, cloud: bool
    ) -> None:
        self._on_event, self._done = on_event, 0
        self._total = len(todo) + cloud + len(tasks_of([shape_of(client) for client in todo], formats))

    def __call__(self, what: str) -> None:
        self._done += 1
        if self._on_event is not None:
            self._on_event(what, self._done, self._total)


class _Job(NamedTuple):
    source: Source
    formats: tuple[Format, ...]
    out: Path
    jobs: int
    keys: tuple[SecretKey, ...]
    tar: bool
    trainable: Trainable
    int8: Int8 | None = None

    @property
    def precision(self) -> Precision:
        return "fp32" if self.int8 is None else "int8"

    def place(self, name: str) -> Path:
        return self.out / (f"{name}{TAR}" if self.tar else name)

    def place_of(self, client: int) -> Path:
        return self.place(f"client-{client:03d}")


def _write_clients(
    job: _Job, images: NDArray[np.float32], todo: Sequence[ClientRecord], report: _Progress
) -> list[ExportReport]:
    """Write a shape's clients as soon as its last format is lowered."""
    ready: dict[Shape, dict[Format, Blueprint]] = {}
    written: list[ExportReport] = []
    tasks = tasks_of([shape_of(client) for client in todo], job.formats)
    for (shape, format_), blueprint in _blueprints(job, tasks):
        report(f"{shape} to {format_}")
        ready.setdefault(shape, {})[format_] = blueprint
        if len(ready[shape]) < len(job.formats):
            continue
        learning = _learning(job, shape, ready[shape])
        for client in [client for client in todo if shape_of(client) == shape]:
            ordered = [ready[shape][one] for one in job.formats]
            place = job.place_of(client.index)
            write = write_client if job.int8 is None else partial(write_int8_client, int8=job.int8)
            written.append(write(job.source, client, ordered, images, place, keys=job.keys, learning=learning))
            report(f"client {client.index}")
    return written


def _blueprints(job: _Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, Blueprint]]:
    """With 8 bits an ExecuTorch program depends on a client's images, so there is none to make for all of a shape."""
    own = [task for task in tasks if job.int8 is not None and task[1] == "executorch"]
    yield from ((task, Blueprint("executorch", None, None)) for task in own)
    yield from blueprints(job.source.manifest, [task for task in tasks if task not in own], job.jobs)


def _int8(
    source: Source, precision: Precision, min_agreement: float, data_dir: Path | None, *, noise: bool
) -> Int8 | None:
    if precision not in get_args(Precision):
        raise ConfigError(f"'{precision}' is no precision", where="--precision", mend="choose fp32 or int8")
    check_agreement(min_agreement)
    if precision == "fp32":
        return None
    if noise:
        problem = "8 bits are calibrated on the run's own images, not on noise"
        raise ConfigError(problem, where="--precision int8", mend="leave --noise away, or choose fp32")
    return Int8(RunImages(source.manifest, data_dir), min_agreement)


def _learning(job: _Job, shape: Shape, ready: Mapping[Format, Blueprint]) -> Programs | None:
    if job.trainable == "none":
        return None
    manifest = job.source.manifest
    federation = Federation(manifest.image, manifest.feature, len(manifest.clients[0].classes.names))
    engines = [ENGINE_OF[one] for one in job.formats]
    return training_programs(federation, shape, ready["onnx"].template, engines, job.trainable)


def _open(run: Path) -> Source:
    folder = run / "checkpoint" if (run / "checkpoint").is_dir() else run
    manifest = open_checkpoint(folder)
    if any(client.own_back_end for client in manifest.clients):
        raise ArtifactError(
            f"its clients ({manifest.method}) have a back end each, and there is no one to serve", where=folder,
            mend="export a run whose method shares the back end, for example harmony or splitgp",
        )  # fmt: skip
    return Source(folder, manifest, hash_file(folder / MANIFEST))


def _choose(source: Source, clients: Sequence[int] | None) -> list[ClientRecord]:
    records = {client.index: client for client in source.manifest.clients}
    if clients is None:
        return list(records.values())
    for index in clients:
        if index not in records:
            raise ConfigError(
                f"client {index} is not in this run", where=source.folder,
                mend=f"choose among {', '.join(map(str, records))}, or all",
            )  # fmt: skip
    return [records[index] for index in dict.fromkeys(clients)]


def _kept(job: _Job, index: int) -> ExportReport | None:
    """The report of a bundle that need not be written again; None if there is nothing; RunExists for anything else."""
    place = job.place_of(index)
    if not place.exists():
        return None
    try:
        manifest: DeviceManifest = open_device_bundle(place)
    except ArtifactError as error:
        raise _foreign(place, f"is in the way and no whole bundle: {error}") from None
    _require_same(place, manifest.checkpoint, job)
    if (manifest.client, set(manifest.engines)) != (index, {ENGINE_OF[one] for one in job.formats}):
        raise _foreign(place, f"holds client {manifest.client} for {', '.join(sorted(manifest.engines))}")
    if manifest.precision != job.precision:
        raise _foreign(place, f"holds {manifest.precision}, not {job.precision}")
    learning = set(manifest.training.files.values()) if manifest.training else set()
    if learning != training_files(job.trainable, [ENGINE_OF[one] for one in job.formats]):
        raise _foreign(place, f"was not exported with --trainable {job.trainable}")
    if manifest.personal is not None:
        raise _foreign(place, "was made personal since it was exported")
    architecture = str(manifest.architecture)
    return ExportReport(place, index, architecture, manifest.parameters, (), kept=True, seconds=0)


def _kept_cloud(job: _Job) -> ExportReport | None:
    place = job.place("cloud")
    if not place.exists():
        return None
    try:
        manifest: CloudManifest = open_cloud_bundle(place)
    except ArtifactError as error:
        raise _foreign(place, f"is in the way and no whole bundle: {error}") from None
    _require_same(place, manifest.checkpoint, job)
    return ExportReport(place, None, None, manifest.parameters, (), kept=True, seconds=0)


def _require_same(place: Path, checkpoint: str | None, job: _Job) -> None:
    if checkpoint != job.source.hash:
        raise _foreign(place, "was exported from another checkpoint")
    signatures = read_signatures(place)
    for key in job.keys:
        made = None if signatures is None else signatures.by.get(key.public.id)
        if signatures is None or made is None or not key.public.verifies(made, signatures.statement):
            raise _foreign(place, f"is not signed by {key.public}", "sign it with 'harmony bundle sign', or")


def _foreign(place: Path, why: str, first: str = "") -> RunExists:
    return RunExists(why, where=place, mend=f"{first} choose another --out, or remove it first".lstrip())
