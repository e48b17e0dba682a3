"""A span a batch, to whatever speaks OTLP: `harmony serve --otel`. Loaded when it is asked for, and only then.

Where the spans go stands in OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT and its like). A
span costs about 50 µs, which is why there is none for a request.
"""

from __future__ import annotations

import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

_LAST_SPANS_MS = 1000


class BatchTracer:
    """Says of every batch which model ran, for how many requests and samples, and how long they had waited."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """exporter: None for OTLP over HTTP, as the environment says."""
        self._provider = TracerProvider(resource=Resource.create({"service.name": "harmony"}))
        self._processor = BatchSpanProcessor(exporter or OTLPSpanExporter())
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("harmony.cloud")

    def batch(self, model: str, version: str, rows: int, queue_seconds: list[float], compute_seconds: float) -> None:
        """One batch that has just been computed."""
        end = time.time_ns()
        attributes: dict[str, str | int | float] = {
            "harmony.model": model,
            "harmony.version": version,
            "harmony.rows": rows,
            "harmony.requests": len(queue_seconds),
            "harmony.longest_wait_seconds": max(queue_seconds, default=0.0),
        }
        start = end - int(compute_seconds * 1e9)
        self._tracer.start_span("harmony.batch", attributes=attributes, start_time=start).end(end)

    def close(self) -> None:
        """Send what is left, within a second."""
        self._processor.force_flush(_LAST_SPANS_MS)
