"""Requests that are due at times which no answer moves, and one device that answers them in their order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.bench.sustained.results import Arrivals

Times = NDArray[np.float64]


def arrivals(kind: Arrivals, rate: float, count: int, seed: int) -> Times:
    """(count,) seconds, ascending, from the beginning. poisson: gaps are drawn; fixed: all gaps are 1 / rate."""
    if kind == "fixed":
        return np.arange(count) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


class Kept(NamedTuple):
    """Seconds of the n requests that were answered, (n,) each: latency from when it was due, service from when the
    device began; late: by how much it began after the request was due and the device free."""

    latency: Times
    service: Times
    late: Times


def keep(
    due: Times,
    answer: Callable[[int], object],
    *,
    give_up_s: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Kept:
    """Answer all, or the first and as many more as begin within `give_up_s`. Between answers the device sleeps, as one
    that waits for its camera does; what it oversleeps is a part of the latency, and is told apart as `late`."""
    began, free = clock(), 0.0
    latency, service, late = [], [], []
    for index, at in enumerate(due.tolist()):
        while (early := at - (clock() - began)) > 0:
            sleep(early)
        start = clock() - began
        if index and start > give_up_s:
            break
        answer(index)
        end = clock() - began
        latency.append(end - at)
        service.append(end - start)
        late.append(start - max(at, free))
        free = end
    return Kept(np.asarray(latency), np.asarray(service), np.asarray(late))
