"""Bodies made from good ones by random damage: bits, lengths, cuts, JSON tokens, compression. Seeded, so repeatable."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import struct
import time
import zlib
from collections import Counter
from contextlib import closing

from harmony.bench.serving_attack_results import Fuzz
from harmony.bench.serving_memory import MemoryWatch
from harmony.bench.serving_requests import Form, address_of, requests_of, target_of
from harmony.cloud.process import RunningService
from harmony.core.errors import ServiceError

ALLOWED = frozenset({200, 400, 404, 408, 409, 413, 415, 503, 504})
LENGTH = "Inference-Header-Content-Length"
_FORMS: tuple[Form, ...] = ("tensor", "fp16", "int8-zstd")
_JSON_TOKENS = (b"null", b"-1", b"1e999", b"[]", b"{}", b'""', b"true", b"9" * 40, b"NaN", b"[[[[", b'"\\ud800"', b"\0")
_LOOK_EVERY = 500


def good_bodies(service: RunningService) -> list[tuple[int, bytes]]:
    """(bytes of JSON, body) of a good request in each form."""
    address = address_of(service.url)
    target = target_of(address, service.key, "backend")
    found = []
    for form in _FORMS:
        for request in requests_of(target, address, service.key, form, different=2):
            head, _, body = request.partition(b"\r\n\r\n")
            size = int(head.decode().split(f"{LENGTH}: ")[1].split("\r\n")[0])
            found.append((size, body))
    return found


def damaged(rng: random.Random, size: int, body: bytes) -> tuple[bytes, dict[str, str]]:
    """A body that was good, and its headers."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        _DAMAGES[rng.randrange(len(_DAMAGES))](rng, data, size)
    length = size if rng.random() < 0.8 else rng.choice([0, size - 1, size + 1, len(data), len(data) + 1, 1 << 62, -1])
    headers = {} if rng.random() < 0.05 else {LENGTH: str(length)}
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


def fuzz(service: RunningService, cases: int, seed: int) -> Fuzz:
    """Send `cases` damaged bodies, after a warm-up of a fiftieth that does not count for the memory.

    ServiceError for an answer that must not be, or one that does not come.
    """
    warm, started = max(1, cases // 50), time.monotonic()
    with closing(_Fuzzer(service, seed)) as fuzzer:
        fuzzer.run(0, warm)
        with MemoryWatch(service.pid) as watch:
            fuzzer.run(warm, cases)
            memory = watch.memory()
    return Fuzz(
        count=cases,
        warm_up=warm,
        seconds=time.monotonic() - started,
        statuses=dict(sorted(fuzzer.seen.items())),
        memory=memory,
        seed=seed,
        right=fuzzer.right,
    )


class _Fuzzer:
    """One keep-alive connection. seen: statuses of damaged bodies; right: good requests that were answered so."""

    def __init__(self, service: RunningService, seed: int) -> None:
        address = address_of(service.url)
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
        self._known = {"Authorization": f"Bearer {service.key}"}
        self._where, self._rng = f"seed {seed}", random.Random(seed)  # noqa: S311  # repeatable noise
        self._good, self._expected = good_bodies(service), dict[int, bytes]()
        self.seen, self.right = Counter[str](), 0

    def run(self, first: int, end: int) -> None:
        """Cases `first` to `end`, and good requests between them."""
        for number in range(first, end):
            which = self._rng.randrange(len(self._good))
            status, text = self._ask(*damaged(self._rng, *self._good[which]), number)
            self.seen[str(status)] += 1
            if status not in ALLOWED or (status != 200 and set(json.loads(text)) != {"error"}):
                raise ServiceError(f"case {number} was answered {status}: {text[:200]!r}", where=self._where)
            if number % _LOOK_EVERY == 0:
                self._look(which, number)

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def _look(self, which: int, number: int) -> None:
        size, whole = self._good[which]
        status, text = self._ask(whole, {LENGTH: str(size)}, number)
        if status != 200 or self._expected.setdefault(which, text) != text:
            raise ServiceError(f"a good request after case {number} was answered {status}", where=self._where)
        self.right += 1

    def _ask(self, body: bytes, headers: dict[str, str], number: int) -> tuple[int, bytes]:
        try:
            self._connection.request("POST", "/v2/models/backend/infer", body, self._known | headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"case {number} was not answered: {error!r}") from None
