"""Takes accepted sockets in. With TLS, their handshake comes first: so many at once, so long each.

A socket in its handshake is no connection yet, so the bounds on connections do not see it: a stranger who opens
thousands and says nothing would take every descriptor that there is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from uvicorn import Config
from uvicorn.server import ServerState

from harmony.cloud.connection import HEADER_SECONDS

log = logging.getLogger("harmony.cloud")
_AT_ONCE = 64
_PAUSE_SECONDS = 0.05
Make = Callable[[], asyncio.Protocol]


def most_handshakes(connections: int) -> int:
    """How many TLS handshakes may be under way, beside so many connections."""
    return max(16, connections // 8)


class Door:
    """Of one server. Everything is called on the event loop."""

    def __init__(self, make: Make, config: Config, state: ServerState, most: int) -> None:
        """make: a connection's protocol; most: sockets on their way in, of which the oldest has to go for the next."""
        self._make, self._tls, self._tasks, self._most = make, config.ssl, state.tasks, most
        self._entering: dict[socket.socket, None] = {}  # in order
        self._listeners: list[socket.socket] = []

    def open(self, listener: socket.socket) -> None:
        """Accept on a listening socket, until `close`."""
        listener.setblocking(False)
        self._listeners.append(listener)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Accept no more."""
        while self._listeners:
            listener = self._listeners.pop()
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def take(self, accepted: socket.socket) -> None:
        """Let a socket in."""
        if len(self._entering) >= self._most:
            self._turn_away(next(iter(self._entering)))
        self._entering[accepted] = None
        task = asyncio.get_running_loop().create_task(self._enter(accepted))
        self._tasks.add(task)  # a stop waits for it
        task.add_done_callback(self._tasks.discard)

    def _turn_away(self, oldest: socket.socket) -> None:
        """End a handshake as if its caller had left: whoever waits for it closes the socket."""
        del self._entering[oldest]
        with suppress(OSError):  # its caller did leave
            oldest.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_AT_ONCE):
            try:
                self.take(listener.accept()[0])
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # no more descriptors: those who wait have to wait on
                log.warning("cannot accept", extra={"error": str(error)})
                loop.remove_reader(listener)
                loop.call_later(_PAUSE_SECONDS, self._accept_again, listener)
                return

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _enter(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seconds = None if self._tls is None else HEADER_SECONDS
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._make, accepted, ssl=self._tls, ssl_handshake_timeout=seconds)
        except OSError:  # it was gone before it was served, or did not speak TLS
            accepted.close()
        finally:
            self._entering.pop(accepted, None)
