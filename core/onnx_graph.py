"""Reads an ONNX file just far enough to say whether it may be loaded, before a runtime touches it, and what is in it.

Refused: tensors that lie in other files (external data reads any path), and operators outside the standard set (custom
operators are code). Walks the protobuf wire format itself, so that neither a service nor a device needs the `onnx`
package; field numbers are those of onnx.proto3. Every occurrence of a field is looked at, so that a parser which merges
or overrides repeated fields cannot see something that this one did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from harmony.core.errors import ArtifactCorrupt

STANDARD_DOMAINS = frozenset({b"", b"ai.onnx"})
_MAX_DEPTH = 32
_EXTERNAL = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message → field number → the message that lies in it; fields that are not named here hold nothing to check
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14

Field = tuple[int, int, memoryview | int]


def require_plain(program: bytes, where: Path) -> None:
    """ArtifactCorrupt, naming what was found, unless the ONNX file is self-contained and uses standard operators."""
    try:
        _check(memoryview(program), "Model", where, depth=0)
    except (IndexError, ValueError):
        raise ArtifactCorrupt("is not an ONNX file", where=where, mend="export the bundle again") from None


def operators(program: bytes, where: Path) -> dict[str, int]:
    """How many of each operator a graph has, those of its subgraphs and functions too. Errors of `require_plain`."""
    require_plain(program, where)
    return dict(sorted(Counter(_operators(memoryview(program), "Model")).items()))


def _operators(message: memoryview, kind: str) -> Iterator[str]:
    for number, _, value in fields(message):
        if isinstance(value, int):
            continue
        if kind == "Node" and number == _NODE_OPERATOR:
            yield bytes(value).decode(errors="replace")
        if number in _CHILDREN[kind]:
            yield from _operators(value, _CHILDREN[kind][number])


def _check(message: memoryview, kind: str, where: Path, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ArtifactCorrupt(f"nests graphs more than {_MAX_DEPTH} deep", where=where)
    operator, domains = b"?", []
    for number, wire_type, value in fields(message):
        if kind == "Tensor" and (
            number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value == _EXTERNAL)
        ):
            raise ArtifactCorrupt("keeps tensors in another file", where=where, mend="export it as a single file")
        if wire_type != _BYTES or isinstance(value, int):
            continue
        if kind == "Node" and number == _NODE_OPERATOR:
            operator = bytes(value)
        if kind == "Node" and number == _NODE_DOMAIN:
            domains.append(bytes(value))
        if number in _CHILDREN[kind]:
            _check(value, _CHILDREN[kind][number], where, depth + 1)
    for domain in domains:
        if domain not in STANDARD_DOMAINS:
            name = f"{domain.decode(errors='replace')}.{operator.decode(errors='replace')}"
            raise ArtifactCorrupt(f"uses the non-standard operator {name[:100]}", where=where)


def fields(message: memoryview) -> Iterator[Field]:
    """(number, wire type, value) of every field of a message; IndexError or ValueError if it is malformed."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            size, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError("groups are not used by ONNX")
        if number == 0 or size > end - position:
            raise ValueError("a field ends outside its message")
        yield number, wire_type, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number has more than ten bytes")
