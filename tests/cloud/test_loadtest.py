"""The load generator against a real service, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from harmony.bench.serving_load import LoadResult, LoadSettings, drive
from harmony.bench.serving_requests import FORMS, address_of, requests_of, requests_with_ids, target_of
from harmony.cli.main import app
from harmony.core.errors import CloudAnswerInvalid, CloudRefused, CloudUnreachable, ConfigError, HarmonyError

if TYPE_CHECKING:
    from harmony.cloud.process import RunningService
    from tests.cloud.conftest import Client

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["loadtest", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("form", FORMS)
def test_a_closed_loop_is_counted_as_the_service_counts_it(service: RunningService, client: Client, form: str) -> None:
    def answered() -> int:
        count: int = client.get("/v2/models/backend/stats").json["model_stats"][0]["inference_stats"]["success"][
            "count"
        ]
        return count

    before = answered()
    more = ("--closed", "--connections", "4", "--requests", "60", "--seconds", "20", "--warm-up", "0")
    result = invoke(service.url, "--key", service.key, "--form", form, "--rows", "2", *more, "--json")
    assert result.exit_code == 0, result.output
    found = LoadResult.model_validate_json(result.output)
    assert found.sent == 60
    assert found.broken == 0
    assert set(found.statuses) == {"200"}
    assert 56 <= found.statuses["200"] <= 60, "at the end, requests that are under way are not waited for"
    assert 0 <= answered() - before - found.statuses["200"] <= 4
    assert found.latency is not None
    assert found.latency.p50 <= found.latency.p99 <= found.latency.max


def test_an_open_loop_sends_what_is_due(service: RunningService) -> None:
    more = ("--rate", "150", "--seconds", "1", "--warm-up", "0", "--connections", "8", "--seed", "3")
    found = LoadResult.model_validate_json(invoke(service.url, "--key", service.key, *more, "--json").output)
    assert 100 < found.sent < 200  # Poisson: 150 ± 12
    assert found.statuses == {"200": found.sent}
    assert found.unanswered == 0
    table = invoke(service.url, "--key", service.key, "--rate", "50", "--seconds", "0.2").output
    assert "latency p99" in table


def test_requests_of_the_reference_clients_form_are_answered(service: RunningService) -> None:
    address = address_of(service.url)
    target = target_of(address, service.key, "backend")
    settings = LoadSettings(connections=2, requests=20, seconds=20)
    found = asyncio.run(
        drive(address.host, address.port, requests_with_ids(target, address, service.key), settings, None)
    )
    assert set(found.statuses) == {"200"}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("http://192.0.2.7:80",), ConfigError, "is another machine"),
        (("http://example.org",), ConfigError, "--yes-i-own-this-host"),
        (("ftp://127.0.0.1",), ConfigError, "is no http"),
        (("127.0.0.1:8080",), ConfigError, "is no http"),
        (("http://127.0.0.1:99999",), ConfigError, "is no http"),
        (("http://127.0.0.1:8080/v2",), ConfigError, "is no http"),
        (("http://127.0.0.1:9", "--seconds", "99999"), ConfigError, "--seconds"),
        (("http://127.0.0.1:9", "--requests", "0"), ConfigError, "--requests"),
        (("http://127.0.0.1:9", "--rate", "0"), ConfigError, "--rate"),
        (("http://127.0.0.1:9", "--rate", "nan"), ConfigError, "--rate"),
        (("http://127.0.0.1:9", "--connections", "100000"), ConfigError, "--connections"),
        (("http://127.0.0.1:9", "--rows", "0"), ConfigError, "--rows"),
        (("http://127.0.0.1:9",), CloudUnreachable, "is it running"),
        (("https://127.0.0.1:9", "--ca-file", "/nowhere.pem"), ConfigError, "cannot be read as certificates"),
    ],
)
def test_what_cannot_be_loaded_is_named(arguments: tuple[str, ...], error: type[HarmonyError], words: str) -> None:
    with pytest.raises(error, match=words):
        invoke(*arguments)


def test_a_wrong_key_or_model_is_named(service: RunningService) -> None:
    with pytest.raises(CloudRefused, match="401"):
        invoke(service.url, "--key", "not-the-right-key")
    with pytest.raises(CloudRefused, match="404"):
        invoke(service.url, "--key", service.key, "--model", "other")


@asynccontextmanager
async def server(handle: Handle) -> AsyncIterator[int]:
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]
    await asyncio.sleep(0.05)  # the handlers see the end of their connections


def load(handle: Handle, settings: LoadSettings) -> LoadResult:
    async def main() -> LoadResult:
        async with server(handle) as port:
            return await drive("127.0.0.1", port, [b"GET / HTTP/1.1\r\n\r\n"], settings, None)

    return asyncio.run(main())


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, delay: float = 0) -> None:
    while await reader.readline():
        await reader.readline()
        await asyncio.sleep(delay)
        writer.write(head)
    writer.close()


def test_latency_counts_from_the_schedule() -> None:
    """One connection, answers after 50 ms, 200 requests a second: who waits for a connection waits on the clock."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0.05)

    found = load(slow, LoadSettings(connections=1, rate=200, seconds=0.2))
    assert found.latency is not None
    assert found.latency.max > 50 * found.sent / 2, "the last of a queue waits for all before it"
    assert found.late_ms > 50


def test_so_many_requests_are_so_many_answers() -> None:
    """One connection answers at once, the other after 200 ms: the end that the first meets waits for the second."""
    delays = iter((0.0, 0.2))

    async def uneven(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", next(delays))

    found = load(uneven, LoadSettings(connections=2, requests=6, seconds=20))
    assert (found.sent, found.statuses, found.unanswered) == (6, {"200": 6}, 0)


def test_retry_after_is_heeded_or_not() -> None:
    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, b"HTTP/1.1 503 x\r\nRetry-After: 30\r\nContent-Length: 2\r\n\r\n{}")

    polite = load(busy, LoadSettings(connections=3, seconds=0.3))
    assert polite.statuses == {"503": 3}
    assert polite.latency is None
    rude = load(busy, LoadSettings(connections=3, seconds=0.3, after_503="hammer"))
    assert rude.statuses["503"] > 10


def test_broken_connections_are_replaced_and_counted() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-")
        writer.close()

    found = load(break_off, LoadSettings(connections=2, seconds=0.3))
    assert found.statuses == {}
    assert found.broken > 4


def test_metadata_that_is_not_understood_is_named() -> None:
    async def main() -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            body = json.dumps({"inputs": []}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

        async with server(other) as port:
            address = address_of(f"http://127.0.0.1:{port}")
            with pytest.raises(CloudAnswerInvalid, match="metadata"):
                await asyncio.to_thread(target_of, address, None, "backend")

    asyncio.run(main())


def test_a_load_can_be_repeated(service: RunningService) -> None:
    address = address_of(service.url)
    target = target_of(address, service.key, "backend")
    first, second, other = (requests_of(target, address, None, "tensor", seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_help_has_examples() -> None:
    text = invoke("--help").output
    assert "harmony loadtest http://127.0.0.1:8080 --rate 200" in text
    assert "--yes-i-own-this-host" in text
