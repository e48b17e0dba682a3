"""What is asked of the cloud, and what its replies mean: all of the fallback that needs no socket."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import NamedTuple, get_args
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, ExitName
from harmony.core.errors import CloudRefused, CloudTimeout, CloudUnreachable, ConfigError, FallbackError
from harmony.core.wire import encode
from harmony.device.answer import CloudAnswer
from harmony.device.protocol import (
    HEADER_LENGTH,
    MAX_JSON_BYTES,
    InferRequests,
    error_text,
    max_answer_bytes,
    read_probabilities,
    require_contract,
)

ATTEMPTS = 3
BACKOFF_S = 0.05
_MENDS = {401: "check the key", 403: "check the key", 404: "check the URL and the model's name", 503: "try later"}
_AGAIN = (429, 502, 503, 504)
_EXITS_HEADER = "harmony-exits"
_MOST_TOLD = 999_999_999  # that the service takes at once


class Question(NamedTuple):
    """An HTTP request. limit: most bytes that an honest reply's body has."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    limit: int


class Reply(NamedTuple):
    """An HTTP response; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Tally:
    """Bytes of the HTTP bodies of one question, those of its retries too."""

    sent = received = 0


class OwnExits:
    """Samples that the device answered itself, at each exit, and has not told the service of. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[ExitName, int] = dict.fromkeys(get_args(ExitName), 0)
        self._lock = threading.Lock()

    def add(self, exit_: ExitName) -> None:
        """One more."""
        with self._lock:
            self._counts[exit_] += 1

    @contextmanager
    def told(self) -> Iterator[dict[str, str]]:
        """Around one question: the header that tells of them. Unless it is answered, they are told with a later one."""
        with self._lock:
            taken = {name: min(count, _MOST_TOLD) for name, count in self._counts.items()}
            self._change(taken, -1)
        try:
            yield {_EXITS_HEADER: ",".join(map(str, taken.values()))} if any(taken.values()) else {}
        except BaseException:
            with self._lock:
                self._change(taken, 1)
            raise

    def _change(self, counts: Mapping[ExitName, int], sign: int) -> None:
        for name, count in counts.items():
            self._counts[name] += sign * count


class Service:
    """The model behind a URL, as one device asks it. Thread-safe: nothing changes but `exits`.

    url: http(s)://host[:port][/prefix]; key: its API key, or None for a service that asks for none. ConfigError.
    """

    def __init__(self, url: str, key: str | None, manifest: DeviceManifest) -> None:
        self.url = f"{_checked_url(url)}/v2/models/{manifest.fallback.model}"
        parts = urlsplit(self.url)
        self.host, self.tls, self._path = parts.hostname or "", parts.scheme == "https", parts.path
        self.port = parts.port if parts.port is not None else (443 if self.tls else 80)
        self._headers = _authorization(key)
        self._codec, self._cut = manifest.fallback.codec, manifest.feature
        self._label_of_token, self._tokens = manifest.classes.label_of_token, len(manifest.classes.names)
        self._requests = InferRequests(manifest.feature)
        self.exits = OwnExits()

    def frame(self, feature: NDArray[np.float32]) -> bytes:
        """A feature (C, H, W) as it is sent; InvalidInput if it is not finite."""
        return encode(feature, self._codec)

    def about_frame(self, frame: bytes, told: Mapping[str, str]) -> Question:
        """What is it? told: what goes along, of `exits`."""
        size, body = self._requests.body(frame)
        headers = {HEADER_LENGTH: str(size), "content-type": "application/octet-stream", **told}
        return self._question("POST", f"{self._path}/infer", headers, body, max_answer_bytes(self._tokens))

    def about_model(self) -> Question:
        """What does the model take?"""
        return self._question("GET", self._path, {}, b"", MAX_JSON_BYTES + 16 * self._tokens)

    def _question(self, method: str, path: str, headers: dict[str, str], body: bytes, limit: int) -> Question:
        return Question(method, path, {**self._headers, **headers, "content-length": str(len(body))}, body, limit)

    def accept(self, reply: Reply) -> Reply:
        """The reply, if it is one of success; CloudRefused, with the service's words, otherwise."""
        if reply.status == 200:
            return reply
        text = error_text(reply.body)
        refused = CloudRefused(
            f"answered {reply.status}{f': {text}' if text else ''}", where=self.url, mend=_MENDS.get(reply.status)
        )
        refused.status, refused.retry_after = reply.status, _retry_after(reply)
        raise refused

    def answer(self, reply: Reply, sent: int, received: int) -> CloudAnswer:
        """What an accepted reply to `about_frame` says; CloudAnswerInvalid."""
        values = read_probabilities(reply.body, reply.headers.get(HEADER_LENGTH), self._tokens, self.url)
        token = int(values.argmax())
        return CloudAnswer(int(self._label_of_token[token]), float(values[token]), sent, received)

    def require_same_cut(self, reply: Reply) -> None:
        """ContractMismatch unless an accepted reply to `about_model` says what the manifest says."""
        require_contract(reply.body, self._cut, self._tokens, self.url)

    def timeout(self, seconds: float) -> CloudTimeout:
        """The deadline is over."""
        return CloudTimeout(f"no answer within {seconds:g} s", where=self.url, mend="raise --deadline, or try later")

    def unreachable(self, error: Exception) -> CloudUnreachable:
        """The connection failed."""
        text = str(error) or type(error).__name__
        return CloudUnreachable(f"no connection: {text}", where=self.url, mend="is the service running?")


def pause_before_next(error: FallbackError, attempt: int, left: float) -> float | None:
    """Seconds to wait before the next attempt; None if there is none: it could not help, or would come too late.

    attempt: that failed, from 1; left: seconds of the deadline. Exponential with jitter, and never before the moment
    that the service asked for.
    """
    again = isinstance(error, CloudUnreachable) or (isinstance(error, CloudRefused) and error.status in _AGAIN)
    asked = error.retry_after if isinstance(error, CloudRefused) else None
    pause = (asked or 0.0) + BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311  (jitter, no secret)
    return pause if again and attempt < ATTEMPTS and pause < left else None


def checked_deadline(seconds: float) -> float:
    """The same; ConfigError unless it is one."""
    if not 0 < seconds <= 3600:
        raise ConfigError(f"{seconds} s is no deadline", where="deadline", mend="0 to 3600 seconds")
    return seconds


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username or not url.isascii() or not url.isprintable():
        raise ConfigError("is no address of a service", where=url, mend="write http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def _authorization(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the key must be printable ASCII without spaces", where="key", mend="check it for typos")
    return {"authorization": f"Bearer {key}"}


def _retry_after(reply: Reply) -> float | None:
    """Seconds that the service asks to wait, by number or by date (RFC 9110, 10.2.3); None if it does not."""
    text = reply.headers.get("retry-after", "")
    if text.isascii() and text.isdigit() and len(text) < 6:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError, OSError):  # whatever a date parser says of no date
        return None
