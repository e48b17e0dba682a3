"""POST …/infer as an ASGI application of its own, for any server; harmony.cloud.direct is quicker under our own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from harmony.cloud.answer import Answer
from harmony.cloud.body import Message, Receive, read_body
from harmony.cloud.exchange import Exchange
from harmony.cloud.lanes import Lane
from harmony.cloud.refusal import Refusal
from harmony.cloud.service import Service

Scope = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger("harmony.cloud")


class _Guest:
    """A request whose task waits outside, see harmony.cloud.waiting."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.is_let_in: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def lane(self) -> Lane | None:
        """Where it wants to go."""
        return self._exchange.lane

    def let_in(self, share: float) -> bool:
        """Wake the task if the queue has become short."""
        if not self._exchange.has_room(share):
            return False
        self._wake(let_in=True)
        return True

    def send_away(self) -> None:
        """Wake the task: its time is up."""
        self._wake(let_in=False)

    def _wake(self, *, let_in: bool) -> None:
        if not self.is_let_in.done():  # it may have been cancelled
            self.is_let_in.set_result(let_in)


class InferEndpoint:
    """ASGI application for the infer paths of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every failure is answered with a status and {"error": …}."""
        exchange = Exchange(self._service, scope["path"], dict(scope["headers"]))
        try:
            answer = await self._serve(exchange, scope["method"], receive)
        except Refusal as refusal:
            answer = exchange.refuse(refusal)
        except asyncio.CancelledError:
            # The server cancels what outlives the drain; its caller still gets an answer.
            answer = exchange.refuse(Refusal(503, "stopping", "the service is stopping"))
        except Exception:
            log.exception("unexpected error in infer", extra={"path": scope["path"][:200]})
            answer = exchange.refuse(Refusal(500, "internal", "internal error"))
        finally:
            exchange.leave()
        await self._send(answer, send)

    async def _serve(self, exchange: Exchange, method: str, receive: Receive) -> Answer:
        settings = self._service.settings
        exchange.enter(method)
        exchange.reserve()
        if not exchange.has_room():
            await self._wait_outside(exchange)
        raw = await read_body(receive, limit=settings.max_body_bytes, seconds=settings.body_seconds)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        exchange.ask(raw, answered.set_result)
        return await answered

    async def _wait_outside(self, exchange: Exchange) -> None:
        """Until there is room. Refusal 503 if there is none in time."""
        waiting = self._service.waiting
        if waiting.is_full:
            raise exchange.busy()
        guest = _Guest(exchange)
        waiting.add(guest)
        try:
            if not await guest.is_let_in:
                raise exchange.busy()
        finally:
            waiting.remove(guest)

    async def _send(self, answer: Answer, send: Send) -> None:
        headers = answer.headers
        if self._service.draining:  # so that a keep-alive client does not send its next request to a closed door
            headers = (*headers, (b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
