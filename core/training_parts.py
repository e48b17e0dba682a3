"""What a front end's training program trains: written in its metadata, as JSON under PARTS_KEY. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from harmony.core.errors import ArtifactCorrupt
from harmony.core.onnx_graph import fields, require_plain
from harmony.core.spec import Frozen
from harmony.core.training import Tensor

PARTS_KEY, _NOTES = "harmony.parts", 14


class Part(Frozen):
    """One tensor of the flat vector: where it lies in which exit's ONNX file. A head's has a row for every class."""

    exit: Literal["exit1", "exit2"]
    tensor: Tensor
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(min_length=1, max_length=4)]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


_PARTS: TypeAdapter[tuple[Part, ...]] = TypeAdapter(Annotated[tuple[Part, ...], Field(min_length=1, max_length=10_000)])


def parts_text(parts: Sequence[Part]) -> str:
    """What stands under PARTS_KEY in a program's metadata."""
    return json.dumps([one.model_dump() for one in parts], separators=(",", ":"))


def parts_of(program: bytes, where: Path) -> tuple[Part, ...]:
    """The parts that an ONNX program says it trains; ArtifactCorrupt if it does not."""
    require_plain(program, where)
    try:
        return _PARTS.validate_json(_note(program, PARTS_KEY.encode()))
    except ValidationError as error:
        raise ArtifactCorrupt(f"does not say what it trains: {error.errors()[0]['msg']}", where=where) from None
    except (IndexError, ValueError):  # its notes are not among what `require_plain` looks into
        raise ArtifactCorrupt("does not say what it trains: damaged metadata", where=where) from None


def _note(program: bytes, key: bytes) -> bytes:
    """A value of the model's metadata, empty if it is not there. Field numbers of onnx.proto3: 14, with 1 and 2."""
    for number, _, value in fields(memoryview(program)):
        if number == _NOTES and not isinstance(value, int):
            entry = {part: bytes(inside) for part, _, inside in fields(value) if not isinstance(inside, int)}
            if entry.get(1) == key:
                return entry.get(2, b"")
    return b""
