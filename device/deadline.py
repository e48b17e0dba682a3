"""Sockets on which nothing takes longer than a deadline, however slowly the other side drips its bytes.

An HTTP client's timeouts hold for a single connect, read or write; a sum of them has no bound. Here every one of them
gets what is left of the whole.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore2


class Deadline:
    """The moment by which everything must be done. One for all the sockets of a client."""

    def __init__(self) -> None:
        self._until = 0.0

    def start(self, seconds: float) -> None:
        """From now on there are `seconds` left."""
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; negative once it is over."""
        return self._until - time.monotonic()

    def require(self) -> float:
        """Seconds left; httpcore2.ReadTimeout if there are none."""
        left = self.left
        if left <= 0:
            raise httpcore2.ReadTimeout("the deadline is over")
        return left


class DeadlineBackend(httpcore2.NetworkBackend):
    """Opens TCP connections whose operations all end by the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline, self._inner = deadline, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection. `timeout` is not looked at: the deadline is stricter."""
        stream = self._inner.connect_tcp(host, port, self._deadline.require(), local_address, socket_options)
        return _Stream(stream, self._deadline)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.require())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.require())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadline.require())
        return _Stream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
