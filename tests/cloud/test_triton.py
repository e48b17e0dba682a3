"""The client of the protocol's reference server, unmodified."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from harmony.core.wire import decode, encode

if TYPE_CHECKING:
    from harmony.cloud.process import RunningService
    from tests.cloud.conftest import Bundle, Client, Floats

Features = Callable[..., "Floats"]
assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


@pytest.fixture
def auth(service: RunningService) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.key}"}


@pytest.fixture
def stock(service: RunningService) -> Iterator[Any]:
    client = triton.InferenceServerClient(service.url.removeprefix("http://"), concurrency=4)
    yield client
    client.close()


def tensor_input(feature: Floats, *, binary: bool) -> Any:
    one = triton.InferInput("feature", list(feature.shape), "FP32")
    one.set_data_from_numpy(feature, binary_data=binary)
    return one


def frame_input(frames: list[bytes]) -> Any:
    one = triton.InferInput("feature_frame", [len(frames)], "BYTES")
    one.set_data_from_numpy(np.array(frames, dtype=np.object_))
    return one


@pytest.mark.parametrize("way", list(itertools.product([True, False], [True, False, None])), ids=str)
def test_tensor(
    stock: Any, auth: dict[str, str], bundle: Bundle, features: Features, way: tuple[bool, bool | None]
) -> None:
    binary_in, binary_out = way
    feature = features(2)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    result = stock.infer(
        "backend", [tensor_input(feature, binary=binary_in)], outputs=outputs, request_id="r1", headers=auth
    )
    assert result.get_response()["id"] == "r1"
    assert_close(result.as_numpy("probabilities"), bundle.answer(feature))


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_frames(stock: Any, auth: dict[str, str], bundle: Bundle, features: Features, compression: str | None) -> None:
    frames = [encode(one) for one in features(3)]
    result = stock.infer(
        "backend",
        [frame_input(frames)],
        model_version="1",
        headers=auth,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
        timeout=5_000_000,
        parameters={"cut": str(bundle.spec)},
    )
    sent = np.stack([decode(frame, bundle.spec) for frame in frames])
    assert_close(result.as_numpy("probabilities"), bundle.answer(sent))


def test_many_asynchronous_requests(stock: Any, auth: dict[str, str], bundle: Bundle, features: Features) -> None:
    sent = [features(1, seed=seed) for seed in range(12)]
    pending = [stock.async_infer("backend", [tensor_input(one, binary=True)], headers=auth) for one in sent]
    for feature, request in zip(sent, pending, strict=True):
        assert_close(request.get_result().as_numpy("probabilities"), bundle.answer(feature))


def test_health_and_metadata(stock: Any, auth: dict[str, str]) -> None:
    assert stock.is_server_live()
    assert stock.is_server_ready()
    assert stock.is_model_ready("backend", headers=auth)
    assert stock.is_model_ready("backend", "1", headers=auth)
    assert not stock.is_model_ready("other", headers=auth)
    assert not stock.is_model_ready("backend")
    assert stock.get_server_metadata(headers=auth)["name"] == "harmony"
    assert stock.get_model_metadata("backend", headers=auth)["name"] == "backend"
    assert stock.get_model_config("backend", headers=auth)["max_batch_size"] == 8
    assert stock.get_model_repository_index(headers=auth)[0]["state"] == "READY"
    assert stock.get_inference_statistics("backend", headers=auth)["model_stats"][0]["name"] == "backend"
    assert stock.get_inference_statistics(headers=auth)["model_stats"][0]["name"] == "backend"


def test_errors_reach_the_caller_with_status_and_reason(stock: Any, auth: dict[str, str], features: Features) -> None:
    with pytest.raises(InferenceServerException, match="key is needed") as stranger:
        stock.infer("backend", [tensor_input(features(1), binary=True)])
    assert stranger.value.status() == "401"
    shared = triton.InferInput("feature", [1, 8, 4, 4], "FP32")
    shared.set_shared_memory("region", 512)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        stock.infer("backend", [shared], headers=auth)
    shared_output = triton.InferRequestedOutput("probabilities")
    shared_output.set_shared_memory("region", 512)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        stock.infer("backend", [tensor_input(features(1), binary=True)], outputs=[shared_output], headers=auth)


def test_shared_memory_is_refused_by_name(stock: Any, auth: dict[str, str]) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: stock.register_system_shared_memory("region", "/region", 512, headers=auth),
        lambda: stock.register_cuda_shared_memory("region", b"handle", 0, 512, headers=auth),
        lambda: stock.get_system_shared_memory_status(headers=auth),
        lambda: stock.get_cuda_shared_memory_status("region", headers=auth),
        lambda: stock.unregister_system_shared_memory("region", headers=auth),
        lambda: stock.unregister_cuda_shared_memory(headers=auth),
    ]
    for ask in asks:
        with pytest.raises(InferenceServerException, match="shared memory is not offered") as refused:
            ask()
        assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="key is needed"):
        stock.get_system_shared_memory_status()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("asked", [1, 3, 99])
def test_classification(
    stock: Any, auth: dict[str, str], bundle: Bundle, features: Features, binary: bool, asked: int
) -> None:
    """The reference server's text, "value:index", the largest first; never more of them than there are classes."""
    feature = features(2)
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=asked)]
    result = stock.infer("backend", [tensor_input(feature, binary=True)], outputs=outputs, headers=auth)
    texts = result.as_numpy("probabilities")
    assert texts.shape == (2, min(asked, 10))
    for row, expected in zip(texts, bundle.answer(feature), strict=True):
        words = [(text.decode() if binary else text).split(":") for text in row]
        order = np.argsort(-expected)[:asked]
        assert [int(token) for _, token in words] == list(order)
        np.testing.assert_allclose([float(value) for value, _ in words], expected[order], atol=2e-6)


@pytest.mark.parametrize("own", [[2], [9, 0, 4], "9,0,4"])
@pytest.mark.parametrize("binary", [True, False])
def test_mass_on_the_callers_own_classes(
    stock: Any, auth: dict[str, str], bundle: Bundle, features: Features, own: list[int] | str, binary: bool
) -> None:
    feature = features(3)
    expected = bundle.answer(feature)
    columns = [int(one) for one in own.split(",")] if isinstance(own, str) else own
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("own_mass", "probabilities")]
    result = stock.infer(
        "backend",
        [tensor_input(feature, binary=True)],
        outputs=outputs,
        request_id="mine",
        headers=auth,
        parameters={"own_tokens": own},
    )
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("mine", "1")
    assert_close(result.as_numpy("own_mass"), expected[:, columns].sum(axis=1))
    assert_close(result.as_numpy("probabilities"), expected)


def test_naming_own_classes_is_enough_to_get_their_mass(
    stock: Any, auth: dict[str, str], bundle: Bundle, features: Features
) -> None:
    feature = features(1)
    sent = [tensor_input(feature, binary=True)]
    result = stock.infer("backend", sent, headers=auth, parameters={"own_tokens": [1, 2]})
    assert_close(result.as_numpy("own_mass"), bundle.answer(feature)[:, [1, 2]].sum(axis=1))
    assert stock.infer("backend", sent, headers=auth).as_numpy("own_mass") is None


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_are_compressed_as_asked(
    stock: Any, auth: dict[str, str], client: Client, bundle: Bundle, features: Features, coding: str
) -> None:
    """JSON of 80 numbers is long enough; an answer that fits into a packet anyway is left as it is."""
    feature = features(8)
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=False)]
    result = stock.infer(
        "backend",
        [tensor_input(feature, binary=True)],
        outputs=outputs,
        headers=auth,
        response_compression_algorithm=coding,
    )
    assert_close(result.as_numpy("probabilities"), bundle.answer(feature))
    one = {"name": "feature", "datatype": "FP32", "shape": [8, 8, 4, 4], "data": feature.ravel().tolist()}
    body = json.dumps({"inputs": [one]}).encode()
    long = client.infer(body, {"Accept-Encoding": coding})
    assert long.headers["content-encoding"] == coding
    assert long.headers["vary"] == "accept-encoding"
    plain = gzip.decompress(long.body) if coding == "gzip" else zlib.decompress(long.body)
    assert plain == client.infer(body).body
    short = client.infer(body, {"Accept-Encoding": f"{coding};q=0"})
    assert "content-encoding" not in short.headers


@pytest.mark.parametrize("priority", [1, 2, 7])
def test_priority_and_timeout_are_taken(
    stock: Any, auth: dict[str, str], bundle: Bundle, features: Features, priority: int
) -> None:
    sent = [tensor_input(features(1), binary=True)]
    result = stock.infer("backend", sent, headers=auth, priority=priority, timeout=5_000_000, sequence_id=3)
    assert_close(result.as_numpy("probabilities"), bundle.answer(features(1)))


def test_asyncio_client(service: RunningService, auth: dict[str, str], bundle: Bundle, features: Features) -> None:
    feature = features(2)
    frames = [encode(one, "fp32") for one in feature]

    async def ask() -> list[Any]:
        async with aio.InferenceServerClient(service.url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("backend", headers=auth)
            inputs = [[tensor_input(feature, binary=True)], [frame_input(frames)]]
            for coding in (None, "gzip", "deflate"):
                more = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
                compressed = await client.infer("backend", inputs[0], headers=dict(auth), **more)
                assert_close(compressed.as_numpy("probabilities"), bundle.answer(feature))
            return [await client.infer("backend", one, headers=auth) for one in inputs]

    for result in asyncio.run(ask()):
        assert_close(result.as_numpy("probabilities"), bundle.answer(feature))
