"""`harmony bench`: latency, accuracy, bytes and memory of device bundles, and a report; `harmony bench train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from harmony.cli import (
    bench_arm,
    bench_endurance,
    bench_export,
    bench_limits,
    bench_links,
    bench_peers,
    bench_personalize,
    bench_phone,
    bench_sustained,
    bench_sweep,
    bench_train,
)
from harmony.cli.extras import require

SettingsT = TypeVar("SettingsT")
if TYPE_CHECKING:
    from harmony.bench.results import BenchResult, BenchSettings
    from harmony.bench.runner import BenchEvent


class _BundlesUnlessNamed(TyperGroup):
    """`harmony bench BUNDLE…` is short for `harmony bench bundles BUNDLE…`.

    Tiers by their names, too: `harmony bench --tier arm BUNDLE…` is `harmony bench arm BUNDLE…`, and `harmony bench
    --adb SERIAL BUNDLE…` is `harmony bench phone BUNDLE… --adb SERIAL`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:2] == ["--tier", "arm"]:
            args = ["arm", *args[2:]]
        elif args[:1] == ["--adb"]:
            args = ["phone", *args]
        elif args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["bundles", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BundlesUnlessNamed,
    no_args_is_help=True,
    help="""Measure device bundles, or training.

    \b
    harmony bench bundles/client-* --cloud bundles/cloud       latency, accuracy, bytes, memory, and a report
    harmony bench bundles --help                               all its options; the word bundles may be left out
    harmony bench sweep bundles/                               every threshold, engine, device and link; see advise
    harmony bench report runs/after --compare runs/before      a page about two sweeps
    harmony bench arm bundles/client-000 --device pixel-3a     instructions of the Arm kernels; see setup-arm, compare
    harmony bench --tier arm bundles/client-000                the same, by the name of the tier
    harmony bench links                                        the link model beside real TCP; needs root
    harmony bench limits bundles/client-000 --memory 16MiB     in so much memory for real; needs root
    harmony bench sustained bundles/client-000                 under load that does not wait: from the schedule
    harmony bench endurance bundles/client-000                 does its memory grow?
    harmony bench peers bundles/client-000                     beside ONNX Runtime, ExecuTorch, OpenVINO, ncnn, PyTorch
    harmony bench personalize bundles/client-000               what learning on the device costs, and what it brings
    harmony bench phone bundles/client-000 --runner DIR …      on a real phone over adb
    harmony bench export runs/first                            what clients of one architecture save each other
    harmony bench train                                        client-batches per CPU-second
    """,
)
app.command("train")(bench_train.train)
app.command("sweep")(bench_sweep.sweep)
app.command("report")(bench_sweep.report)
app.command("sustained")(bench_sustained.sustained)
app.command("links")(bench_links.links)
app.command("limits")(bench_limits.limits)
app.command("endurance")(bench_endurance.endurance)
app.command("peers")(bench_peers.peers)
app.command("personalize")(bench_personalize.personalize)
app.command("export")(bench_export.export)
app.command("phone")(bench_phone.phone)
app.command("setup-arm")(bench_arm.setup_arm)
app.command("arm")(bench_arm.arm)
app.command("compare")(bench_arm.compare)


@app.command("bundles")
def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE…", help="Device bundles, as `harmony export` wrote.")
    ],
    *,
    cloud: Annotated[
        Path | None, typer.Option(help="Cloud bundle of the same run: served while the bench runs.")
    ] = None,
    server: Annotated[str | None, typer.Option(metavar="URL", help="A running service instead.")] = None,
    key: Annotated[str | None, typer.Option(envvar="HARMONY_KEY", help="Its API key; better as HARMONY_KEY.")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Default: what the bundle names.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    rho: Annotated[
        str, typer.Option(help="OOD images for each ID image; one stream serves all.")
    ] = "0,0.2,0.4,0.6,0.8,1",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the latency measurement.")] = 5,
    links: Annotated[str, typer.Option(help="Of wifi, lte, 4g, slow-4g, 3g-fast, 3g.")] = "wifi,lte,4g,3g",
    engine: Annotated[str, typer.Option(help="onnxruntime, executorch, or both with a comma.")] = "onnxruntime",
    slowdown: Annotated[float, typer.Option(help="k: the device's CPU time over this host's.")] = 1.0,
    sparse: Annotated[bool, typer.Option("--sparse", help="Time with pauses between calls, too.")] = False,
    limit: Annotated[int | None, typer.Option(help="Images a bundle at most.")] = None,
    seed: Annotated[int, typer.Option(help="Of the test mix.")] = 0,
    out: Annotated[Path, typer.Option(help="Gets results.json, results.csv and report.html.")] = Path("runs/bench"),
    force: Annotated[bool, typer.Option("--force", help="Replace earlier results in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="results.json on stdout instead of tables.")] = False,
) -> None:
    """Measure device bundles: latency by exit, accuracy over mixes, bytes, memory; JSON, CSV and a report.

    \b
    harmony bench bundles/client-000 --cloud bundles/cloud     one device, with a back end to ask
    harmony bench bundles/client-* --cloud bundles/cloud       all of them, one after the other
    harmony bench bundles/client-000 --rho 0,1 --limit 200     a quick look, device only
    harmony bench bundles/client-000 --engine onnxruntime,executorch --sparse
    HARMONY_KEY=… harmony bench bundles/client-000 --server http://127.0.0.1:8000 --json

    Each bundle runs in a process of its own. Links are virtual: nothing sleeps, and no network is needed.
    """
    require("bench")
    from harmony.bench import bench as measure
    from harmony.bench import require_writable, save_bench

    settings = _settings(
        bundles=bundles,
        cloud=cloud,
        server=server,
        key=key,
        data=data,
        data_dir=data_dir,
        rhos=numbers(rho, "--rho"),
        rounds=rounds,
        links=tuple(_words(links)),
        engines=tuple(_words(engine)),
        slowdown=slowdown,
        regimes=("hot", "sparse") if sparse else ("hot",),
        limit=limit,
        seed=seed,
    )
    require_writable(out, "harmony-bench", replace=force)
    with progress() as on_event:
        result = measure(settings, on_event)
    save_bench(out, result, replace=force)
    if as_json:
        print_result(result)
    else:
        print_tables(result)
        typer.echo(f"report: {out / 'report.html'}")


def _settings(**fields: Any) -> BenchSettings:
    from harmony.bench.results import BenchSettings

    return validated(BenchSettings, fields)


def validated(kind: type[SettingsT], fields: dict[str, Any]) -> SettingsT:
    """Settings of a bench; ConfigError names the first field that cannot be meant."""
    from pydantic import ValidationError

    from harmony.core.errors import ConfigError

    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(problem, where="bench", field=field, mend="see harmony bench --help") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between them; ConfigError, naming the option, for anything else."""
    from harmony.core.errors import ConfigError

    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise ConfigError(f"'{text}' is no list of numbers", where=option, mend="write for example 0,0.5,1") from None


@contextmanager
def progress() -> Iterator[Callable[[BenchEvent], None]]:
    """A bar on stderr that follows the events of a bench."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task("opening bundles", total=None)

        def follow(event: BenchEvent) -> None:
            words = {"stream": "answering", "replay": "replaying", "timing": "timing", "speed": "speed", "end": "done"}
            what = f"{words[event.step]} {event.bundle or ''}"
            display.update(task, description=what, completed=event.done, total=event.total)

        yield follow


def print_result(result: BenchResult) -> None:
    """results.json on stdout."""
    from harmony.cli.output import print_json

    print_json(result.model_dump(mode="json"))


def print_tables(result: BenchResult) -> None:
    """The heart of the results, for people."""
    from harmony.bench import summary_rows
    from harmony.cli.output import print_table

    for title, columns, rows in summary_rows(result):
        print_table(title, columns, rows)
