"""What an ExecuTorch program holds, read from the file: nothing is loaded, and ExecuTorch need not be installed.

Field numbers are those of ExecuTorch's program.fbs, and of the schema of its XNNPACK delegate (both in the executorch
1.5 wheel); their format keeps numbers for ever, so that a newer file is read, too, as far as it is known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harmony.core.errors import ArtifactCorrupt
from harmony.core.flatbuffer import Table

_Item = TypeVar("_Item")
_MARK = slice(4, 8)
_PLANS, _INLINE, _SEGMENTS = 1, 3, 4  # of Program
_NAME, _CHAINS, _OPERATORS, _DELEGATES, _BUFFERS = 0, 5, 6, 7, 8  # of ExecutionPlan
_INSTRUCTIONS = 2  # of Chain
_KERNEL_CALL, _DELEGATE_CALL = 1, 2  # kinds of Instruction
_IN_SEGMENT = 1  # where a delegate's blob lies
_NODES = 1  # of XNNGraph
# fmt: off
_XNNPACK = (
    "Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d", "Div",
    "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum", "DepthwiseConv2d", "MaxPooling2d",
    "Multiply", "Subtract", "Floor", "Convert", "GlobalAvgPooling2d", "StaticReshape", "ArgMaxPooling2d", "SquareRoot",
    "Ceiling", "Hardswish", "LeakyReLU", "Maximum", "Negate", "Square", "ELU", "Abs", "PReLU", "Concatenate2",
    "Concatenate3", "Concatenate4", "StaticSlice", "ScaledDotProductAttention", "BatchMatrixMultiply", "Concatenate5",
    "ConvTranspose2d", "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin", "Copy", "Cos",
)
# fmt: on


@dataclass(frozen=True)
class Method:
    """One method. operators: how many of each, those in delegates as `XNNPACK.Conv2d`; delegated: share of them that
    delegates run, None if one cannot be looked into; planned_bytes: memory that the program asks for its activations,
    without what delegates allocate for themselves; delegate_bytes: of what they are given, weights apart.
    """

    name: str
    operators: dict[str, int]
    delegated: float | None
    planned_bytes: int
    delegates: tuple[str, ...]
    delegate_bytes: int


def read_methods(program: bytes, where: Path) -> list[Method]:
    """The methods of a .pte; ArtifactCorrupt if it is none."""
    if program[_MARK] != b"ET12":
        raise ArtifactCorrupt("is not an ExecuTorch program", where=where)
    try:
        root = Table.root(program)
        blobs = _Blobs(program, root)
        return [_method(plan, blobs) for plan in root.tables(_PLANS)]
    except ValueError as error:
        raise ArtifactCorrupt(f"is no whole ExecuTorch program: {error}", where=where) from None


def _method(plan: Table, blobs: _Blobs) -> Method:
    names = [f"{one.text(0)}.{one.text(1)}".rstrip(".") for one in plan.tables(_OPERATORS)]
    delegates = [(one.text(0), blobs.of(one)) for one in plan.tables(_DELEGATES)]
    called = [_call(one) for chain in plan.tables(_CHAINS) for one in chain.tables(_INSTRUCTIONS)]
    outside = Counter(_at(names, index) for kind, index in called if kind == _KERNEL_CALL)
    run = [_at(delegates, index) for kind, index in called if kind == _DELEGATE_CALL]
    inside: Counter[str] = Counter()
    for name, blob in run:
        inside.update(_nodes(name, blob))
    known = all(_is_xnnpack(blob) for _, blob in run)
    total = inside.total() + outside.total()
    return Method(
        name=plan.text(_NAME),
        operators=dict(sorted((inside + outside).items())),
        delegated=inside.total() / total if known and total else None,
        planned_bytes=sum(plan.uint64s(_BUFFERS)[1:]),  # the first is reserved
        delegates=tuple(name for name, _ in run),
        delegate_bytes=sum(len(blob) for _, blob in run),
    )


def _call(instruction: Table) -> tuple[int, int]:
    """Kind of an instruction, and the index that a call begins with."""
    arguments = instruction.table(1)
    return instruction.byte(0), 0 if arguments is None else arguments.int32(0)


class _Blobs:
    """What delegates are given: inline, or in one of the segments behind the flatbuffer."""

    def __init__(self, program: bytes, root: Table) -> None:
        self._program = memoryview(program)
        self._inline, self._segments = list(root.tables(_INLINE)), list(root.tables(_SEGMENTS))

    def of(self, delegate: Table) -> memoryview:
        reference = delegate.table(1)
        if reference is None:
            return memoryview(b"")
        place, index = reference.byte(0), reference.int32(1)
        if place != _IN_SEGMENT:
            return _at(self._inline, index).data(0)
        segment = _at(self._segments, index)
        start, size = self._start() + segment.uint64(0), segment.uint64(1)
        if start + size > len(self._program):
            raise ValueError("a segment ends outside the file")
        return self._program[start : start + size]

    def _start(self) -> int:
        """From the header that follows the mark: "eh00", its length, size of the flatbuffer, start of the segments."""
        if bytes(self._program[8:12]) != b"eh00":
            raise ValueError("segments are used, but nothing says where they begin")
        return int.from_bytes(self._program[24:32], "little")


def _is_xnnpack(blob: memoryview) -> bool:
    return bytes(blob[_MARK]) == b"XH00"


def _nodes(delegate: str, blob: memoryview) -> Iterator[str]:
    """Operators in a delegate, or the delegate itself if it is of an unknown kind."""
    if not _is_xnnpack(blob):
        yield delegate
        return
    for node in Table.root(blob, int.from_bytes(blob[10:14], "little")).tables(_NODES):
        kind = node.byte(0)
        yield f"XNNPACK.{_XNNPACK[kind - 1] if 0 < kind <= len(_XNNPACK) else kind}"


def _at(items: list[_Item], index: int) -> _Item:
    if not 0 <= index < len(items):
        raise ValueError("an index points outside its list")
    return items[index]
