"""What the service counts: Prometheus series with Triton's meanings, one registry an app."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from harmony.cloud.refusal import Reason

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")


class Metrics:
    """The series of one app. Failures that belong to no model have an empty model label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Inference requests answered with 200")
        self.rows = self._counter("rows", "Samples answered")
        self.failures = self._counter("failures", "Requests not served, by reason", "reason")
        self.batches = self._counter("batches", "Runs of the model")
        self.received = self._counter("received_bytes", "Bytes of inference bodies read, as they came")
        self.sent = self._counter("sent_bytes", "Bytes of inference answers")
        self.queue = self._histogram("queue_seconds", "From the whole body to the start of its batch", _SECONDS)
        self.compute = self._histogram("compute_seconds", "One batch: decode features and run the model", _SECONDS)
        self.batch_rows = self._histogram("batch_rows", "Samples in a batch", _ROWS)
        self.depth = Gauge("harmony_queue_rows", "Samples that wait or are computed", _MODEL, registry=self.registry)

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(f"harmony_{name}", text, (*_MODEL, *more), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"harmony_{name}", text, _MODEL, buckets=buckets, registry=self.registry)

    def forget(self, model: str, version: str) -> None:
        """Drop the series of a version that is served no more."""
        for one in vars(self).values():
            if isinstance(one, MetricWrapperBase):
                one.remove_by_labels({"model": model, "version": version})

    def refused(self, reason: Reason, model: str = "", version: str = "") -> None:
        """Count a request that was not served."""
        self.failures.labels(model, version, reason).inc()


@dataclass
class Total:
    """A count and a sum of nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` events that took `seconds` together."""
        self.count += count
        self.ns += int(seconds * 1e9)


@dataclass
class ModelStatistics:
    """What `/v2/models/{m}/stats` tells of one model, and the same for Prometheus."""

    metrics: Metrics
    name: str
    version: str
    rows: int = 0
    last_ms: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute: Total = field(default_factory=Total)
    by_rows: dict[int, Total] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Finding a labelled child costs more than counting in it.
        labels, metrics = (self.name, self.version), self.metrics
        self._requests, self._rows = metrics.requests.labels(*labels), metrics.rows.labels(*labels)
        self._batches, self._batch_rows = metrics.batches.labels(*labels), metrics.batch_rows.labels(*labels)
        self._received, self._sent = metrics.received.labels(*labels), metrics.sent.labels(*labels)
        self._queue, self._compute = metrics.queue.labels(*labels), metrics.compute.labels(*labels)
        self.depth = metrics.depth.labels(*labels)

    def batch(self, rows: int, queue_seconds: list[float], compute_seconds: float) -> None:
        """One run of the model over `rows` samples of `len(queue_seconds)` requests."""
        self._batches.inc()
        self._batch_rows.observe(rows)
        self._compute.observe(compute_seconds)
        self.compute.add(compute_seconds)
        self.by_rows.setdefault(rows, Total()).add(compute_seconds)
        for seconds in queue_seconds:
            self._queue.observe(seconds)
        self.queue.add(sum(queue_seconds), len(queue_seconds))

    def answered(self, rows: int, seconds: float, received: int, sent: int) -> None:
        """One request answered with 200, `seconds` after its headers came."""
        self._requests.inc()
        self._rows.inc(rows)
        self._received.inc(received)
        self._sent.inc(sent)
        self.rows += rows
        self.last_ms = int(time.time() * 1000)
        self.success.add(seconds)

    def refused(self, reason: Reason, seconds: float) -> None:
        """One request for this model that was not served."""
        self.metrics.refused(reason, self.name, self.version)
        self.fail.add(seconds)
