"""The service as a process: bind, announce, serve, drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import NoReturn

import uvicorn

from harmony.cloud.app import ServiceApp, create_app
from harmony.cloud.deploy import Opened
from harmony.cloud.direct import DirectConnection
from harmony.cloud.door import Door, most_handshakes
from harmony.cloud.settings import ServiceSettings
from harmony.cloud.source import Place
from harmony.cloud.workers import Supervisor
from harmony.core.errors import ConfigError, PortInUse, ServiceError
from harmony.core.spec import Frozen

log = logging.getLogger("harmony.cloud")
_BACKLOG = 1024
# After the door closed, connections that are open may ask once more: their answer tells them to go. Closing idle ones
# at once would lose a request that is on its way.
_LAST_ORDERS_SECONDS = 0.3
_LOOK_SECONDS = 0.02
_OTHER_DESCRIPTORS = 128  # of models, databases, workers


class Announcement(Frozen):
    """What a service says once it listens."""

    url: str
    models: tuple[str, ...]
    pid: int


Announce = Callable[[Announcement], None]


def serve(
    place: Place,
    settings: ServiceSettings,
    announce: Announce,
    *,
    stop_with: int | None = None,
    log_level: str = "warning",
) -> None:
    """Serve what lies at `place` until SIGTERM or SIGINT, then drain and return.

    announce: called once the service answers. stop_with: a file descriptor; its end of file stops the service too,
    so that it cannot outlive the process that holds the other end. log_level: that of the worker processes. Called on
    the main thread of a process that ends soon after: both signals are ignored from then on.
    Raises what opening the place raises, ConfigError for a host that cannot be bound or must not be, PortInUse.
    """
    if stop_with is not None and not stat.S_ISFIFO(os.fstat(stop_with).st_mode):
        raise ConfigError("is not a pipe", where="stdin", mend="leave --until-stdin-ends out")
    settings.require_tls()
    handshakes = 0 if settings.tls_cert is None else most_handshakes(settings.max_connections)
    raise_descriptor_limit(settings.max_connections + handshakes)
    if settings.workers > 1:
        _serve_with_workers(place, settings, announce, stop_with, log_level)
        return
    opened = Opened.of(place.open())
    settings.require_safe(kept=opened.wanted.grants or ())
    app = create_app(opened, settings)
    with _listen(settings.host, settings.port) as listener:
        said = Announcement(url=_url(listener, settings), models=opened.names, pid=os.getpid())
        server = DrainingServer(app, settings, lambda: announce(said), stop_with)
        with handled_signals(server):
            server.run(sockets=[listener])
    if not server.started:
        raise ServiceError("the service did not start; see the log above", where=said.url)


def raise_descriptor_limit(connections: int) -> None:
    """Let the process, and its workers, hold so many connections. ConfigError if the system does not let it."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  (Unix alone has it)

    needed = connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{connections} connections need {needed} descriptors, the system allows {hard}",
            where="--max-connections",
            mend=f"give at most {max(0, hard - _OTHER_DESCRIPTORS)}, or raise 'ulimit -Hn'",
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _serve_with_workers(
    place: Place, settings: ServiceSettings, announce: Announce, stop_with: int | None, log_level: str
) -> None:
    with closing(place.open()) as source:
        settings.require_safe(kept=source.wanted().grants or ())
    with _listen(settings.host, settings.port) as listener:
        url = _url(listener, settings)
        supervisor = Supervisor(listener, place, settings, log_level, stop_with)
        supervisor.run(lambda names: announce(Announcement(url=url, models=names, pid=os.getpid())))


def _url(listener: socket.socket, settings: ServiceSettings) -> str:
    host, port = listener.getsockname()[:2]
    return f"{settings.scheme}://[{host}]:{port}" if ":" in host else f"{settings.scheme}://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """uvicorn, which announces itself, and on the way out answers everything that was asked."""

    def __init__(
        self, app: ServiceApp, settings: ServiceSettings, announce: Callable[[], None], stop_with: int | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=DirectConnection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                server_header=False,
                timeout_keep_alive=75,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
            )
        )
        self._app = app
        self._announce = announce
        self._stop_with = stop_with

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so. With TLS, connections come in by our own door."""
        own = (sockets or []) if self.config.ssl is not None else []
        await super().startup([] if own else sockets)
        most = most_handshakes(self._app.service.settings.max_connections)
        self.door = Door(self._connection, self.config, self.server_state, most)
        for listener in own:
            self.door.open(listener)
        if self._stop_with is not None:
            asyncio.get_running_loop().add_reader(self._stop_with, self._watch, self._stop_with)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, answer who is inside, then close the connections: all of it within `drain_seconds`."""
        log.info("draining")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._app.service.settings.drain_seconds
        self._app.service.draining = True
        self.door.close()
        for listener in self.servers:
            listener.close()
        await asyncio.sleep(_LAST_ORDERS_SECONDS)
        await asyncio.sleep(0)  # a loop that got no processor meanwhile reads first what came, and then closes
        while self._is_busy and loop.time() < deadline and not self.force_exit:
            await asyncio.sleep(_LOOK_SECONDS)
        await self._send_away()
        await self.lifespan.shutdown()
        log.info("stopped")

    def _connection(self) -> DirectConnection:
        return DirectConnection(self.config, self.server_state, self.lifespan.state)

    @property
    def _is_busy(self) -> bool:
        """Whether somebody is inside; who asks nothing is shown out. Every time: a connection that was accepted before
        the door closed may turn up late."""
        for connection in list(self.server_state.connections):
            connection.shutdown()
        return bool(self.server_state.connections or self.server_state.tasks)

    async def _send_away(self) -> None:
        """Tell who still waits; close on those who do not read it."""
        left = [one for one in self.server_state.connections if isinstance(one, DirectConnection)]
        for connection in left:
            connection.give_up()
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(_LOOK_SECONDS)  # the last answers are written
        for connection in left:
            connection.transport.abort()

    def _watch(self, descriptor: int) -> None:
        if not os.read(descriptor, 4096):
            asyncio.get_running_loop().remove_reader(descriptor)
            self.should_exit = True


def leave() -> NoReturn:
    """End the process, with code 0, once everything is answered and closed.

    Without the interpreter's own clean-up: it takes a fifth of a second of CPU time, seconds on a busy machine, and
    waits for threads that wait for a database.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def handled_signals(server: DrainingServer) -> Iterator[None]:
    """Make a stop by signal a normal return.

    uvicorn raises the signal that stopped it once more at its end, for whoever handled it before: that is here.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:  # everything is answered: a second signal must not turn the exit code into a failure
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. PortInUse if somebody listens there, ConfigError for another reason."""
    where = f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ConfigError(f"unknown host: {error.strerror}", where=where, field="--host") from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)  # two sockets may be bound to one port, but only one may listen
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse("somebody listens there", where=where, mend="choose another --port, or 0") from None
            raise ConfigError(f"cannot listen there: {error.strerror}", where=where, field="--port") from None
        yield listener
