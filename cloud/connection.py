"""uvicorn's HTTP/1.1 connection with the bounds that it lacks: header bytes, header time, bytes after a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from harmony.cloud.refusal import malformed

MAX_HEADER_BYTES = 32 << 10
HEADER_SECONDS = 10.0
MAX_DISCARDED_BYTES = 64 << 20
MAX_CONNECTIONS = 4096
_SHOWN_OUT = 8  # one in so many goes at once, so that looking for them is seldom


class GuardedConnection(HttpToolsProtocol):
    """One connection. A request that is refused before its body was read keeps its connection: what still comes is
    thrown away unstored, up to MAX_DISCARDED_BYTES, so that the caller can read why."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._header_bytes = 0
        self._discarded_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._in_headers = False
        self._most = MAX_CONNECTIONS
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A caller is there; its headers must follow soon. If there are too many, those go who ask nothing."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(self.connections) > self._most:
            make_room(one for one in self.connections if isinstance(one, GuardedConnection) and one is not self)
        self._in_headers = True
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left, or was made to."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came. Only headers that are not whole by now need a timer."""
        super().data_received(data)
        if self._in_headers and self._header_timer is None and not self.transport.is_closing():
            self._await_headers()

    def on_message_begin(self) -> None:
        """The first byte of a request on a connection that may have waited long for it."""
        self._header_bytes = self._discarded_bytes = 0
        self._in_headers = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer of a chunked body."""
        self._count_header(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request can be decided upon."""
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body; counted if nobody will read it any more."""
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole. uvicorn leaves a refused one without a keep-alive timer, so it is set here."""
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def idle_since(self) -> float | None:
        """When it began to ask nothing, or not the whole of a header; None while a request is under way."""
        return self._idle_since if self.cycle is None or self.cycle.response_complete else None

    def on_response_complete(self) -> None:
        """An answer is out."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def shutdown(self) -> None:
        """The service ends: leave, unless a request is under way, be it by its first byte."""
        if not (self._in_headers and self._header_bytes):
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, or has too many headers, gets the protocol's error body too."""
        body = malformed(msg).body()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("headers too large")  # the parser turns it into its own error, uvicorn that into a 400

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def make_room(connections: Iterable[GuardedConnection]) -> None:
    """Close those that have asked nothing for longest. Who opens thousands of connections closes its own that way:
    a caller who asks is not idle."""
    everybody = list(connections)
    idle = sorted((since, place) for place, one in enumerate(everybody) if (since := one.idle_since) is not None)
    for _, place in idle[: 1 + len(everybody) // _SHOWN_OUT]:
        everybody[place].transport.abort()
