"""`harmony loadtest`: how a service behaves under load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from harmony.bench.serving_load import LoadResult, LoadSettings

Form = Literal["tensor", "fp32", "fp16", "int8-zstd"]
After = Literal["heed", "hammer"]


def loadtest(
    url: Annotated[str, typer.Argument(metavar="URL", help="What harmony serve printed: http://127.0.0.1:8080")],
    *,
    key: Annotated[str | None, typer.Option(envvar="HARMONY_KEY", help="Its API key; better as HARMONY_KEY.")] = None,
    model: Annotated[str, typer.Option(help="The model's name.")] = "backend",
    rate: Annotated[float, typer.Option(help="Open loop: requests a second, at random times.")] = 100.0,
    closed: Annotated[bool, typer.Option("--closed", help="Closed loop: ask again after each answer.")] = False,
    connections: Annotated[int, typer.Option(help="Keep-alive connections; in an open loop, the most.")] = 32,
    seconds: Annotated[float, typer.Option(help="How long; at most an hour.")] = 10.0,
    requests: Annotated[int | None, typer.Option(help="Stop after so many, if that is earlier.")] = None,
    warm_up: Annotated[float, typer.Option(help="Seconds at the beginning that do not count.")] = 0.5,
    form: Annotated[Form, typer.Option(help="What is sent: a plain FP32 tensor, or frames in a wire codec.")] = (
        "int8-zstd"
    ),
    rows: Annotated[int, typer.Option(help="Samples a request.")] = 1,
    after_503: Annotated[After, typer.Option(help="Closed loop, when refused: heed Retry-After, or not.")] = "heed",
    seed: Annotated[int, typer.Option(help="Of the features and the arrivals.")] = 0,
    ca_file: Annotated[Path | None, typer.Option(help="For https: who signed the certificate (PEM).")] = None,
    own_host: Annotated[
        bool, typer.Option("--yes-i-own-this-host", help="Load another machine than this one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Put load on a service, and say what became of it. Latency counts from when a request was due.

    \b
    harmony loadtest http://127.0.0.1:8080 --rate 200                     open loop: Poisson arrivals
    harmony loadtest http://127.0.0.1:8080 --closed --connections 64      closed loop: what it can do at most
    harmony loadtest http://127.0.0.1:8080 --rate 2000 --seconds 5 --json too much, on purpose

    Only this machine is loaded, unless you say that the other one is yours.
    """
    from harmony.bench.serving_requests import address_of, requests_of, target_of

    settings = _settings(
        connections=connections,
        seconds=seconds,
        rate=None if closed else rate,
        warm_up=warm_up,
        after_503=after_503,
        seed=seed,
        **({} if requests is None else {"requests": requests}),
    )
    address = address_of(url, None if ca_file is None else str(ca_file))
    _require_own(address.host, own=own_host)
    _require_rows(rows)
    target = target_of(address, key, model)
    result = _run(address, requests_of(target, address, key, form, rows=rows, seed=seed), settings)
    if as_json:
        from harmony.cli.output import print_json

        print_json(result.model_dump(mode="json"))
    else:
        _print(result)


def _settings(**values: Any) -> LoadSettings:
    from pydantic import ValidationError

    from harmony.bench.serving_load import LoadSettings
    from harmony.core.errors import ConfigError

    try:
        return LoadSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(first["msg"], where=option, mend="see harmony loadtest --help") from None


def _require_own(host: str, *, own: bool) -> None:
    import ipaddress

    from harmony.core.errors import ConfigError

    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here and not own:
        raise ConfigError("is another machine", where=host, mend="give --yes-i-own-this-host if it is yours to load")


def _require_rows(rows: int) -> None:
    from harmony.core.errors import ConfigError

    if not 1 <= rows <= 1024:
        raise ConfigError(f"{rows} samples a request", where="--rows", mend="1 to 1024")


def _run(address: Any, requests: list[bytes], settings: LoadSettings) -> LoadResult:
    import asyncio
    import sys

    from harmony.bench.serving_load import drive

    work = drive(address.host, address.port, requests, settings, address.tls)
    if sys.platform == "win32":
        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)


def _print(result: LoadResult) -> None:
    from harmony.cli.output import print_table

    rows: list[tuple[str, str]] = [
        ("seconds", f"{result.seconds:.1f}"),
        ("sent", str(result.sent)),
        *((f"answered {status}", str(count)) for status, count in result.statuses.items()),
        ("broken connections", str(result.broken)),
        ("unanswered", str(result.unanswered)),
        ("200 a second", f"{result.goodput:.1f}"),
        ("sent late by, p99", f"{result.late_ms:.1f} ms"),
        ("sent", f"{result.sent_bytes / 1e6:.1f} MB"),
    ]
    if result.latency is not None:
        rows += [(f"latency {name}", f"{value:.1f} ms") for name, value in result.latency.model_dump().items()]
    print_table("load", ("", ""), rows)
