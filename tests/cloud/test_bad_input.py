"""Every way to ask wrongly: a status that fits, one line that says what is wrong, and never a 500."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard

from harmony.core.spec import FeatureSpec
from harmony.core.wire import encode

if TYPE_CHECKING:
    from tests.cloud.conftest import Client, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
Elements = Callable[[list[bytes]], bytes]
GOOD = {"name": "feature", "datatype": "FP32", "shape": [1, 8, 4, 4], "parameters": {"binary_data_size": 512}}
HUGE = 1 << 30


@pytest.fixture(autouse=True)
def still_serves(client: Client) -> Any:
    """After every bad request the next good one is answered."""
    yield
    text = json.dumps({"inputs": [GOOD]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert client.infer(text + bytes(512), headers).status == 200


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"shape": [1, 8, 4]}, 400, "3 axes"),
        ({"shape": [1, 8, 4, 4, 1]}, 400, "5 axes"),
        ({"shape": [0, 8, 4, 4]}, 400, "greater than or equal to 1"),
        ({"shape": [-1, 8, 4, 4]}, 400, "greater than or equal to 1"),
        ({"shape": [1.0, 8, 4, 4]}, 400, "shape.0"),
        ({"shape": ["1", 8, 4, 4]}, 400, "shape.0"),
        ({"shape": [True, 8, 4, 4]}, 400, "shape.0"),
        ({"shape": [HUGE, 8, 4, 4]}, 400, "a request may have 8"),
        ({"shape": [10**30, 8, 4, 4]}, 400, "shape.0"),
        ({"shape": [9, 8, 4, 4]}, 400, "9 samples, a request may have 8"),
        ({"shape": [2, 8, 4, 4]}, 400, "need 1024"),
        ({"shape": [1, HUGE, HUGE, HUGE]}, 409, "cut contract differs"),
        ({"shape": [1, 4, 8, 4]}, 409, "8x4x4-float32, the tensor has 4x8x4"),
        ({"shape": []}, 400, "shape"),
        ({"shape": 3}, 400, "shape"),
        ({"datatype": "FP64"}, 400, "FP64, it takes FP32 or FP16"),
        ({"datatype": "BYTES"}, 400, "BYTES, it takes FP32"),
        ({"datatype": "FP16"}, 400, "need 256"),
        ({"datatype": None}, 400, "datatype"),
        ({"name": "image"}, 400, "unknown input 'image'"),
        ({"name": 7}, 400, "name"),
        ({"parameters": {"binary_data_size": 511}}, 400, "512 bytes follow the JSON, the inputs declare 511"),
        ({"parameters": {"binary_data_size": -1}}, 400, "binary_data_size"),
        ({"parameters": {"binary_data_size": "512"}}, 400, "binary_data_size"),
        ({"parameters": {"binary_data_size": 1 << 62}}, 400, "declare"),
        ({"parameters": {"binary_data_size": 512}, "data": [0.0] * 128}, 400, "either data or"),
        ({"parameters": {}}, 400, "either data or"),
        ({"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 512}}, 400, "shared_memory_region"),
        ({"parameters": {"binary_data_size": 512, "shared_memory_offset": 0}}, 400, "shared_memory_offset"),
        ({"parameters": 5}, 400, "parameters"),
    ],
)
def test_wrong_tensor(client: Client, change: dict[str, Any], status: int, words: str) -> None:
    reply = client.binary({"inputs": [GOOD | change]}, bytes(512))
    assert (reply.status, words in reply.error) == (status, True), reply.body


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "at least 1"),
        ({"inputs": [GOOD, GOOD]}, "at most 1"),
        ({"inputs": {"feature": 1}}, "inputs"),
        ([], "an object"),
        (None, "an object"),
        ({"inputs": [GOOD], "outputs": [{"name": "logits"}]}, "unknown output 'logits'"),
        ({"inputs": [GOOD], "outputs": [{"name": "probabilities"}] * 2}, "asked for twice"),
        ({"inputs": [GOOD], "outputs": [{"name": "probabilities"}] * 3}, "at most 2"),
        ({"inputs": [GOOD], "outputs": [{"name": "own_mass"}]}, "needs parameters.own_tokens"),
        (
            {"inputs": [GOOD], "outputs": [{"name": "probabilities", "parameters": {"shared_memory_region": "r"}}]},
            "shared memory",
        ),
        (
            {"inputs": [GOOD], "outputs": [{"name": "probabilities", "parameters": {"classification": -3}}]},
            "classification",
        ),
        (
            {
                "inputs": [GOOD],
                "outputs": [{"name": "own_mass", "parameters": {"classification": 3}}],
                "parameters": {"own_tokens": [1]},
            },
            "no classification",
        ),
        ({"inputs": [GOOD], "parameters": {"own_tokens": [0] * 5000}}, "own_tokens"),
        ({"inputs": [GOOD], "parameters": {"own_tokens": "1" * 50_000}}, "own_tokens"),
        ({"inputs": [GOOD], "parameters": {"priority": -1}}, "priority"),
        ({"inputs": [GOOD], "parameters": {"priority": "high"}}, "priority"),
        ({"inputs": [GOOD], "parameters": {"timeout": -5}}, "timeout"),
        ({"inputs": [GOOD], "parameters": {"timeout": "soon"}}, "timeout"),
        ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "binary_data_output"),
        ({"inputs": [GOOD], "id": 5}, "id"),
        ({"inputs": [GOOD], "id": "x" * 1000}, "id"),
    ],
)
def test_wrong_document(client: Client, document: Any, words: str) -> None:
    reply = client.binary(document, bytes(512))
    assert (reply.status, words in reply.error) == (400, True), reply.body


@pytest.mark.parametrize(
    "own",
    [[], [10], [-1], [1, 1], [1.5], [True], ["1"], "", "1,,2", "1;2", "1,1", "10", "-1", "\u0663", 7, {}],
    ids=repr,
)
def test_wrong_own_tokens(client: Client, own: Any) -> None:
    reply = client.binary({"inputs": [GOOD], "parameters": {"own_tokens": own}}, bytes(512))
    assert (reply.status, "own_tokens" in reply.error) == (400, True), reply.body


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_values_that_are_not_finite(client: Client, features: Features, tensor: Tensor, bad: float, dtype: str) -> None:
    feature = features(2).astype(dtype)
    feature[1, 7, 3, 3] = bad
    datatype = "FP32" if dtype == "<f4" else "FP16"
    reply = client.binary(tensor([2, 8, 4, 4], feature.nbytes, datatype), feature.tobytes())
    assert (reply.status, "not finite" in reply.error) == (400, True)


def test_finite_values_beyond_the_model(client: Client, tensor: Tensor) -> None:
    feature = np.full((1, 8, 4, 4), 3e38, np.float32)
    reply = client.binary(tensor([1, 8, 4, 4], 512), feature.tobytes())
    assert (reply.status, "out of range" in reply.error) == (400, True)


@pytest.mark.parametrize(
    "data",
    [
        [0.0] * 127,
        [0.0] * 129,
        [[0.0] * 64, [0.0] * 63],
        ["0.0"] * 128,
        [True] * 128,
        [None] * 128,
        "0" * 128,
        {"0": 1},
        [[[[[[[[]]]]]]]],
        [1e39] + [0.0] * 127,
        [10**400] + [0.0] * 127,
    ],
)
def test_wrong_json_data(client: Client, data: Any) -> None:
    one = {"name": "feature", "datatype": "FP32", "shape": [1, 8, 4, 4], "data": data}
    assert client.document({"inputs": [one]}).status == 400


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"inputs": NaN}', b"[" * 50_000, b'"\\ud800"', b"1e999999"])
def test_what_is_not_json(client: Client, text: bytes) -> None:
    assert client.infer(text).status == 400


def test_nan_in_json(client: Client) -> None:
    values = ", ".join(["NaN"] + ["0.5"] * 127)
    text = f'{{"inputs": [{{"name": "feature", "datatype": "FP32", "shape": [1, 8, 4, 4], "data": [{values}]}}]}}'
    reply = client.infer(text.encode())
    assert (reply.status, "not finite" in reply.error) == (400, True)


@pytest.mark.parametrize("length", ["-1", "99999", "1e2", "0x10", " ", "9" * 30, "12.0", "٣"])
def test_header_length_that_lies(client: Client, length: str) -> None:
    text = json.dumps({"inputs": [GOOD]}).encode()
    reply = client.infer(text + bytes(512), {"Inference-Header-Content-Length": length.encode().decode("latin-1")})
    assert reply.status == 400


@pytest.mark.parametrize("shift", [-3, 5])
def test_header_length_beside_the_json(client: Client, shift: int) -> None:
    text = json.dumps({"inputs": [GOOD]}).encode()
    reply = client.infer(text + bytes(512), {"Inference-Header-Content-Length": str(len(text) + shift)})
    assert reply.status == 400


def test_binary_size_without_header_length(client: Client) -> None:
    reply = client.document({"inputs": [GOOD]})
    assert (reply.status, "0 bytes follow the JSON" in reply.error) == (400, True)


def frames_that_fail() -> list[tuple[str, list[bytes], int, str]]:
    spec = FeatureSpec(channels=8, height=4, width=4)
    good, other = encode(np.ones(spec.shape, np.float32)), encode(np.ones((4, 4, 4), np.float32))
    bomb = good[: 12 + 32] + zstandard.compress(bytes(1 << 24))
    nan = encode(np.ones(spec.shape, np.float32), "fp32")[:12] + struct.pack("<128f", *[float("nan")] * 128)
    return [
        ("empty", [b""], 400, "shorter than its header"),
        ("short", [good[:7]], 400, "shorter than its header"),
        ("foreign", [b"\x89PNG" + good[4:]], 400, "not a feature frame"),
        ("codec", [good[:4] + b"\x09" + good[5:]], 400, "not a feature frame"),
        ("cut", [other], 409, "cut contract differs"),
        ("beyond any cut", [good[:7] + b"\x10" + good[8:]], 409, "the frame has 4104x4x4"),
        ("no sides", [good[:6] + bytes(6) + good[12:]], 409, "cut contract differs"),
        ("truncated", [good[:-2]], 400, "damaged"),
        ("scales", [good[:20]], 400, "inside its scales"),
        ("bomb", [bomb], 400, "do not declare 128 bytes"),
        ("nan", [nan], 400, "not finite"),
        ("long", [encode(np.ones(spec.shape, np.float32), "fp32") + b"\0"], 400, "where 512 are due"),
        ("second", [good, good[:-2]], 400, "damaged"),
    ]


@pytest.mark.parametrize("case", frames_that_fail(), ids=lambda case: case[0])
def test_wrong_frames(
    client: Client, tensor: Tensor, elements: Elements, case: tuple[str, list[bytes], int, str]
) -> None:
    _, frames, status, words = case
    blob = elements(frames)
    reply = client.binary(tensor([len(frames)], len(blob), "BYTES", "feature_frame"), blob)
    assert (reply.status, words in reply.error) == (status, True), reply.body


@pytest.mark.parametrize("blob", [b"\1", b"\xff\xff\xff\xff", b"\x04\0\0\0abcde", b"\0\0\0\0" * 3, b"\0\0\0\0"])
def test_element_lengths_that_lie(client: Client, tensor: Tensor, blob: bytes) -> None:
    reply = client.binary(tensor([2], len(blob), "BYTES", "feature_frame"), blob)
    assert (reply.status, "do not add up" in reply.error) == (400, True)


@pytest.mark.parametrize("data", [["!!!!"], [5], "AAAA", ["AAAA", "AAAA"], ["ä"]])
def test_wrong_base64_frames(client: Client, data: Any) -> None:
    one = {"name": "feature_frame", "datatype": "BYTES", "shape": [1], "data": data}
    assert client.document({"inputs": [one]}).status == 400


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"not compressed", "gzip", 400),
        (gzip.compress(b"x" * 500)[:-9], "gzip", 400),
        (gzip.compress(b"{}") + b"more", "gzip", 400),
        (gzip.compress(bytes(1 << 24)), "gzip", 413),
        (zlib.compress(bytes(1 << 24)), "deflate", 413),
        (b"", "gzip", 400),
        (b"{}", "br", 415),
        (b"{}", "gzip, gzip", 415),
    ],
)
def test_compressed_bodies(client: Client, body: bytes, encoding: str, status: int) -> None:
    assert client.infer(body, {"Content-Encoding": encoding}).status == status


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/other/infer", "unknown model 'other'"),
        ("/v2/models/backend/versions/2/infer", "no version '2'"),
        ("/v2/models/backend/version/1/infer", "no such path"),
        ("/v2/models//infer", "unknown model ''"),
        ("/v2/models/%2e%2e/infer", "unknown model '..'"),
        ("/v2/models/" + "m" * 5000 + "/infer", "unknown model"),
    ],
)
def test_unknown_model_or_version(client: Client, path: str, words: str) -> None:
    reply = client.call("POST", path, b"{}")
    assert (reply.status, words in reply.error) == (404, True)
    assert len(reply.body) < 500


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/backend/infer", 405),
        ("PUT", "/v2/models/backend/infer", 405),
        ("DELETE", "/v2/models/backend", 405),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/backend/versions/2/ready", 404),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/repository/models/backend/load", 403),
        ("GET", "/v2/systemsharedmemory/status", 400),
        ("GET", "/redoc", 404),
    ],
)
def test_control_errors_have_the_same_form(client: Client, method: str, path: str, status: int) -> None:
    reply = client.call(method, path)
    assert (reply.status, bool(reply.error)) == (status, True)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong-key-wrong-key", "Basic abc", "bearer\t"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/backend/infer"),
        ("POST", "/v2/models/other/infer"),
        ("GET", "/v2"),
        ("GET", "/v2/models/backend"),
        ("GET", "/v2/models/stats"),
        ("GET", "/metrics"),
    ],
)
def test_strangers_learn_nothing(client: Client, method: str, path: str, header: str | None) -> None:
    reply = client.call(method, path, headers={"Authorization": header or ""})
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "key" in reply.error


def test_health_is_open(client: Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path, {"Authorization": "Bearer nonsense"}).status == 200
