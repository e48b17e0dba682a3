"""Batches without waiting: one thread a model runs whatever queued while its previous batch ran.

The event loop submits jobs and is woken once a batch. Everything that the two threads share is the job queue; the
counts of what waits belong to the loop, the buffer belongs to the thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from queue import Empty, SimpleQueue

import numpy as np

from harmony.cloud.metrics import ModelStatistics
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Refusal, of_error
from harmony.cloud.tensors import FEATURE, Floats, Load
from harmony.core.errors import HarmonyError

log = logging.getLogger("harmony.cloud")
_SMOOTHING = 0.2  # share of the newest batch in the estimate of seconds a row
_BATCHES = (8, 16, 32)  # sizes that are tried
_AS_GOOD = 1.05  # a smaller batch that costs this much more a row is preferred: its answers are there sooner
_LONG_RUN = 0.05  # seconds; a model that takes longer for one batch is not tried with a larger one
_HEAD_START = 0.1  # seconds by which priority 1 is put before, and 3 and above behind, its place in the queue


@dataclass(slots=True, eq=False)
class Job:
    """One request's rows on their way through the model thread.

    load: writes the rows (n, C, H, W) into the batch, or raises a HarmonyError that ends this job alone.
    done: called on the loop with the job, unless it was dropped: its deadline passed, or its caller left.
    place: the time that decides who is next.
    """

    rows: int
    load: Load
    done: Callable[[Job], None]
    queued: float
    place: float
    dropped: bool = False
    error: Refusal | None = None
    result: Floats | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs that were run together, with the times that the statistics want."""

    jobs: list[Job]
    started: float = 0.0
    rows: int = 0
    seconds: float = 0.0


class Batcher:
    """The queue and the thread of one model. All methods but the thread's own are called on the event loop."""

    def __init__(self, model: ServedModel, statistics: ModelStatistics, max_batch: int) -> None:
        self._model = model
        self._statistics = statistics
        self._max_batch = max_batch
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._line: list[tuple[float, int, Job]] = []
        self._taken = 0
        self._ending = False
        self._buffer = np.zeros((max_batch, *model.feature.shape), np.float32)
        self._pending_rows = 0
        self._enough, self._seconds_a_row = self._measure()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepting = False
        self._thread = threading.Thread(target=self._work, name=f"model-{model.name}", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; answers are delivered on `loop`."""
        self._loop = loop
        self._accepting = True
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Have the thread finish what is queued, and wait for it at most `seconds`."""
        self._accepting = False
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(seconds)

    def expected_wait(self) -> float:
        """Seconds that the work ahead of a new request is estimated to take."""
        return self._pending_rows * self._seconds_a_row

    @property
    def seconds_a_row(self) -> float:
        """What one more sample is estimated to add to that."""
        return self._seconds_a_row

    def submit(self, rows: int, load: Load, done: Callable[[Job], None], priority: int = 0) -> Job:
        """Queue rows ≤ max_batch. 503 if nobody works on them.

        priority: 1 goes before what came up to 0.1 s earlier, 3 and above lets pass what comes up to 0.1 s later, 0 and
        2 are served in turn. A head start, and not a class of its own, so that nobody waits for ever.
        """
        if not self._accepting:
            raise Refusal(503, "stopping", "the service is not running")
        now = time.perf_counter()
        job = Job(rows, load, done, now, now + _HEAD_START * (min(priority or 2, 3) - 2))
        self._pending_rows += rows
        self._statistics.waiting(self._pending_rows)
        self._queue.put(job)
        return job

    def _measure(self) -> tuple[int, float]:
        """(rows from which on a larger batch gains nothing, seconds a row), before anything was asked.

        So the first burst meets a bounded queue too, and no batch is larger than the processor's caches like.
        """
        self._model.program.run(self._buffer[:1])
        found: list[tuple[int, float]] = []
        for rows in sorted({min(rows, self._max_batch) for rows in _BATCHES}):
            seconds = min(self._time(rows) for _ in range(2))
            found.append((rows, seconds / rows))
            if seconds > _LONG_RUN:
                break
        best = min(seconds for _, seconds in found)
        return next(one for one in found if one[1] <= _AS_GOOD * best)

    def _time(self, rows: int) -> float:
        started = time.perf_counter()
        self._model.program.run(self._buffer[:rows])
        return time.perf_counter() - started

    def _deliver(self, batch: Batch) -> None:
        """On the loop: hand out the answers of one batch."""
        self._pending_rows -= sum(job.rows for job in batch.jobs)
        self._statistics.waiting(self._pending_rows)
        if batch.rows:
            self._seconds_a_row += _SMOOTHING * (batch.seconds / batch.rows - self._seconds_a_row)
            waits = [batch.started - job.queued for job in batch.jobs]
            self._statistics.batch(batch.rows, waits, batch.seconds)
        for job in batch.jobs:
            if job.dropped:
                continue
            try:
                job.done(job)
            except Exception:  # a fault of ours, which must not cost the others of the batch their answers
                log.exception("an answer could not be delivered", extra={"model": self._model.name})

    def _work(self) -> None:
        """The thread: take what is there, run it, wake the loop, until `stop`."""
        while jobs := self._take():
            batch = Batch(jobs)
            try:
                with np.errstate(all="ignore"):  # what overflows is found by its result; strangers fill no log
                    self._run(batch)
            except Exception:
                log.exception("the model failed", extra={"model": self._model.name})
            if self._loop is None or self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(self._deliver, batch)

    def _take(self) -> list[Job]:
        """At least one job, and every further one that fits into the batch; empty at the end."""
        if not self._line and not self._ending:
            self._stand_in_line(self._queue.get())
        while True:
            try:
                self._stand_in_line(self._queue.get_nowait())
            except Empty:
                break
        jobs: list[Job] = []
        rows = 0
        while self._line and (not jobs or rows + self._line[0][2].rows <= self._enough):
            jobs.append(heappop(self._line)[2])
            rows += jobs[-1].rows
        return jobs

    def _stand_in_line(self, job: Job | None) -> None:
        if job is None:
            self._ending = True
        else:
            self._taken += 1
            heappush(self._line, (job.place, self._taken, job))

    def _run(self, batch: Batch) -> None:
        batch.started = time.perf_counter()
        loaded = self._load(batch.jobs)
        rows = sum(job.rows for job in loaded)
        if not rows:
            return
        if not np.isfinite(np.add.reduce(self._buffer[:rows], axis=None)):
            # One sum is the cheapest look at all of them. If something is wrong, or the sum overflows, each is asked.
            loaded = self._finite(loaded)
            rows = sum(job.rows for job in loaded)
        if not rows:
            return
        probabilities = self._model.program.run(self._buffer[:rows])
        batch.rows, batch.seconds = rows, time.perf_counter() - batch.started
        finite = bool(np.isfinite(probabilities).all())
        first = 0
        for job in loaded:
            result = probabilities[first : first + job.rows]
            first += job.rows
            if finite or np.isfinite(result).all():
                job.result = result
            else:
                job.error = Refusal(400, "invalid_tensor", "the feature drives the model out of range of float32")

    def _load(self, jobs: list[Job]) -> list[Job]:
        """Fill the buffer with the jobs that are still wanted and whose feature is one."""
        loaded, first = [], 0
        for job in jobs:
            if job.dropped:
                continue
            try:
                job.load(self._buffer[first : first + job.rows])
            except HarmonyError as error:
                job.error = of_error(error)
            except Exception:  # a fault of ours, which must not cost the others of the batch their answers
                log.exception("a feature could not be loaded", extra={"model": self._model.name})
            else:
                loaded.append(job)
                first += job.rows
        return loaded

    def _finite(self, loaded: list[Job]) -> list[Job]:
        """The jobs whose rows are numbers, moved together in the buffer; the others are refused."""
        kept: list[Job] = []
        first = to = 0
        for job in loaded:
            rows = self._buffer[first : first + job.rows]
            first += job.rows
            if not np.isfinite(rows).all():
                job.error = Refusal(400, "invalid_tensor", f"{FEATURE}: the feature holds values that are not finite")
                continue
            self._buffer[to : to + job.rows] = rows
            to += job.rows
            kept.append(job)
        return kept
