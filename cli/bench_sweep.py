"""`harmony bench sweep` and `harmony bench report`: every combination from one measurement of each part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.sweep import SweepEvent, SweepResult, SweepSettings
    from harmony.core.bundle import EngineName


def sweep(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE|FOLDER|RUN…", help="Device bundles, what `harmony export` wrote, or runs."),
    ],
    *,
    cloud: Annotated[list[Path] | None, typer.Option(help="Cloud bundle that lies elsewhere; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="Device classes, with commas.")] = "pixel-3a,cortex-a53,raspberry-pi-5",
    links: Annotated[str, typer.Option(help="Of wifi, lte, 4g, slow-4g, 3g-fast, 3g.")] = "wifi,lte,3g",
    engine: Annotated[str, typer.Option(help="onnxruntime, executorch, or both.")] = "onnxruntime,executorch",
    rho: Annotated[str, typer.Option(help="OOD images for each ID image.")] = "0,0.2,0.4,0.6,0.8,1",
    budgets: Annotated[
        str | None, typer.Option(help="Shares of own images that may be sent; a threshold each.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of the timing, each beside the reference.")] = 31,
    sparse: Annotated[bool, typer.Option("--sparse", help="Time with pauses between calls, too.")] = False,
    data: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Default: what the bundle names.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    limit: Annotated[int | None, typer.Option(help="Images a bundle at most.")] = None,
    seed: Annotated[int, typer.Option(help="Of the test mix.")] = 0,
    out: Annotated[Path, typer.Option(help="Gets results.json, cases.csv, cases.json, report.html.")] = Path(
        "runs/sweep"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier sweep in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="results.json on stdout instead of a table.")] = False,
) -> None:
    """Exit thresholds × engines × precisions × devices × links: latency, accuracy, bytes and memory of every case.

    \b
    harmony bench sweep bundles/                             all devices in it, with its cloud
    harmony bench sweep bundles/client-000 --cloud bundles/cloud --device pixel,pixel-2 --links lte
    harmony bench sweep runs/demo/harmony runs/demo/splitgp  exports both, then compares them
    harmony advise runs/sweep --device pixel-3a --link lte --p90 30ms

    Each bundle is measured once under each engine, in turns with MobileNetV1, whose latency is published for every
    device class; the rest is arithmetic. What was interrupted goes on when the same command is given again.
    """
    require("bench")
    from harmony.bench.folder import require_writable
    from harmony.bench.sweep import SweepResult, save_sweep
    from harmony.bench.sweep import sweep as measure
    from harmony.cli.output import print_json

    require_writable(out, SweepResult.FORMAT, replace=force)
    keep = out.absolute().with_name(f"{out.absolute().name}.unfinished")
    asked = _settings(
        bundles=tuple(bundles),
        devices=tuple(_words(device)),
        links=tuple(_words(links)),
        engines=tuple(_words(engine)),
        rhos=_numbers(rho, "--rho"),
        rounds=rounds,
        regimes=("hot", "sparse") if sparse else ("hot",),
        data=data,
        data_dir=data_dir,
        limit=limit,
        seed=seed,
        **({} if budgets is None else {"budgets": _numbers(budgets, "--budgets")}),
    )
    settings = asked.model_copy(update=_find(bundles, cloud or [], keep, asked.engines))
    with _progress() as follow:
        result = measure(settings, keep, follow)
    save_sweep(out, result, replace=force)
    shutil.rmtree(keep, ignore_errors=True)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _print_table(result)
        typer.echo(f"report: {out / 'report.html'}")


def report(
    results: Annotated[Path, typer.Argument(metavar="SWEEP", help="What `harmony bench sweep` wrote.")],
    *,
    compare: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="An earlier one of the same tier, to compare with.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write a sweep's report anew, or beside an earlier one.

    \b
    harmony bench report runs/sweep --out sweep.html
    harmony bench report runs/after --compare runs/before --out change.html
    """
    require("bench")
    from harmony.bench.sweep.files import read_sweep
    from harmony.bench.sweep.report import write_report

    write_report(out, read_sweep(results), before=None if compare is None else read_sweep(compare))
    typer.echo(f"report: {out}")


def _find(
    paths: list[Path], clouds: list[Path], keep: Path, engines: tuple[EngineName, ...]
) -> dict[str, tuple[Path, ...]]:
    """Bundles by the settings' names; runs are exported into the folder of what is unfinished."""
    from harmony.bench.sweep.find import find_bundles

    def export(run: Path) -> Path:
        require("export")
        from harmony.export import export_run
        from harmony.export.bundles import ENGINE_OF

        folder = keep / "bundles" / f"{run.resolve().parent.name}-{run.resolve().name}"
        typer.echo(f"exporting {run}", err=True)
        export_run(run, folder, formats=[one for one, name in ENGINE_OF.items() if name in engines])
        return folder

    found = find_bundles(paths, export)
    return {"bundles": found.devices, "clouds": (*found.clouds, *clouds)}


def _settings(**fields: Any) -> SweepSettings:
    """Checked before runs are exported, which takes minutes."""
    from harmony.bench.devices import find_device
    from harmony.bench.links import find_link
    from harmony.bench.sweep import SweepSettings
    from harmony.cli.bench import validated

    found = validated(SweepSettings, fields)
    for name in found.devices:
        find_device(name)
    for name in found.links:
        find_link(name)
    return found


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str, option: str) -> tuple[float, ...]:
    from harmony.cli.bench import numbers

    return numbers(text, option)


@contextmanager
def _progress() -> Iterator[Callable[[SweepEvent], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task("opening bundles", total=None)

        def follow(event: SweepEvent) -> None:
            display.update(task, description=f"{event.step} {event.subject}", completed=event.done, total=event.total)

        yield follow


def _print_table(result: SweepResult) -> None:
    """Rules on the first device and link at the largest ρ, means over the clients."""
    from statistics import mean

    from harmony.bench.sweep.combine import Case, cases
    from harmony.cli.output import percent, print_table

    device, link, rho = result.devices[0], result.links[0], max(result.settings.rhos)
    groups: dict[str, dict[str, list[Case]]] = {}
    for one in cases(result, devices=[device], links=[link], rhos=[rho]):
        table = f"{one.method}, {one.engine} {one.precision}, {one.regime}"
        groups.setdefault(table, {}).setdefault(one.rule, []).append(one)
    for table, rules in groups.items():
        rows = [
            (
                rule, percent(mean(one.accuracy.overall for one in group)),
                percent(mean(one.offloaded for one in group)),
                *(f"{1000 * mean(getattr(one.latency, name) for one in group):.3g}"
                  for name in ("mean_s", "mean_low_s", "mean_high_s")),
            )
            for rule, group in rules.items()
        ]  # fmt: skip
        title = f"{table}: {device.name}, {link.name}, ρ = {rho:g}, means over clients"
        print_table(title, ("rule", "accuracy %", "sent %", "mean ms", "from", "to"), rows)
