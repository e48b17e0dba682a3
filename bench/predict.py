"""From measured samples to timings, and from timings to latencies in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harmony.bench.job import Job, Measured, Samples
from harmony.bench.links import Link
from harmony.bench.results import AnswerPath, Conditions, PathTiming, Precision, Prediction, Ratio, Timing
from harmony.bench.statistics import ratio, summarise

REQUEST_HEADERS, ANSWER_HEADERS = 232, 155
"""Bytes of HTTP headers of one exchange between our client and service with a generated key; devices count bodies."""


def to_timing(job: Job, measured: Measured, *, slowdown: float, precision: Precision = "fp32") -> Timing:
    """What a probe measured, summarised. precision: of the bundle that it measured."""
    calibration = "none: times are this host's own" if slowdown == 1 else f"k = {slowdown:g}, given by hand"
    return Timing(
        conditions=Conditions(
            engine=job.engine, precision=precision, regime=job.regime, slowdown=slowdown, calibration=calibration
        ),
        first_answer_s=measured.first_answer_s,
        rounds=job.rounds,
        paths=tuple(_path_timing(path, samples) for path, samples in measured.paths.items()),
        ratio=paired_ratio([one for one in measured.paths.values() if one.bare_s is not None]),
    )


def _path_timing(path: AnswerPath, samples: Samples) -> PathTiming:
    return PathTiming(
        path=path,
        wall=summarise(np.concatenate(samples.wall_s)),
        cpu=summarise(np.concatenate(samples.cpu_s)),
        bare=None if samples.bare_s is None else summarise(np.concatenate(samples.bare_s)),
        ratio=paired_ratio([samples] if samples.bare_s is not None else []),
    )


def paired_ratio(parts: Sequence[Samples]) -> Ratio | None:
    """Device path over bare engine: for every round the median over images of the ratio of neighbours in time."""
    if not parts:
        return None
    rounds = zip(*(zip(part.wall_s, part.bare_s or (), strict=True) for part in parts), strict=True)
    return ratio(
        [float(np.median(np.concatenate([np.divide(wall, bare) for wall, bare in round_]))) for round_ in rounds]
    )


def predict(
    measured: Measured, links: Sequence[Link], *, slowdown: float, request: float, answer: float
) -> tuple[Prediction, ...]:
    """Latencies in virtual time: local answers once, offloaded ones for each link.

    request, answer: bytes of the HTTP bodies of an offload. Waiting for the cloud is what the measured wall clock has
    beyond the thread's CPU time: loopback, queue and back end. It is the cloud's own time and does not grow with the
    device's slowdown.
    """
    request, answer = request + REQUEST_HEADERS, answer + ANSWER_HEADERS
    found = []
    for path, samples in measured.paths.items():
        cpu, wall = np.concatenate(samples.cpu_s), np.concatenate(samples.wall_s)
        if path != "cloud":
            local = summarise(cpu * slowdown)
            found.append(Prediction(path=path, link=None, median_s=local.median, p90_s=local.p90))
            continue
        own = cpu * slowdown + np.maximum(0, wall - cpu)
        for link in links:
            warm, cold = (summarise(own + link.exchange_s(request, answer, cold=cold)) for cold in (False, True))
            found.append(
                Prediction(path=path, link=link.name, median_s=warm.median, p90_s=warm.p90, cold_median_s=cold.median)
            )
    return tuple(found)
