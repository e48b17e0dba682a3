"""The same application on Ray Serve, behind the HAProxy that comes with Ray: `harmony serve --ray`.

Each replica is the ASGI application of `harmony.cloud.app` in an actor of its own; HAProxy hands requests straight to
it, so that no Python stands between. What our own connection adds (harmony.cloud.direct) is left out: bounds on
connections and headers are HAProxy's then. Ray runs on this machine, for this service alone, and ends with it.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from harmony.cloud.app import ServiceApp, create_app
from harmony.cloud.deploy import Opened
from harmony.cloud.server import Announce, Announcement
from harmony.cloud.settings import ServiceSettings
from harmony.cloud.source import Place
from harmony.core.errors import ConfigError, ServiceError

_OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes is 75 MiB; nothing of ours goes through it
_NOTICE_SECONDS = 1  # a replica that is to end answers on for so long, until HAProxy knows


def serve_on_ray(place: Place, settings: ServiceSettings, announce: Announce, *, stop_with: int | None = None) -> None:
    """Serve what lies at `place` from `settings.workers` replicas until SIGTERM or SIGINT, then end them and Ray.

    announce, stop_with: as in harmony.cloud.server.serve. Raises what opening the place raises, ConfigError for what
    Ray cannot do, ServiceError if it does not start.
    """
    if settings.tls_cert is not None:
        raise ConfigError("is not for --ray", where="--tls-cert", mend="put a proxy in front, or leave --ray out")
    with closing(place.open()) as source:  # what cannot be served is named now, not by a replica that dies of it
        opened = Opened.of(source)
        settings.require_safe(kept=opened.wanted.grants or ())
        names = opened.names
    settings = settings.model_copy(update={"port": settings.port or _free_port(settings.host)})
    with tempfile.TemporaryDirectory(prefix="harmony-ray-") as folder, _stop_signals(stop_with) as stopped:
        os.environ |= _environment(Path(folder)) | os.environ
        try:
            with _application(_absolute(place), settings, folder):
                announce(Announcement(url=f"http://{settings.host}:{settings.port}", models=names, pid=os.getpid()))
                stopped()
        except Exception as error:  # Ray raises whatever it meets, bare Exception among it
            raise ServiceError(f"Ray did not serve it: {_first_line(error)}", where="--ray") from error


def _absolute(place: Place) -> Place:
    """For a process that may have another working directory."""
    folder, store, checkpoint = (
        None if path is None else path.absolute() for path in (place.folder, place.store, place.checkpoint)
    )
    return replace(place, folder=folder, store=store, checkpoint=checkpoint)


def _environment(folder: Path) -> dict[str, str]:
    """For Ray, which reads most of its settings when it is imported. What the user has set goes first.

    The files of HAProxy, among them a socket that everybody may write to, lie in a folder that is this user's alone.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_AUTH_MODE": "token",  # its ports unpickle what they are sent: only for those who know the token
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_NOTICE_SECONDS),
    }


@contextmanager
def _application(place: Place, settings: ServiceSettings, folder: str) -> Iterator[None]:
    """The application on a Ray of its own, for the length of the block."""
    import ray  # noqa: PLC0415  (after its environment is set, and where it is installed)
    from ray import serve  # noqa: PLC0415
    from ray.serve.schema import LoggingConfig  # noqa: PLC0415

    def build() -> ServiceApp:
        source = place.open()
        opened = Opened.of(source)
        if not source.shared:  # a load or unload would reach one replica of several
            opened = Opened.fixed(opened.models)
        return create_app(opened, settings)

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    try:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=quiet)
        serve.run(_deployment(serve, build, settings), name="harmony", route_prefix="/")
        yield
        serve.shutdown()
    finally:
        ray.shutdown()


def _deployment(serve: Any, build: Any, settings: ServiceSettings) -> Any:
    class Fallback:
        """One replica; all that it does is the application's."""

    deployed = serve.deployment(
        num_replicas=settings.workers,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.max_connections,  # the application's own queue is bounded by time
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return deployed(serve.ingress(build)(Fallback)).bind()


@contextmanager
def _stop_signals(stop_with: int | None) -> Iterator[Any]:
    """A function that waits for SIGTERM, SIGINT, or the end of the file `stop_with`."""
    reader, writer = os.pipe()

    def stop(_number: int, _frame: FrameType | None) -> None:
        os.write(writer, b"!")

    def wait() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has put its own there meanwhile
            signal.signal(number, stop)
        select.select([reader] if stop_with is None else [reader, stop_with], [], [])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    try:
        yield wait
    finally:
        os.close(reader)
        os.close(writer)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
