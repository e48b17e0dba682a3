"""The fast path: POST …/infer as raw ASGI. Every decision that can be taken before the body is read, is."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from harmony.cloud.answer import Answer, answer
from harmony.cloud.batcher import Floats
from harmony.cloud.body import Message, Receive, declared_length, decompress, read_body
from harmony.cloud.keys import EVERY_SCOPE, ORDINARY, Caller, KeyRing, KeyScope, granted
from harmony.cloud.lanes import LATEST, Alias, Lane, Table
from harmony.cloud.metrics import Metrics
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Header, Refusal, unauthorized
from harmony.cloud.request import InferRequest, check_request, read_header
from harmony.cloud.settings import ServiceSettings

Scope = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger("harmony.cloud")


class Service:
    """What one app serves: its lanes by path, who may ask, and whether it is going away.

    table: replaced whole when what is served changes, see harmony.cloud.lanes.
    """

    def __init__(self, models: Sequence[ServedModel], settings: ServiceSettings) -> None:
        self.settings = settings
        given = [*granted(settings.keys, ORDINARY), *granted(settings.admin_keys, EVERY_SCOPE)]
        self.keys = KeyRing(given, is_open=not given)
        self.metrics = Metrics()
        lanes = [Lane.of(model, settings, self.metrics) for model in models]
        self.table = Table(lanes, [Alias(model.name, LATEST, model.version) for model in models])
        self.draining = False
        self.inflight_bytes = 0

    def require_key(self, authorization: bytes | None, scope: KeyScope) -> Caller:
        """The caller; 401 for a stranger, 403 if its key lacks the scope."""
        caller = self.keys.find(authorization)
        if caller is None:
            raise unauthorized()
        caller.require(scope)
        return caller


class _Request:
    """One request under way; the lane is known once its caller and path are. caller: set while it holds a place."""

    __slots__ = ("caller", "headers", "lane", "receive", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, started: float) -> None:
        self.scope, self.receive, self.started = scope, receive, started
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.caller: Caller | None = None
        self.lane: Lane | None = None


class InferEndpoint:
    """ASGI application for the infer paths of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every failure is answered with a status and {"error": …}."""
        request = _Request(scope, receive, time.perf_counter())
        try:
            lane = self._enter(request)
            headers, body = await self._serve(request, lane)
        except Refusal as refusal:
            await self._refuse(refusal, request, send)
        except asyncio.CancelledError:
            # The server cancels what outlives the drain; its caller still gets an answer.
            await self._refuse(Refusal(503, "stopping", "the service is stopping"), request, send)
        except Exception:
            log.exception("unexpected error in infer", extra={"path": scope["path"]})
            await self._refuse(Refusal(500, "internal", "internal error"), request, send)
        else:
            await self._send(200, headers, body, send)
        finally:
            if request.caller is not None:
                request.caller.leave()

    def _enter(self, request: _Request) -> Lane:
        """Who asks, how, and for which model."""
        caller = self._service.require_key(request.headers.get(b"authorization"), "infer")
        if request.scope["method"] != "POST":
            raise Refusal(405, "method", "infer takes POST", headers=((b"allow", b"POST"),))
        request.lane = self._service.table.route_at(request.scope["path"]).lane
        caller.enter(time.monotonic())
        request.caller = caller
        return request.lane

    async def _serve(self, request: _Request, lane: Lane) -> Answer:
        """Read the body, compute, and make the answer."""
        settings, headers = self._settings, request.headers
        declared = declared_length(headers.get(b"content-length"), settings.max_body_bytes)
        reserved = settings.max_body_bytes if declared is None else declared
        self._admit(lane, reserved)
        self._service.inflight_bytes += reserved
        try:
            raw = await read_body(request.receive, limit=settings.max_body_bytes, seconds=settings.body_seconds)
            body = await decompress(raw, headers.get(b"content-encoding"), settings.max_body_bytes)
            header, blob = read_header(body, headers.get(b"inference-header-content-length"), settings.max_json_bytes)
            # Again, and then queued without a pause: while the body came, another version may have taken over.
            route = self._service.table.route_at(request.scope["path"])
            request.lane = lane = route.take(header.parameters.cut)
            asked = check_request(header, blob, lane.expected)
            probabilities = await self._compute(lane, asked, request.started)
        finally:
            self._service.inflight_bytes -= reserved
        result = answer(lane.model.name, lane.model.version, asked, probabilities)
        lane.statistics.answered(asked.rows, time.perf_counter() - request.started, len(raw), len(result[1]))
        return result

    def _admit(self, lane: Lane, size: int) -> None:
        """503 with Retry-After if the queue, or what is being read, is full already."""
        wait = lane.batcher.expected_wait()
        if wait > self._settings.queue_seconds:
            raise _busy(wait, f"the queue of '{lane.model.name}' is full")
        # A lone body is always let in, however small the bound is set.
        if self._service.inflight_bytes and self._service.inflight_bytes + size > self._settings.max_inflight_bytes:
            raise _busy(1.0, "too many bodies are being read")

    async def _compute(self, lane: Lane, request: InferRequest, started: float) -> Floats:
        """Probabilities (rows, tokens). 503 if the queue filled while the body was read, 504 past the deadline."""
        wait = lane.batcher.expected_wait()
        if wait > self._settings.queue_seconds:
            raise _busy(wait, f"the queue of '{lane.model.name}' is full")
        if not request.timeout_us:
            return await lane.batcher.submit(request.rows, request.load)
        left = request.timeout_us / 1e6 - (time.perf_counter() - started)
        expired = Refusal(504, "expired", f"no answer within the request's timeout of {request.timeout_us} µs")
        if left <= 0:
            raise expired
        pending = lane.batcher.submit(request.rows, request.load)
        timer = asyncio.get_running_loop().call_later(left, _expire, pending, expired)
        try:
            return await pending
        finally:
            timer.cancel()

    def _count(self, refusal: Refusal, request: _Request) -> None:
        if request.lane is None:
            self._service.metrics.refused(refusal.reason)
        else:
            request.lane.statistics.refused(refusal.reason, time.perf_counter() - request.started)
        log.info("refused", extra={"status": refusal.status, "reason": refusal.reason, "error": str(refusal)})

    async def _refuse(self, refusal: Refusal, request: _Request, send: Send) -> None:
        self._count(refusal, request)
        body = refusal.body()
        headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *refusal.headers)
        await self._send(refusal.status, headers, body, send)

    async def _send(self, status: int, headers: tuple[Header, ...], body: bytes, send: Send) -> None:
        if self._service.draining:  # so that a keep-alive client does not send its next request to a closed door
            headers = (*headers, (b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _busy(wait: float, message: str) -> Refusal:
    retry = b"%d" % max(1, math.ceil(wait))
    return Refusal(503, "overload", f"{message}; try again in {retry.decode()} s", headers=((b"retry-after", retry),))


def _expire(pending: asyncio.Future[Floats], refusal: Refusal) -> None:
    if not pending.done():
        pending.set_exception(refusal)
