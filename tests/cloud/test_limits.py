"""Bounds on bytes and time, spoken to over a plain socket."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harmony.cloud.process import RunningService, running_service
from harmony.cloud.server import raise_descriptor_limit
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
ClientOf = Callable[[RunningService], "Client"]
LIMIT = 65536


@contextmanager
def opened(client: Client) -> Iterator[socket.socket]:
    with socket.create_connection((client.host, int(client.port)), timeout=20) as connection:
        yield connection


def head(client: Client, *lines: str, path: str = "/v2/models/backend/infer") -> bytes:
    known = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {client.key}"]
    return "\r\n".join([*known, *lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer on the connection."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = connection.recv(65536)
        assert part, f"closed after {text!r}"
        text += part
    top, _, body = text.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", top.lower())
    assert found is not None
    while len(body) < int(found[1]):
        body += connection.recv(65536)
    return int(top.split()[1]), body


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(client: Client) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, f"Content-Length: {LIMIT + 1}"))
        status, body = read_answer(connection)
    assert status == 413
    assert json.loads(body)["error"] == f"the body is larger than {LIMIT} bytes"


def test_who_sends_it_all_the_same_reads_why_and_may_go_on(client: Client) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, f"Content-Length: {LIMIT * 8}") + bytes(LIMIT * 8))
        assert read_answer(connection)[0] == 413
        connection.sendall(head(client, "Content-Length: 2") + b"{}")
        assert read_answer(connection)[0] == 400


def test_a_chunked_body_is_counted_while_it_comes(client: Client) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, "Transfer-Encoding: chunked"))
        for _ in range(LIMIT // 4096 + 1):
            connection.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")
        assert read_answer(connection)[0] == 413


def test_expect_continue_is_not_invited_to_send_too_much(client: Client) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"))
        assert read_answer(connection)[0] == 413


def test_a_stranger_is_refused_before_the_body_is_sent(client: Client) -> None:
    with opened(client) as connection:
        connection.sendall(b"POST /v2/models/backend/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
        assert read_answer(connection)[0] == 401


@pytest.mark.parametrize("length", ["-5", "12abc", "9" * 40, "5\r\nContent-Length: 6"])
def test_content_length_that_is_none(client: Client, length: str) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, f"Content-Length: {length}"))
        assert read_answer(connection)[0] in (400, 413)


@pytest.mark.parametrize("lines", [["X-Big: " + "a" * 40_000], [f"X-{n}: {'a' * 100}" for n in range(400)]])
def test_headers_are_bounded(client: Client, lines: list[str]) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, *lines))
        status, body = read_answer(connection)
        assert (status, "error" in json.loads(body)) == (400, True)
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "noise", [b"\0\1\2\3\r\n\r\n", b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
)
def test_what_is_not_http(client: Client, noise: bytes) -> None:
    with opened(client) as connection:
        connection.sendall(noise)
        status, body = read_answer(connection)
    assert (status, "error" in json.loads(body)) == (400, True)


def test_pipelined_requests_are_answered_in_order(
    client: Client, bundle: Bundle, features: Features, tensor: Tensor
) -> None:
    sent = [features(1, seed=seed) for seed in range(3)]
    with opened(client) as connection:
        for feature in sent:
            text = json.dumps(tensor([1, 8, 4, 4], 512, parameters={"binary_data_output": False})).encode()
            lengths = (f"Content-Length: {len(text) + 512}", f"Inference-Header-Content-Length: {len(text)}")
            connection.sendall(head(client, *lengths) + text + feature.tobytes())
        stream = connection.makefile("rb")
        for feature in sent:
            assert stream.readline().split()[1] == b"200"
            headers = dict(line.split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
            body = json.loads(stream.read(int(headers[b"content-length"])))
            np.testing.assert_allclose(body["outputs"][0]["data"], bundle.answer(feature)[0], rtol=1e-4, atol=1e-6)


def test_slow_and_silent_connections_do_not_starve_others(client: Client, tensor: Tensor) -> None:
    """Half a request each: some stop inside their headers, some inside their body."""
    slow = [socket.create_connection((client.host, int(client.port))) for _ in range(60)]
    try:
        for number, connection in enumerate(slow):
            whole = head(client, "Content-Length: 1000") + b"{"
            connection.sendall(whole[: 30 if number % 2 else len(whole)])
        assert client.binary(tensor([1, 8, 4, 4], 512), bytes(512)).status == 200
    finally:
        for connection in slow:
            connection.close()


def test_body_seconds_can_be_set(bundle: Bundle, client_of: ClientOf) -> None:
    with running_service(bundle.folder, "--body-seconds", "0.1") as service, opened(client_of(service)) as connection:
        connection.sendall(head(client_of(service), "Content-Length: 1000") + b"x" * 10)
        status, body = read_answer(connection)
        assert (status, b"did not arrive within 0.1 seconds" in body) == (408, True)


def test_a_flood_of_connections_closes_its_own(
    bundle: Bundle, client_of: ClientOf, tensor: Tensor, features: Features
) -> None:
    """Silent ones, ones inside their headers, ones that asked what needs no key; among them one with half a body."""
    text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
    body = text + features(1).tobytes()
    lengths = (f"Content-Length: {len(body)}", f"Inference-Header-Content-Length: {len(text)}")
    sent = (b"", b"GET /v2 HTT", b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    with running_service(bundle.folder, "--max-connections", "32") as service, ExitStack() as stack:
        client = client_of(service)
        honest = stack.enter_context(opened(client))
        honest.sendall(head(client, *lengths) + body[:100])
        flood = [stack.enter_context(opened(client)) for _ in range(40)]
        for wave in range(3):
            for number, connection in enumerate(flood):
                with suppress(ConnectionError):
                    connection.sendall(sent[number % 3])
            flood += [stack.enter_context(opened(client)) for _ in range(40)]
            assert client.infer(body, {"Inference-Header-Content-Length": str(len(text))}).status == 200, wave
        honest.sendall(body[100:])
        assert read_answer(honest)[0] == 200
        open_there = len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
    assert open_there < 32 + 40


def test_more_connections_than_the_system_allows_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(ConfigError, match=r"--max-connections: 1000 connections need 1128 .* \(give at most 896"):
        raise_descriptor_limit(1000)
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    raise_descriptor_limit(500)
    raise_descriptor_limit(100)
    assert made == [(628, 1024)]


def test_a_caller_who_leaves_halfway_is_forgotten(client: Client) -> None:
    with opened(client) as connection:
        connection.sendall(head(client, "Content-Length: 1000") + b"{")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if b'reason="disconnected"' in client.get("/metrics").body:
            return
        time.sleep(0.02)
    pytest.fail("the broken request was never counted")
