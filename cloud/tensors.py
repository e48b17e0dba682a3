"""The values of a request's tensor: their sizes checked at once, their content when they are copied into a batch."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.cloud.refusal import malformed
from harmony.core.spec import FeatureSpec
from harmony.core.wire import decode

Floats = NDArray[np.float32]
Load = Callable[[Floats], None]
FEATURE, FRAME = "feature", "feature_frame"
DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
_LENGTH = struct.Struct("<I")


def binary_values(blob: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> Load:
    """Values as they lie in the body. shape: (n, C, H, W), checked; size: its bytes. 400 if there are more or less."""
    if size != len(blob):
        raise malformed(f"'{FEATURE}' has {len(blob)} bytes, its shape and datatype need {size}")
    return _load_values(np.frombuffer(blob, dtype).reshape(shape))


def json_values(data: Any, shape: tuple[int, ...]) -> Load:
    """Values in JSON, flat or nested. 400 if they are not as many numbers as the shape wants."""
    values = _numbers(data)
    if values.size != np.prod(shape):
        raise malformed(f"'{FEATURE}' has {values.size} values, its shape needs {np.prod(shape)}")
    with np.errstate(over="ignore"):  # what overflows to infinity is refused as not finite
        return _load_values(values.reshape(shape).astype(np.float32))


def _numbers(data: Any) -> NDArray[Any]:
    """JSON data as numbers; numpy alone would also take texts and truth values."""
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError, TypeError):
        values = np.empty(0, object)
    if not isinstance(data, list) or values.dtype.kind not in "fiu":
        raise malformed(f"'{FEATURE}': data must be a list of numbers, flat or of the tensor's shape")
    return values


def _load_values(values: NDArray[Any]) -> Load:
    def load(target: Floats) -> None:
        target[...] = values

    return load


def frames(data: Any, blob: memoryview, rows: int, spec: FeatureSpec) -> Load:
    """Frames of harmony.core.wire, binary or as base64 in JSON. 400 if there are not `rows` of them."""
    found: Sequence[bytes | memoryview] = _texts(data) if data is not None else _elements(blob, rows)
    if len(found) != rows:
        raise malformed(f"'{FRAME}' has {len(found)} elements, its shape needs {rows}")

    def load(target: Floats) -> None:
        for row, frame in enumerate(found):
            decode(frame, spec, target[row])

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


def _texts(data: Any) -> list[bytes]:
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise malformed(f"'{FRAME}': data must be a list of base64 texts")
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except (binascii.Error, ValueError):
        raise malformed(f"'{FRAME}': data is not base64") from None
