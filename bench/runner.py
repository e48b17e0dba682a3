"""`bench`: device bundles, each in a process of its own, over one stream; all else follows from what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from harmony.bench.child import ask
from harmony.bench.host import Watch
from harmony.bench.job import IMAGES, KEY_ENV, Job, Measured
from harmony.bench.mixes import Answers, Replay, by_rho
from harmony.bench.plan import Plan, Target, make_plan
from harmony.bench.predict import predict, to_timing
from harmony.bench.replay import replay
from harmony.bench.results import (
    AnswerPath,
    BenchResult,
    BenchSettings,
    BundleResult,
    CodecSize,
    Prediction,
    Regime,
    Timing,
    Wire,
)
from harmony.bench.speed import speed_bars
from harmony.bench.statistics import summarise
from harmony.bench.stream import Cloud, Stream, run_stream
from harmony.cloud.process import running_service
from harmony.core.adaptive import AdaptiveThreshold
from harmony.core.bundle import DeviceManifest, EngineName, sealed_vectors
from harmony.core.spec import Frozen
from harmony.core.wire import CODECS, encode


class BenchEvent(Frozen):
    """Progress: `done` of `total` steps are behind; `step` of `bundle` comes next."""

    step: Literal["stream", "replay", "timing", "speed", "end"]
    bundle: str | None
    done: int
    total: int


OnEvent = Callable[[BenchEvent], None]


def bench(settings: BenchSettings, on_event: OnEvent = lambda event: None) -> BenchResult:
    """Measure all bundles, one after the other. Takes seconds a bundle; nothing is written but temporary files.

    Every named error of bundles, data and service can come out of it, before the first measurement where possible.
    """
    plan, watch = make_plan(settings), Watch()
    with _cloud(settings) as cloud, TemporaryDirectory(prefix="harmony-bench-") as scratch:
        work = _Work(settings, plan, cloud, Path(scratch), on_event)
        bundles = tuple(result for target in plan.targets for result in work.measure(target))
    work.tell("speed")
    speed = speed_bars(bundles)
    work.tell("end")
    return BenchResult(
        harmony_version=version("harmony-sfl"),
        settings=settings,
        host=watch.host(),
        links=plan.links,
        bundles=bundles,
        speed=speed,
    )


@contextmanager
def _cloud(settings: BenchSettings) -> Iterator[Cloud | None]:
    if settings.cloud is not None:
        with running_service(settings.cloud) as service:
            yield Cloud(service.url, service.key)
    else:
        yield Cloud(settings.server, settings.key) if settings.server else None


class _Work:
    """The steps of one bench, in order, with their progress."""

    def __init__(
        self, settings: BenchSettings, plan: Plan, cloud: Cloud | None, scratch: Path, on_event: OnEvent
    ) -> None:
        self._settings, self._plan, self._cloud = settings, plan, cloud
        self._scratch, self._on_event = scratch, on_event
        self._started: set[EngineName] = set()
        each = len(settings.engines) * (1 + len(settings.regimes)) + (plan.cloud is not None)
        self._done, self._total = 0, len(plan.targets) * each + 1

    def tell(self, step: Literal["stream", "replay", "timing", "speed", "end"], bundle: str | None = None) -> None:
        """Announce a step; announcing the next one says that it is done."""
        self._on_event(BenchEvent(step=step, bundle=bundle, done=self._done, total=self._total))
        self._done += 1

    def measure(self, target: Target) -> Iterator[BundleResult]:
        """One result for every engine."""
        images = self._scratch / "images.safetensors"
        save_file({IMAGES: target.images}, images)
        known = self._replay(target)
        for engine in self._settings.engines:
            self.tell("stream", target.name)
            stream = self._stream(target, engine, images)
            jobs = [self._job(target, engine, regime, images, stream) for regime in self._settings.regimes]
            yield self._result(target, engine, stream, known, [(job, self._time(target, job)) for job in jobs])

    def _stream(self, target: Target, engine: EngineName, images: Path) -> Stream:
        """Every image, in a process of its own. An engine's first start compiles Python sources, and is not counted."""
        deadline_s, cloud = self._settings.deadline_s, self._cloud
        if engine not in self._started:
            run_stream(target.folder, images, engine=engine, cloud=cloud, deadline_s=deadline_s, limit=1)
            self._started.add(engine)
        return run_stream(target.folder, images, engine=engine, cloud=cloud, deadline_s=deadline_s)

    def _replay(self, target: Target) -> Replay | None:
        if self._plan.cloud is None or self._settings.cloud is None or "onnxruntime" not in target.manifest.engines:
            return None
        self.tell("replay", target.name)
        return replay(target, self._settings.cloud, self._plan.cloud)

    def _job(self, target: Target, engine: EngineName, regime: Regime, images: Path, stream: Stream) -> Job:
        kept = ~stream.degraded
        taken: dict[AnswerPath, tuple[int, ...]] = {}
        for path in ("exit1", "exit2", "cloud"):
            rows = np.flatnonzero((stream.exits == path) & kept)[: self._settings.per_path]
            if len(rows):
                taken[path] = tuple(map(int, rows))
        return Job(
            bundle=target.folder,
            engine=engine,
            images=images,
            paths=taken,
            server=self._cloud.url if self._cloud else None,
            deadline_s=self._settings.deadline_s,
            rounds=self._settings.rounds,
            regime=regime,
        )

    def _time(self, target: Target, job: Job) -> Measured:
        self.tell("timing", target.name)
        secret = {KEY_ENV: self._cloud.key} if self._cloud and self._cloud.key else {}
        return ask("harmony.bench.probe", job, Measured, where=target.folder, environment=secret)

    def _result(
        self,
        target: Target,
        engine: EngineName,
        stream: Stream,
        known: Replay | None,
        measured: list[tuple[Job, Measured]],
    ) -> BundleResult:
        manifest, settings = target.manifest, self._settings
        wire = _wire(target, stream)
        timings = tuple(
            to_timing(job, one, slowdown=settings.slowdown, precision=manifest.precision) for job, one in measured
        )
        return BundleResult(
            name=target.name,
            run=manifest.run,
            method=manifest.method,
            client=manifest.client,
            architecture=str(manifest.architecture),
            parameters=manifest.parameters,
            dataset=target.dataset.name,
            own_classes=tuple(manifest.classes.names[label] for label in manifest.classes.own),
            engine=engine,
            file_bytes={
                name: sum(manifest.files[file].size for file in roles.values())
                for name, roles in manifest.engines.items()
            },
            mixes=by_rho(
                target.stream,
                _answers(target, stream, known),
                labels=target.dataset.y_test,
                own=manifest.classes.own,
                rhos=settings.rhos,
                seed=settings.seed,
                follow=_follow(manifest),
            ),
            process=stream.process,
            wire=wire,
            timings=timings,
            predictions=self._predictions(measured, timings, wire),
        )

    def _predictions(
        self, measured: list[tuple[Job, Measured]], timings: tuple[Timing, ...], wire: Wire
    ) -> tuple[Prediction, ...]:
        """Of the hot regime; that of another one is not comparable."""
        hot = [one for job, one in measured if job.regime == "hot"]
        request, answer = (part.median if part else 0.0 for part in (wire.request, wire.answer))
        links, slowdown = self._plan.links, self._settings.slowdown
        return tuple(
            one for part in hot for one in predict(part, links, slowdown=slowdown, request=request, answer=answer)
        )


def _answers(target: Target, stream: Stream, known: Replay | None) -> Answers:
    return Answers(
        truth=target.truth,
        is_id=target.stream.is_id,
        exits=stream.exits,
        label=stream.label,
        local=stream.local,
        unsure=stream.unsure,
        degraded=stream.degraded,
        replay=known,
        surety=stream.surety,
    )


def _follow(manifest: DeviceManifest) -> Callable[[], AdaptiveThreshold] | None:
    held_out = manifest.held_out
    return None if held_out is None else partial(AdaptiveThreshold, held_out, manifest.exits[1].threshold)


def _wire(target: Target, stream: Stream) -> Wire:
    features = sealed_vectors(target.folder, target.manifest)["feature"]
    sent = stream.exits == "cloud"
    return Wire(
        codec=target.manifest.fallback.codec,
        request=summarise(stream.bytes_sent[sent]) if sent.any() else None,
        answer=summarise(stream.bytes_received[sent]) if sent.any() else None,
        codecs=tuple(
            CodecSize(codec=codec, frame_bytes=int(np.median([len(encode(one, codec)) for one in features])))
            for codec in CODECS
        ),
        image_bytes=int(target.images[0].nbytes),
    )
