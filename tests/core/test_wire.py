"""Feature frames: round trips within each codec's bound, and nothing but named errors for any other bytes."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from harmony.core.errors import ConfigError, ContractMismatch, HarmonyError, InvalidInput, WireError
from harmony.core.spec import FeatureSpec
from harmony.core.wire import CODECS, MAGIC, Codec, decode, encode

SPEC = FeatureSpec(channels=4, height=3, width=5)
FEATURE = np.random.default_rng(0).normal(size=SPEC.shape).astype(np.float32)
HEADER = 12
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
features = hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def spec_of(feature: NDArray[np.float32]) -> FeatureSpec:
    channels, height, width = feature.shape
    return FeatureSpec(channels=channels, height=height, width=width)


def int8_frame(body: bytes, scales: NDArray[np.float32] | None = None, spec: FeatureSpec = SPEC) -> bytes:
    """A frame of codec 2, put together by hand as the module's table says."""
    head = (np.ones(spec.channels, "<f4") if scales is None else scales.astype("<f4")).tobytes()
    return struct.pack("<4sBBHHH", b"HFF1", 2, 0, *spec.shape) + head + body


def zstd(values: bytes, *, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=size).compress(values)


@given(feature=features)
def test_fp32_keeps_every_bit(feature: NDArray[np.float32]) -> None:
    frame = encode(feature, "fp32")
    assert frame[:6] == b"HFF1\x00\x00"
    assert struct.unpack("<HHH", frame[6:12]) == feature.shape
    assert frame[12:] == feature.astype("<f4").tobytes()
    assert decode(frame, spec_of(feature)).tobytes() == feature.tobytes()


@given(feature=features)
def test_fp16_rounds_to_half_precision_and_clips(feature: NDArray[np.float32]) -> None:
    found = decode(encode(feature, "fp16"), spec_of(feature))
    clipped = np.clip(feature, -65504, 65504)
    assert (np.abs(found - clipped) <= np.maximum(np.abs(clipped) * 2.0**-11, 2.0**-25)).all()


@given(feature=features)
def test_int8_stays_within_half_a_step_of_each_channel(feature: NDArray[np.float32]) -> None:
    found = decode(encode(feature, "int8-zstd"), spec_of(feature)).astype(np.float64)
    exact = feature.astype(np.float64)
    step = np.abs(exact).max(axis=(1, 2), keepdims=True) / 127
    assert (np.abs(found - exact) <= step * 0.5001 + 1e-43).all()
    assert (found[exact == 0] == 0).all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_decoded_feature_is_an_array_of_its_own(codec: Codec) -> None:
    frame = encode(FEATURE, codec)
    found = decode(memoryview(frame), SPEC)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    found += 1  # writable, and the frame stays as it was
    assert frame == encode(FEATURE, codec)
    turned = np.ascontiguousarray(FEATURE.transpose(2, 1, 0)).transpose(2, 1, 0)
    assert not turned.flags.c_contiguous
    assert encode(turned, codec) == frame, "the frame does not depend on the strides"


@pytest.mark.parametrize("codec", CODECS)
def test_a_feature_can_be_written_into_a_row_of_a_batch(codec: Codec) -> None:
    feature = np.linspace(-3, 3, math.prod(SPEC.shape), dtype=np.float32).reshape(SPEC.shape)
    frame = encode(feature, codec)
    batch = np.full((3, *SPEC.shape), 7, np.float32)
    assert decode(frame, SPEC, batch[1]) is not None
    np.testing.assert_array_equal(batch[1], decode(frame, SPEC))
    assert (batch[[0, 2]] == 7).all()


def test_an_int8_frame_is_small() -> None:
    feature = np.maximum(np.random.default_rng(0).normal(size=(32, 7, 7)), 0).astype(np.float32)
    assert len(encode(feature)) < 0.3 * len(encode(feature, "fp32"))


@pytest.mark.parametrize(
    "feature",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((1, 3, 4, 5), np.float32),
        np.zeros((0, 3, 4), np.float32),
        np.zeros((3, 0, 4), np.float32),
        np.zeros((70_000, 1, 1), np.float32),
        np.zeros((3, 4, 5), np.float64),
        np.zeros((3, 4, 5), np.int8),
        np.full((1, 1, 2), np.nan, np.float32),
        np.full((1, 1, 2), -np.inf, np.float32),
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_feature_is_not_encoded(feature: NDArray[np.float32], codec: Codec) -> None:
    with pytest.raises(InvalidInput, match="feature"):
        encode(feature, codec)


def test_an_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'gzip' is no wire codec \(choose one of fp32, fp16, int8-zstd\)"):
        encode(FEATURE, "gzip")  # type: ignore[arg-type]
    assert get_args(Codec) == CODECS


@pytest.mark.parametrize("codec", CODECS)
def test_every_truncation_and_every_extra_byte_is_an_error(codec: Codec) -> None:
    frame = encode(FEATURE, codec)
    for length in range(len(frame)):
        with pytest.raises(WireError, match="feature frame"):
            decode(frame[:length], SPEC)
    for more in (b"\0", frame, zstd(b"")):
        with pytest.raises(WireError, match="feature frame"):
            decode(frame + more, SPEC)


@pytest.mark.parametrize("codec", CODECS)
def test_no_bit_of_the_header_can_flip_unseen(codec: Codec) -> None:
    frame = encode(FEATURE, codec)
    for bit in range(8 * HEADER):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContractMismatch if bit >= 48 else WireError, match="feature frame"):
            decode(bytes(flipped), SPEC)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 5, 3), (65535, 65535, 65535), (5000, 3, 5)])
def test_another_cut_is_a_mismatch_whatever_its_sides(shape: tuple[int, int, int]) -> None:
    frame = struct.pack("<4sBBHHH", MAGIC, 0, 0, *shape)
    with pytest.raises(
        ContractMismatch, match=f"receiver has 4x3x5-float32, the frame has {'x'.join(map(str, shape))}"
    ):
        decode(frame, SPEC)


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_invalid(codec: Codec, value: float) -> None:
    frame = bytearray(encode(FEATURE, codec))
    frame[HEADER : HEADER + (4 if codec == "fp32" else 2)] = np.array(
        value, "<f4" if codec == "fp32" else "<f2"
    ).tobytes()
    with pytest.raises(InvalidInput, match="not finite"):
        decode(bytes(frame), SPEC)


@pytest.mark.parametrize(
    ("scale", "error"),
    [(np.nan, InvalidInput), (np.inf, InvalidInput), (-1, WireError), (-np.inf, WireError)],
)
@pytest.mark.parametrize("value", [0, 100])
def test_scales_are_finite_and_not_negative(scale: float, error: type[HarmonyError], value: int) -> None:
    frame = int8_frame(zstd(bytes([value]) * 60), np.array([1, 1, scale, 1], np.float32))
    with pytest.raises(error, match="scale is negative" if error is WireError else "not finite"):
        decode(frame, SPEC)


def test_a_finite_scale_that_overflows_is_invalid() -> None:
    with pytest.raises(InvalidInput, match="not finite"):
        decode(int8_frame(zstd(bytes([100]) * 60), np.full(4, 3e38, np.float32)), SPEC)


def lying(declared: int) -> bytes:
    """A zstd frame that says it holds `declared` bytes and then holds a gigabyte of zeros, in 128 KiB RLE blocks."""
    head = b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", declared)
    block = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", (128 << 10) << 3 | 1 << 1 | 1)[:3] + b"\0"
    return head + block * 8191 + last


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        b"not zstd at all, but long enough to look at",
        zstd(b"\1" * 60, size=False),
        zstd(b"\1" * 59),
        zstd(b"\1" * 61),
        zstd(b"\1" * 30) + zstd(b"\1" * 30),
        zstd(b"\1" * 60) + b"tail",
        zstd(b"\1" * 60) + zstd(b"\1" * 60),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(b"\1" * 60),
        zstd(bytes(1 << 30)),
        lying(60),
        lying(1 << 30),
        lying(2**63 + 60),
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_a_compressed_part_that_lies_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="feature frame: the compressed values"):
        decode(int8_frame(body), SPEC)


def test_a_bomb_costs_no_memory() -> None:
    """In a process of its own that may hold 300 MB more than it does: every bomb would unfold to a gigabyte."""
    code = f"""
import resource, struct
from pathlib import Path
from harmony.core.errors import WireError
from harmony.core.spec import FeatureSpec
from harmony.core.wire import decode
frames = [bytes.fromhex(line) for line in {[int8_frame(lying(60)).hex(), int8_frame(lying(1 << 30)).hex()]!r}]
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (300 << 20),) * 2)
for frame in frames:
    try:
        decode(frame, FeatureSpec(channels=4, height=3, width=5))
    except WireError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    assert done.stdout.count("the compressed values") == 2


@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"", MAGIC, *(encode(FEATURE, one)[:12] for one in CODECS)])
)
def test_random_bytes_give_named_errors_or_a_feature(data: bytes, start: bytes) -> None:
    try:
        found = decode(start + data, SPEC)
    except (WireError, InvalidInput, ContractMismatch):
        return
    assert found.shape == SPEC.shape
    assert np.isfinite(found).all()


@given(position=st.integers(HEADER, 200), value=st.integers(0, 255), codec=st.sampled_from(CODECS))
def test_a_changed_byte_gives_a_named_error_or_a_feature(position: int, value: int, codec: Codec) -> None:
    frame = bytearray(encode(FEATURE, codec))
    frame[position % (len(frame) - HEADER) + HEADER] = value
    try:
        found = decode(bytes(frame), SPEC)
    except (WireError, InvalidInput):
        return
    assert np.isfinite(found).all()


def test_threads_do_not_share_compressors() -> None:
    rng = np.random.default_rng(1)
    many = [rng.normal(size=(8, 16, 16)).astype(np.float32) for _ in range(64)]
    frames = [encode(one) for one in many]
    spec = spec_of(many[0])
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(encode, many)) == frames
            decoded = list(pool.map(lambda frame: decode(frame, spec), frames))
    for one, feature in zip(decoded, many, strict=True):
        np.testing.assert_allclose(one, feature, atol=0.03)
