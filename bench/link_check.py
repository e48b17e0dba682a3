"""The link model held against real TCP: the same exchanges, once by arithmetic, once through `harmony.bench.shaped`."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.links import Link
from harmony.bench.results import Host, Seconds, Versioned
from harmony.bench.shaped import SERVER_IP, Pair, hurry, shaped
from harmony.core.spec import Frozen

EXCHANGES = ((1_500, 500, False), (20_000, 1_000, True), (60_000, 1_000, True), (1_500, 40_000, True))
"""(request, answer, cold) in bytes: a feature on an open connection, and larger ones on new connections."""
_HEAD = struct.Struct("!II")
_PORT = 7000
_LONGEST_S = 60.0


class Exchange(Frozen):
    """One kind of exchange over one link; measured: the median of `repeats`; error: of the prediction, relative."""

    link: str
    request: int
    answer: int
    cold: bool
    predicted_s: Seconds
    measured_s: Seconds
    error: float
    repeats: Annotated[int, Field(ge=1)]


class LinksResult(Versioned):
    """What `harmony bench links --json` prints."""

    FORMAT: ClassVar[str] = "harmony-bench-links"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-links"] = "harmony-bench-links"
    format_version: Literal[1] = 1
    harmony_version: str
    tier: Literal["constrained"] = "constrained"
    host: Host
    links: tuple[Link, ...]
    exchanges: tuple[Exchange, ...]


def check_link(link: Link, repeats: int = 5, exchanges: Sequence[tuple[int, int, bool]] = EXCHANGES) -> list[Exchange]:
    """Some seconds a link. ConfigError without the privileges."""
    with shaped(link) as pair:
        listener = pair.server.do(_listen)
        server = threading.Thread(target=_serve, args=(listener,), daemon=True)
        server.start()
        try:
            return [_measure(link, pair, *one, repeats=repeats) for one in exchanges]
        finally:
            listener.close()


def _measure(link: Link, pair: Pair, request: int, answer: int, cold: bool, *, repeats: int) -> Exchange:
    measured_s = median(pair.device.do(lambda: _ask(request, answer, cold, repeats)))
    predicted_s = link.exchange_s(request, answer, cold=cold)
    return Exchange(
        link=link.name,
        request=request,
        answer=answer,
        cold=cold,
        predicted_s=predicted_s,
        measured_s=measured_s,
        error=predicted_s / measured_s - 1,
        repeats=repeats,
    )


def _ask(request: int, answer: int, cold: bool, repeats: int) -> list[float]:
    """Seconds of each exchange. A warm connection has carried two before."""
    times = []
    connection = None if cold else _connect()
    for index in range(repeats + (0 if cold else 2)):
        started = time.perf_counter()
        link = connection or _connect()
        link.sendall(_HEAD.pack(request, answer) + bytes(request - _HEAD.size))
        _read(link, answer)
        passed = time.perf_counter() - started
        if connection is None:
            link.close()
        if cold or index >= 2:
            times.append(passed)
    if connection is not None:
        connection.close()
    return times


def _connect() -> socket.socket:
    link = socket.create_connection((SERVER_IP, _PORT), timeout=_LONGEST_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _listen() -> socket.socket:
    listener = socket.socket()
    listener.bind((SERVER_IP, _PORT))
    listener.listen()
    return listener


def _serve(listener: socket.socket) -> None:
    hurry()
    while True:
        try:
            link, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(link,), daemon=True).start()


def _answer(link: socket.socket) -> None:
    """Answers of the length that is asked for, until the other end closes, or the network goes away."""
    hurry()
    with link, suppress(OSError):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := _read(link, _HEAD.size):
            request, answer = _HEAD.unpack(head)
            _read(link, request - _HEAD.size)
            link.sendall(bytes(answer))


def _read(link: socket.socket, size: int) -> bytes:
    """So many bytes; nothing if the other end closed."""
    found = bytearray()
    while len(found) < size:
        part = link.recv(min(65536, size - len(found)))
        if not part:
            return b""
        found += part
    return bytes(found)
