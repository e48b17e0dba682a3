"""What holds up a stop, and what does not. The waits here are bounds on a hang, far from what is expected."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harmony.cloud.process import RunningService, running_service

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client

ClientOf = Callable[[RunningService], "Client"]
Make = Callable[[Path], tuple[Path, Path]]


def is_gone(pid: int) -> bool:
    """Whether the process ended; its parent need not have noticed."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def stop_and_wait(service: RunningService) -> None:
    """SIGTERM; fails if the service does not end long before its drain would."""
    os.kill(service.pid, signal.SIGTERM)
    until_gone(service)


def until_gone(service: RunningService) -> None:
    deadline = time.monotonic() + 8
    while not is_gone(service.pid):
        assert time.monotonic() < deadline, "the service does not stop"
        time.sleep(0.01)


def test_who_asks_nothing_holds_nobody_up(bundle: Bundle, client_of: ClientOf) -> None:
    """Idle keep-alive connections, of both paths, and one that never spoke."""
    with running_service(bundle.folder, "--drain-seconds", "600") as service:
        client = client_of(service)
        callers = [http.client.HTTPConnection(client.host, int(client.port), timeout=20) for _ in range(2)]
        for caller, path in zip(callers, ("/v2/health/ready", "/v2/models/backend/infer"), strict=True):
            caller.request("POST", path, b"")
            caller.getresponse().read()
        with socket.create_connection((client.host, int(client.port)), timeout=20) as silent:
            stop_and_wait(service)
            assert silent.recv(1) == b""
        for caller in callers:
            caller.close()


def test_a_request_that_begins_before_the_stop_is_answered_after_it(bundle: Bundle, client_of: ClientOf) -> None:
    """Half a header line is a request under way."""
    with running_service(bundle.folder) as service:
        client = client_of(service)
        with socket.create_connection((client.host, int(client.port)), timeout=20) as caller:
            caller.sendall(b"GET /v2/health/live HTTP/1.1\r\nHo")
            assert client.get("/v2/health/ready").status == 200, "a turn of the loop, which reads the line"
            os.kill(service.pid, signal.SIGTERM)
            time.sleep(0.8)
            caller.sendall(b"st: x\r\n\r\n")
            answer = caller.makefile("rb").read()
        until_gone(service)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_who_does_not_read_is_left(bundle: Bundle, client_of: ClientOf) -> None:
    """A caller that asks on and on, and never reads, has megabytes of answers before it: they end with the drain."""
    with running_service(bundle.folder, "--drain-seconds", "1") as service:
        client = client_of(service)
        request = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n\r\n".encode()
        with socket.create_connection((client.host, int(client.port)), timeout=20) as caller:
            caller.setblocking(False)
            for _ in range(2000):
                try:
                    caller.send(request)
                except BlockingIOError:
                    break
            stop_and_wait(service)


def test_a_connection_that_turns_up_late_is_shown_out(bundle: Bundle, make_certificate: Make, tmp_path: Path) -> None:
    """A handshake that ends after the door closed: nobody asks on that connection, so nobody waits for it."""
    cert, key = make_certificate(tmp_path)
    flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--workers", "2", "--drain-seconds", "600")
    with running_service(bundle.folder, *flags) as service:
        host, port = service.url.removeprefix("https://").split(":")
        trusting = ssl.create_default_context(cafile=str(cert))
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            time.sleep(0.3)  # for the parent, to hand it over
            os.kill(service.pid, signal.SIGTERM)
            time.sleep(0.8)
            with trusting.wrap_socket(plain, server_hostname=host) as caller:
                assert caller.recv(1) == b""
        until_gone(service)
