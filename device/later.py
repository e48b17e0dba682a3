"""Questions that the cloud was not there for: kept, within bounds, and asked when it is back.

In memory: what waits is lost with the process. A full queue takes no more, so that what waits is what began to wait
first; nothing that was taken is dropped silently, each question is delivered once, with an answer or an error.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from harmony.core.errors import CloudUnreachable, ConfigError, FallbackError
from harmony.device.answer import CloudAnswer
from harmony.device.circuit import Circuit, is_away

log = logging.getLogger("harmony.device")
Ask = Callable[[bytes], CloudAnswer]


class LateAnswer(NamedTuple):
    """What became of a question that waited. One of answer and error is None; waited_s: since it was first asked."""

    ticket: int
    answer: CloudAnswer | None
    error: FallbackError | None
    waited_s: float


@dataclass(frozen=True)
class Later:
    """deliver: called with every late answer, on a thread of the client's; most, most_bytes: what waits at once."""

    deliver: Callable[[LateAnswer], None]
    most: int = 64
    most_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not (self.most >= 1 and self.most_bytes >= 1):
            raise ConfigError("a queue without room", where="later", mend="most and most_bytes from 1")


class Waiting(NamedTuple):
    """A question that waits. since: on the monotonic clock."""

    ticket: int
    frame: bytes
    since: float


class Waitlist:
    """The bounds, the order and the delivery. Not thread-safe."""

    def __init__(self, settings: Later) -> None:
        self._settings = settings
        self._waiting: deque[Waiting] = deque()
        self._bytes = self._ticket = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: bytes) -> int | None:
        """The question's ticket; None if there is no room for it."""
        if len(self._waiting) >= self._settings.most or self._bytes + len(frame) > self._settings.most_bytes:
            return None
        self._ticket += 1
        self._bytes += len(frame)
        self._waiting.append(Waiting(self._ticket, frame, time.monotonic()))
        return self._ticket

    @property
    def first(self) -> Waiting:
        """The one that has waited longest, of one or more."""
        return self._waiting[0]

    def take(self) -> Waiting:
        """The first, which waits no more."""
        first = self._waiting.popleft()
        self._bytes -= len(first.frame)
        return first

    def deliver(self, one: Waiting, outcome: CloudAnswer | FallbackError) -> None:
        """Tell whoever asked."""
        answer, error = (None, outcome) if isinstance(outcome, FallbackError) else (outcome, None)
        try:
            self._settings.deliver(LateAnswer(one.ticket, answer, error, time.monotonic() - one.since))
        except Exception:  # the caller's code: its mistake must not end what others wait for
            log.exception("a late answer could not be delivered")

    def give_up(self) -> None:
        """Deliver to everybody that nothing comes."""
        while self._waiting:
            self.deliver(self.take(), CloudUnreachable("the client was closed before the cloud was back"))


def pause(circuit: Circuit) -> float:
    """Seconds until the cloud is asked again: when the circuit lets a question pass, or about a cool-down from now if
    it has not opened yet."""
    return max(circuit.left, circuit.settings.cool_down_s * random.uniform(0.5, 1.5))  # noqa: S311  (jitter, no secret)


class OfflineQueue:
    """Asks what waits, the oldest first and one at a time, on a thread that begins with the first question."""

    def __init__(self, settings: Later, ask: Ask, circuit: Circuit) -> None:
        """ask: within its deadline; circuit: when that makes sense."""
        self._list, self._ask, self._circuit = Waitlist(settings), ask, circuit
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, frame: bytes) -> int | None:
        """The question's ticket; None if there is no room for it."""
        with self._changed:
            ticket = None if self._closed else self._list.put(frame)
            if ticket is not None and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="harmony-later", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return ticket

    def wake(self) -> None:
        """The cloud is back: ask now."""
        if self._list:
            with self._changed:
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until nothing waits; False if something does when the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._list, seconds)

    def close(self, seconds: float) -> None:
        """Take nothing more, and give up what waits; seconds: for the question that is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._list or self._closed)
                if self._closed:
                    break
                first = self._list.first
            outcome = self._outcome(first)
            if outcome is not None:
                self._list.deliver(first, outcome)
            with self._changed:
                if outcome is not None:
                    self._list.take()
                    self._changed.notify_all()
                elif not self._closed:
                    self._changed.wait(pause(self._circuit))
        self._list.give_up()  # nobody else touches it any more
        with self._changed:
            self._changed.notify_all()

    def _outcome(self, one: Waiting) -> CloudAnswer | FallbackError | None:
        """What the cloud says; None if it is still away."""
        try:
            return self._ask(one.frame)
        except FallbackError as error:
            return None if is_away(error) else error
