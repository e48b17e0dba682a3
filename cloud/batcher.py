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
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from harmony.cloud.metrics import ModelStatistics
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Refusal, of_error
from harmony.core.errors import HarmonyError

Floats = NDArray[np.float32]
Load = Callable[[Floats], None]
log = logging.getLogger("harmony.cloud")
_SMOOTHING = 0.2  # share of the newest batch in the estimate of seconds a row


@dataclass(slots=True, eq=False)
class Job:
    """One request's rows on their way through the model thread.

    load: writes the rows (n, C, H, W) into the batch, or raises a HarmonyError that ends this job alone.
    """

    rows: int
    load: Load
    answer: asyncio.Future[Floats]
    queued: float
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
        self._held: Job | None = None
        self._buffer = np.zeros((max_batch, *model.feature.shape), np.float32)
        self._pending_rows = 0
        self._seconds_a_row = self._measure()
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

    def submit(self, rows: int, load: Load) -> asyncio.Future[Floats]:
        """Queue rows ≤ max_batch. The future gives (rows, tokens) or raises Refusal; a done future is not computed."""
        if self._loop is None or not self._accepting:
            raise Refusal(503, "stopping", "the service is not running")
        job = Job(rows, load, self._loop.create_future(), time.perf_counter())
        self._pending_rows += rows
        self._statistics.depth.set(self._pending_rows)
        self._queue.put(job)
        return job.answer

    def _measure(self) -> float:
        """Seconds a row before anything was asked, so that the first burst meets a bounded queue too."""
        rows = min(8, self._max_batch)
        self._model.program.run(self._buffer[:rows])
        started = time.perf_counter()
        self._model.program.run(self._buffer[:rows])
        return (time.perf_counter() - started) / rows

    def _deliver(self, batch: Batch) -> None:
        """On the loop: hand out the answers of one batch."""
        self._pending_rows -= sum(job.rows for job in batch.jobs)
        self._statistics.depth.set(self._pending_rows)
        if batch.rows:
            self._seconds_a_row += _SMOOTHING * (batch.seconds / batch.rows - self._seconds_a_row)
            waits = [batch.started - job.queued for job in batch.jobs]
            self._statistics.batch(batch.rows, waits, batch.seconds)
        for job in batch.jobs:
            if job.answer.done():
                continue
            if job.result is not None:
                job.answer.set_result(job.result)
            else:
                job.answer.set_exception(job.error or _failed())

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
        job = self._held or self._queue.get()
        self._held = None
        jobs: list[Job] = []
        rows = 0
        while job is not None:
            if rows + job.rows > self._max_batch:
                self._held = job
                return jobs
            jobs.append(job)
            rows += job.rows
            try:
                job = self._queue.get_nowait()
            except Empty:
                return jobs
        if jobs:
            self._queue.put(None)  # run these first, stop at the next call
        return jobs

    def _run(self, batch: Batch) -> None:
        batch.started = time.perf_counter()
        loaded = self._load(batch.jobs)
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
            if job.answer.done():  # its deadline passed, or its caller left
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


def _failed() -> Refusal:
    return Refusal(500, "internal", "the model failed on this batch")
