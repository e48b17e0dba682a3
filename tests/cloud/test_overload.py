"""Callers who do not heed Retry-After: they wait outside, are let in when there is room, and cost nothing meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harmony.cloud import direct, waiting
from harmony.cloud.process import RunningService, running_service

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats, Inside

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
ClientOf = Callable[[RunningService], "Client"]
TIGHT = ("--max-batch", "1", "--queue-seconds", "0.02")


def test_who_comes_back_too_early_waits_outside_until_there_is_room(
    heavy: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    """12 connections that ask again at once, whatever they hear: each is refused at most once a second, and served."""
    feature = features(1)
    text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
    heard: list[tuple[float, list[int]]] = []

    def hammer(client: Client) -> None:
        headers = {"Authorization": f"Bearer {client.key}", "Inference-Header-Content-Length": str(len(text))}
        connection = http.client.HTTPConnection(client.host, int(client.port), timeout=30)
        started = time.monotonic()
        statuses: list[int] = []
        while statuses.count(200) < 4:
            connection.request("POST", "/v2/models/backend/infer", text + feature.tobytes(), headers)
            response = connection.getresponse()
            body = response.read()
            statuses.append(response.status)
            if response.status == 200:
                found = np.frombuffer(body[-40:], "<f4").reshape(1, 10)
                np.testing.assert_allclose(found, heavy.answer(feature), rtol=1e-3, atol=1e-5)
        heard.append((time.monotonic() - started, statuses))
        connection.close()

    with running_service(heavy.folder, *TIGHT) as service:
        client = client_of(service)
        threads = [threading.Thread(target=hammer, args=(client,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard) == 12
    assert any(503 in statuses for _, statuses in heard), "there was no overload"
    for seconds, statuses in heard:
        assert set(statuses) <= {200, 503}
        assert statuses.count(503) <= seconds + 1


def test_work_of_a_caller_who_left_is_not_computed(
    heavy: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
    body = text + features(1).tobytes()
    with running_service(heavy.folder, "--max-batch", "1", "--queue-seconds", "30") as service:
        client = client_of(service)
        head = (
            f"POST /v2/models/backend/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        gone = []
        for _ in range(20):
            gone.append(socket.create_connection((client.host, int(client.port))))
            gone[-1].sendall(head + body)
        for connection in gone:
            connection.close()
        assert client.infer(body, {"Inference-Header-Content-Length": str(len(text))}).status == 200
        statistics = client.get("/v2/models/backend/stats").json["model_stats"][0]
    assert statistics["inference_stats"]["fail"]["count"] + statistics["inference_stats"]["success"]["count"] == 21
    assert statistics["inference_count"] < 21


def test_a_request_behind_one_that_waits_outside_is_answered_after_it(
    heavy: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    """Eight connections, each with three requests sent at once, at a service that has room for a fraction of them."""
    text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
    body = text + features(1).tobytes()
    with running_service(heavy.folder, *TIGHT) as service:
        client = client_of(service)
        head = (
            f"POST /v2/models/backend/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        opened = [socket.create_connection((client.host, int(client.port)), timeout=20) for _ in range(8)]
        for connection in opened:
            connection.sendall((head + body) * 3)
        statuses = []
        for connection in opened:
            with connection, connection.makefile("rb") as stream:
                for _ in range(3):
                    statuses.append(int(stream.readline().split()[1]))
                    headers = dict(line.split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
                    stream.read(int(headers[b"content-length"]))
    assert len(statuses) == 24
    assert set(statuses) <= {200, 503}


BODY = json.dumps(
    {"inputs": [{"name": "feature", "datatype": "FP32", "shape": [1, 8, 4, 4], "data": [0.5] * 128}]}
).encode()
HEAD = b"POST /v2/models/backend/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class Clock:
    """In the place of `time`, for who waits outside."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (waiting, direct):
        monkeypatch.setattr(module, "time", made)
    return made


class Asking:
    """One connection to the service of this process."""

    def __init__(self, service: Inside) -> None:
        self.service = service

    async def send(self, text: bytes) -> None:
        if not hasattr(self, "writer"):
            self.reader, self.writer = await self.service.connect()
        self.writer.write(text)

    async def heard(self) -> tuple[int, int]:
        """Status and Retry-After of the next answer, 0 without one."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        lines = dict(line.lower().split(b": ", 1) for line in head.rstrip().split(b"\r\n")[1:])
        await self.reader.readexactly(int(lines[b"content-length"]))
        return int(head.split()[1]), int(lines.get(b"retry-after", 0))

    async def is_outside(self, guests: int = 1) -> None:
        """Wait until so many are outside; it hears nothing there."""
        async with asyncio.timeout(20):
            while len(self.service.app.service.waiting) < guests:
                await asyncio.sleep(0.005)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 0.05)


def test_whose_time_is_up_is_told_though_the_queue_is_empty(
    inside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The last place goes to the first who waits, whose body is still on its way: nothing is queued yet."""

    async def work(service: Inside) -> None:
        first, second, batcher = Asking(service), Asking(service), service.lane.batcher
        batcher._seconds_a_row = 10.0
        with monkeypatch.context() as patch:
            patch.setattr(batcher, "expected_wait", lambda: 10.0)
            for guests, one in enumerate((first, second), 1):
                await one.send(HEAD)
                await one.is_outside(guests)
        clock.now += 5
        assert (await second.heard())[0] == 503
        await first.send(BODY)
        assert await first.heard() == (200, 0)

    inside(work, queue_seconds=1)


def test_who_is_refused_again_and_again_is_asked_to_stay_away_longer(
    inside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The answers pay for callers who come back in vain: for 150 of them every second, or for 40."""

    async def work(service: Inside) -> None:
        one = Asking(service)
        with monkeypatch.context() as patch:
            patch.setattr(service.lane.batcher, "expected_wait", lambda: 0.02)
            heard = []
            for _ in range(4):
                await one.send(HEAD + BODY)
                await one.is_outside()
                clock.now += 0.05
                heard.append(await one.heard())
                clock.now += heard[-1][1]
        assert heard == [(503, 1), (503, 2), (503, 4), (503, 4)]
        await one.send(HEAD + BODY)
        assert await one.heard() == (200, 0)
        monkeypatch.setattr(service.lane.batcher, "expected_wait", lambda: 0.02)
        await one.send(HEAD + BODY)
        await one.is_outside()
        clock.now += 0.05
        assert await one.heard() == (503, 1), "an answer makes good for all of it"

    inside(work, queue_seconds=0.01)


def test_who_is_back_too_early_is_told_no_earlier(
    inside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    async def work(service: Inside) -> None:
        one = Asking(service)
        monkeypatch.setattr(service.lane.batcher, "expected_wait", lambda: 0.02)
        await one.send(HEAD + BODY)
        await one.is_outside()
        clock.now += 0.05
        assert await one.heard() == (503, 1)
        await one.send(HEAD + BODY)
        await one.is_outside()
        clock.now += 0.9
        await one.is_outside()
        clock.now += 0.2
        assert await one.heard() == (503, 2)
        monkeypatch.undo()
        await one.send(HEAD + BODY)
        assert await one.heard() == (200, 0), "early or not: there is room"

    inside(work, queue_seconds=0.01)


def test_requests_behind_another_wait_outside_too(
    inside: Callable[..., None], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """They go another way through the service; hammering by sending many at once gains nothing either."""

    async def work(service: Inside) -> None:
        one, room = Asking(service), service.app.service.waiting
        with monkeypatch.context() as patch:
            patch.setattr(service.lane.batcher, "expected_wait", lambda: 0.02)
            await one.send((HEAD + BODY) * 3)
            for expected in ((503, 1), (503, 1)):
                await one.is_outside()
                clock.now += 0.05
                assert await one.heard() == expected
            await one.is_outside()
        assert await one.heard() == (200, 0)
        assert len(room) == 0

    inside(work, queue_seconds=0.01)


class Visitor:
    """A guest that notes what happens to it."""

    def __init__(self, room: list[int]) -> None:
        self.room, self.heard = room, ""

    @property
    def lane(self) -> None:
        return None

    def let_in(self, share: float) -> bool:
        if not self.room:
            return False
        self.room.pop()
        self.heard = "in"
        return True

    def send_away(self) -> None:
        self.heard = "away"


async def seen(*guests: Visitor) -> list[str]:
    for _ in range(400):
        if all(guest.heard for guest in guests):
            break
        await asyncio.sleep(0.005)
    return [guest.heard for guest in guests]


def test_the_waiting_room_keeps_order_and_time() -> None:
    async def main() -> None:
        place: list[int] = []
        room = waiting.WaitingRoom(1.0)
        first, second, third = (Visitor(place) for _ in range(3))
        for guest in (first, second, third):
            room.add(guest, refused_until=time.monotonic() + 60)
        place.append(1)
        assert await seen(first) == ["in"]
        assert second.heard == third.heard == ""
        room.remove(second)
        place.append(1)
        assert await seen(third) == ["in"]
        late = Visitor(place)
        room.add(late)
        assert await seen(late) == ["away"]
        assert second.heard == "", "who left is not called"

    asyncio.run(main())


def test_early_refusals_are_counted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    room = waiting.WaitingRoom(1.0)
    assert sum(room.may_refuse_soon() for _ in range(1000)) == waiting.REFUSALS_A_SECOND
    now[0] += 0.1
    assert sum(room.may_refuse_soon() for _ in range(1000)) == pytest.approx(waiting.REFUSALS_A_SECOND / 10, abs=1)
