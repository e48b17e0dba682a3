"""Just enough of FlatBuffers to look into a file without its schema's generated code. No torch.

The format (https://flatbuffers.dev/internals): a table begins with the distance back to its vtable, which holds, for
each field by number, where the field lies in the table, or 0 if it is not there. Strings, vectors and tables lie behind
an offset. Every read is bounds-checked and counted: what points outside, or to itself again and again, is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

_U8, _U16, _U32, _I32, _U64 = (Struct(one) for one in ("<B", "<H", "<I", "<i", "<Q"))
_MOST_TABLES = 1 << 18


class Table:
    """One table of a buffer. Fields are asked for by number, with the type that the schema gives them."""

    def __init__(self, buffer: memoryview, at: int, left: list[int]) -> None:
        """left: how many tables may still be visited, shared by all of a buffer."""
        self._buffer, self._at, self._left = buffer, at, left
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"it holds more than {_MOST_TABLES} tables")
        self._vtable = at - _read(buffer, at, _I32)
        self._fields = (_read(buffer, self._vtable, _U16) - 4) // 2

    @classmethod
    def root(cls, buffer: bytes | memoryview, start: int = 0) -> Table:
        """The buffer's root; ValueError if there is none."""
        view = memoryview(buffer)[start:]
        return cls(view, _read(view, 0, _U32), [_MOST_TABLES])

    def byte(self, field: int) -> int:
        """A ubyte, or the kind of a union; 0 if it is not there."""
        return self._scalar(field, _U8)

    def int32(self, field: int) -> int:
        """An int; 0 if it is not there."""
        return self._scalar(field, _I32)

    def uint64(self, field: int) -> int:
        """A ulong; 0 if it is not there."""
        return self._scalar(field, _U64)

    def table(self, field: int) -> Table | None:
        """A table, or the value of a union that is one."""
        place = self._place(field)
        return None if place is None else Table(self._buffer, _follow(self._buffer, place), self._left)

    def text(self, field: int) -> str:
        """A string; empty if it is not there."""
        return bytes(self.data(field)).decode("utf-8", "replace")

    def data(self, field: int) -> memoryview:
        """A vector of bytes."""
        start, count = self._vector(field, 1)
        return self._buffer[start : start + count]

    def uint64s(self, field: int) -> tuple[int, ...]:
        """A vector of longs."""
        start, count = self._vector(field, 8)
        return tuple(_read(self._buffer, start + 8 * one, _U64) for one in range(count))

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        start, count = self._vector(field, 4)
        for one in range(count):
            yield Table(self._buffer, _follow(self._buffer, start + 4 * one), self._left)

    def _place(self, field: int) -> int | None:
        offset = _read(self._buffer, self._vtable + 4 + 2 * field, _U16) if field < self._fields else 0
        return self._at + offset if offset else None

    def _scalar(self, field: int, form: Struct) -> int:
        place = self._place(field)
        return 0 if place is None else _read(self._buffer, place, form)

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        """Where the elements begin, and how many there are."""
        place = self._place(field)
        if place is None:
            return 0, 0
        start = _follow(self._buffer, place)
        count = _read(self._buffer, start, _U32)
        if start + 4 + count * size > len(self._buffer):
            raise ValueError("a vector ends outside the buffer")
        return start + 4, count


def _follow(buffer: memoryview, at: int) -> int:
    return at + _read(buffer, at, _U32)


def _read(buffer: memoryview, at: int, form: Struct) -> int:
    if not 0 <= at <= len(buffer) - form.size:
        raise ValueError("an offset points outside the buffer")
    value: int = form.unpack_from(buffer, at)[0]
    return value
