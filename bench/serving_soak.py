"""What a service must bear for long: good requests without end, and one version after another in its place."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from harmony.bench.serving import load
from harmony.bench.serving_attack_results import Memory, Soak, Swaps
from harmony.bench.serving_fuzz import LENGTH, good_bodies
from harmony.bench.serving_load import LoadResult, LoadSettings
from harmony.bench.serving_memory import MemoryWatch, resident
from harmony.bench.serving_requests import address_of
from harmony.cloud.process import RunningService, running_service
from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.keys import KeyLimits
from harmony.cloud.registry.location import locate
from harmony.core.errors import ServiceError

_WHO = "bench:swaps"
_MODEL = "backend"
_WARM_SWAPS = 40
_READINGS = 20  # whose median counts: the allocator's leavings differ by several per cent from swap to swap
_SECONDS = 60.0
_BROKEN = "broken"


def soak(service: RunningService, requests: int, connections: int) -> Soak:
    """Send good requests, all of them counted after a warm-up of a fiftieth."""
    warm = max(200, requests // 50)
    _closed_loop(service, connections, warm)
    started = time.monotonic()
    with MemoryWatch(service.pid) as watch:
        result = _closed_loop(service, connections, requests)
        memory = watch.memory()
    return Soak(
        count=result.sent,
        warm_up=warm,
        seconds=time.monotonic() - started,
        statuses=result.statuses,
        memory=memory,
        connections=connections,
        broken=result.broken,
        goodput=result.goodput,
        p99_ms=None if result.latency is None else result.latency.p99,
    )


def _closed_loop(service: RunningService, connections: int, requests: int) -> LoadResult:
    settings = LoadSettings(connections=connections, requests=requests, seconds=3600)
    return load(service.url, service.key, "int8-zstd", settings)


def swaps(folder: Path, versions: tuple[Path, Path], count: int, connections: int) -> Swaps:
    """Register two versions in `folder`, and switch between them `count` times while others ask.

    Memory is read after every swap; before, after: the median of the last readings of the warm-up, and of all.
    A swap is over when load has returned: the other version must answer from then on, or it is a ServiceError.
    """
    with Registry(locate(str(folder)), create=True) as registry:
        for bundle in versions:
            registry.register(bundle, who=_WHO)
        limits = KeyLimits(scopes=frozenset({"admin", "infer", "read"}))
        admin = registry.keys.create("bench", limits, who=_WHO)[1]
        with running_service(None, "--registry", str(folder), "--queue-seconds", "10") as service:
            return _swapped(registry, service, admin, count, connections)


def _swapped(registry: Registry, service: RunningService, admin: str, count: int, connections: int) -> Swaps:
    bodies, first = good_bodies(service), min(_WARM_SWAPS, count)

    def swap(number: int) -> tuple[float, int]:
        """How long it took, and the memory then."""
        started, version = time.monotonic(), 1 + number % 2
        registry.alias(_MODEL, "latest", version, who=_WHO)
        status = caller.ask(f"/v2/repository/models/{_MODEL}/load", b"{}")[0]
        passed = time.monotonic() - started
        if (status, caller.infer(*bodies[0])) != ("200", ("200", str(version))):
            raise ServiceError(f"swap {number} to version {version} was answered {status}, or did not hold")
        return passed, resident(service.pid)

    with closing(_Caller(service, admin)) as caller, _asking(service, bodies, connections) as heard:
        warm = [swap(number)[1] for number in range(first)]
        started = time.monotonic()
        with MemoryWatch(service.pid) as watch:
            found = [swap(number) for number in range(first, first + count)]
            largest = watch.memory().largest_bytes
        passed = time.monotonic() - started
    statuses = Counter[str]()
    for (status, _), times in heard.items():
        statuses[status] += times
    return Swaps(
        count=count,
        warm_up=first,
        seconds=passed,
        statuses=dict(sorted(statuses.items())),
        memory=Memory(
            before_bytes=_median(warm), after_bytes=_median([memory for _, memory in found]), largest_bytes=largest
        ),
        connections=connections,
        failed=statuses.total() - statuses["200"],
        by_version={version: times for (_, version), times in sorted(heard.items()) if version},
        swap_seconds=statistics.median(seconds for seconds, _ in found),
    )


def _median(readings: Sequence[int]) -> int:
    return round(statistics.median(readings[-_READINGS:]))


class _Caller:
    """One keep-alive connection; opened again if it broke."""

    def __init__(self, service: RunningService, key: str) -> None:
        address = address_of(service.url)
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=_SECONDS)
        self._key = {"Authorization": f"Bearer {key}"}

    def ask(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[str, bytes]:
        """(status, or that the connection broke; the JSON part of the answer)."""
        try:
            self._connection.request("POST", path, body, self._key | (headers or {}))
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return _BROKEN, b""
        return str(response.status), text[: int(response.getheader(LENGTH) or len(text))]

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def infer(self, size: int, body: bytes) -> tuple[str, str]:
        """(status, version that answered)."""
        status, text = self.ask(f"/v2/models/{_MODEL}/infer", body, {LENGTH: str(size)})
        return status, json.loads(text)["model_version"] if status == "200" else ""


@contextmanager
def _asking(
    service: RunningService, bodies: list[tuple[int, bytes]], connections: int
) -> Iterator[Counter[tuple[str, str]]]:
    """Ask over so many connections for the length of the block. What was heard, by status and version, is whole
    afterwards."""
    heard, lock, stop = Counter[tuple[str, str]](), threading.Lock(), threading.Event()

    def ask(first: int) -> None:
        caller, mine, number = _Caller(service, service.key), Counter[tuple[str, str]](), first
        while not stop.is_set():
            mine[caller.infer(*bodies[number % len(bodies)])] += 1
            number += 1
        caller.close()
        with lock:
            heard.update(mine)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        stop.set()
        for thread in threads:
            thread.join()
