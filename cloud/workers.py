"""Several processes behind one port: a parent accepts connections and hands them, in turn, to its workers.

A connection is handed over whole (SCM_RIGHTS), so the shares are even, and none is lost in the accept queue of a
worker that ends. A worker that dies takes its own connections with it and nobody else's, and is replaced. The parent
runs no model and reads no request.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

from harmony.cloud.settings import ServiceSettings
from harmony.cloud.share import files
from harmony.cloud.source import Place
from harmony.core import errors
from harmony.core.errors import HarmonyError, ServiceError

log = logging.getLogger("harmony.cloud")
_START_SECONDS = 60.0
_STOP_MARGIN_SECONDS = 1.5
_HASTY_SECONDS = 5.0  # a worker that ends sooner after its start may never get well
_MAX_HASTY = 5
_PAUSE_SECONDS = 0.5
_ACCEPT_AT_ONCE = 64
_BEHIND_SECONDS = 5.0  # workers that take nothing for longer do not get well; those who wait have to try again
_LOOK_SECONDS = 0.005


class _Worker:
    """One process: connections go out by a socket, its word and its end come by its stdout."""

    def __init__(self, config: dict[str, Any], slot: int) -> None:
        self.slot = slot
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harmony.cloud.worker", str(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end tells the worker that the parent is gone
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno(), *config["share"]],
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops its workers in order
            )
        self.channel.setblocking(False)
        self.started = time.monotonic()
        self.stdin, self.stdout = _pipe(self.process.stdin), _pipe(self.process.stdout)
        self.stdin.write(json.dumps({**config, "slot": slot}).encode() + b"\n")
        self.stdin.flush()

    def hello(self) -> dict[str, Any]:
        """What it says once it is ready. Raises the error that kept it from starting."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            ready = selector.select(_START_SECONDS)
        line = self.stdout.readline() if ready else b""
        if not line.endswith(b"\n"):
            raise ServiceError("a worker did not start; see the log above", where=f"worker {self.process.pid}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            kind = getattr(errors, said["error"], ServiceError)
            raise kind(said["text"]) if issubclass(kind, HarmonyError) else ServiceError(said["text"])
        return said

    def take(self, connection: socket.socket) -> bool | None:
        """Hand a connection over; None if the worker has no room for it just now, False if it is gone."""
        try:
            socket.send_fds(self.channel, [b"c"], [connection.fileno()])
        except BlockingIOError:
            return None
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Reap the process, which has ended or is ended now."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.channel.close()
        self.stdin.close()
        self.stdout.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101  # asked for
    return pipe


class Supervisor:
    """The parent. `run` returns after a stop by signal, or the end of `stop_with`, when every worker is gone."""

    def __init__(
        self, listener: socket.socket, place: Place, settings: ServiceSettings, level: str, stop_with: int | None
    ) -> None:
        self._listener = listener
        self._config: dict[str, Any] = {
            "place": place.document(),
            "settings": settings.model_dump(mode="json"),
            "log_level": level,
        }
        self._settings = settings
        self._stop_with = stop_with
        self._workers: deque[_Worker] = deque()
        self._starting: list[_Worker] = []
        self._hasty = 0
        self._next_start = 0.0
        self._stopping = False

    def run(self, announce: Callable[[tuple[str, ...]], None]) -> None:
        """Start the workers, announce the models' names, hand out connections. ServiceError if workers keep dying."""
        try:
            with _signals() as wake, files(self._settings) as self._config["share"]:
                self._start_all(announce)
                self._loop(wake)
                self._stop()
        finally:
            for worker in (*self._workers, *self._starting):
                worker.close()

    def _start_all(self, announce: Callable[[tuple[str, ...]], None]) -> None:
        for slot in range(self._settings.workers):
            self._workers.append(_Worker(self._config, slot))
        said = [worker.hello() for worker in self._workers]
        announce(tuple(said[0]["models"]))

    def _loop(self, wake: socket.socket) -> None:
        self._listener.setblocking(False)
        while not self._stopping:
            self._refill()
            with selectors.DefaultSelector() as selector:
                selector.register(wake, selectors.EVENT_READ)
                if self._workers:
                    selector.register(self._listener, selectors.EVENT_READ)
                if self._stop_with is not None:
                    selector.register(self._stop_with, selectors.EVENT_READ)
                for worker in (*self._workers, *self._starting):
                    selector.register(worker.stdout, selectors.EVENT_READ, worker)
                self._serve(selector, wake)

    def _serve(self, selector: selectors.BaseSelector, wake: socket.socket) -> None:
        """Hand out connections until something else has to be done: a worker that is missing is started in its time,
        however many connections come meanwhile."""
        until = None if self._is_complete else self._next_start
        while until is None or time.monotonic() < until:
            for key, _ in selector.select(None if until is None else until - time.monotonic()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Worker):
                    (self._greet if key.data in self._starting else self._bury)(key.data)
                    return
                elif key.fileobj is wake or not os.read(self._stop_with or 0, 4096):
                    self._stopping = True
                    return

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # no more descriptors: those who wait have to wait on
                log.warning("cannot accept", extra={"error": str(error)})
                time.sleep(0.05)
                return
            with connection:
                if not self._hand_out(connection):
                    return

    def _hand_out(self, connection: socket.socket) -> bool:
        """To the next worker that has room. If all are behind, wait for them: whoever comes meanwhile waits in the
        listener's backlog, and is not turned away."""
        deadline = time.monotonic() + _BEHIND_SECONDS
        while True:
            taken: list[bool | None] = []
            while len(taken) < len(self._workers) and True not in taken:
                self._workers.rotate(-1)
                taken.append(self._workers[0].take(connection))
            if None not in taken or True in taken or time.monotonic() > deadline:
                return True in taken
            time.sleep(_LOOK_SECONDS)

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.close()
        lived = time.monotonic() - worker.started
        more = {"pid": worker.process.pid, "status": worker.process.returncode, "seconds": round(lived, 3)}
        log.error("a worker ended", extra=more)
        self._hasty = self._hasty + 1 if lived < _HASTY_SECONDS else 0
        self._pause_or_give_up()

    @property
    def _is_complete(self) -> bool:
        return len(self._workers) + len(self._starting) >= self._settings.workers

    def _refill(self) -> None:
        """Start what is missing. The others serve meanwhile: nobody waits for a new worker to be ready."""
        while not self._is_complete and time.monotonic() >= self._next_start:
            taken = {worker.slot for worker in (*self._workers, *self._starting)}
            self._starting.append(_Worker(self._config, min(set(range(self._settings.workers)) - taken)))

    def _greet(self, worker: _Worker) -> None:
        """A worker that was started said something: that it is ready, or why not."""
        self._starting.remove(worker)
        try:
            worker.hello()
        except HarmonyError as error:  # a folder that was replaced meanwhile, say
            worker.close()
            log.error("a worker could not be replaced", extra={"error": str(error)})  # noqa: TRY400
            self._hasty += 1
            self._pause_or_give_up()
        else:
            self._workers.append(worker)

    def _pause_or_give_up(self) -> None:
        if self._hasty >= _MAX_HASTY and not self._workers:
            raise ServiceError(f"{_MAX_HASTY} workers in a row ended soon after their start; see the log above")
        self._next_start = time.monotonic() + _PAUSE_SECONDS * self._hasty

    def _stop(self) -> None:
        """Hand out who still waits at the door, close it, have the workers drain."""
        self._accept()
        self._listener.close()
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_seconds + _STOP_MARGIN_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("a worker did not stop in time", extra={"pid": worker.process.pid})  # noqa: TRY400


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that can be read when SIGTERM or SIGINT came. Both are ignored from its end on: the process ends too."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def note(_number: int, _frame: FrameType | None) -> None:
        theirs.send(b"s")

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        signal.signal(number, note)
    try:
        yield ours
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        ours.close()
        theirs.close()
