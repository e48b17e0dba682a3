"""An infer body of the Open Inference Protocol v2, read and checked: no tensor is allocated before its size is known.

    header absent                            the body is JSON, tensors lie in it as `data`
    Inference-Header-Content-Length: N       N bytes of JSON, then the binary tensors in the order of `inputs`

Two ways in, each a batch of n samples of the model's cut (C, H, W):

    feature        FP32 or FP16 [n, C, H, W]     values, little-endian, C order
    feature_frame  BYTES [n]                     frames of harmony.core.wire; in JSON, base64 of each
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from harmony.cloud.batcher import Floats, Load
from harmony.cloud.refusal import Refusal, malformed, too_large
from harmony.core.errors import InvalidInput
from harmony.core.spec import FeatureSpec
from harmony.core.wire import decode

FEATURE, FRAME, OUTPUT = "feature", "feature_frame", "probabilities"
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
_LENGTH = struct.Struct("<I")


class _Part(BaseModel):
    """Unknown fields are ignored, as the protocol wants; known ones are checked without coercion."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _TensorParameters(_Part):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: Any = None
    shared_memory_byte_size: Any = None
    shared_memory_offset: Any = None

    def refuse_shared_memory(self) -> None:
        for name in ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"):
            if getattr(self, name) is not None:
                raise malformed(f"{name}: shared memory is not offered; send the tensor in the body")


class _Input(_Part):
    name: Annotated[str, Field(max_length=256)]
    datatype: Annotated[str, Field(max_length=16)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 31)]], Field(min_length=1, max_length=8), FailFast()]
    parameters: _TensorParameters = _TensorParameters()
    data: Any = None


class _Output(_Part):
    name: Annotated[str, Field(max_length=256)]
    parameters: _TensorParameters = _TensorParameters()


class _Parameters(_Part):
    binary_data_output: bool = False
    cut: Annotated[str, Field(max_length=64)] | None = None
    timeout: Annotated[int, Field(ge=0, le=1 << 62)] = 0


class Header(_Part):
    """The JSON part of a request."""

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: _Parameters = _Parameters()
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=1), FailFast()]
    outputs: Annotated[list[_Output], Field(max_length=1), FailFast()] = []


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model takes, and within which limits."""

    name: str
    feature: FeatureSpec
    max_batch: int
    max_json_bytes: int


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked request. timeout_us: 0 for none. binary: whether the answer carries the tensor as bytes."""

    id: str | None
    rows: int
    load: Load
    binary: bool
    timeout_us: int


def read_header(body: bytes, header_length: bytes | None, max_json_bytes: int) -> tuple[Header, memoryview]:
    """The JSON part and the bytes after it. Refusal 400 if it is not the protocol's, 413 if it is too large."""
    size = _json_size(body, header_length)
    if size > max_json_bytes:
        raise too_large(max_json_bytes, "the JSON part")
    return _parse_header(body if header_length is None else body[:size]), memoryview(body)[size:]


def check_request(header: Header, blob: memoryview, expected: Expected) -> InferRequest:
    """A request for one model. Refusal 400 if it is not what the model wants, 409 for another cut."""
    _check_cut(header.parameters.cut, expected)
    tensor = header.inputs[0]
    rows = _rows(tensor, expected)
    _check_source(tensor, blob)
    load = _frames(tensor, rows, blob, expected) if tensor.name == FRAME else _values(tensor, blob)
    return InferRequest(header.id, rows, load, _wants_binary(header), header.parameters.timeout)


def _json_size(body: bytes, header_length: bytes | None) -> int:
    if header_length is None:
        return len(body)
    if not header_length.isdigit() or len(header_length) > 19 or int(header_length) > len(body):
        raise malformed(f"Inference-Header-Content-Length must be a number of at most {len(body)}, the body's bytes")
    return int(header_length)


def _parse_header(text: bytes) -> Header:
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100]
        raise malformed(f"{field}: {first['msg']}" if field else first["msg"]) from None


def _check_cut(cut: str | None, expected: Expected) -> None:
    if cut is not None and cut != str(expected.feature):
        raise Refusal(
            409,
            "contract",
            f"the cut contract differs: model '{expected.name}' has {expected.feature}, the caller has {cut}",
        )


def _rows(tensor: _Input, expected: Expected) -> int:
    """Samples in the tensor, after its name, datatype and shape were checked."""
    name, shape = tensor.name, tensor.shape
    if name not in (FEATURE, FRAME):
        raise malformed(f"unknown input '{name}', the model takes '{FEATURE}' or '{FRAME}'")
    datatypes = ("BYTES",) if name == FRAME else tuple(_DTYPES)
    if tensor.datatype not in datatypes:
        raise malformed(f"'{name}' has datatype {tensor.datatype}, it takes {' or '.join(datatypes)}")
    if len(shape) != (1 if name == FRAME else 4):
        raise malformed(f"'{name}' has {len(shape)} axes, it takes {'[n]' if name == FRAME else '[n, C, H, W]'}")
    if name == FEATURE and tuple(shape[1:]) != expected.feature.shape:
        found = "x".join(map(str, shape[1:]))
        raise Refusal(
            409,
            "contract",
            f"the cut contract differs: model '{expected.name}' has {expected.feature}, the tensor has {found}",
        )
    if shape[0] > expected.max_batch:
        raise malformed(f"'{name}' has {shape[0]} samples, a request may have {expected.max_batch}")
    return shape[0]


def _check_source(tensor: _Input, blob: memoryview) -> None:
    """Exactly one of `data` and a binary tensor, and no byte that nobody asked for."""
    tensor.parameters.refuse_shared_memory()
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise malformed(f"'{tensor.name}' needs either data or parameters.binary_data_size")
    if (size or 0) != len(blob):
        raise malformed(f"{len(blob)} bytes follow the JSON, the inputs declare {size or 0}")


def _values(tensor: _Input, blob: memoryview) -> Load:
    count, dtype = int(np.prod(tensor.shape)), _DTYPES[tensor.datatype]  # the shape is the model's by now
    if tensor.data is None:
        if count * dtype.itemsize != len(blob):
            raise malformed(
                f"'{tensor.name}' has {len(blob)} bytes, its shape and datatype need {count * dtype.itemsize}"
            )
        return _load_values(np.frombuffer(blob, dtype).reshape(tensor.shape))
    values = _numbers(tensor)
    if values.size != count:
        raise malformed(f"'{tensor.name}' has {values.size} values, its shape needs {count}")
    with np.errstate(over="ignore"):  # what overflows to infinity is refused as not finite
        return _load_values(values.reshape(tensor.shape).astype(np.float32))


def _numbers(tensor: _Input) -> NDArray[Any]:
    """JSON data, flat or nested, as numbers; numpy alone would also take texts and truth values."""
    try:
        values = np.asarray(tensor.data)
    except (ValueError, OverflowError, TypeError):
        values = np.empty(0, object)
    if not isinstance(tensor.data, list) or values.dtype.kind not in "fiu":
        raise malformed(f"'{tensor.name}': data must be a list of numbers, flat or of the tensor's shape")
    return values


def _load_values(values: NDArray[Any]) -> Load:
    def load(target: Floats) -> None:
        if not np.isfinite(values).all():
            raise InvalidInput("the feature holds values that are not finite", where=FEATURE)
        target[...] = values

    return load


def _frames(tensor: _Input, rows: int, blob: memoryview, expected: Expected) -> Load:
    frames: Sequence[bytes | memoryview] = _texts(tensor) if tensor.data is not None else _elements(blob, rows)
    if len(frames) != rows:
        raise malformed(f"'{FRAME}' has {len(frames)} elements, its shape needs {rows}")

    def load(target: Floats) -> None:
        for row, frame in enumerate(frames):
            target[row] = decode(frame, expected.feature)

    return load


def _elements(blob: memoryview, rows: int) -> list[memoryview]:
    """BYTES elements: each with its length, uint32, before it."""
    elements: list[memoryview] = []
    position = 0
    while position < len(blob) and len(elements) < rows:
        start = position + _LENGTH.size
        if start > len(blob):
            break
        position = start + _LENGTH.unpack_from(blob, position)[0]
        elements.append(blob[start:position])
    if position != len(blob) or len(elements) != rows:
        raise malformed(f"'{FRAME}': the lengths of {rows} elements do not add up to {len(blob)} bytes")
    return elements


def _texts(tensor: _Input) -> list[bytes]:
    if not isinstance(tensor.data, list) or not all(isinstance(text, str) for text in tensor.data):
        raise malformed(f"'{FRAME}': data must be a list of base64 texts")
    try:
        return [base64.b64decode(text, validate=True) for text in tensor.data]
    except (binascii.Error, ValueError):
        raise malformed(f"'{FRAME}': data is not base64") from None


def _wants_binary(header: Header) -> bool:
    if not header.outputs:
        return header.parameters.binary_data_output
    output = header.outputs[0]
    if output.name != OUTPUT:
        raise malformed(f"unknown output '{output.name}', the model gives '{OUTPUT}'")
    output.parameters.refuse_shared_memory()
    if output.parameters.classification:
        raise malformed("classification is not offered; ask for the probabilities")
    asked = output.parameters.binary_data
    return header.parameters.binary_data_output if asked is None else asked
