"""The fast path: infer requests are served by the connection itself, without a task, a scope or a routing table.

Everything else, and what is unusual about an infer request (an escaped path, Expect, one that is pipelined behind
another), goes uvicorn's way to the same service.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from harmony.cloud.answer import Answer
from harmony.cloud.connection import GuardedConnection
from harmony.cloud.exchange import PATIENCE, Exchange
from harmony.cloud.lanes import Lane
from harmony.cloud.refusal import Refusal, too_large
from harmony.cloud.service import Service

log = logging.getLogger("harmony.cloud")
_CLOSE = (b"connection", b"close")


class _Unheard:
    """uvicorn's event about more of a message, which nobody waits for here."""

    def set(self) -> None:
        """Nothing."""


class _Cycle:
    """One request under way. The first four names are those that uvicorn asks for."""

    __slots__ = ("body", "disconnected", "exchange", "is_held", "is_whole", "keep_alive", "response_complete")
    message_event = _Unheard()

    def __init__(self, exchange: Exchange, *, keep_alive: bool) -> None:
        self.exchange = exchange
        self.keep_alive = keep_alive
        self.disconnected = self.response_complete = self.is_held = self.is_whole = False
        self.body: bytes | bytearray = b""


class DirectConnection(GuardedConnection):
    """A connection that serves infer by itself. As a guest it waits outside, see harmony.cloud.waiting."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._service: Service = self.config.app.service  # type: ignore[union-attr]  # a ServiceApp
        self._most = self._service.settings.max_connections
        self._body_timer: asyncio.TimerHandle | None = None
        self._refused_until = 0.0
        self._refused_times = 0  # in a row, for a full queue
        self._direct: _Cycle | None = None
        """The request under way, if it is served here. `cycle` may be another by then, pipelined behind it."""

    def data_received(self, data: bytes) -> None:
        """Bytes came. Only a body that is not whole by now needs a timer."""
        super().data_received(data)
        if self._body_timer is None and (cycle := self._direct) and not cycle.is_whole and not cycle.is_held:
            self._body_timer = self.loop.call_later(self._service.settings.body_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left; what it asked is not computed."""
        if cycle := self._direct:
            self._service.waiting.remove(self)
            self._direct = None
            cycle.exchange.refuse(Refusal(499, "disconnected", "the caller left before it was answered"))
            cycle.exchange.leave()
        self._stop_body_timer()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Decide whose way the request goes."""
        url = self.url
        if (
            url.endswith(b"/infer")
            and url.startswith(b"/v2/models/")
            and self.parser.get_method() == b"POST"
            and url.isascii()
            and b"%" not in url
            and b"?" not in url
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and (self.cycle is None or self.cycle.response_complete)
        ):
            self._in_headers = False
            self._stop_timer()
            self._begin(url.decode())
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        cycle = self._direct
        if cycle is None or cycle.is_whole:
            super().on_body(body)
            return
        limit = self._service.settings.max_body_bytes
        if len(cycle.body) + len(body) > limit:  # a chunked body; the length of others was seen before
            self._refuse(cycle, too_large(limit))
        elif not cycle.body:
            cycle.body = body
        else:  # a list of parts would be twenty times as large for one that comes in crumbs
            if isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)
            cycle.body += body

    def on_message_complete(self) -> None:
        """The body is whole."""
        cycle = self._direct
        if cycle is None or cycle.is_whole:
            super().on_message_complete()
            return
        self._stop_body_timer()
        cycle.is_whole = True
        if not cycle.is_held:
            self._ask(cycle)

    def resume_writing(self) -> None:
        """The caller reads its answers again, so it may ask again."""
        super().resume_writing()
        if self._direct is None or not self._direct.is_held:
            self.flow.resume_reading()

    def give_up(self) -> None:
        """The service ends; who still waits is told."""
        if cycle := self._direct:
            self._refuse(cycle, Refusal(503, "stopping", "the service is stopping"))

    @property
    def lane(self) -> Lane | None:
        """The model that is asked, as a guest."""
        cycle = self._direct
        return None if cycle is None else cycle.exchange.lane

    def let_in(self, share: float) -> bool:
        """Go on, as a guest, if the queue has become short."""
        cycle = self._direct
        if cycle is None:
            return True
        if not cycle.exchange.has_room(share):
            return False
        cycle.is_held = False
        self.flow.resume_reading()
        if cycle.is_whole:
            self._ask(cycle)
        else:
            self._body_timer = self.loop.call_later(self._service.settings.body_seconds, self._late)
        return True

    def send_away(self) -> None:
        """Refuse, as a guest whose time is up."""
        if cycle := self._direct:
            refusal = cycle.exchange.busy(self._refused_times)
            self._refused_until = time.monotonic() + refusal.retry_after
            self._refused_times += 1
            self._refuse(cycle, refusal)

    def _begin(self, path: str) -> None:
        exchange = Exchange(self._service, path, dict(self.headers))
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        cycle = _Cycle(exchange, keep_alive=keep_alive)
        self.cycle = cycle  # type: ignore[assignment]
        self._direct = cycle
        try:
            exchange.enter("POST")
            exchange.reserve()
        except Refusal as refusal:
            self._refuse(cycle, refusal)
            return
        if not exchange.has_room():
            self._hold(cycle)

    def _hold(self, cycle: _Cycle) -> None:
        """Have the request wait outside, see harmony.cloud.waiting; refuse it at once if too many do."""
        if self._service.waiting.is_full:
            cycle.keep_alive = False
            self._refuse(cycle, cycle.exchange.busy(self._refused_times))
            return
        cycle.is_held = True
        self.flow.pause_reading()
        self._service.waiting.add(self, self._refused_until)

    def _ask(self, cycle: _Cycle) -> None:
        if not cycle.exchange.has_room(PATIENCE):
            self._hold(cycle)
            return
        self._refused_times = 0
        body, cycle.body = cycle.body, b""

        def answer(made: Answer) -> None:
            self._send(cycle, made)

        cycle.exchange.ask(body, answer)

    def _refuse(self, cycle: _Cycle, refusal: Refusal) -> None:
        self._send(cycle, cycle.exchange.refuse(refusal))

    def _send(self, cycle: _Cycle, answer: Answer) -> None:
        """Write an answer, all at once, and make the connection ready for the next request."""
        cycle.exchange.leave()
        cycle.response_complete = True
        cycle.body = b""
        self._direct = None
        self._stop_body_timer()
        if self.transport.is_closing():
            return
        keep_alive = cycle.keep_alive and not self._service.draining
        headers = answer.headers if keep_alive else (*answer.headers, _CLOSE)
        lines = [STATUS_LINE[answer.status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n", answer.body)
        self.transport.write(b"".join(lines))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        if self.flow.write_paused:  # a caller that asks and does not read must not fill the memory
            self.flow.pause_reading()

    def _late(self) -> None:
        self._body_timer = None
        if (cycle := self._direct) and not cycle.is_whole:
            seconds = self._service.settings.body_seconds
            self._refuse(cycle, Refusal(408, "slow_body", f"the body did not arrive within {seconds:g} seconds"))

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
