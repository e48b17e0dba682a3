"""What the service counts, over all its workers: Prometheus series with Triton's meanings, the protocol's statistics.

A version of a model has a row of the ledger (see harmony.cloud.ledger); every number of it has a fixed place there.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from harmony.cloud.ledger import Ledger, Shape
from harmony.cloud.refusal import Reason
from harmony.core.bundle import ExitName

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_REASONS: tuple[Reason, ...] = get_args(Reason)
EXITS: tuple[ExitName, ...] = get_args(ExitName)
_LABELS = ("model", "version")
_NOBODY = ("", "")  # labels of what belongs to no model
Numbers = NDArray[np.float64]
_Labels = tuple[str, str]


class _Histogram:
    """Where a histogram lies in a block: a count for each bucket, one for what is above, the sum."""

    def __init__(self, start: int, bounds: tuple[float, ...]) -> None:
        self.start, self.bounds = start, bounds
        self.sum = start + len(bounds) + 1
        self.end = self.sum + 1

    def observe(self, block: memoryview[float], value: float) -> None:
        block[self.start + bisect_left(self.bounds, value)] += 1
        block[self.sum] += value

    def count(self, block: Numbers) -> float:
        return float(block[self.start : self.sum].sum())

    def buckets(self, block: Numbers) -> list[tuple[str, float]]:
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, block[self.start : self.sum].cumsum().tolist(), strict=True))


_SAMPLES, _RECEIVED, _SENT, _WAITING, _LAST, _FAIL_SECONDS, _FAILURES = range(7)
_TOLD = _FAILURES + len(_REASONS)
_REQUEST = _Histogram(_TOLD + len(EXITS), _SECONDS)
_QUEUE = _Histogram(_REQUEST.end, _SECONDS)
_COMPUTE = _Histogram(_QUEUE.end, _SECONDS)
_BATCH_ROWS = _Histogram(_COMPUTE.end, _ROWS)
_BY_ROWS = _BATCH_ROWS.end  # batches and seconds for each number of samples
_COUNTERS: dict[str, tuple[str, Callable[[Numbers], float]]] = {
    "requests": ("Inference requests answered with 200", _REQUEST.count),
    "rows": ("Samples answered", itemgetter(_SAMPLES)),
    "batches": ("Runs of the model", _COMPUTE.count),
    "received_bytes": ("Bytes of inference bodies read, as they came", itemgetter(_RECEIVED)),
    "sent_bytes": ("Bytes of inference answers", itemgetter(_SENT)),
}
_HISTOGRAMS = {
    "request_seconds": ("From the headers to the answer, of what was answered with 200", _REQUEST),
    "queue_seconds": ("From the whole body to the start of its batch", _QUEUE),
    "compute_seconds": ("One batch: decode features and run the model", _COMPUTE),
    "batch_rows": ("Samples in a batch", _BATCH_ROWS),
}


def width_of(max_batch: int) -> int:
    """Numbers of one worker for one version."""
    return _BY_ROWS + 2 * (max_batch + 1)


@dataclass(frozen=True)
class Total:
    """A count and a sum of nanoseconds."""

    count: int = 0
    ns: int = 0

    @classmethod
    def of(cls, count: float, seconds: float) -> Total:
        """From the ledger's numbers."""
        return cls(int(count), int(seconds * 1e9))


@dataclass(frozen=True)
class Counted:
    """What one version has counted. by_rows: runs by their number of samples; told: what devices say that they answered
    themselves, by exit; latency: (upper bound in seconds, requests answered within it)."""

    rows: int
    last_ms: int
    waiting: int
    success: Total
    fail: Total
    queue: Total
    compute: Total
    by_rows: dict[int, Total]
    failures: dict[Reason, int]
    told: dict[ExitName, int]
    latency: tuple[tuple[float, int], ...]


class Tracer(Protocol):
    """Is told of every batch, see harmony.cloud.tracing."""

    def batch(self, model: str, version: str, rows: int, queue_seconds: list[float], compute_seconds: float) -> None:
        """One batch that has just been computed."""

    def close(self) -> None:
        """Say what is left to say."""


class ModelStatistics:
    """What one version counts. Every method but `counted` is for the event loop, and cheap."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self.name, self.version = name, version
        self._row = metrics.ledger.row(f"{name}/{version}")
        self._own = self._row.own
        self._own[_WAITING] = 0  # what a worker that is gone had waiting, waits no more
        self._tracer = metrics.tracer
        metrics.show(self)

    def waiting(self, rows: int) -> None:
        """So many samples wait or are computed."""
        self._own[_WAITING] = rows

    def batch(self, rows: int, queue_seconds: list[float], compute_seconds: float) -> None:
        """One run of the model over `rows` samples of `len(queue_seconds)` requests."""
        own = self._own
        _BATCH_ROWS.observe(own, rows)
        _COMPUTE.observe(own, compute_seconds)
        own[_BY_ROWS + 2 * rows] += 1
        own[_BY_ROWS + 2 * rows + 1] += compute_seconds
        for seconds in queue_seconds:
            _QUEUE.observe(own, seconds)
        if self._tracer is not None:
            self._tracer.batch(self.name, self.version, rows, queue_seconds, compute_seconds)

    def answered(self, rows: int, seconds: float, received: int, sent: int) -> None:
        """One request answered with 200, `seconds` after its headers came."""
        own = self._own
        own[_SAMPLES] += rows
        own[_RECEIVED] += received
        own[_SENT] += sent
        own[_LAST] = time.time()
        _REQUEST.observe(own, seconds)

    def refused(self, reason: Reason, seconds: float = 0.0) -> None:
        """One request for this model that was not served."""
        self._own[_FAILURES + _REASONS.index(reason)] += 1
        self._own[_FAIL_SECONDS] += seconds

    def told(self, exits: tuple[int, ...]) -> None:
        """A device says how many samples it has answered itself since it last said so, at each exit."""
        for place, count in enumerate(exits):
            self._own[_TOLD + place] += count

    def numbers(self) -> Numbers:
        """Every number, added up over the workers; of the time of the last answer, the latest."""
        blocks = self._row.blocks()
        added: Numbers = blocks.sum(axis=0)
        added[_LAST] = blocks[:, _LAST].max()
        return added

    def counted(self) -> Counted:
        """All of it, over the workers."""
        one = self.numbers()
        by_rows = one[_BY_ROWS:].reshape(-1, 2)
        failures = one[_FAILURES : _FAILURES + len(_REASONS)]
        bounds = (*_SECONDS, float("inf"))
        return Counted(
            rows=int(one[_SAMPLES]),
            last_ms=int(one[_LAST] * 1000),
            waiting=int(one[_WAITING]),
            success=Total.of(_REQUEST.count(one), one[_REQUEST.sum]),
            fail=Total.of(failures.sum(), one[_FAIL_SECONDS]),
            queue=Total.of(_QUEUE.count(one), one[_QUEUE.sum]),
            compute=Total.of(_COMPUTE.count(one), one[_COMPUTE.sum]),
            by_rows={rows: Total.of(*pair) for rows, pair in enumerate(by_rows.tolist()) if pair[0]},
            failures={reason: int(count) for reason, count in zip(_REASONS, failures, strict=True) if count},
            told={name: int(one[_TOLD + place]) for place, name in enumerate(EXITS)},
            latency=tuple((bound, int(count)) for bound, (_, count) in zip(bounds, _REQUEST.buckets(one), strict=True)),
        )


class Metrics(Collector):
    """The series of one app, over all its workers. Failures that belong to no model have an empty model label."""

    def __init__(self, ledger: Ledger | None = None, tracer: Tracer | None = None, max_batch: int = 32) -> None:
        """ledger: None for counts of this process alone; tracer: is told of every batch."""
        self.tracer = tracer
        self.ledger = ledger or Ledger(Shape(64, 1, width_of(max_batch)))
        self.known: dict[_Labels, ModelStatistics] = {}
        self._nobodys = ModelStatistics(self, *_NOBODY)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def refused(self, reason: Reason) -> None:
        """Count a request for no model that was not served."""
        self._nobodys.refused(reason)

    def show(self, statistics: ModelStatistics) -> None:
        """Show the series of a version. For any thread, one at a time: `known` is replaced whole, and whoever goes
        through it meanwhile sees the old one."""
        self.known = {**self.known, (statistics.name, statistics.version): statistics}

    def forget(self, model: str, version: str) -> None:
        """Show the series of a version no more."""
        self.known = {labels: one for labels, one in self.known.items() if labels != (model, version)}

    def describe(self) -> list[Metric]:
        """Nothing beforehand: names cannot clash, this is the only collector."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every series, for Prometheus."""
        found = {labels: one.numbers() for labels, one in self.known.items()}
        yield _named(
            found, "failures", "Requests not served, by reason", label="reason", values=_REASONS, place=_FAILURES
        )
        models = {labels: numbers for labels, numbers in found.items() if labels != _NOBODY}
        told = "Samples that devices say they answered themselves"
        yield _named(models, "device_exits", told, label="exit", values=EXITS, place=_TOLD)
        depth = GaugeMetricFamily("harmony_queue_rows", "Samples that wait or are computed", labels=_LABELS)
        for labels, numbers in models.items():
            depth.add_metric(labels, numbers[_WAITING])
        yield depth
        for name, (text, count) in _COUNTERS.items():
            counter = CounterMetricFamily(f"harmony_{name}", text, labels=_LABELS)
            for labels, numbers in models.items():
                counter.add_metric(labels, count(numbers))
            yield counter
        for name, (text, one) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"harmony_{name}", text, labels=_LABELS)
            for labels, numbers in models.items():
                histogram.add_metric(labels, one.buckets(numbers), numbers[one.sum])
            yield histogram


def _named(
    found: Mapping[_Labels, Numbers], name: str, text: str, *, label: str, values: Sequence[str], place: int
) -> Metric:
    """A counter with a further label: one sample for each of its values that has counted something."""
    series = CounterMetricFamily(f"harmony_{name}", text, labels=(*_LABELS, label))
    for labels, numbers in found.items():
        for value, count in zip(values, numbers[place:], strict=False):
            if count:
                series.add_metric((*labels, value), count)
    return series
