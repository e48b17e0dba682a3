"""A span a batch, over OTLP to a collector of our own; nothing of it where it is not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harmony.cloud.process import RunningService, running_service

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
ClientOf = Callable[[RunningService], "Client"]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What was sent to /v1/traces."""
    bodies: list[bytes] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(body if self.path == "/v1/traces" else b"")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        yield bodies
        server.shutdown()


def test_every_batch_is_a_span(
    collector: list[bytes], bundle: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    feature = features(3)
    with running_service(bundle.folder, "--otel") as service:
        for _ in range(2):
            assert client_of(service).binary(tensor([3, 8, 4, 4], feature.nbytes), feature.tobytes()).status == 200
    found = [
        span
        for body in collector
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in found] == ["harmony.batch"] * 2
    told = {one.key: one.value for one in found[0].attributes}
    assert (told["harmony.model"].string_value, told["harmony.rows"].int_value) == ("backend", 3)
    assert told["harmony.requests"].int_value == 1
    assert 0 < found[0].end_time_unix_nano - found[0].start_time_unix_nano < 10**10


def test_nobody_pays_who_did_not_ask() -> None:
    """FastAPI looks whether OpenTelemetry's interface is installed; what does the work is not loaded."""
    script = (
        "import json, sys; import harmony.cloud.server; work = ('opentelemetry.sdk', 'opentelemetry.exporter'); "
        "print(json.dumps([name for name in sys.modules if name.startswith(work)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
