"""What the cloud costs: a real service on this machine, asked one after the other by one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from harmony.bench.plan import Target
from harmony.bench.sweep.schema import CloudCost
from harmony.cloud.process import running_service
from harmony.core.bundle import VECTORS, read_vectors
from harmony.core.wire import encode
from harmony.device import FallbackClient

REQUESTS, WARM_UP = 200, 20


def cloud_cost(cloud: Path, target: Target, requests: int = REQUESTS) -> CloudCost:
    """CPU seconds of the service for one request, HTTP and back end, and the bytes of one exchange.

    CPU and not wall clock: what else this machine does has no part in it. Queues and other people's requests have
    none either.
    """
    features = list(read_vectors(target.folder / VECTORS)["feature"])
    with (
        running_service(cloud) as service,
        FallbackClient(service.url, service.key, manifest=target.manifest, deadline_s=30) as client,
    ):
        for index in range(WARM_UP):
            client.ask(features[index % len(features)])
        before = _cpu_s(service.pid)
        answers = [client.ask(features[index % len(features)]) for index in range(requests)]
        spent = _cpu_s(service.pid) - before
    frames = [len(encode(features[index % len(features)], target.manifest.fallback.codec)) for index in range(requests)]
    return CloudCost(
        server_s=spent / requests,
        envelope_bytes=_rounded([one.sent - size for one, size in zip(answers, frames, strict=True)]),
        answer_bytes=_rounded([one.received for one in answers]),
        requests=requests,
    )


def _rounded(sizes: Sequence[int]) -> int:
    return max(0, round(sum(sizes) / len(sizes)))


def _cpu_s(pid: int) -> float:
    """User and system time of a process and its children, in the clock ticks that the system counts."""
    root = psutil.Process(pid)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))
