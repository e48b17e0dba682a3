"""Numbers that the workers of a service keep together: counts, and what keys have used of their limits.

A table in memory. A row has a name, one number that all write, and a block of numbers for each worker, which that
worker alone writes; whoever wants a sum adds the blocks up. So nothing is locked but the making of a row, no count is
lost, and what a worker has counted outlives it. One process alone has the same table to itself.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("harmony.cloud")
_DOUBLE = 8
_NAME_BYTES = 32
_HEAD = _NAME_BYTES // _DOUBLE + 1  # numbers before the blocks: the name, and what all write


class Shape(NamedTuple):
    """Of a table. width: numbers of one worker in one row."""

    rows: int
    workers: int
    width: int

    @property
    def row(self) -> int:
        """Numbers in a row."""
        return _HEAD + self.workers * self.width

    @property
    def size(self) -> int:
        """Bytes of the table; pages of it that nobody writes take no memory."""
        return _DOUBLE * self.rows * self.row


class Row:
    """One row, as one worker sees it. own: its block; common: the number that all write."""

    __slots__ = ("_blocks", "common", "own")

    def __init__(self, numbers: memoryview[float], shape: Shape, slot: int) -> None:
        own = _HEAD + slot * shape.width
        self.own = numbers[own : own + shape.width]
        self.common = numbers[_HEAD - 1 : _HEAD]
        self._blocks = [numbers[_HEAD + block * shape.width :][: shape.width] for block in range(shape.workers)]

    def total(self, place: int) -> float:
        """The sum of one number over the workers."""
        return sum(block[place] for block in self._blocks)

    def blocks(self) -> NDArray[np.float64]:
        """A copy of every worker's block: (workers, width)."""
        return np.array(self._blocks, np.float64)


class Ledger:
    """The table, as one worker sees it."""

    def __init__(self, shape: Shape, slot: int = 0, descriptor: int | None = None) -> None:
        """slot: which worker this is; descriptor: of the file that all map, None for memory of our own."""
        self._shape, self._slot, self._descriptor = shape, slot, descriptor
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, shape.size)
        self._numbers = memoryview(self._memory).cast("d")
        self._is_full = False

    def row(self, name: str) -> Row:
        """The row of that name, made if there is none. In a full table: a row that no other worker sees."""
        digest = hashlib.sha256(name.encode()).digest()
        with self._alone():
            place = self._find(digest)
            if place is None:
                return self._apart(name)
            start = place * self._shape.row
            self._memory[start * _DOUBLE : start * _DOUBLE + _NAME_BYTES] = digest
        return Row(self._numbers[start : start + self._shape.row], self._shape, self._slot)

    def _find(self, digest: bytes) -> int | None:
        """Where the row is, or where it shall be; None if there is no place."""
        first, rows = int.from_bytes(digest[:8], "little"), self._shape.rows
        for step in range(rows):
            place = (first + step) % rows
            start = place * self._shape.row * _DOUBLE
            if self._memory[start : start + _NAME_BYTES] in (digest, bytes(_NAME_BYTES)):
                return place
        return None

    def _apart(self, name: str) -> Row:
        if not self._is_full:
            self._is_full = True
            log.warning("the table of the workers is full; the rest is counted by each worker for itself")
        return Ledger(Shape(1, 1, self._shape.width)).row(name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._descriptor is None:
            yield
            return
        import fcntl  # noqa: PLC0415  (Unix alone has it, and several workers)

        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def make_file(shape: Shape) -> int:
    """The descriptor of a new file of zeros for a table, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("harmony-ledger")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, shape.size)
    return descriptor
