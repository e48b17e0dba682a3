"""Several processes behind one port: who answers, what a death costs, what a stop leaves unanswered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harmony.cloud.process import RunningService, running_service
from harmony.core.errors import ServiceError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client, Floats

Features = Callable[..., "Floats"]
Tensor = Callable[..., dict[str, Any]]
ClientOf = Callable[[RunningService], "Client"]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Asker(threading.Thread):
    """Asks again and again over one connection, a new one after a broken one, and notes what happened."""

    def __init__(self, client: Client, body: bytes, json_bytes: int, right: Floats) -> None:
        super().__init__()
        self.client, self.body, self.right = client, body, right
        self.headers = {"Authorization": f"Bearer {client.key}", "Inference-Header-Content-Length": str(json_bytes)}
        self.seen: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self) -> None:
        connection = None
        while not self.over.is_set():
            if connection is None:
                connection = http.client.HTTPConnection(self.client.host, int(self.client.port), timeout=30)
            try:
                connection.request("POST", "/v2/models/backend/infer", self.body, self.headers)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException):
                self.seen["broken"] += 1
                connection.close()
                connection = None
                time.sleep(0.01)
                continue
            self.seen[str(response.status)] += 1
            np.testing.assert_allclose(np.frombuffer(answer[-40:], "<f4"), self.right[0], rtol=1e-4, atol=1e-6)
            if response.getheader("connection") == "close":
                self.seen["told to go"] += 1
                break
        if connection is not None:
            connection.close()


@pytest.fixture
def askers(bundle: Bundle, features: Features, tensor: Tensor) -> Callable[[Client, int], list[Asker]]:
    def make(client: Client, count: int) -> list[Asker]:
        feature = features(1)
        text = json.dumps(tensor([1, 8, 4, 4], 512)).encode()
        return [Asker(client, text + feature.tobytes(), len(text), bundle.answer(feature)) for _ in range(count)]

    return make


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_worker_takes_only_its_own_connections_along(
    bundle: Bundle, client_of: ClientOf, askers: Callable[[Client, int], list[Asker]]
) -> None:
    """kill -9 of one worker of two under load: the other's callers notice nothing, and a new worker comes."""
    with running_service(bundle.folder, "--workers", "2") as service:
        first, second = children(service.pid)
        assert "torch" not in Path(f"/proc/{first}/maps").read_text()
        assert service.key not in Path(f"/proc/{first}/cmdline").read_text()
        threads = askers(client_of(service), 8)
        for thread in threads:
            thread.start()
        wait_for(lambda: all(thread.seen["200"] > 5 for thread in threads))
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: len(children(service.pid)) == 2 and first not in children(service.pid))
        assert second in children(service.pid)
        before = [thread.seen["200"] for thread in threads]
        wait_for(lambda: all(thread.seen["200"] > seen + 5 for thread, seen in zip(threads, before, strict=True)))
        for thread in threads:
            thread.over.set()
            thread.join()
        lines = client_of(service).get("/metrics").body.decode().splitlines()
        counted = next(float(line.split()[-1]) for line in lines if line.startswith("harmony_requests_total{"))
    answers, broken = (sum(thread.seen[name] for thread in threads) for name in ("200", "broken"))
    assert answers <= counted <= answers + broken, "of every worker, also of the one that is gone"
    assert sorted(bool(thread.seen["broken"]) for thread in threads) == [False] * 4 + [True] * 4
    assert all(set(thread.seen) <= {"200", "broken"} for thread in threads)


def test_a_stop_of_several_workers_loses_no_request(
    bundle: Bundle, client_of: ClientOf, askers: Callable[[Client, int], list[Asker]]
) -> None:
    with running_service(bundle.folder, "--workers", "2") as service:
        workers = children(service.pid)
        threads = askers(client_of(service), 6)
        for thread in threads:
            thread.start()
        wait_for(lambda: all(thread.seen["200"] > 5 for thread in threads))
        os.kill(service.pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
    assert [thread.seen["told to go"] for thread in threads] == [1] * 6
    assert all(thread.seen["broken"] == 0 for thread in threads)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_worker_that_ended_young_is_replaced_although_connections_keep_coming(
    bundle: Bundle, client_of: ClientOf
) -> None:
    """It is replaced after a pause, which ends by the clock and not when nobody calls."""
    with running_service(bundle.folder, "--workers", "2") as service:
        client, (first, second) = client_of(service), children(service.pid)
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while len(now := children(service.pid)) < 2 or first in now:
            assert time.monotonic() < deadline
            with suppress(OSError, http.client.HTTPException):  # a connection that the killed one had
                client.get("/v2/health/live")
        assert second in now


def test_connections_that_come_while_all_workers_are_behind_are_not_turned_away(
    bundle: Bundle, client_of: ClientOf
) -> None:
    """More than the way to the workers has room for: the rest waits, and is answered when they go on."""
    ask = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with running_service(bundle.folder, "--workers", "2") as service, ExitStack() as stack:
        client, workers = client_of(service), children(service.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        callers = [
            stack.enter_context(socket.create_connection((client.host, int(client.port)), timeout=30))
            for _ in range(700)
        ]
        for caller in callers:
            caller.sendall(ask)
        time.sleep(0.2)
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        assert all(caller.makefile("rb").readline().startswith(b"HTTP/1.1 200 ") for caller in callers)


def test_a_killed_parent_leaves_no_worker(bundle: Bundle) -> None:
    with pytest.raises(ServiceError, match="ended with code -9"), running_service(bundle.folder, "--workers", "2") as s:
        workers = children(s.pid)
        assert len(workers) == 2
        os.kill(s.pid, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_what_keeps_a_worker_from_starting_is_said_by_the_parent(tmp_path: Path, bundle: Bundle) -> None:
    with (
        pytest.raises(ServiceError, match=r"ArtifactMissing: .*no cloud bundle here"),
        running_service(tmp_path, "--workers", "2"),
    ):
        pass
    broken = tmp_path / "cloud"
    broken.mkdir()
    for file in bundle.folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "back_end.onnx").write_bytes(b"not what was sealed")
    with (
        pytest.raises(ServiceError, match=r"ArtifactCorrupt: .*back_end.onnx"),
        running_service(broken, "--workers", "2"),
    ):
        pass
