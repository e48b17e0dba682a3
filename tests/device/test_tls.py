"""https: the answer of a server that the system trusts, and of one that it does not."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from harmony.core.bundle import DeviceManifest
from harmony.core.errors import CloudTimeout, CloudUnreachable
from harmony.device import FallbackClient

FEATURE = np.ones((2, 4, 4), np.float32)
GOOD = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)


pytestmark = pytest.mark.usefixtures("either_client")


class Service(NamedTuple):
    url: str
    peers: set[object]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here to make a certificate with")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        key,
        "-out",
        chain,
    ]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    return chain, key


@pytest.fixture
def service(certificate: tuple[Path, Path], reply_probabilities: Callable[..., None]) -> Iterator[Service]:
    peers: set[object] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            peers.add(self.client_address)
            self.rfile.read(int(self.headers["Content-Length"]))
            if "slow" in self.path:
                threading.Event().wait(3)
            reply_probabilities(self, GOOD)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that does not trust us hangs up, and that is the point

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Service(f"https://localhost:{server.server_port}", peers)
    server.shutdown()
    server.server_close()


def test_a_trusted_server_is_asked_twice_over_one_connection(
    service: Service, certificate: tuple[Path, Path], manifest: DeviceManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with FallbackClient(service.url, None, manifest=manifest, deadline_s=10) as client:
        first = client.ask(FEATURE)
        assert client.ask(FEATURE) == first
    assert first.label == 4
    assert len(service.peers) == 1


def test_a_server_that_the_system_does_not_trust_gets_nothing(service: Service, manifest: DeviceManifest) -> None:
    with (
        FallbackClient(service.url, None, manifest=manifest, deadline_s=10) as client,
        pytest.raises(CloudUnreachable, match=r"(?i)certificate") as refused,
    ):
        client.ask(FEATURE)
    assert (refused.value.sent, refused.value.received) == (0, 0)


def test_the_deadline_holds_over_tls(
    service: Service, certificate: tuple[Path, Path], manifest: DeviceManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with (
        FallbackClient(f"{service.url}/slow", None, manifest=manifest, deadline_s=0.5) as client,
        pytest.raises(CloudTimeout, match=r"0\.5 s"),
    ):
        client.ask(FEATURE)


def test_the_client_brings_no_asynchronous_machinery() -> None:
    program = "import sys, harmony.device.fallback; sys.exit('asyncio' in sys.modules or 'httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
