"""The fallback client for asyncio: many questions under way on one thread, by the same rules."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, ExitName
from harmony.core.errors import FallbackError
from harmony.device.answer import CloudAnswer
from harmony.device.async_http import Stream, open_stream
from harmony.device.circuit import Circuit, CircuitSettings, State, is_away
from harmony.device.deadline import Deadline, tls_context
from harmony.device.later import Later, Waitlist, pause
from harmony.device.question import Question, Reply, Service, Tally, checked_deadline, pause_before_next

MOST_IDLE = 8
"""Connections that are kept for the next questions; more are opened if more questions are asked at once."""


class AsyncFallbackClient:
    """As FallbackClient, for the tasks of one event loop. Looking a host name up is within the deadline, too."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        manifest: DeviceManifest,
        deadline_s: float = 1.0,
        circuit: CircuitSettings | None = None,
        later: Later | None = None,
    ) -> None:
        self._service = Service(url, key, manifest)
        self._deadline_s = checked_deadline(deadline_s)
        self._circuit = Circuit(circuit or CircuitSettings(), self._service.url)
        self._context: Any = tls_context() if self._service.tls else None
        self._idle: list[Stream] = []
        self._closed = False
        self._queue = None if later is None else _Queue(later, self, self._circuit)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Questions that wait are given up: each is delivered with its error."""
        if self._queue is not None:
            await self._queue.close()
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    @property
    def circuit(self) -> State:
        """Whether questions pass: "closed" if they do."""
        return self._circuit.state

    async def check(self) -> None:
        """Ask what the service's model takes. ContractMismatch if it is another cut; otherwise as `ask`."""
        self._service.require_same_cut(await self._exchange(self._service.about_model(), Tally()))

    async def ask(self, feature: NDArray[np.float32]) -> CloudAnswer:
        """The cloud's answer to one feature (C, H, W), which is read before anything is waited for.

        Raises what FallbackClient.ask does, within the same deadline.
        """
        frame = self._service.frame(feature)
        try:
            answer = await self.ask_frame(frame)
        except FallbackError as error:
            if self._queue is not None and is_away(error):
                error.ticket = self._queue.put(frame)
            raise
        if self._queue is not None:
            self._queue.wake()
        return answer

    def answered(self, exit_: ExitName) -> None:
        """The device answered a sample itself: the service hears of it with the next question, for its status page."""
        self._service.exits.add(exit_)

    async def flush(self, seconds: float) -> bool:
        """Wait until no question waits any more; False if some still do when the time is over."""
        return self._queue is None or await self._queue.flush(seconds)

    async def ask_frame(self, frame: bytes) -> CloudAnswer:
        """As `ask`, of an encoded feature, which is not kept for later."""
        tally = Tally()
        try:
            with self._circuit.call(), self._service.exits.told() as told:
                reply = await self._exchange(self._service.about_frame(frame, told), tally)
                return self._service.answer(reply, tally.sent, tally.received)
        except FallbackError as error:
            error.sent, error.received = tally.sent, tally.received
            raise

    async def _exchange(self, question: Question, tally: Tally) -> Reply:
        """An accepted reply, after retries if they fit into the deadline; a FallbackError otherwise."""
        deadline = Deadline(self._deadline_s)
        for attempt in itertools.count(1):
            try:
                return self._service.accept(await self._once(question, deadline, tally))
            except FallbackError as error:
                seconds = pause_before_next(error, attempt, deadline.left)
                if seconds is None:
                    raise
            await asyncio.sleep(seconds)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, question: Question, deadline: Deadline, tally: Tally) -> Reply:
        over = asyncio.timeout(max(0.0, deadline.left))
        try:
            async with over:
                return await self._exchanged(question, tally)
        except (HTTPException, EOFError, OSError) as error:
            if over.expired():
                raise self._service.timeout(self._deadline_s) from None
            raise self._service.unreachable(error) from None

    async def _exchanged(self, question: Question, tally: Tally) -> Reply:
        """Over a connection that nobody else uses. After an error it is closed: the rest of an answer must not be taken
        for the next one."""
        stream = self._kept() or await open_stream(self._service, self._context)
        whole = False
        try:
            reply, whole = await stream.exchange(question, tally)
            return reply
        finally:
            if whole and not self._closed and len(self._idle) < MOST_IDLE:
                self._idle.append(stream)
            else:
                stream.abort()

    def _kept(self) -> Stream | None:
        """A connection that is open still, of this event loop: another's, that has ended, cannot be used."""
        loop = asyncio.get_running_loop()
        while self._idle:
            stream = self._idle.pop()
            if stream.is_fresh(loop):
                return stream
            stream.abort()
        return None


class _Queue:
    """Asks what waits, the oldest first and one at a time, in a task that lives as long as something waits."""

    def __init__(self, settings: Later, client: AsyncFallbackClient, circuit: Circuit) -> None:
        self._list, self._client, self._circuit = Waitlist(settings), client, circuit
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def put(self, frame: bytes) -> int | None:
        """The question's ticket; None if there is no room for it."""
        ticket = None if self._closed else self._list.put(frame)
        if ticket is not None and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._work())
        return ticket

    def wake(self) -> None:
        """The cloud is back: ask now."""
        self._woken.set()

    async def flush(self, seconds: float) -> bool:
        """Wait until nothing waits; False if something does when the time is over."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)
        return not self._list

    async def close(self) -> None:
        """Take nothing more, and give up what waits."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._list.give_up()

    async def _work(self) -> None:
        while self._list:
            first = self._list.first
            self._woken.clear()
            try:
                self._list.deliver(first, await self._client.ask_frame(first.frame))
            except FallbackError as error:
                if is_away(error):
                    await self._rest()
                    continue
                self._list.deliver(first, error)
            self._list.take()

    async def _rest(self) -> None:
        """Until it makes sense to ask again, or somebody else was answered."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), pause(self._circuit))
