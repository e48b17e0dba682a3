"""HTTP connections on which nothing takes longer than a deadline, however slowly the other side drips its bytes.

An HTTP client's timeouts hold for a single connect, read or write; a sum of them has no bound. Here every one of them
gets what is left of the whole. The standard library's client is used because a device's memory is short: it takes
2 MB less than a pool that also knows proxies, HTTP/2 and asyncio.
"""

from __future__ import annotations

import http.client
import select
import socket
import time
from typing import Any


class Deadline:
    """The moment by which everything must be done. Begins when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._until = seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; negative once it is over."""
        return self._until - time.monotonic()

    def require(self) -> float:
        """Seconds left; TimeoutError if there are none."""
        left = self.left
        if left <= 0:
            raise TimeoutError("the deadline is over")
        return left


class _Bounded(socket.socket):
    """A socket, plain or TLS, whose every wait ends by a deadline."""

    deadline: Deadline

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(self.deadline.require())
        return super().recv_into(*arguments, **options)

    def sendall(self, *arguments: Any, **options: Any) -> None:
        self.settimeout(self.deadline.require())
        super().sendall(*arguments, **options)


class Connection(http.client.HTTPConnection):
    """One connection to one service, opened when it is needed and kept for the next request. One thread at a time."""

    def __init__(self, host: str, port: int, context: Any = None) -> None:
        """context: of `tls_context`, to speak TLS."""
        super().__init__(host, port)
        self._context = context
        self._deadline = Deadline(0)

    def begin(self, deadline: Deadline) -> None:
        """The next request has to be over by then."""
        self._deadline = deadline
        if isinstance(self.sock, _Bounded):
            self.sock.deadline = deadline

    def connect(self) -> None:
        """Open the socket, and shake hands for TLS, by the deadline."""
        plain = socket.create_connection((self.host, self.port), self._deadline.require())
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            sock = _Bounded(fileno=plain.detach())
        else:
            plain.settimeout(self._deadline.require())
            sock = self._context.wrap_socket(plain, server_hostname=self.host)
        sock.deadline = self._deadline
        self.sock = sock

    def drop_if_stale(self) -> None:
        """Close a kept connection that the other side has closed meanwhile; the next request opens a new one."""
        if self.sock is not None and select.select([self.sock], [], [], 0)[0]:
            self.close()


def tls_context() -> Any:
    """For connections that check the service's certificate by the system's list; read once, as it is long."""
    import ssl  # noqa: PLC0415  (only for https; the system's certificates are read here)

    class Secured(_Bounded, ssl.SSLSocket):
        """The deadline's socket, over TLS."""

    context = ssl.create_default_context()
    context.sslsocket_class = Secured
    return context
