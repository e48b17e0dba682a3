"""What keeps a storm of refusals from eating the time of the requests that could be served.

A refusal costs the service up to a third of an answer, and a caller who does not heed Retry-After collects hundreds a
second. So a request that finds the queue full waits outside, its body unread, which costs nothing. It is let in when
the queue has become short. Who comes in time is refused after a moment; who is back before Retry-After has passed only
when it has. A second's wait is for everybody while refusals come faster than REFUSALS_A_SECOND, so that opening new
connections is no way around it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Protocol

from harmony.cloud.lanes import Lane

REFUSALS_A_SECOND = 200.0
MAX_GUESTS = 1024
_LOOK_SECONDS = 0.005
SHORT_WAIT_SECONDS = 0.05  # a queue that is full for a moment, because somebody took the processor, refuses nobody
_CROWD_WAIT_SECONDS = 1.0  # for everybody, while too many are refused
_LONG_WAIT_SECONDS = 4.0  # for who is back too early: longer, and its caller would take us for dead
_SHORT = 0.5  # of the queue that is allowed: those who wait outside leave the rest to those who come in time


class Guest(Protocol):
    """A request that waits outside."""

    @property
    def lane(self) -> Lane | None:
        """Where it wants to go; None if its caller left."""

    def let_in(self, share: float) -> bool:
        """Go on if the queue is shorter than this share of what is allowed; whether it was."""

    def send_away(self) -> None:
        """Refuse: its time is up."""


class WaitingRoom:
    """Requests that wait outside, in order. All methods are called on the event loop."""

    def __init__(self, queue_seconds: float) -> None:
        self._queue_seconds = queue_seconds
        self._guests: OrderedDict[Guest, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._credit = REFUSALS_A_SECOND
        self._counted = 0.0

    def __len__(self) -> int:
        return len(self._guests)

    @property
    def is_full(self) -> bool:
        """Whether nobody else may wait."""
        return len(self._guests) >= MAX_GUESTS

    def may_refuse_soon(self) -> bool:
        """Whether one more caller may be refused soon, which counts it."""
        now = time.monotonic()
        self._credit = min(REFUSALS_A_SECOND, self._credit + (now - self._counted) * REFUSALS_A_SECOND)
        self._counted = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def add(self, guest: Guest, refused_until: float = 0.0) -> None:
        """Have a request wait until there is room, or its time is up. refused_until: by time.monotonic(), when its
        caller was asked to come back."""
        self._guests[guest] = self._until(refused_until)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _until(self, refused_until: float) -> float:
        now = time.monotonic()
        if now < refused_until:
            return min(refused_until, now + _LONG_WAIT_SECONDS)
        if self.may_refuse_soon():
            return now + min(SHORT_WAIT_SECONDS, self._queue_seconds)
        return now + _CROWD_WAIT_SECONDS

    def remove(self, guest: Guest) -> None:
        """Forget a request whose caller left."""
        self._guests.pop(guest, None)

    def _look(self) -> None:
        """Let in who may come, in order; send away whose time is up."""
        self._timer = None
        now = time.monotonic()
        room: dict[Lane | None, float] = {}  # shares of the queues that those who were let in now leave to the next
        for guest, until in list(self._guests.items()):
            lane = guest.lane
            left = room.get(lane, _SHORT)
            if left > 0 and guest.let_in(left):
                self._guests.pop(guest, None)
                room[lane] = left - (0 if lane is None else lane.batcher.seconds_a_row / self._queue_seconds)
                continue
            room[lane] = 0
            if until <= now:
                self._guests.pop(guest, None)
                guest.send_away()
        if self._guests and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
