"""Long attacks on a real service: `python -m harmony.bench.serving_attack fuzz|soak --help`.

fuzz: bodies made from good ones by random damage (bits, lengths, cuts, JSON tokens, compression), over keep-alive
connections; every answer must be one of the protocol's, none a 500, and good requests must be answered right between
them. soak: good requests in a closed loop; the memory of the service must not grow. Both end with exit code 1, and say
why, if that fails; the counts are bounded, the seed makes a run repeatable.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from harmony.bench.serving import load
from harmony.bench.serving_load import LoadSettings
from harmony.bench.serving_models import write_bundles
from harmony.bench.serving_requests import CUT, Form, address_of, requests_of, target_of
from harmony.cloud.process import RunningService, running_service
from harmony.core.errors import HarmonyError, ServiceError

ALLOWED = frozenset({200, 400, 404, 408, 409, 413, 415, 503, 504})
_FORMS: tuple[Form, ...] = ("tensor", "fp16", "int8-zstd")
_LENGTH = "Inference-Header-Content-Length"
_JSON_TOKENS = (b"null", b"-1", b"1e999", b"[]", b"{}", b'""', b"true", b"9" * 40, b"NaN", b"[[[[", b'"\\ud800"', b"\0")
_GROWTH = 1.05


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children hold."""
    return sum(one.memory_info().rss for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)))


def good_bodies(service: RunningService) -> list[tuple[int, bytes]]:
    """(bytes of JSON, body) of a good request in each form."""
    address = address_of(service.url)
    target = target_of(address, service.key, "backend")
    found = []
    for form in _FORMS:
        for request in requests_of(target, address, service.key, form, different=2):
            head, _, body = request.partition(b"\r\n\r\n")
            size = int(head.decode().split(f"{_LENGTH}: ")[1].split("\r\n")[0])
            found.append((size, body))
    return found


def damaged(rng: random.Random, size: int, body: bytes) -> tuple[bytes, dict[str, str]]:
    """A body that was good, and its headers."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        _DAMAGES[rng.randrange(len(_DAMAGES))](rng, data, size)
    length = size if rng.random() < 0.8 else rng.choice([0, size - 1, size + 1, len(data), len(data) + 1, 1 << 62, -1])
    headers = {} if rng.random() < 0.05 else {_LENGTH: str(length)}
    if rng.random() < 0.1:
        coding = rng.choice(["gzip", "deflate", "br"])
        packed = gzip.compress(data, 1) if coding == "gzip" else zlib.compress(data, 1)
        return packed[: rng.choice([len(packed), rng.randint(0, len(packed))])], headers | {"Content-Encoding": coding}
    return bytes(data), headers


def _flip(rng: random.Random, data: bytearray, size: int) -> None:
    if data:
        limit = size if rng.random() < 0.5 else len(data)
        data[rng.randrange(min(limit, len(data)) or 1)] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray, _size: int) -> None:
    del data[rng.randint(0, len(data)) :]


def _insert(rng: random.Random, data: bytearray, _size: int) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.randbytes(rng.randint(1, 64))


def _token(rng: random.Random, data: bytearray, size: int) -> None:
    """Something else where a JSON value or a comma stands."""
    places = [place for place, byte in enumerate(data[:size]) if byte in b":,["]
    if places:
        place = rng.choice(places) + 1
        data[place : place + rng.randint(0, 6)] = rng.choice(_JSON_TOKENS)


def _number(rng: random.Random, data: bytearray, size: int) -> None:
    """An extreme length or value in the binary part."""
    if len(data) - size >= 4:
        place = rng.choice([size, rng.randint(size, len(data) - 4)])
        data[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), struct.pack("<f", float("nan")), b"\0\0\x80\x7f"])


_DAMAGES = (_flip, _cut, _insert, _token, _number)


def fuzz(service: RunningService, cases: int, seed: int) -> dict[str, object]:
    """Send `cases` damaged bodies. ServiceError for an answer that must not be, or one that does not come."""
    rng, seen = random.Random(seed), Counter[int]()  # noqa: S311  # repeatable noise
    address = address_of(service.url)
    good = good_bodies(service)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
    right: dict[int, bytes] = {}
    peak = 0
    for number in range(cases):
        which = rng.randrange(len(good))
        body, headers = damaged(rng, *good[which])
        status, text = _ask(connection, service.key, body, headers, number)
        seen[status] += 1
        if status not in ALLOWED or (status != 200 and set(json.loads(text)) != {"error"}):
            raise ServiceError(f"case {number} was answered {status}: {text[:200]!r}", where=f"seed {seed}")
        if number % 500 == 0:
            peak = max(peak, resident(service.pid))
            size, whole = good[which]
            status, text = _ask(connection, service.key, whole, {_LENGTH: str(size)}, number)
            if status != 200 or right.setdefault(which, text) != text:
                raise ServiceError(f"after case {number} a good request was answered {status}", where=f"seed {seed}")
    connection.close()
    return {"cases": cases, "seed": seed, "statuses": dict(sorted(seen.items())), "peak_mib": peak / (1 << 20)}


def _ask(
    connection: http.client.HTTPConnection, key: str, body: bytes, headers: dict[str, str], number: int
) -> tuple[int, bytes]:
    known = {"Authorization": f"Bearer {key}"}
    try:
        connection.request("POST", "/v2/models/backend/infer", body, known | headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(f"case {number} was not answered: {error!r}") from None


def soak(service: RunningService, requests: int, connections: int) -> dict[str, object]:
    """Send good requests. ServiceError if one is not answered with 200, or the memory grows by a twentieth."""
    warm = LoadSettings(connections=connections, requests=max(200, requests // 50), seconds=3600)
    load(service.url, service.key, "int8-zstd", warm)
    before, started = resident(service.pid), time.monotonic()
    result = load(
        service.url, service.key, "int8-zstd", LoadSettings(connections=connections, requests=requests, seconds=3600)
    )
    growth = resident(service.pid) / before
    if set(result.statuses) != {"200"} or result.broken:
        raise ServiceError(f"not everything was answered: {result.statuses}, {result.broken} broken")
    if growth >= _GROWTH:
        raise ServiceError(f"the memory grew to {growth:.3f} of what it was after {warm.requests} requests")
    return {
        "requests": result.sent,
        "seconds": time.monotonic() - started,
        "goodput": result.goodput,
        "mib_before": before / (1 << 20),
        "growth": growth,
        "p99_ms": None if result.latency is None else result.latency.p99,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.serving_attack", description=__doc__)
    parser.add_argument("kind", choices=("fuzz", "soak"))
    parser.add_argument("--count", type=int, help="cases or requests; default 100,000 and 1,000,000")
    parser.add_argument("--connections", type=int, default=16, help="of the soak")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer")
    given = parser.parse_args(arguments)
    count = given.count or {"fuzz": 100_000, "soak": 1_000_000}[given.kind]
    if not 1 <= count <= 20_000_000:
        parser.error("--count is 1 to 20,000,000")
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundles(Path(folder), 32)[1]
        try:
            with running_service(bundle, "--queue-seconds", "10") as service:
                done = (
                    fuzz(service, count, given.seed)
                    if given.kind == "fuzz"
                    else soak(service, count, given.connections)
                )
        except HarmonyError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.exit(1)
    sys.stdout.write(json.dumps({"cut": str(CUT), given.kind: done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
