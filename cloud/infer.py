"""POST …/infer as an ASGI application of its own, for any server; harmony.cloud.direct is quicker under our own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from harmony.cloud.answer import Answer
from harmony.cloud.body import Message, Receive, read_body
from harmony.cloud.exchange import Exchange
from harmony.cloud.refusal import Refusal
from harmony.cloud.service import Service

Scope = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger("harmony.cloud")


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
        exchange.admit()
        raw = await read_body(receive, limit=settings.max_body_bytes, seconds=settings.body_seconds)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        exchange.ask(raw, answered.set_result)
        return await answered

    async def _send(self, answer: Answer, send: Send) -> None:
        headers = answer.headers
        if self._service.draining:  # so that a keep-alive client does not send its next request to a closed door
            headers = (*headers, (b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
