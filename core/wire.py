"""The feature on the wire: one self-describing binary frame a sample. No torch.

    offset  size  field
    0       4     magic "HFF1"
    4       1     codec: 0 float32, 1 float16, 2 int8 per channel + zstd
    5       1     reserved, 0
    6       6     channels, height, width, uint16 each
    12      …     codec 0 and 1: the values; codec 2: `channels` float32 scales, then a zstd frame of int8 values

Everything is little-endian, values in C order (channel, row, column). int8 quantisation is symmetric per channel:
value = scale · q with q in −127 … 127 and scale = max |value| / 127.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from harmony.core.codec import CODECS as CODECS  # noqa: PLC0414  (who writes frames needs both)
from harmony.core.codec import Codec as Codec  # noqa: PLC0414
from harmony.core.errors import ConfigError, ContractMismatch, InvalidInput, WireError
from harmony.core.spec import FeatureSpec

MAGIC = b"HFF1"
_HEADER = struct.Struct("<4sBBHHH")
_LONGEST = 0xFFFF
_ZSTD_LEVEL = 3
_HARMLESS_SCALE = 1e36  # times any int8 it is finite, so that nobody has to look
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))  # 127 of it are finite
_local = threading.local()  # zstd contexts are not thread-safe, and making one costs more than a small frame


def encode(feature: NDArray[np.float32], codec: Codec = "int8-zstd") -> bytes:
    """One frame. feature: (C, H, W) float32, finite; InvalidInput otherwise. fp16 clips at its largest value, 65504."""
    if feature.ndim != 3 or feature.dtype != np.float32 or not np.isfinite(feature).all():
        raise InvalidInput("a feature must be (channels, height, width), float32 and finite", where="feature")
    if not 0 < min(feature.shape) <= max(feature.shape) <= _LONGEST:
        raise InvalidInput(f"a feature's sides are 1 to {_LONGEST}, not {feature.shape}", where="feature")
    if codec not in CODECS:
        raise ConfigError(f"'{codec}' is no wire codec", mend=f"choose one of {', '.join(CODECS)}")
    return _HEADER.pack(MAGIC, CODECS.index(codec), 0, *feature.shape) + _ENCODERS[codec](feature)


def decode(frame: bytes | memoryview, spec: FeatureSpec, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Feature (C, H, W) of a frame. The header is checked against `spec` before anything is allocated.

    out: a C-contiguous array to write it to, and return; what an error leaves in it has no meaning.
    Raises WireError for a malformed frame, ContractMismatch for another cut, InvalidInput for NaN or infinity.
    """
    if len(frame) < _HEADER.size:
        raise WireError(f"frame of {len(frame)} bytes is shorter than its header", where="feature frame")
    magic, codec, reserved, *shape = _HEADER.unpack_from(frame)
    if magic != MAGIC or reserved != 0 or codec >= len(CODECS):
        raise WireError("not a feature frame of a known version and codec", where="feature frame")
    if tuple(shape) != spec.shape:
        found = "x".join(map(str, shape))  # any three uint16: not always the sides of a FeatureSpec
        raise ContractMismatch(
            f"the cut contract differs: the receiver has {spec}, the frame has {found}",
            where="feature frame",
            mend="use a front end and a back end of the same run",
        )
    feature = np.empty(spec.shape, np.float32) if out is None else out
    _DECODERS[CODECS[codec]](memoryview(frame)[_HEADER.size :], spec, feature)
    return feature


def _encode_fp32(feature: NDArray[np.float32]) -> bytes:
    return feature.astype("<f4", copy=False).tobytes()


def _encode_fp16(feature: NDArray[np.float32]) -> bytes:
    return np.clip(feature, -65504, 65504).astype("<f2").tobytes()


def _encode_int8(feature: NDArray[np.float32]) -> bytes:
    scale = np.minimum(np.abs(feature).max(axis=(1, 2)) / np.float32(127), _LARGEST_SCALE).astype("<f4")
    # A channel of zeros has scale 0; dividing by 1 there keeps its zeros.
    quantised = np.rint(feature / np.where(scale > 0, scale, 1)[:, None, None]).clip(-127, 127).astype(np.int8)
    packed: bytes = _compressor().compress(quantised.tobytes())
    head: bytes = scale.tobytes()
    return head + packed


def _require_finite(feature: NDArray[np.float32]) -> None:
    if not np.isfinite(feature).all():
        raise InvalidInput("the feature holds values that are not finite", where="feature frame")


def _values(payload: memoryview, spec: FeatureSpec, out: NDArray[np.float32], dtype: str) -> None:
    expected = spec.channels * spec.height * spec.width * np.dtype(dtype).itemsize
    if len(payload) != expected:
        raise WireError(f"payload of {len(payload)} bytes where {expected} are due", where="feature frame")
    out[...] = np.frombuffer(payload, dtype).reshape(spec.shape)
    _require_finite(out)


def _decode_int8(payload: memoryview, spec: FeatureSpec, out: NDArray[np.float32]) -> None:
    head = 4 * spec.channels
    size = spec.channels * spec.height * spec.width
    if len(payload) < head:
        raise WireError("the frame ends inside its scales", where="feature frame")
    body = payload[head:]
    try:
        if zstandard.frame_content_size(body) != size:
            raise WireError(f"the compressed values do not declare {size} bytes", where="feature frame")
        raw = _decompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"the compressed values are damaged: {error}", where="feature frame") from None
    scale = np.frombuffer(payload[:head], "<f4").astype(np.float32)
    if (scale < 0).any():
        raise WireError("a scale is negative", where="feature frame")
    out[...] = np.frombuffer(raw, np.int8).reshape(spec.shape)
    if scale.max() <= _HARMLESS_SCALE:
        out *= scale[:, None, None]
        return
    with np.errstate(over="ignore", invalid="ignore"):  # scales without end are found by what they give
        out *= scale[:, None, None]
    _require_finite(out)


_ENCODERS: dict[Codec, Callable[[NDArray[np.float32]], bytes]] = {
    "fp32": _encode_fp32,
    "fp16": _encode_fp16,
    "int8-zstd": _encode_int8,
}
_DECODERS: dict[Codec, Callable[[memoryview, FeatureSpec, NDArray[np.float32]], None]] = {
    "fp32": lambda payload, spec, out: _values(payload, spec, out, "<f4"),
    "fp16": lambda payload, spec, out: _values(payload, spec, out, "<f2"),
    "int8-zstd": _decode_int8,
}


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor
