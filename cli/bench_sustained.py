"""`harmony bench sustained`: a device under load that does not wait for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.sustained import SustainedResult
    from harmony.bench.sustained.results import LoadGenRun, ScheduledRun


def sustained(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A device bundle.")],
    *,
    engine: Annotated[
        Literal["onnxruntime", "native", "executorch"], typer.Option(help="What runs the front end.")
    ] = "onnxruntime",
    rate: Annotated[
        float | None, typer.Option(help="Requests a second; else two runs, hot and sparse, at rates that follow.")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Of what the device can do, in the hot run.")] = 0.8,
    arrivals: Annotated[Literal["poisson", "fixed"], typer.Option(help="At random, or evenly.")] = "poisson",
    seconds: Annotated[float, typer.Option(help="Of a run, at least.")] = 60.0,
    requests: Annotated[int, typer.Option(help="Of a run, at least.")] = 1024,
    generator: Annotated[
        Literal["schedule", "loadgen"], typer.Option(help="loadgen: MLPerf's, SingleStream and Server.")
    ] = "schedule",
    target: Annotated[str, typer.Option(metavar="TIME", help="LoadGen's bound in Server, of 99 %.")] = "100ms",
    data: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Default: what the bundle names.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    rho: Annotated[float, typer.Option(help="OOD images for each ID image.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Images at most; they come again and again.")] = None,
    seed: Annotated[int, typer.Option(help="Of the images and the schedule.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the result.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result on stdout instead of a table.")] = False,
) -> None:
    """Latency of a device whose requests come when they are due, however slow it is: from the schedule, not from when
    it was free.

    \b
    harmony bench sustained bundles/client-000                        two minutes: hot, and sparse
    harmony bench sustained bundles/client-000 --rate 200 --arrivals fixed
    harmony bench sustained bundles/client-000 --engine native --seconds 10 --json
    harmony bench sustained bundles/client-000 --generator loadgen    as MLPerf asks: 60 s and 1024 requests

    The cloud is not asked: where no exit is sure, exit 2 answers.
    """
    require("bench", *(["loadgen"] if generator == "loadgen" else []))
    from harmony.bench.quantities import seconds as seconds_of
    from harmony.bench.sustained import SustainedSettings, sustain
    from harmony.cli.bench import validated
    from harmony.cli.output import hand_over

    fields = {
        "bundle": bundle, "engine": engine, "rate": rate, "utilisation": utilisation, "arrivals": arrivals,
        "seconds": seconds, "requests": requests, "generator": generator, "target_s": seconds_of(target, "--target"),
        "data": data, "data_dir": data_dir, "rho": rho, "limit": limit, "seed": seed,
    }  # fmt: skip
    settings = validated(SustainedSettings, fields)
    hand_over(lambda: sustain(settings), _print, out=out, as_json=as_json)


def _print(result: SustainedResult) -> None:
    one = result.settings
    title = f"{one.bundle.name}, {result.architecture}, {one.engine}, 1 thread, this host (ms)"
    if result.scheduled:
        _print_scheduled(f"{title}, {one.arrivals} arrivals", result.scheduled)
    if result.loadgen:
        _print_loadgen(title, result.loadgen)


def _print_scheduled(title: str, runs: Sequence[ScheduledRun]) -> None:
    from harmony.cli.output import print_table

    columns = ("regime", "a second", "busy %", "p50", "p90", "p99", "alone p50", "alone p99")
    rows = [
        (
            one.conditions.regime, f"{one.rate:.3g}", f"{100 * one.utilisation:.0f}", _ms(one.latency.median),
            _ms(one.latency.p90), _ms(one.latency.p99), _ms(one.service.median), _ms(one.service.p99),
        )
        for one in runs
    ]  # fmt: skip
    print_table(title, columns, rows)
    typer.echo("alone: an answer without its wait, which is all that asking again after each would show")
    for one in runs:
        if one.unanswered:
            typer.echo(f"{one.conditions.regime}: given up with {one.unanswered} requests unanswered")


def _print_loadgen(title: str, runs: Iterable[LoadGenRun]) -> None:
    from harmony.cli.output import print_table

    columns = ("LoadGen", "asked", "answered a second", "p50", "p90", "p99", "requests", "valid")
    rows = [
        (
            one.scenario, "–" if one.rate is None else f"{one.rate:.3g}", f"{one.answered_rate:.3g}", _ms(one.p50_s),
            _ms(one.p90_s), _ms(one.p99_s), one.requests, "yes" if one.valid else "no",
        )
        for one in runs
    ]  # fmt: skip
    print_table(title, columns, rows)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
