"""`python -m harmony.bench.sustained.probe JOB OUT`: a device process under load. No torch but with engine executorch.

It first finds how long an answer takes, call after call and with pauses: rates that nobody named follow from that.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.numpy import load_file

from harmony.bench.child import reply
from harmony.bench.job import IMAGES
from harmony.bench.probe import SPARSE_PAUSE_S, WARM_UP
from harmony.bench.results import AnswerPath, Conditions, Regime
from harmony.bench.statistics import summarise
from harmony.bench.sustained.results import (
    FILES_OF,
    MOST,
    SCENARIOS,
    LoadGenRun,
    ScheduledRun,
    SustainedSettings,
    regime_of,
)
from harmony.bench.sustained.schedule import arrivals, keep
from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.spec import Frozen
from harmony.device import Device, open_engine

_LOOKS = 40
_SPARSE_SHARE = 0.2
"""Of its time that a device is busy with at most, for its load to be sparse."""
_PATIENCE = 3
"""A run is given up after so many times its schedule."""


class SustainedJob(Frozen):
    """images: a safetensors file."""

    settings: SustainedSettings
    images: Path


class SustainedRuns(Frozen):
    """What a probe writes."""

    scheduled: tuple[ScheduledRun, ...] = ()
    loadgen: tuple[LoadGenRun, ...] = ()


class _Subject:
    """The device and its images, in turn or by place."""

    def __init__(self, settings: SustainedSettings, manifest: DeviceManifest, images: Any) -> None:
        self.images = images
        self._device = Device(manifest, open_engine(settings.bundle, manifest, settings.engine))
        self.exits: Counter[AnswerPath] = Counter()
        for index in range(WARM_UP):
            self.answer(index)

    def answer(self, index: int) -> None:
        """Answer one image, and note where it left."""
        self.exits[self._device.answer(self.images[index % len(self.images)]).exit] += 1

    def service_s(self, pause_s: float) -> float:
        """Median wall clock of an answer after pauses."""
        found = []
        for index in range(_LOOKS):
            time.sleep(pause_s)
            started = time.perf_counter()
            self.answer(index)
            found.append(time.perf_counter() - started)
        return median(found)


def run(job: SustainedJob) -> SustainedRuns:
    """The errors of opening and answering."""
    settings, manifest = job.settings, open_device_bundle(job.settings.bundle)
    subject = _Subject(settings, manifest, load_file(job.images)[IMAGES])
    hot_s, sparse_s = subject.service_s(0.0), subject.service_s(SPARSE_PAUSE_S)
    slow = min(1 / (sparse_s + SPARSE_PAUSE_S), _SPARSE_SHARE / sparse_s)
    rates = [settings.utilisation / hot_s, slow] if settings.rate is None else [settings.rate]

    def conditions(regime: Regime) -> Conditions:
        return Conditions(engine=FILES_OF[settings.engine], precision=manifest.precision, regime=regime)

    if settings.generator == "loadgen":
        server = conditions(regime_of(rates[0], slow))
        return SustainedRuns(loadgen=_by_loadgen(settings, subject, rates[0], (conditions("hot"), server)))
    return SustainedRuns(
        scheduled=tuple(_scheduled(settings, subject, rate, conditions(regime_of(rate, slow))) for rate in rates)
    )


def _scheduled(settings: SustainedSettings, subject: _Subject, rate: float, conditions: Conditions) -> ScheduledRun:
    count = min(MOST, max(settings.requests, round(settings.seconds * rate)))
    due = arrivals(settings.arrivals, rate, count, settings.seed)
    subject.exits.clear()
    kept = keep(due, subject.answer, give_up_s=_PATIENCE * max(settings.seconds, float(due[-1])))
    answered, service = len(kept.latency), summarise(kept.service.tolist())
    return ScheduledRun(
        conditions=conditions,
        arrivals=settings.arrivals,
        rate=rate,
        utilisation=rate * service.median,
        latency=summarise(kept.latency.tolist()),
        service=service,
        late=summarise(kept.late.tolist()),
        exits={name: number / answered for name, number in sorted(subject.exits.items())},
        unanswered=count - answered,
    )


def _by_loadgen(
    settings: SustainedSettings, subject: _Subject, rate: float, conditions: tuple[Conditions, Conditions]
) -> tuple[LoadGenRun, ...]:
    """conditions: of SingleStream and of Server."""
    from harmony.bench.sustained.loadgen import Ask, run_loadgen  # noqa: PLC0415  (an extra of its own)

    found = []
    for scenario, holds in zip(SCENARIOS, conditions, strict=True):
        asked = Ask(
            scenario, rate, settings.seconds, settings.requests, settings.target_s, len(subject.images), settings.seed
        )
        fields = run_loadgen(asked, subject.answer)
        asked_rate = rate if scenario == "Server" else None
        found.append(LoadGenRun(conditions=holds, scenario=scenario, rate=asked_rate, **fields))
    return tuple(found)


if __name__ == "__main__":
    sys.exit(reply(SustainedJob, run))
