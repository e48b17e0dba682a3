"""Many at once: whose answer is whose, what is refused when there is too much, and what a stop leaves unanswered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from harmony.cloud.process import RunningService, running_service
from harmony.core.wire import decode, encode

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats, Reply

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
Elements = Callable[[list[bytes]], bytes]
ClientOf = Callable[[RunningService], "Client"]


def probabilities(reply: Reply) -> Floats:
    size = int(reply.headers["inference-header-content-length"])
    return np.frombuffer(reply.body[size:], "<f4").reshape(-1, 10)


def asked(client: Client) -> float:
    """Requests that are answered, and rows that wait or are computed."""
    lines = client.get("/metrics").body.decode().splitlines()
    names = ("harmony_requests_total{", "harmony_queue_rows{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def test_everybody_gets_the_answer_to_their_own_question(
    client: Client, bundle: Bundle, features: Features, tensor: Tensor, elements: Elements
) -> None:
    """Requests of 1 to 3 rows, of both kinds, every tenth one bad: batches mix them, answers must not."""

    def ask(seed: int) -> None:
        feature = features(seed % 3 + 1, seed=seed)
        rows = len(feature)
        if seed % 10 == 0:
            feature[0, 0, 0, 0] = np.nan
            assert client.binary(tensor([rows, 8, 4, 4], feature.nbytes), feature.tobytes()).status == 400
            return
        if seed % 2:
            reply = client.binary(tensor([rows, 8, 4, 4], feature.nbytes), feature.tobytes())
        else:
            frames = [encode(one) for one in feature]
            feature = np.stack([decode(frame, bundle.spec) for frame in frames])
            blob = elements(frames)
            reply = client.binary(tensor([rows], len(blob), "BYTES", "feature_frame"), blob)
        assert reply.status == 200, reply.body
        np.testing.assert_allclose(probabilities(reply), bundle.answer(feature), rtol=1e-4, atol=1e-6)

    before = client.get("/v2/models/backend/stats").json["model_stats"][0]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(300)))
    after = client.get("/v2/models/backend/stats").json["model_stats"][0]
    answered = after["inference_count"] - before["inference_count"]
    assert answered == sum(seed % 3 + 1 for seed in range(300) if seed % 10)
    assert after["execution_count"] - before["execution_count"] < 270, "nothing was ever batched"


def test_overload_is_refused_at_once_and_says_when_to_come_back(
    heavy: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    """32 callers at a model that takes tens of milliseconds, with room for a fraction of them in the queue."""
    with running_service(heavy.folder, "--max-batch", "2", "--queue-seconds", "0.02") as service:
        client = client_of(service)

        def ask(seed: int) -> Reply:
            feature = features(1, seed=seed)
            reply = client.binary(tensor([1, 8, 4, 4], 512), feature.tobytes())
            if reply.status == 200:
                np.testing.assert_allclose(probabilities(reply), heavy.answer(feature), rtol=1e-3, atol=1e-5)
            return reply

        with ThreadPoolExecutor(32) as pool:
            replies = list(pool.map(ask, range(96)))
        metrics = client.get("/metrics").body
        assert ask(1000).status == 200, "what was refused must not clog the queue"
    assert set(Counter(reply.status for reply in replies)) == {200, 503}
    for reply in replies:
        if reply.status == 503:
            assert int(reply.headers["retry-after"]) >= 1
            assert "queue of 'backend' is full" in reply.error
    assert b'reason="overload"' in metrics


def test_expired_work_is_answered_504_and_not_computed(
    heavy: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    """Behind 12 requests of tens of milliseconds each, nobody who has 1 ms gets a turn."""
    with running_service(heavy.folder, "--max-batch", "1", "--queue-seconds", "30") as service:
        client = client_of(service)
        blob = features(1).tobytes()
        patient, hasty = tensor([1, 8, 4, 4], 512), tensor([1, 8, 4, 4], 512, parameters={"timeout": 1000})
        with ThreadPoolExecutor(24) as pool:
            served = [pool.submit(client.binary, patient, blob) for _ in range(12)]
            dropped = [pool.submit(client.binary, hasty, blob) for _ in range(12)]
            assert {one.result().status for one in served} == {200}
            replies = [one.result() for one in dropped]
        computed = client.get("/v2/models/backend/stats").json["model_stats"][0]["inference_count"]
    late = [reply for reply in replies if reply.status == 504]
    assert late
    assert "timeout of 1000" in late[0].error
    assert computed == 24 - len(late)


def test_a_stop_answers_everything_that_was_asked(
    heavy: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    """SIGTERM while 16 requests wait for a slow model: 16 right answers, then nobody listens any more."""
    feature = features(1)
    with running_service(heavy.folder, "--max-batch", "1", "--queue-seconds", "30") as service:
        client = client_of(service)
        with ThreadPoolExecutor(16) as pool:
            document = tensor([1, 8, 4, 4], 512)
            pending = [pool.submit(client.binary, document, feature.tobytes()) for _ in range(16)]
            while asked(client) < 16:
                pass
            os.kill(service.pid, signal.SIGTERM)
            replies = [one.result() for one in pending]
    assert [reply.status for reply in replies] == [200] * 16
    for reply in replies:
        np.testing.assert_allclose(probabilities(reply), heavy.answer(feature), rtol=1e-3, atol=1e-5)


def test_a_stop_does_not_wait_for_a_body_that_never_comes(bundle: Bundle, client_of: ClientOf) -> None:
    with running_service(bundle.folder, "--drain-seconds", "1") as service:
        client = client_of(service)
        head = f"POST /v2/models/backend/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        with socket.create_connection((client.host, int(client.port)), timeout=20) as connection:
            connection.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
            assert client.get("/v2/health/ready").status == 200
            os.kill(service.pid, signal.SIGTERM)
            answer = connection.makefile("rb").read()
    assert answer.split()[1] == b"503"
    assert b"the service is stopping" in answer


def test_a_stop_loses_no_request_of_busy_connections(
    bundle: Bundle, features: Features, tensor: Tensor, client_of: ClientOf
) -> None:
    """Keep-alive callers that never pause are told to leave by an answer, not by a broken connection."""
    text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
    body = text + features(1).tobytes()
    ended: list[str] = []
    with running_service(bundle.folder) as service:
        client = client_of(service)
        headers = {"Authorization": f"Bearer {service.key}", "Inference-Header-Content-Length": str(len(text))}

        def ask_until_told_to_go() -> None:
            connection = http.client.HTTPConnection(client.host, int(client.port), timeout=30)
            try:
                while True:
                    connection.request("POST", "/v2/models/backend/infer", body, headers)
                    response = connection.getresponse()
                    response.read()
                    assert response.status == 200
                    if response.getheader("connection") == "close":
                        ended.append("told")
                        return
            except (OSError, http.client.HTTPException) as error:
                ended.append(repr(error))
            finally:
                connection.close()

        threads = [threading.Thread(target=ask_until_told_to_go) for _ in range(8)]
        for thread in threads:
            thread.start()
        while client.get("/v2/models/backend/stats").json["model_stats"][0]["inference_count"] < 200:
            pass
        os.kill(service.pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
    assert ended == ["told"] * 8
