"""Whoever can open a connection, key or none: every attack ends with an answer or a closed door, within bounds.

What is sent wrongly by mistake is in test_bad_input; docs/serving-attacks.md says which test shows what.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harmony.cloud import connection, waiting
from harmony.cloud.logs import JsonLines
from harmony.cloud.models import find_bundles
from harmony.cloud.process import RunningService, running_service
from harmony.core.errors import ArtifactMissing

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Inside

Run = Callable[..., None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
BODY = json.dumps(
    {"inputs": [{"name": "feature", "datatype": "FP32", "shape": [1, 8, 4, 4], "data": [0.5] * 128}]}
).encode()
HEAD = b"POST /v2/models/backend/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)
NEXT = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HANG = 20.0
"""Seconds: a bound on a hang, far from what is expected."""


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes], bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANG)
    first, *lines = head.rstrip().split(b"\r\n")
    headers = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers[b"content-length"]))


def most_memory(service: RunningService) -> int:
    """Bytes that it ever held."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{service.pid}/status").read_text())[0]) << 10


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG):
        while not true():
            await asyncio.sleep(0.01)


def test_a_full_queue_is_said_before_the_body_is_sent(inside: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading what is refused anyway is what an overload lives on. The late body is thrown away."""

    async def work(service: Inside) -> None:
        reader, writer = await service.connect()
        with monkeypatch.context() as patch:
            patch.setattr(service.lane.batcher, "expected_wait", lambda: 9.0)
            writer.write(HEAD)
            status, headers, body = await answer_of(reader)
        assert (status, int(headers[b"retry-after"]) >= 9) == (503, True)
        assert b"queue of 'backend' is full" in body
        assert service.app.service.inflight_bytes == 0
        assert service.lane.statistics.counted().success.count == 0
        writer.write(BODY + HEAD + BODY)
        assert (await answer_of(reader))[0] == 200

    inside(work)


def test_a_crowd_outside_is_bounded(inside: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One waits, with its body unread; the next is told and its connection closed, so that it cannot ask at once."""
    monkeypatch.setattr(waiting, "MAX_GUESTS", 1)
    monkeypatch.setattr(waiting, "SHORT_WAIT_SECONDS", 60.0)

    async def work(service: Inside) -> None:
        first, second = await service.connect(), await service.connect()
        with monkeypatch.context() as patch:
            patch.setattr(service.lane.batcher, "expected_wait", lambda: 99.0)
            first[1].write(HEAD + BODY)
            await until(lambda: service.app.service.waiting.is_full)
            second[1].write(HEAD)
            status, headers, _ = await answer_of(second[0])
            assert (status, headers[b"connection"]) == (503, b"close")
            assert await asyncio.wait_for(second[0].read(), HANG) == b""
        assert (await answer_of(first[0]))[0] == 200

    inside(work, queue_seconds=60)


async def drip(writer: asyncio.StreamWriter, byte: bytes) -> None:
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(byte)
            await writer.drain()
            await asyncio.sleep(0.01)


def test_a_byte_now_and_then_buys_no_time(inside: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow-loris, in the headers and in the body: the clock runs from their start, whatever comes."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)

    async def work(service: Inside) -> None:
        for start, expected in ((b"POST /v2 HTTP/1.1\r\nX: ", None), (HEAD, 408)):
            reader, writer = await service.connect()
            writer.write(start)
            dripping = asyncio.create_task(drip(writer, b" "))
            if expected is not None:
                assert (await answer_of(reader))[0] == expected
            else:
                with suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), HANG) == b""
            dripping.cancel()

    inside(work, body_seconds=0.3)


def test_callers_who_fell_silent_are_forgotten(inside: Run) -> None:
    """Half-open: the caller is gone, and nothing came to say so. After an answer by either way, and a refusal."""

    async def work(service: Inside) -> None:
        service.config.timeout_keep_alive = 1
        for sent, status in ((HEAD + BODY, 200), (HEAD.replace(b"backend", b"nobody"), 404), (NEXT, 200)):
            reader, writer = await service.connect()
            writer.write(sent)
            assert (await answer_of(reader))[0] == status
            assert await asyncio.wait_for(reader.read(), HANG) == b""

    inside(work)


def test_answers_that_nobody_reads_stop_the_questions(inside: Run) -> None:
    """Requests on one connection whose answers are not read: they are answered when they are."""
    many = 1000  # more than twice what both sides' buffers hold, whatever the system makes of the sizes asked for

    async def work(service: Inside) -> None:
        reader, writer = await service.connect()
        caller = writer.get_extra_info("socket")
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader._limit = 1024  # type: ignore[attr-defined]  # how much asyncio reads ahead
        writer.write((HEAD + BODY) * many)
        counted = service.lane.statistics.counted
        seen = -1
        while (now := counted().success.count) != seen:
            seen = now
            await asyncio.sleep(0.5)
        assert 0 < seen < many / 2
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        statuses = [(await answer_of(reader))[0] for _ in range(many)]
        assert statuses == [200] * many

    inside(work)


def test_a_question_behind_unread_refusals_is_heard_to_its_end(inside: Run) -> None:
    """Refusals that nobody reads stop the reading, in the middle of the next body; who reads them goes on."""
    many, wrong = 700, b"POST /v2/models/nobody/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

    async def work(service: Inside) -> None:
        reader, writer = await service.connect()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(wrong * many + HEAD + BODY[:50])  # one packet
        await asyncio.sleep(0.2)
        writer.write(BODY[50:])
        statuses = [(await answer_of(reader))[0] for _ in range(many + 1)]
        assert statuses == [404] * many + [200]

    inside(work)


def test_bombs_take_no_memory(service: RunningService, client: Client) -> None:
    """60 bodies that each would grow a thousandfold, to 60 MB."""

    bomb = gzip.compress(bytes(60 << 20))
    assert len(bomb) < 65536
    assert client.infer(bomb, {"Content-Encoding": "gzip"}).status == 413
    before = most_memory(service)
    for _ in range(60):
        assert client.infer(bomb, {"Content-Encoding": "gzip"}).status == 413
    assert most_memory(service) - before < 16 << 20


def test_a_body_in_crumbs_takes_the_memory_of_its_bytes(bundle: Bundle) -> None:
    """A megabyte in chunks of two bytes: kept one by one, they would take twenty times as much."""
    with running_service(bundle.folder) as service:
        host, port = service.url.removeprefix("http://").split(":")
        lines = f"POST /v2/models/backend/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        before = most_memory(service)
        with socket.create_connection((host, int(port)), timeout=60) as caller:
            caller.sendall(lines.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(64):
                caller.sendall(b"2\r\nxx\r\n" * 8192)
            caller.sendall(b"0\r\n\r\n")
            assert caller.makefile("rb").readline().startswith(b"HTTP/1.1 400 ")
        assert most_memory(service) - before < 12 << 20


SMUGGLED = {
    "both lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 0\r\n\r\n",
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "a space before the colon": b"Content-Length : 0\r\n\r\n",
    "a coding that is not chunked": b"Transfer-Encoding: gzip\r\n\r\n",
    "chunked twice over": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a chunk without end": b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a line feed alone": b"X: a\nContent-Length: 0\r\n\r\n",
    "trailers without end": b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-Trailer: y\r\n" * 4000,
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_a_request_is_not_hidden_in_another(client: Client, case: str) -> None:
    """Where two readers of HTTP could disagree on where a request ends, it is refused, and what follows is not read."""
    head = f"POST /v2/models/backend/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n".encode()
    with socket.create_connection((client.host, int(client.port)), timeout=HANG) as caller:
        caller.sendall(head + SMUGGLED[case] + NEXT)
        heard = b""
        with suppress(ConnectionError):  # closed while our bytes were on their way
            while part := caller.recv(65536):
                heard += part
    assert heard.count(b"HTTP/1.1 ") == 1
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert b'"live"' not in heard


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/models/backend/infer"])
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_not_offered(client: Client, path: str, protocol: str) -> None:
    more = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "Sec-WebSocket-Version": "13"}
    method = "GET" if path.endswith("live") else "POST"
    reply = client.call(method, path, None, more)
    assert reply.status == (200 if method == "GET" else 400)


def test_a_target_without_end(client: Client) -> None:
    with socket.create_connection((client.host, int(client.port)), timeout=HANG) as caller:
        caller.sendall(b"GET /v2/" + b"a" * 40_000)
        assert caller.makefile("rb").readline().startswith(b"HTTP/1.1 400 ")


def test_names_of_strangers_make_no_series(client: Client) -> None:
    """A series for each name that somebody makes up would fill the memory, and that of the Prometheus that reads it."""

    def series() -> set[str]:
        return {line.rsplit(" ", 1)[0] for line in client.get("/metrics").body.decode().splitlines()}

    assert client.infer(b"", model="nobody").status == 404
    before = series()
    for number in range(20):
        assert client.infer(b"", model=f"nobody-{number}").status == 404
        assert client.get(f"/v2/models/nobody-{number}").status == 404
    assert series() == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: 127.0.0.1:8080", 200),
        ("Host: localhost", 200),
        ("Host: [::1]:8080", 200),
        ("Host: localhost:8080\r\nOrigin: http://localhost:8080", 200),
        ("Host: localhost\r\nOrigin: https://example.org", 403),
        ("Host: localhost\r\nOrigin: null", 403),
        ("Host: example.org", 403),
        ("Host: 127.0.0.1.example.org:80", 403),
        ("Host: [::1", 403),
        ("Host: ", 403),
    ],
)
def test_a_web_page_may_not_ask_a_service_without_keys(inside: Run, headers: str, status: int) -> None:
    """Its visitor's browser can reach this machine. It says where the page came from, and by which name it asks: one
    that the page's owner made to mean this machine (DNS rebinding), say."""

    async def work(service: Inside) -> None:
        reader, writer = await service.connect()
        for head, body in ((HEAD, BODY), (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"")):
            writer.write(head.replace(b"Host: localhost", headers.encode()) + body)
            found, _, text = await answer_of(reader)
            assert (found, b"only this machine may ask" in text) == (status, status == 403)

    inside(work)


def test_a_log_line_stays_one_line() -> None:
    record = logging.makeLogRecord({"msg": "refused", "path": '/v2\r\n{"level": "error"}\x1b[2J\u2028', "name": "n"})
    line = JsonLines().format(record)
    assert line.isprintable()
    assert json.loads(line)["path"] == record.path  # type: ignore[attr-defined]


def test_an_address_is_no_place_for_a_model() -> None:
    """Nothing is fetched: who serves an address is told that there is no such folder, and nobody was asked there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with pytest.raises(ArtifactMissing, match="no such folder"):
            find_bundles(Path(f"http://127.0.0.1:{listener.getsockname()[1]}/cloud"))
        with pytest.raises(BlockingIOError):
            listener.accept()
