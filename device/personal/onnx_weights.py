"""Reads and replaces the weights of an ONNX file, on a device that has no `onnx` package.

Only what is asked for is taken apart; every other byte is carried over. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import ArtifactCorrupt, ContractMismatch
from harmony.core.onnx_graph import Field, fields, require_plain

Floats = NDArray[np.float32]
_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # of a graph
_NODE_INPUT = 1
_DIMS, _TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9  # of a tensor
_PORT_NAME = 1
_FLOAT = 1
_MEND = "export the bundle again"


class ExitProgram:
    """One exit's file. Arrays that it gives are the caller's own."""

    def __init__(self, program: bytes, where: Path) -> None:
        require_plain(program, where)
        self.where = where
        self._model = list(fields(memoryview(program)))
        graphs = [value for number, _, value in self._model if number == _MODEL_GRAPH]
        if len(graphs) != 1 or isinstance(graphs[0], int):
            raise ArtifactCorrupt("does not hold one graph", where=where, mend=_MEND)
        self._graph = list(fields(graphs[0]))
        self._tensors = {name: part for part in self._parts(_INITIALIZER) if (name := _name(part, _TENSOR_NAME))}
        try:
            self._outputs = [_name(part, _PORT_NAME) for part in self._parts(_OUTPUT)]
        except (IndexError, ValueError):  # not among what `require_plain` looks into
            raise ArtifactCorrupt("has a damaged output", where=where, mend=_MEND) from None

    def tensor(self, name: str) -> Floats:
        """A float32 constant by its name; ContractMismatch if there is none."""
        part = self._tensors.get(name)
        found = None if part is None else _array(part)
        if found is None:
            raise ContractMismatch(f"holds no float32 tensor '{name[:100]}'", where=self.where, mend=_MEND)
        return found

    def read_with(self, tensor: str) -> str:
        """The value that a node reads beside a constant: of a linear head, the embedding."""
        for node in self._parts(_NODE):
            found = [bytes(value) for number, _, value in fields(node) if _is(number, value, _NODE_INPUT)]
            inputs = [one.decode(errors="replace") for one in found]
            if len(inputs) > 1 and inputs[1] == tensor:
                return inputs[0]
        raise ContractMismatch(f"has no node that reads '{tensor[:100]}'", where=self.where, mend=_MEND)

    def with_output(self, value: str) -> bytes:
        """The file, which gives an inner value, too."""
        if value in self._outputs:
            return self._written(self._graph)
        return self._written([*self._graph, (_OUTPUT, 2, memoryview(_text(1, value)))])

    def with_tensors(self, tensors: Mapping[str, Floats], outputs: Mapping[str, tuple[int, ...]]) -> bytes:
        """The file with other constants, and outputs of other shapes."""
        graph: list[Field] = []
        for number, kind, value in self._graph:
            changed = None
            if number == _INITIALIZER and not isinstance(value, int):
                name = _name(value, _TENSOR_NAME)
                changed = _tensor(name, tensors[name]) if name in tensors else None
            elif number == _OUTPUT and not isinstance(value, int):
                name = _name(value, _PORT_NAME)
                changed = _port(name, outputs[name]) if name in outputs else None
            graph.append((number, kind, value if changed is None else memoryview(changed)))
        return self._written(graph)

    def _written(self, graph: list[Field]) -> bytes:
        inner = memoryview(b"".join(_field(*one) for one in graph))
        return b"".join(_field(n, kind, inner if n == _MODEL_GRAPH else value) for n, kind, value in self._model)

    def _parts(self, number: int) -> Iterator[memoryview]:
        return (value for found, _, value in self._graph if found == number and not isinstance(value, int))


def _is(number: int, value: memoryview | int, wanted: int) -> bool:
    return number == wanted and not isinstance(value, int)


def _name(message: memoryview, number: int) -> str:
    names = [bytes(value) for found, _, value in fields(message) if found == number and not isinstance(value, int)]
    return names[-1].decode(errors="replace") if names else ""


def _array(tensor: memoryview) -> Floats | None:
    """None if it is no float32 tensor whose numbers lie in one piece."""
    dims: list[int] = []
    kind, raw = 0, None
    for number, _, value in fields(tensor):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _numbers(value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _RAW and not isinstance(value, int):
            raw = value
    if kind != _FLOAT or raw is None or len(raw) != 4 * int(np.prod(dims, dtype=np.int64)):
        return None
    return np.frombuffer(raw, "<f4").reshape(dims).astype(np.float32)


def _numbers(packed: memoryview) -> list[int]:
    """Repeated numbers as one field: each byte but a number's last has its highest bit set."""
    found, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found


def _tensor(name: str, value: Floats) -> bytes:
    dims = b"".join(_number(_DIMS, side) for side in value.shape)
    raw = np.ascontiguousarray(value, "<f4").tobytes()
    return dims + _number(_TYPE, _FLOAT) + _text(_TENSOR_NAME, name) + _field(_RAW, 2, memoryview(raw))


def _port(name: str, shape: tuple[int, ...]) -> bytes:
    """ValueInfoProto{name, type{tensor_type{elem_type, shape{dim{dim_value}}}}}."""
    dims = b"".join(_bytes(1, _number(1, side)) for side in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, dims)))


def _field(number: int, kind: int, value: memoryview | int) -> bytes:
    tag = _varint(number << 3 | kind)
    if isinstance(value, int):
        return tag + _varint(value)
    return tag + (_varint(len(value)) if kind == 2 else b"") + bytes(value)


def _number(number: int, value: int) -> bytes:
    return _field(number, 0, value)


def _bytes(number: int, value: bytes) -> bytes:
    return _field(number, 2, memoryview(value))


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
