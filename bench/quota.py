"""A device process that has a share of a CPU for real, where that is faithful; else refused, with the reason.

A quota does not slow a CPU down: it lets a process run at full speed until the quota of the period is used up, and then
wait for the next one. With the kernel's period of 100 ms an answer of some milliseconds is over before the quota: the
median is a third of what a slow CPU would take, and p90, of those that wait, three times that. So a period has to be
short, and an answer long enough to go through several:

    period = max(4 ms, 1 ms / share)      quota = share · period (the kernel takes 1 ms at least)
    work   ≥ 5 ms of CPU time an answer

Shorter answers have virtual time (`harmony bench sweep`), which is faithful at any length.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmony.bench.cgroups import ROOT, Group, new_group
from harmony.bench.child import ask
from harmony.bench.limits_results import CpuRun
from harmony.bench.quota_probe import QuotaJob, QuotaTimes
from harmony.bench.statistics import ratio, summarise
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ConfigError
from harmony.device.engine import EngineChoice

LEAST_WORK_S = 0.005
LEAST_SHARE = 0.001
"""Below, the period would be longer than a second, which is the kernel's longest."""


class Quota(NamedTuple):
    """Microseconds of CPU time in every period."""

    quota_us: int
    period_us: int


def quota_of(share: float) -> Quota:
    """By the rule above. ConfigError for a share that no quota can give."""
    if not LEAST_SHARE <= share < 1:
        mend = f"give a share from {LEAST_SHARE:g} to less than 1 of this CPU"
        raise ConfigError(f"{share:g} of a CPU cannot be had", where="--cpu", mend=mend)
    period_us = round(max(4000.0, 1000 / share))
    return Quota(round(share * period_us), period_us)


def run_with_share(
    bundle: Path, share: float, *, engine: EngineChoice, rounds: int = 5, per_round: int = 8, root: Path = ROOT
) -> CpuRun:
    """Answer one grey image again and again, in turns with the quota and without it.

    ConfigError if an answer is too short for a quota to be faithful, or no quota can be had here; ArtifactError,
    EngineUnavailable.
    """
    quota, manifest = quota_of(share), open_device_bundle(bundle)
    with new_group("cpu", "full", root) as full, new_group("cpu", "held", root) as held:
        held.limit_cpu(*quota)
        times = _measure(bundle, engine, (full, held), rounds=rounds, per_round=per_round)
        throttled = held.throttled()
    work = np.asarray(times.work_s)
    slowest = np.median(np.asarray(times.held_s), axis=1) / (np.median(work, axis=1) / share)
    return CpuRun(
        bundle=str(bundle),
        engine=engine,
        precision=manifest.precision,
        share=share,
        quota_us=quota.quota_us,
        period_us=quota.period_us,
        version=held.version,
        exit=times.exit,
        work=summarise(work.ravel().tolist()),
        full=summarise(np.ravel(times.full_s).tolist()),
        held=summarise(np.ravel(times.held_s).tolist()),
        stretch=ratio(slowest.tolist()),
        throttled=throttled,
    )


def _measure(
    bundle: Path, engine: EngineChoice, groups: tuple[Group, Group], *, rounds: int, per_round: int
) -> QuotaTimes:
    job = QuotaJob(
        bundle=bundle, engine=engine, full=groups[0].members, held=groups[1].members, rounds=rounds,
        per_round=per_round, least_s=LEAST_WORK_S,
    )  # fmt: skip
    times = ask("harmony.bench.quota_probe", job, QuotaTimes, where=bundle)
    if not times.held_s:
        raise ConfigError(
            f"an answer takes {1000 * float(np.median(times.work_s)):.2g} ms of CPU time; a quota is faithful from "
            f"{1000 * LEAST_WORK_S:g} ms on, a shorter one runs at full speed and then stalls",
            where=bundle, mend="slow it down in virtual time: harmony bench sweep",
        )  # fmt: skip
    return times
