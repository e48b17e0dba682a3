"""Asks the cloud, within a deadline, and trusts nothing that it says."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, ExitName
from harmony.core.errors import CloudAnswerInvalid, FallbackError
from harmony.device.answer import CloudAnswer
from harmony.device.circuit import Circuit, CircuitSettings, State, is_away
from harmony.device.deadline import Connection, Deadline, tls_context
from harmony.device.question import Question, Reply, Service, Tally, checked_deadline, pause_before_next

if TYPE_CHECKING:
    from harmony.device.later import Ask, Later, OfflineQueue

MOST_IDLE = 8
"""Connections that are kept for the next questions; more are opened if more threads ask at once."""


class FallbackClient:
    """Connections to one service for one device. Thread-safe; a `with` block closes it.

    url: http(s)://host[:port][/prefix]; key: its API key, or None for a service that asks for none;
    deadline_s: for a whole question, with connecting, retries and reading. Looking a host name up is left to the
    system and its own timeout. circuit: when to leave a failing cloud alone. later: what becomes of a question that the
    cloud was not there for; without it, nothing.
    """

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
        self._context = tls_context() if self._service.tls else None
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._queue = None if later is None else _queue(later, self._ask, self._circuit)

    def __enter__(self) -> FallbackClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Questions that wait are given up: each is delivered with its error."""
        if self._queue is not None:
            self._queue.close(self._deadline_s + 1)
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    @property
    def circuit(self) -> State:
        """Whether questions pass: "closed" if they do."""
        return self._circuit.state

    def check(self) -> None:
        """Ask what the service's model takes. ContractMismatch if it is another cut; otherwise as `ask`."""
        self._service.require_same_cut(self._exchange(self._service.about_model(), Tally()))

    def ask(self, feature: NDArray[np.float32]) -> CloudAnswer:
        """The cloud's answer to one feature (C, H, W).

        Raises CloudUnreachable, CloudTimeout, CloudRefused (the service's words), CloudAnswerInvalid, all of them
        within the deadline, or CircuitOpen at once; InvalidInput if the feature is not finite. An error's `ticket` says
        that the question waits, and under which number its answer will come.
        """
        frame = self._service.frame(feature)
        try:
            answer = self._ask(frame)
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

    def flush(self, seconds: float) -> bool:
        """Wait until no question waits any more; False if some still do when the time is over."""
        return self._queue is None or self._queue.flush(seconds)

    def _ask(self, frame: bytes) -> CloudAnswer:
        tally = Tally()
        try:
            with self._circuit.call(), self._service.exits.told() as told:
                reply = self._exchange(self._service.about_frame(frame, told), tally)
                return self._service.answer(reply, tally.sent, tally.received)
        except FallbackError as error:
            error.sent, error.received = tally.sent, tally.received
            raise

    def _exchange(self, question: Question, tally: Tally) -> Reply:
        """An accepted reply, after retries if they fit into the deadline; a FallbackError otherwise."""
        deadline = Deadline(self._deadline_s)
        for attempt in itertools.count(1):
            try:
                return self._service.accept(self._once(question, deadline, tally))
            except FallbackError as error:
                pause = pause_before_next(error, attempt, deadline.left)
                if pause is None:
                    raise
            time.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(self, question: Question, deadline: Deadline, tally: Tally) -> Reply:
        with self._connection(deadline) as connection:
            try:
                connection.drop_if_stale()
                connection.request(question.method, question.path, question.body, question.headers)
                tally.sent += len(question.body)
                response = connection.getresponse()
                headers = {name.lower(): value for name, value in response.getheaders()}
                return Reply(response.status, headers, self._read(response, question.limit, tally))
            except TimeoutError:
                raise self._service.timeout(self._deadline_s) from None
            except (http.client.HTTPException, OSError) as error:
                raise self._service.unreachable(error) from None

    @contextmanager
    def _connection(self, deadline: Deadline) -> Iterator[Connection]:
        """A connection that nobody else uses. After an error it is closed: the rest of an answer must not be taken for
        the next one."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = Connection(self._service.host, self._service.port, self._context)
        connection.begin(deadline)
        whole = False
        try:
            yield connection
            whole = True
        finally:
            with self._lock:
                kept = whole and not self._closed and len(self._idle) < MOST_IDLE
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def _read(self, response: http.client.HTTPResponse, limit: int, tally: Tally) -> bytes:
        parts, size = [], 0
        while part := response.read(1 << 16):
            size += len(part)
            tally.received += len(part)
            if size > limit:
                raise CloudAnswerInvalid(f"the answer is larger than {limit} bytes", where=self._service.url)
            parts.append(part)
        if response.length:  # what was promised and never came: the client itself lets that pass
            raise http.client.IncompleteRead(b"".join(parts), response.length)
        return b"".join(parts)


def _queue(later: Later, ask: Ask, circuit: Circuit) -> OfflineQueue:
    from harmony.device.later import OfflineQueue  # noqa: PLC0415  (most devices have none)

    return OfflineQueue(later, ask, circuit)
