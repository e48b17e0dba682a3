"""The resident memory of a service while something happens to it."""

from __future__ import annotations

import threading
from typing import Self

import psutil

from harmony.bench.serving_attack_results import Memory

_SECONDS = 0.2


class MemoryWatch:
    """Reads it when it is made, five times a second until the block ends, and then once more."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._largest = resident(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def memory(self) -> Memory:
        """What was found until now."""
        after = resident(self._pid)
        return Memory(before_bytes=self._before, after_bytes=after, largest_bytes=max(self._largest, after))

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS):
            self._largest = max(self._largest, resident(self._pid))


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children hold."""
    return sum(one.memory_info().rss for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)))
