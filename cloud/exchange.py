"""One infer request from its headers to its answer: what the connection and the ASGI application share. No I/O here.

Every decision that can be taken before the body is read, is. Everything runs on the event loop; the answer is handed
to a callback, so that a request costs no task and no future.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from harmony.cloud.answer import Answer, answered, compressed, refused, wanted_coding
from harmony.cloud.batcher import Job
from harmony.cloud.body import declared_length, inflate, window_of
from harmony.cloud.keys import Caller
from harmony.cloud.lanes import Lane
from harmony.cloud.outputs import Floats
from harmony.cloud.refusal import Refusal
from harmony.cloud.request import Plan, load_of, read_header, told_exits
from harmony.cloud.service import Service

Done = Callable[[Answer], None]
_Made = TypeVar("_Made")
log = logging.getLogger("harmony.cloud")
PATIENCE = 2  # a body that was let in and read has cost its price: it may find the queue this much longer than others
_QUICK_VALUES = 1 << 14  # more numbers than these are written, or compressed, beside the loop
_SOONEST_RETRY_SECONDS, _LATEST_RETRY_SECONDS = 1.0, 4.0


class Exchange:
    """One infer request. `enter` first; then `ask` with the whole body, or `refuse`; `leave` at the end, always."""

    __slots__ = (
        "_caller", "_done", "_entered", "_job", "_lane", "_plan", "_received", "_reserved", "_service", "_started",
        "_timer", "_told", "headers", "path",
    )  # fmt: skip

    def __init__(self, service: Service, path: str, headers: Mapping[bytes, bytes]) -> None:
        self.path, self.headers = path, headers
        self._service = service
        self._started = time.perf_counter()
        self._caller: Caller | None = None
        self._lane: Lane | None = None
        self._plan: Plan | None = None
        self._job: Job | None = None
        self._done: Done | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told: tuple[int, ...] = ()
        self._entered = False
        self._reserved = self._received = 0

    def enter(self, method: str) -> None:
        """Who asks, how, for which model, and how much comes. Refusal for what cannot be served at all."""
        service = self._service
        caller = service.require_key(self.headers, "infer")
        if method != "POST":
            raise Refusal(405, "method", "infer takes POST", headers=((b"allow", b"POST"),))
        self._lane = service.table.route_at(self.path).lane
        caller.enter(time.monotonic())
        self._caller = caller
        limit = service.settings.max_body_bytes
        declared = declared_length(self.headers.get(b"content-length"), limit)
        self._reserved = limit if declared is None else declared

    def reserve(self) -> None:
        """Take a place among the bodies that are under way; 503 with Retry-After if there is none."""
        service, size = self._service, self._reserved
        # A lone body is always let in, however small the bound is set.
        if service.inflight_bytes and service.inflight_bytes + size > service.settings.max_inflight_bytes:
            message = "too many bodies are being read"
            raise Refusal(503, "overload", message, retry_after=_SOONEST_RETRY_SECONDS)
        service.inflight_bytes += size
        self._entered = True

    def has_room(self, share: float = 1.0) -> bool:
        """Whether the queue is no longer than this share of what is allowed."""
        assert self._lane is not None  # noqa: S101  # set by `enter`
        return self._lane.batcher.expected_wait() <= share * self._service.settings.queue_seconds

    def busy(self, before: int = 0) -> Refusal:
        """503 with Retry-After for a queue that is full.

        before: how often in a row its caller was refused; each time doubles its pause. Of callers who come back in
        vain every second, each costs a refusal a second, and the more there are, the less is left for answers.
        """
        assert self._lane is not None  # noqa: S101  # set by `enter`
        pause = min(_SOONEST_RETRY_SECONDS * 2.0 ** min(before, 10), _LATEST_RETRY_SECONDS)
        wait = max(pause, self._lane.batcher.expected_wait())
        return Refusal(503, "overload", f"the queue of '{self._lane.model.name}' is full", retry_after=wait)

    @property
    def lane(self) -> Lane | None:
        """The model that it asks, once it has entered."""
        return self._lane

    def leave(self) -> None:
        """Give back what was taken; a request that is still under way is dropped and not computed."""
        if self._entered:
            self._entered = False
            self._service.inflight_bytes -= self._reserved
        if self._caller is not None:
            self._caller.leave()
            self._caller = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._job is not None:
            self._job.dropped = True
            self._job = None
        self._done = None

    def ask(self, raw: bytes | bytearray, done: Done) -> None:
        """Ask the model. done: called once with the answer, unless the request leaves before; perhaps at once."""
        self._done, self._received = done, len(raw)
        try:
            window = window_of(self.headers.get(b"content-encoding"))
            if window is None:
                self._queue(raw)
            else:  # zlib lets the loop go on meanwhile
                limit = self._service.settings.max_body_bytes
                self._beside(lambda: inflate(raw, window, limit), self._queue)
        except Exception as error:
            self._fail(error)

    def refuse(self, refusal: Refusal) -> Answer:
        """Count a refusal; its answer."""
        if self._lane is None:
            self._service.metrics.refused(refusal.reason)
        else:
            self._lane.statistics.refused(refusal.reason, time.perf_counter() - self._started)
        if log.isEnabledFor(logging.INFO):
            more = {"status": refusal.status, "reason": refusal.reason, "error": str(refusal), "path": self.path[:200]}
            log.info("refused", extra={**more, **self._names()})
        return refused(refusal)

    def _queue(self, body: bytes | bytearray) -> None:
        service = self._service
        header, blob = read_header(
            body, self.headers.get(b"inference-header-content-length"), service.settings.max_json_bytes
        )
        # Again, and then queued without a pause: while the body came, another version may have taken over.
        self._lane = lane = service.table.route_at(self.path).take(header.cut)
        self._plan = plan = header.plan(lane.expected)
        self._told = told_exits(self.headers.get(b"harmony-exits"))
        load = load_of(plan, blob, lane.expected)
        if not self.has_room(PATIENCE):
            raise self.busy()
        if plan.timeout_us:
            self._expire_after(plan.timeout_us)
        self._job = lane.batcher.submit(plan.rows, load, self._computed, plan.priority)

    def _expire_after(self, timeout_us: int) -> None:
        left = timeout_us / 1e6 - (time.perf_counter() - self._started)
        expired = Refusal(504, "expired", f"no answer within the request's timeout of {timeout_us} µs")
        if left <= 0:
            raise expired
        self._timer = asyncio.get_running_loop().call_later(left, self._fail, expired)

    def _computed(self, job: Job) -> None:
        """The model's word, or why there is none."""
        self._job = None
        lane, plan = self._lane, self._plan
        assert lane is not None and plan is not None  # noqa: S101  # set before it was queued
        if job.result is None:
            self._fail(job.error or Refusal(500, "internal", "the model failed on this batch"))
            return
        coding = wanted_coding(self.headers.get(b"accept-encoding")) if b"accept-encoding" in self.headers else None
        result: Floats = job.result

        def make() -> Answer:
            made = answered(lane.model.name, lane.model.version, plan, result)
            return made if coding is None else compressed(made, coding)

        if result.size > _QUICK_VALUES:
            self._beside(make, self._finish)
        else:
            self._finish(make())

    def _finish(self, answer: Answer) -> None:
        done, lane, plan = self._done, self._lane, self._plan
        if done is None or lane is None or plan is None:
            return
        self._done = None
        seconds = time.perf_counter() - self._started
        lane.statistics.answered(plan.rows, seconds, self._received, len(answer.body))
        if self._told:
            lane.statistics.told(self._told)
        if log.isEnabledFor(logging.DEBUG):
            more = {"status": 200, "model": lane.model.name, "version": lane.model.version, "rows": plan.rows}
            log.debug("answered", extra={**more, **self._names(), "seconds": round(seconds, 6)})
        done(answer)

    def _fail(self, error: Exception) -> None:
        done, self._done = self._done, None
        if self._job is not None:
            self._job.dropped = True
            self._job = None
        if done is None:
            return
        if not isinstance(error, Refusal):
            log.error("unexpected error in infer", exc_info=error, extra={"path": self.path[:200]} | self._names())
            error = Refusal(500, "internal", "internal error")
        done(self.refuse(error))

    def _names(self) -> dict[str, str]:
        """Who asked, and the caller's own name for the request, for the logs."""
        names = {} if self._caller is None else {"caller": self._caller.name}
        if self._plan is not None and self._plan.id is not None:
            names["id"] = self._plan.id
        return names

    def _beside(self, work: Callable[[], _Made], then: Callable[[_Made], None]) -> None:
        """Do something longer on another thread, and go on with it on the loop, if the request is still there."""
        pending = asyncio.get_running_loop().run_in_executor(None, work)

        def go_on(done: asyncio.Future[_Made]) -> None:
            try:
                if not done.cancelled() and self._done is not None:
                    then(done.result())
            except Exception as error:
                self._fail(error)

        pending.add_done_callback(go_on)
