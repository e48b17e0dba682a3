"""The client of the protocol's reference server, unmodified."""

from __future__ import annotations

import asyncio
import itertools
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
    from tests.cloud.conftest import Bundle, Floats

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
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        stock.infer(
            "backend",
            [tensor_input(features(1), binary=True)],
            outputs=[triton.InferRequestedOutput("probabilities", class_count=3)],
            headers=auth,
        )


def test_asyncio_client(service: RunningService, auth: dict[str, str], bundle: Bundle, features: Features) -> None:
    feature = features(2)
    frames = [encode(one, "fp32") for one in feature]

    async def ask() -> list[Any]:
        async with aio.InferenceServerClient(service.url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("backend", headers=auth)
            inputs = [[tensor_input(feature, binary=True)], [frame_input(frames)]]
            return [await client.infer("backend", one, headers=auth) for one in inputs]

    for result in asyncio.run(ask()):
        assert_close(result.as_numpy("probabilities"), bundle.answer(feature))
