"""The app and its connection without a process around them: what needs a limit of its own, or a fault of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from harmony.cloud import connection
from harmony.cloud.app import ServiceApp, create_app
from harmony.cloud.connection import GuardedConnection
from harmony.cloud.lanes import Lane
from harmony.cloud.models import open_models
from harmony.cloud.settings import ServiceSettings
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle

Receive = Callable[[], Awaitable[dict[str, Any]]]
BODY = json.dumps(
    {"inputs": [{"name": "feature", "datatype": "FP32", "shape": [1, 8, 4, 4], "data": [0.0] * 128}]}
).encode()


async def whole_body() -> dict[str, Any]:
    return {"type": "http.request", "body": BODY, "more_body": False}


async def no_body() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits that long")


async def ask(
    app: ServiceApp, path: str = "/v2/models/backend/infer", *, receive: Receive = whole_body, method: str = "POST"
) -> tuple[int, dict[bytes, bytes], Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-length", b"%d" % len(BODY))],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("x", 1),
        "client": ("x", 2),
        "root_path": "",
        "state": {},
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body)


def lane_of(app: ServiceApp) -> Lane:
    return app.service.table.route("backend").lane


def run(bundle: Bundle, work: Callable[[ServiceApp], Awaitable[None]], **settings: Any) -> None:
    """Do `work` with a started app."""

    async def main() -> None:
        app = create_app(open_models(bundle.folder), ServiceSettings(**settings))
        async with app.router.lifespan_context(app):
            await work(app)

    asyncio.run(main())


def test_a_slow_body_is_given_up(bundle: Bundle) -> None:
    async def work(app: ServiceApp) -> None:
        status, _, body = await ask(app, receive=no_body)
        assert (status, "within 0.05 seconds" in body["error"]) == (408, True)
        assert app.service.inflight_bytes == 0

    run(bundle, work, body_seconds=0.05)


def test_bodies_under_way_are_bounded_together(bundle: Bundle) -> None:
    async def work(app: ServiceApp) -> None:
        slow = asyncio.create_task(ask(app, receive=no_body))
        await asyncio.sleep(0)
        status, headers, body = await ask(app)
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert "too many bodies" in body["error"]
        slow.cancel()
        assert (await slow)[0] == 503
        assert (await ask(app))[0] == 200

    run(bundle, work, max_inflight_bytes=1024)  # one body and a half


def test_an_app_that_was_not_started_or_has_stopped_says_so(bundle: Bundle) -> None:
    async def main() -> None:
        app = create_app(open_models(bundle.folder), ServiceSettings())
        assert (await ask(app))[0] == 503
        async with app.router.lifespan_context(app):
            assert (await ask(app))[0] == 200
        assert (await ask(app))[0] == 503

    asyncio.run(main())


def test_a_draining_service_is_not_ready_and_sends_callers_away(bundle: Bundle) -> None:
    async def work(app: ServiceApp) -> None:
        app.service.draining = True
        assert (await ask(app, "/v2/health/ready", method="GET"))[0] == 503
        assert (await ask(app, "/v2/health/live", method="GET"))[0] == 200
        status, headers, _ = await ask(app)
        assert (status, headers[b"connection"]) == (200, b"close")

    run(bundle, work)


def test_a_fault_of_ours_is_a_500_without_its_inside(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: ServiceApp) -> None:
        def fail(_: Any) -> Any:
            raise RuntimeError("a secret")

        with monkeypatch.context() as patch:
            patch.setattr(lane_of(app).model.program, "run", fail)
            status, _, body = await ask(app)
        assert (status, body) == (500, {"error": "the model failed on this batch"})
        assert (await ask(app))[0] == 200, "one failed batch must not end the model's thread"

    run(bundle, work)


def test_two_apps_count_for_themselves(bundle: Bundle) -> None:
    async def work(app: ServiceApp) -> None:
        other = create_app(open_models(bundle.folder), ServiceSettings())
        assert (await ask(app))[0] == 200
        assert lane_of(app).statistics.counted().success.count == 1
        assert lane_of(other).statistics.counted().success.count == 0
        assert app.service.metrics.registry is not other.service.metrics.registry

    run(bundle, work)


def test_settings_refuse_to_listen_everywhere_without_keys() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):  # noqa: S104
        with pytest.raises(ConfigError, match="without keys"):
            ServiceSettings(host=host).require_safe()
        ServiceSettings(host=host, keys=("0" * 64,)).require_safe()
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        ServiceSettings(host=host).require_safe()


@asynccontextmanager
async def connected(app: ServiceApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a listening GuardedConnection."""
    config = uvicorn.Config(app, http=GuardedConnection, ws="none", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: GuardedConnection(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v2", b"POST /v2/x HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_never_end_are_given_up(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.05)

    async def work(app: ServiceApp) -> None:
        async with connected(app) as (reader, writer):
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 20) == b""

    run(bundle, work)


def test_what_comes_after_a_refusal_is_bounded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_DISCARDED_BYTES", 1 << 20)

    async def work(app: ServiceApp) -> None:
        async with connected(app) as (reader, writer):
            writer.write(
                b"POST /v2/models/backend/infer HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 999999999999\r\n\r\n"
            )
            assert b" 413 " in await reader.readline()
            with pytest.raises(ConnectionError):
                for _ in range(100_000):
                    writer.write(bytes(65536))
                    await writer.drain()

    run(bundle, work)
