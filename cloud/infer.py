"""The fast path: POST …/infer as raw ASGI. Every decision that can be taken before the body is read, is."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harmony.cloud.answer import Answer, answer
from harmony.cloud.batcher import Batcher, Floats
from harmony.cloud.body import Message, Receive, declared_length, decompress, read_body
from harmony.cloud.keys import KeyRing
from harmony.cloud.metrics import Metrics, ModelStatistics
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Header, Refusal, unauthorized
from harmony.cloud.request import Expected, InferRequest, parse_request
from harmony.cloud.settings import ServiceSettings

Scope = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger("harmony.cloud")


@dataclass(slots=True, eq=False)
class Lane:
    """One served model with its queue, its limits and what was counted."""

    model: ServedModel
    expected: Expected
    batcher: Batcher
    statistics: ModelStatistics

    @classmethod
    def of(cls, model: ServedModel, settings: ServiceSettings, metrics: Metrics) -> Lane:
        """The lane of a model under the service's settings."""
        statistics = ModelStatistics(metrics, model.name, model.version)
        expected = Expected(model.name, model.feature, settings.max_batch, settings.max_json_bytes)
        return cls(model, expected, Batcher(model, statistics, settings.max_batch), statistics)


class Service:
    """What one app serves: its lanes by path, who may ask, and whether it is going away."""

    def __init__(self, models: Sequence[ServedModel], settings: ServiceSettings) -> None:
        self.settings = settings
        self.keys = KeyRing(settings.keys)
        self.metrics = Metrics()
        self.lanes = {model.name: Lane.of(model, settings, self.metrics) for model in models}
        self.draining = False
        self.inflight_bytes = 0
        self._by_path: dict[str, Lane] = {}
        for name, lane in self.lanes.items():
            self._by_path[f"/v2/models/{name}/infer"] = lane
            self._by_path[f"/v2/models/{name}/versions/{lane.model.version}/infer"] = lane

    def lane(self, name: str, version: str | None = None) -> Lane:
        """The lane of a model; 404 naming what is not there."""
        lane = self.lanes.get(name)
        if lane is None:
            raise Refusal(404, "not_found", f"unknown model '{name[:64]}'")
        if version not in (None, lane.model.version):
            raise Refusal(404, "not_found", f"model '{name}' has no version '{str(version)[:64]}'")
        return lane

    def lane_at(self, path: str) -> Lane:
        """The lane of an infer path; 404 naming the model or version that is not there."""
        lane = self._by_path.get(path)
        if lane is not None:
            return lane
        parts = path.split("/")  # "", v2, models, NAME, [versions, VERSION,] infer
        if len(parts) == 5:
            return self.lane(parts[3])
        if len(parts) == 7 and parts[4] == "versions":
            return self.lane(parts[3], parts[5])
        raise Refusal(404, "not_found", "no such path")

    def require_key(self, authorization: bytes | None) -> str:
        """Name of the caller; 401 for a stranger."""
        caller = self.keys.identify(authorization)
        if caller is None:
            raise unauthorized()
        return caller


class _Request:
    """One request under way; the lane is known once its caller and path are."""

    __slots__ = ("headers", "lane", "receive", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, started: float) -> None:
        self.scope, self.receive, self.started = scope, receive, started
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
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

    def _enter(self, request: _Request) -> Lane:
        """Who asks, how, and for which model."""
        self._service.require_key(request.headers.get(b"authorization"))
        if request.scope["method"] != "POST":
            raise Refusal(405, "method", "infer takes POST", headers=((b"allow", b"POST"),))
        request.lane = self._service.lane_at(request.scope["path"])
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
            asked = parse_request(body, headers.get(b"inference-header-content-length"), lane.expected)
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
