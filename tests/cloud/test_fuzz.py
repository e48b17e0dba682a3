"""Random bodies over a real connection: always an answer, never a 500, and the service goes on."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.core.wire import encode

if TYPE_CHECKING:
    from tests.cloud.conftest import Client

EXPECTED = {200, 400, 409, 413, 415}
FUZZ = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GOOD_FRAME = encode(np.ones((8, 4, 4), np.float32))
NUMBERS = st.one_of(st.integers(-3, 10), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
JSON = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SHAPES = st.one_of(st.just([1, 8, 4, 4]), st.just([2]), st.lists(NUMBERS, max_size=6), JSON)
PARAMETERS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "binary_data_size": st.one_of(st.just(512), NUMBERS),
            "shared_memory_region": JSON,
            "classification": NUMBERS,
            "binary_data": NUMBERS,
        },
    ),
    JSON,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.one_of(st.sampled_from(["feature", "feature_frame", "probabilities"]), JSON),
        "datatype": st.one_of(st.sampled_from(["FP32", "FP16", "BYTES", "INT8"]), JSON),
        "shape": SHAPES,
    },
    optional={"parameters": PARAMETERS, "data": st.one_of(st.just([0.5] * 128), JSON)},
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.one_of(st.lists(TENSORS, min_size=1, max_size=2), JSON),
        "outputs": st.one_of(st.lists(TENSORS, max_size=2), JSON),
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "binary_data_output": NUMBERS,
                "cut": st.one_of(st.just("8x4x4-float32"), NUMBERS),
                "timeout": st.one_of(st.just(10_000_000), NUMBERS),
            },
        ),
        "id": JSON,
    },
)
BLOBS = st.one_of(
    st.just(bytes(512)), st.binary(max_size=600), st.just(struct.pack("<I", len(GOOD_FRAME)) + GOOD_FRAME)
)


class Connection:
    """One keep-alive connection; a refusal that closes it opens the next."""

    def __init__(self, client: Client) -> None:
        self._key = client.key
        self._http = http.client.HTTPConnection(client.host, int(client.port), timeout=20)

    def status(self, body: bytes, headers: dict[str, str]) -> int:
        known = {"Authorization": f"Bearer {self._key}"}
        self._http.request("POST", "/v2/models/backend/infer", body, known | headers)
        response = self._http.getresponse()
        text = response.read()
        assert response.status == 200 or set(json.loads(text)) == {"error"}
        return response.status

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def connection(client: Client) -> Iterator[Connection]:
    one = Connection(client)
    yield one
    one.close()


@FUZZ
@given(document=DOCUMENTS, blob=BLOBS, shift=st.sampled_from([0, 0, 0, 0, -1, 1, 100]))
def test_documents_with_a_blob(connection: Connection, document: Any, blob: bytes, shift: int) -> None:
    text = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(max(0, len(text) + shift))}
    assert connection.status(text + blob, headers) in EXPECTED


@FUZZ
@given(document=DOCUMENTS)
def test_documents_alone(connection: Connection, document: Any) -> None:
    assert connection.status(json.dumps(document).encode(), {}) in EXPECTED


@FUZZ
@given(
    body=st.binary(max_size=2000), encoding=st.sampled_from(["", "gzip", "deflate", "br"]), length=st.integers(0, 2000)
)
def test_bytes(connection: Connection, body: bytes, encoding: str, length: int) -> None:
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(length)}
    assert connection.status(body, headers) in EXPECTED


@FUZZ
@given(data=st.data())
def test_damaged_frames(connection: Connection, data: st.DataObject) -> None:
    frame = bytearray(GOOD_FRAME)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        frame[place] = data.draw(st.integers(0, 255))
    blob = struct.pack("<I", len(frame)) + frame
    one = {"name": "feature_frame", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(blob)}}
    text = json.dumps({"inputs": [one]}).encode()
    assert connection.status(text + blob, {"Inference-Header-Content-Length": str(len(text))}) in EXPECTED
