"""A circuit breaker: a cloud that does not answer is left alone for a while, and then tried by one question.

closed     questions pass; so many failures in a row open it
open       nothing passes, until the cool-down is over: it doubles each time, and is drawn from half to one and a half
           times that, so that the devices of a fleet do not come back together
half-open  one question passes; if it succeeds the circuit closes, else it opens again

A Retry-After opens it at once and for that long: the cloud's word counts for every question, not only for the one that
was told. What counts as a failure is in `is_away`; a refusal such as a wrong key is an answer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from harmony.core.errors import (
    CircuitOpen,
    CloudAnswerInvalid,
    CloudRefused,
    CloudTimeout,
    CloudUnreachable,
    ConfigError,
    FallbackError,
)

State = Literal["closed", "open", "half-open"]
_LONGEST_RETRY_AFTER_S = 3600.0


@dataclass(frozen=True)
class CircuitSettings:
    """failures: in a row, that open it; cool_down_s: the first one; longest_s: which no doubling exceeds."""

    failures: int = 3
    cool_down_s: float = 1.0
    longest_s: float = 60.0

    def __post_init__(self) -> None:
        if not (self.failures >= 1 and 0 < self.cool_down_s <= self.longest_s <= 86400):
            mend = "failures from 1, 0 < cool_down_s ≤ longest_s ≤ 86400"
            raise ConfigError(f"{self} cannot be meant", where="circuit", mend=mend)


def is_away(error: FallbackError) -> bool:
    """Whether the cloud was not there, or not able: nothing that another question, or another key, would mend."""
    if isinstance(error, CloudRefused):
        return error.status is not None and (error.status in (408, 429) or error.status >= 500)
    return isinstance(error, CloudUnreachable | CloudTimeout | CloudAnswerInvalid | CircuitOpen)


class Circuit:
    """One for one service, `where`. Thread-safe. clock, draw: for tests."""

    def __init__(
        self,
        settings: CircuitSettings,
        where: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.settings, self._where, self._clock, self._draw = settings, where, clock, draw
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failed = self._opened = 0
        self._until = 0.0
        self._period = 0  # what was admitted in an earlier one says nothing of this one

    @property
    def state(self) -> State:
        """As of now."""
        with self._lock:
            return "half-open" if self._state == "open" and self._clock() >= self._until else self._state

    @property
    def left(self) -> float:
        """Seconds until a question may pass; 0 if one may now."""
        with self._lock:
            return max(0.0, self._until - self._clock()) if self._state == "open" else 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one question. CircuitOpen, before anything is asked, if it may not pass."""
        period = self._admit()
        try:
            yield
        except FallbackError as error:
            if is_away(error):
                self._failure(period, error.retry_after if isinstance(error, CloudRefused) else None)
            else:
                self._success(period)
            raise
        except BaseException:  # a feature that cannot be sent, a task that was cancelled: says nothing of the cloud
            self._nothing(period)
            raise
        self._success(period)

    def _admit(self) -> int:
        with self._lock:
            if self._state == "closed":
                return self._period
            left = self._until - self._clock()
            if self._state == "half-open" or left > 0:
                next_ = "another question is trying it" if self._state == "half-open" else f"next try in {left:.1f} s"
                raise CircuitOpen(f"failed, and is left alone for a while: {next_}", where=self._where)
            self._state = "half-open"
            self._period += 1
            return self._period

    def _success(self, period: int) -> None:
        with self._lock:
            if period == self._period:
                self._state, self._failed, self._opened = "closed", 0, 0

    def _failure(self, period: int, retry_after: float | None) -> None:
        with self._lock:
            if period != self._period:
                return
            self._failed += 1
            if retry_after is not None:
                self._open(min(retry_after, _LONGEST_RETRY_AFTER_S) * self._draw(1, 1.2))
            elif self._state == "half-open" or self._failed >= self.settings.failures:
                doubled = self.settings.cool_down_s * 2.0 ** min(self._opened, 60)
                self._opened += 1
                self._open(min(doubled, self.settings.longest_s) * self._draw(0.5, 1.5))

    def _open(self, seconds: float) -> None:
        self._state, self._until = "open", self._clock() + seconds
        self._period += 1

    def _nothing(self, period: int) -> None:
        with self._lock:
            if period == self._period and self._state == "half-open":
                self._open(0.0)
