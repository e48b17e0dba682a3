"""Right answers, by every way in and out."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harmony.core.wire import CODECS, Codec, decode, encode

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats, Reply

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
Elements = Callable[[list[bytes]], bytes]
assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


def answer_of(reply: Reply) -> Floats:
    """The probabilities of a binary answer, after its header was checked."""
    assert reply.status == 200, reply.body
    size = int(reply.headers["inference-header-content-length"])
    output = json.loads(reply.body[:size])["outputs"][0]
    assert output["name"] == "probabilities"
    assert output["datatype"] == "FP32"
    assert output["parameters"]["binary_data_size"] == len(reply.body) - size
    return np.frombuffer(reply.body[size:], "<f4").reshape(output["shape"])


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_fp32_tensor(client: Client, bundle: Bundle, features: Features, tensor: Tensor, rows: int) -> None:
    feature = features(rows)
    reply = client.binary(tensor([rows, 8, 4, 4], feature.nbytes), feature.tobytes())
    assert_close(answer_of(reply), bundle.answer(feature))


def test_fp16_tensor(client: Client, bundle: Bundle, features: Features, tensor: Tensor) -> None:
    half = features(3).astype("<f2")
    reply = client.binary(tensor([3, 8, 4, 4], half.nbytes, "FP16"), half.tobytes())
    assert_close(answer_of(reply), bundle.answer(half.astype(np.float32)))


@pytest.mark.parametrize("codec", CODECS)
def test_frames(client: Client, bundle: Bundle, features: Features, elements: Elements, codec: Codec) -> None:
    frames = [encode(one, codec) for one in features(3)]
    blob = elements(frames)
    one = {"name": "feature_frame", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(blob)}}
    reply = client.binary({"inputs": [one], "parameters": {"binary_data_output": True}}, blob)
    sent = np.stack([decode(frame, bundle.spec) for frame in frames])
    assert_close(answer_of(reply), bundle.answer(sent))


@pytest.mark.parametrize("nested", [False, True])
def test_json_in_and_out(client: Client, bundle: Bundle, features: Features, nested: bool) -> None:
    feature = features(2)
    data = feature.tolist() if nested else feature.ravel().tolist()
    one = {"name": "feature", "datatype": "FP32", "shape": [2, 8, 4, 4], "data": data}
    reply = client.document({"id": "seven", "inputs": [one]})
    assert reply.status == 200
    assert "inference-header-content-length" not in reply.headers
    assert reply.json["id"] == "seven"
    assert (reply.json["model_name"], reply.json["model_version"]) == ("backend", "1")
    output = reply.json["outputs"][0]
    assert output["shape"] == [2, 10]
    assert_close(np.reshape(output["data"], (2, 10)), bundle.answer(feature))


def test_frames_as_base64_in_json(client: Client, bundle: Bundle, features: Features) -> None:
    feature = features(2)
    texts = [base64.b64encode(encode(one, "fp32")).decode() for one in feature]
    one = {"name": "feature_frame", "datatype": "BYTES", "shape": [2], "data": texts}
    reply = client.document({"inputs": [one], "outputs": [{"name": "probabilities"}]})
    assert reply.status == 200, reply.body
    assert_close(np.reshape(reply.json["outputs"][0]["data"], (2, 10)), bundle.answer(feature))


def test_the_output_decides_over_the_request_how_it_comes(client: Client, features: Features, tensor: Tensor) -> None:
    feature = features(1)
    outputs = [{"name": "probabilities", "parameters": {"binary_data": False}}]
    reply = client.binary(tensor([1, 8, 4, 4], feature.nbytes, outputs=outputs), feature.tobytes())
    assert reply.status == 200
    assert len(reply.json["outputs"][0]["data"]) == 10


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_body(
    client: Client, bundle: Bundle, features: Features, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    feature = features(2)
    one = {"name": "feature", "datatype": "FP32", "shape": [2, 8, 4, 4], "parameters": {"binary_data_size": 1024}}
    text = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(len(text))}
    reply = client.infer(compress(text + feature.tobytes()), headers)
    assert_close(answer_of(reply), bundle.answer(feature))


def test_versioned_path_and_chunked_body(client: Client, bundle: Bundle, features: Features, tensor: Tensor) -> None:
    feature = features(1)
    text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
    parts = iter([text[:9], text[9:] + feature.tobytes()[:100], feature.tobytes()[100:]])
    headers = {"Inference-Header-Content-Length": str(len(text))}  # no length of the whole: http.client sends chunks
    reply = client.call("POST", "/v2/models/backend/versions/1/infer", parts, headers)
    assert_close(answer_of(reply), bundle.answer(feature))


def test_the_right_cut_is_accepted_and_another_is_a_conflict(
    client: Client, features: Features, tensor: Tensor
) -> None:
    feature = features(1)
    same = tensor([1, 8, 4, 4], 512, parameters={"cut": "8x4x4-float32"})
    assert client.binary(same, feature.tobytes()).status == 200
    other = client.binary(tensor([1, 8, 4, 4], 512, parameters={"cut": "16x4x4-float32"}), feature.tobytes())
    assert other.status == 409
    assert "8x4x4-float32" in other.error
    assert "16x4x4-float32" in other.error


def test_metadata_config_and_statistics(client: Client, features: Features, tensor: Tensor) -> None:
    client.binary(tensor([1, 8, 4, 4], 512), features(1).tobytes())
    assert "binary_tensor_data" in client.get("/v2").json["extensions"]
    for path in ("/v2/models/backend", "/v2/models/backend/versions/1"):
        metadata = client.get(path).json
        assert metadata["inputs"][0] == {"name": "feature", "datatype": "FP32", "shape": [-1, 8, 4, 4]}
        assert metadata["outputs"] == [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "own_mass", "datatype": "FP32", "shape": [-1]},
        ]
        assert metadata["parameters"]["cut"] == "8x4x4-float32"
    assert client.get("/v2/models/backend/config").json["max_batch_size"] == 8
    statistics = client.get("/v2/models/backend/stats").json["model_stats"][0]
    assert statistics["inference_count"] >= 1
    assert statistics["inference_stats"]["success"]["ns"] > 0
    assert {"/v2/health/ready", "/v2/models/{model}"} <= set(client.get("/openapi.json").json["paths"])


def test_metrics_count_what_happened(client: Client, features: Features, tensor: Tensor) -> None:
    def series() -> dict[str, float]:
        lines = client.get("/metrics").body.decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = series()
    assert client.binary(tensor([3, 8, 4, 4], 1536), features(3).tobytes()).status == 200
    assert client.binary(tensor([3, 8, 4, 4], 1536), features(2).tobytes()).status == 400
    after = series()

    def grown(name: str) -> float:
        key = f"harmony_{name}{labels}"
        return after[key] - before.get(key, 0)

    labels = '{model="backend",version="1"}'
    failed = 'harmony_failures_total{model="backend",reason="malformed",version="1"}'
    assert grown("requests_total") == 1
    assert grown("rows_total") == 3
    assert after[failed] == before.get(failed, 0) + 1
    assert grown("received_bytes_total") > 1536
    for name in ("queue_seconds", "compute_seconds", "batch_rows"):
        assert grown(f"{name}_count") == 1
    assert after[f"harmony_queue_rows{labels}"] == 0
