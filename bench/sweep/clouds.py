"""What the cloud costs: a real service on this machine, asked one after the other by one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil

from harmony.bench.plan import Target
from harmony.bench.sweep.schema import CloudCost
from harmony.cloud.process import running_service
from harmony.core.bundle import sealed_vectors
from harmony.core.wire import encode
from harmony.device import FallbackClient

REQUESTS, BATCH, WARM_UP = 200, 20, 20


def cloud_cost(cloud: Path, target: Target, requests: int = REQUESTS) -> CloudCost:
    """CPU seconds of the service for one request, HTTP and back end, and the bytes of one exchange.

    CPU and not wall clock: what else this machine does has no part in it. Queues and other people's requests have
    none either.
    """
    features = list(sealed_vectors(target.folder, target.manifest)["feature"])
    with (
        running_service(cloud) as service,
        FallbackClient(service.url, service.key, manifest=target.manifest, deadline_s=30) as client,
    ):
        for index in range(WARM_UP):
            client.ask(features[index % len(features)])
        answers, spent = [], []
        for start in range(0, requests, BATCH):
            before = _cpu_s(service.pid)
            asked = [client.ask(features[index % len(features)]) for index in range(start, start + BATCH)]
            spent.append((_cpu_s(service.pid) - before) / BATCH)
            answers += asked
    codec = target.manifest.fallback.codec
    frames = [len(encode(features[index % len(features)], codec)) for index in range(len(answers))]
    return CloudCost(
        server_s=median(spent),
        envelope_bytes=_rounded([one.sent - size for one, size in zip(answers, frames, strict=True)]),
        answer_bytes=_rounded([one.received for one in answers]),
        requests=len(answers),
    )


def _rounded(sizes: Sequence[int]) -> int:
    return max(0, round(sum(sizes) / len(sizes)))


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process, its threads and children: of nanoseconds where the kernel tells, else of its ticks."""
    root = psutil.Process(pid)
    return sum(_one_s(one) for one in (root, *root.children(recursive=True)))


def _one_s(process: psutil.Process) -> float:
    tasks = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if tasks:
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)
