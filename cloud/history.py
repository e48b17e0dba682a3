"""The last five minutes of a service, a look every five seconds: what a status page needs that counters do not tell."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from itertools import pairwise
from typing import NamedTuple

from harmony.cloud.service import Service

LOOK_SECONDS = 5.0
KEPT = 61
_MINUTE = 60.0


class Look(NamedTuple):
    """Totals at one time. within: requests answered, by the upper bound of their seconds."""

    at: float
    requests: int
    refused: int
    within: Counter[float]


class Recent(NamedTuple):
    """What was added since a look. Rates are a second; p50 and p99 seconds, None without an answer."""

    rate: float
    refused: float
    p50: float | None
    p99: float | None


class History:
    """Looks at the service's counts, over all its workers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._looks: deque[Look] = deque([self._look()], maxlen=KEPT)
        self.started = time.monotonic()

    async def keep(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._looks.append(self._look())

    def rates(self) -> list[float]:
        """Requests a second between one look and the next, the oldest first."""
        looks = [*self._looks, self._look()]
        return [
            (after.requests - before.requests) / max(after.at - before.at, 1e-3) for before, after in pairwise(looks)
        ]

    def last_minute(self) -> Recent:
        """From the first look that is at most a minute old until now."""
        now = self._look()
        then = next((one for one in self._looks if now.at - one.at <= _MINUTE), self._looks[-1])
        seconds = max(now.at - then.at, 1e-3)
        within = sorted((bound, count - then.within[bound]) for bound, count in now.within.items())
        return Recent(
            (now.requests - then.requests) / seconds,
            (now.refused - then.refused) / seconds,
            quantile(within, 0.5),
            quantile(within, 0.99),
        )

    def _look(self) -> Look:
        counted = [one.counted() for one in self._service.metrics.known.values()]
        within: Counter[float] = Counter()
        for one in counted:
            within.update(dict(one.latency))
        return Look(
            time.monotonic(),
            sum(one.success.count for one in counted),
            sum(one.fail.count for one in counted),
            within,
        )


def quantile(within: list[tuple[float, int]], share: float) -> float | None:
    """Seconds within which that share was answered, by the line between two bounds; None without an answer."""
    wanted = share * within[-1][1] if within else 0.0
    low, before = 0.0, 0
    for bound, count in within:
        if wanted and count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - before) / (count - before)
        low, before = bound, count
    return None
