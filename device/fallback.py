"""Asks the cloud, within a deadline, and trusts nothing that it says."""

from __future__ import annotations

import http.client
import random
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest
from harmony.core.errors import (
    CloudAnswerInvalid,
    CloudRefused,
    CloudTimeout,
    CloudUnreachable,
    ConfigError,
    FallbackError,
)
from harmony.core.wire import encode
from harmony.device.answer import CloudAnswer
from harmony.device.deadline import Connection, Deadline
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


class _Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class FallbackClient:
    """A connection to one service for one device. Not thread-safe; a `with` block closes it.

    url: http(s)://host[:port][/prefix]; key: its API key, or None for a service that asks for none;
    deadline_s: for a whole question, with connecting, retries and reading. Looking a host name up is left to the
    system and its own timeout.
    """

    def __init__(self, url: str, key: str | None, *, manifest: DeviceManifest, deadline_s: float = 1.0) -> None:
        base = _checked_url(url)
        if not 0 < deadline_s <= 3600:
            raise ConfigError(f"{deadline_s} s is no deadline", where="deadline", mend="0 to 3600 seconds")
        self._model_url = f"{base}/v2/models/{manifest.fallback.model}"
        self._headers = _authorization(key)
        self._codec, self._cut = manifest.fallback.codec, manifest.feature
        self._label_of_token, self._tokens = manifest.classes.label_of_token, len(manifest.classes.names)
        self._requests = InferRequests(manifest.feature)
        self._deadline_s, self._deadline = deadline_s, Deadline()
        parts = urlsplit(self._model_url)
        self._path = parts.path
        self._connection = Connection(
            parts.hostname or "", parts.port, tls=parts.scheme == "https", deadline=self._deadline
        )
        self._sent = self._received = 0

    def __enter__(self) -> FallbackClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def check(self) -> None:
        """Ask what the service's model takes. ContractMismatch if it is another cut; otherwise as `ask`."""
        self._deadline.start(self._deadline_s)
        reply = self._exchange("GET", self._path, {}, b"", limit=MAX_JSON_BYTES + 16 * self._tokens)
        require_contract(reply.body, self._cut, self._tokens, self._model_url)

    def ask(self, feature: NDArray[np.float32]) -> CloudAnswer:
        """The cloud's answer to one feature (C, H, W).

        Raises CloudUnreachable, CloudTimeout, CloudRefused (the service's words), CloudAnswerInvalid, all of them
        within the deadline; InvalidInput if the feature is not finite.
        """
        self._deadline.start(self._deadline_s)
        self._sent = self._received = 0
        size, body = self._requests.body(encode(feature, self._codec))
        headers = {HEADER_LENGTH: str(size), "content-type": "application/octet-stream"}
        reply = self._exchange("POST", f"{self._path}/infer", headers, body, limit=max_answer_bytes(self._tokens))
        values = read_probabilities(reply.body, reply.headers.get(HEADER_LENGTH), self._tokens, self._model_url)
        token = int(values.argmax())
        return CloudAnswer(int(self._label_of_token[token]), float(values[token]))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of HTTP bodies that the last `ask` sent and received, also if it failed; retries count."""
        return self._sent, self._received

    def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes, *, limit: int) -> _Reply:
        """A 200 reply, after retries if they fit into the deadline; a FallbackError otherwise."""
        request_headers = self._headers | headers | {"content-length": str(len(body))}
        for attempt in range(1, ATTEMPTS + 1):
            pause = BACKOFF_S * attempt * random.uniform(0.5, 1.5)  # noqa: S311  (jitter, not a secret)
            try:
                reply = self._once(method, path, request_headers, body, limit)
            except FallbackError as error:
                if isinstance(error, CloudUnreachable) and self._may_wait(attempt, pause):
                    continue
                raise
            if reply.status == 200:
                return reply
            if reply.status == 503 and self._may_wait(attempt, _retry_after(reply, pause)):
                continue
            text = error_text(reply.body)
            raise CloudRefused(
                f"answered {reply.status}{f': {text}' if text else ''}", where=self._model_url,
                mend=_MENDS.get(reply.status),
            )  # fmt: skip
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _may_wait(self, attempt: int, pause: float) -> bool:
        """Sleep before the next attempt, if there is one and it fits."""
        if attempt == ATTEMPTS or pause >= self._deadline.left:
            return False
        time.sleep(pause)
        return True

    def _once(self, method: str, path: str, headers: dict[str, str], body: bytes, limit: int) -> _Reply:
        connection = self._connection
        whole = False
        try:
            connection.drop_if_stale()
            connection.request(method, path, body, headers)
            self._sent += len(body)
            response = connection.getresponse()
            replied = {name.lower(): value for name, value in response.getheaders()}
            reply = _Reply(response.status, replied, self._read(response, limit))
            whole = True
        except TimeoutError:
            raise CloudTimeout(
                f"no answer within {self._deadline_s:g} s", where=self._model_url, mend="raise --deadline, or try later"
            ) from None
        except (http.client.HTTPException, OSError) as error:
            raise CloudUnreachable(
                f"no connection: {error or type(error).__name__}", where=self._model_url, mend="is the service running?"
            ) from None
        else:
            return reply
        finally:
            if not whole:  # the rest of an answer must not be taken for the next one
                connection.close()

    def _read(self, response: http.client.HTTPResponse, limit: int) -> bytes:
        parts, size = [], 0
        while part := response.read(1 << 16):
            size += len(part)
            self._received += len(part)
            if size > limit:
                raise CloudAnswerInvalid(f"the answer is larger than {limit} bytes", where=self._model_url)
            parts.append(part)
        if response.length:  # what was promised and never came: the client itself lets that pass
            raise http.client.IncompleteRead(b"".join(parts), response.length)
        return b"".join(parts)


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


def _retry_after(reply: _Reply, default: float) -> float:
    """Seconds that the service asks to wait; `default` if it does not say, or says a date."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else default
