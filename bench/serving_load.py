"""Load on a service over keep-alive connections: an open loop (Poisson arrivals) or a closed one.

In an open loop requests come when they are due, however slow the answers are, and a request that finds no free
connection waits with its clock running. A closed loop asks again only after an answer: it measures what a service can
do, but hides how long its users would wait (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import cycle
from typing import Annotated, Literal, cast

import numpy as np
from pydantic import Field

from harmony.core.errors import CloudUnreachable
from harmony.core.spec import Frozen

MAX_SECONDS, MAX_REQUESTS, MAX_CONNECTIONS = 3600, 20_000_000, 4096
_END = b"\r\n\r\n"
_LAST_ANSWERS_SECONDS = 10.0


class LoadSettings(Frozen):
    """How much, and how.

    rate: requests a second, None for a closed loop. after_503: what a caller of a closed loop does when it is refused:
    heed Retry-After (and up to half as long again, so that they do not come back together), or ask again at once.
    requests: the end, if it comes before `seconds`. warm_up: seconds at the beginning that are not counted.
    """

    connections: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] = 32
    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 10.0
    requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] = MAX_REQUESTS
    rate: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    warm_up: Annotated[float, Field(ge=0, le=60)] = 0.0
    after_503: Literal["heed", "hammer"] = "heed"
    seed: int = 0


class Latency(Frozen):
    """Milliseconds of the answers with 200."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class LoadResult(Frozen):
    """What came of it.

    goodput: answers with 200 a second; late_ms: by how much requests were sent after they were due, 99th percentile;
    broken: connections that ended inside an answer; unanswered: requests whose answer did not come in time.
    """

    settings: LoadSettings
    seconds: float
    sent: int
    statuses: dict[str, int]
    broken: int
    unanswered: int
    goodput: float
    latency: Latency | None
    late_ms: float
    sent_bytes: int
    received_bytes: int


class _Caller(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._whole = 0
        self.due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are transports without being called so

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that was due at this time."""
        assert self._transport is not None  # noqa: S101
        self.due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._whole:
            end = self._received.find(_END)
            if end < 0:
                return
            self._whole = end + len(_END) + _header_number(self._received[:end].lower(), b"content-length")
        if len(self._received) < self._whole:
            return
        answer, self._received, self._whole = self._received, b"", 0
        due, self.due = self.due, None
        if due is not None:
            self._load.answered(self, answer, due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self, was_asking=self.due is not None)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


class _Load:
    """The callers, what is due, and what was counted."""

    def __init__(
        self, connect: Callable[[_Load], Awaitable[_Caller]], settings: LoadSettings, requests: Iterator[bytes]
    ):
        self._connect = connect
        self.settings = settings
        self._requests = requests
        self._random = random.Random(settings.seed)  # noqa: S311  # jitter
        self._callers: set[_Caller] = set()
        self._free: deque[_Caller] = deque()
        self._due: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.sent = self.good = self.broken = self.sent_bytes = self.received_bytes = 0
        self.counts_from = self.ends = 0.0
        self.is_over = False

    @property
    def asking(self) -> int:
        """Requests under way or due."""
        return sum(caller.due is not None for caller in self._callers) + len(self._due)

    @property
    def is_open(self) -> bool:
        """Whether connections are left."""
        return bool(self._callers or self._opening)

    async def open(self) -> None:
        """Open every connection. OSError if the first cannot be."""
        for _ in range(self.settings.connections):
            self._callers.add(await self._connect(self))
        self._free.extend(self._callers)

    def close(self) -> None:
        """End every connection."""
        self.is_over = True
        for task in self._opening:
            task.cancel()
        for caller in self._callers:
            caller.close()

    async def closed_loop(self) -> None:
        """Everybody asks, again and again, until the end."""
        while self._free:
            self._ask(self._free.popleft(), time.perf_counter())
        while not self.is_over and time.perf_counter() < self.ends:
            await asyncio.sleep(0.02)
        self.is_over = True

    async def open_loop(self, rate: float) -> None:
        """Requests come at random, independent of the answers. Gaps are drawn beforehand, so a delay is made up for."""
        due = time.perf_counter()
        while not self.is_over:
            due += self._random.expovariate(rate)
            if due >= self.ends:
                break
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self._due.append(due)
            self._send_due()

    def answered(self, caller: _Caller, answer: bytes, due: float) -> None:
        """Count an answer; go on with its connection."""
        now, status = time.perf_counter(), int(answer[9:12])
        self.received_bytes += len(answer)
        self.good += status == 200 and self.counts_from <= now <= self.ends
        if due >= self.counts_from:
            self.statuses[status] += 1
            if status == 200:
                self.latencies.append(now - due)
        wait = 0.0
        if status == 503 and self.settings.after_503 == "heed":
            head = answer[: answer.find(_END)].lower()
            wait = _header_number(head, b"retry-after") * (1 + self._random.random() / 2)
        if self.settings.rate is None:
            asyncio.get_running_loop().call_later(wait, self._go_on, caller)
        else:
            self._free.append(caller)
            self._send_due()

    def lost(self, caller: _Caller, *, was_asking: bool) -> None:
        """A connection ended; another takes its place."""
        self._callers.discard(caller)
        if self.is_over:
            return
        self.broken += was_asking
        task = asyncio.get_running_loop().create_task(self._replace(caller))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _replace(self, gone: _Caller) -> None:
        if gone in self._free:
            self._free.remove(gone)
        while not self.is_over:
            try:
                caller = await self._connect(self)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            self._callers.add(caller)
            if self.settings.rate is None:
                self._go_on(caller)
            else:
                self._free.append(caller)
                self._send_due()
            return

    def _go_on(self, caller: _Caller) -> None:
        if not self.is_over and caller in self._callers:
            self._ask(caller, time.perf_counter())

    def _send_due(self) -> None:
        while self._due and self._free:
            caller = self._free.popleft()
            if caller in self._callers:
                self._ask(caller, self._due.popleft())

    def _ask(self, caller: _Caller, due: float) -> None:
        if self.sent >= self.settings.requests:
            self.is_over = True
            return
        request = next(self._requests)
        self.sent += 1
        self.sent_bytes += len(request)
        self.lateness.append(time.perf_counter() - due)
        caller.ask(request, due)


async def drive(
    host: str,
    port: int,
    requests: Sequence[bytes] | Iterator[bytes],
    settings: LoadSettings,
    tls: ssl.SSLContext | None,
) -> LoadResult:
    """Send `requests` (whole HTTP/1.1 requests, in turn) as the settings say. CloudUnreachable if nobody listens."""
    loop = asyncio.get_running_loop()

    async def connect(load: _Load) -> _Caller:
        name = host if tls is not None else None
        return (await loop.create_connection(lambda: _Caller(load), host, port, ssl=tls, server_hostname=name))[1]

    source = cycle(requests) if isinstance(requests, Sequence) else requests
    load = _Load(connect, settings, source)
    try:
        await load.open()
    except OSError as error:
        load.close()
        raise CloudUnreachable(f"no connection: {error}", where=f"{host}:{port}", mend="is it running?") from None
    started = time.perf_counter()
    load.counts_from, load.ends = started + settings.warm_up, started + settings.warm_up + settings.seconds
    await (load.closed_loop() if settings.rate is None else load.open_loop(settings.rate))
    counted = time.perf_counter() - load.counts_from
    waits = settings.rate is not None or load.sent >= settings.requests
    if waits:  # the answers to what was due before the end belong to it
        deadline = time.perf_counter() + _LAST_ANSWERS_SECONDS
        while load.asking and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
    unanswered = load.asking if waits else 0
    load.close()
    while load.is_open:
        await asyncio.sleep(0.001)
    return _result(load, counted, unanswered)


def _result(load: _Load, seconds: float, unanswered: int) -> LoadResult:
    values = 1e3 * np.array(load.latencies)
    late = 1e3 * np.array(load.lateness or [0.0])
    points = [float(value) for value in np.percentile(values, [50, 90, 99, 99.9, 100])] if len(values) else None
    return LoadResult(
        settings=load.settings,
        seconds=seconds,
        sent=load.sent,
        statuses={str(status): count for status, count in sorted(load.statuses.items())},
        broken=load.broken,
        unanswered=unanswered,
        goodput=load.good / seconds if seconds > 0 else 0.0,
        latency=None if points is None else Latency(**dict(zip(Latency.model_fields, points, strict=True))),
        late_ms=float(np.percentile(late, 99)),
        sent_bytes=load.sent_bytes,
        received_bytes=load.received_bytes,
    )


def _header_number(head: bytes, name: bytes) -> int:
    """A header's number in the lower-cased head of an answer, 0 without it."""
    place = head.find(b"\r\n" + name + b":")
    if place < 0:
        return 0
    value = head[place + len(name) + 3 :].split(b"\r\n", 1)[0].strip()
    return int(value) if value.isdigit() else 0
