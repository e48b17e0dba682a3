"""`harmony experiment`: a grid of training runs, and what is published of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require
from harmony.cli.train import DeviceName

if TYPE_CHECKING:
    from harmony.bench.experiment import Cell, Event, ExperimentResult


def experiment(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="A grid (.toml); with --report, result files.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where runs are kept [runs/experiments/NAME], or the report [runs/experiments/report].",
        ),
    ] = None,
    results: Annotated[Path, typer.Option(metavar="FOLDER", help="Where experiment-NAME.json goes.")] = Path("results"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes side by side.")] = 2,
    data_dir: Annotated[Path | None, typer.Option(help="Look for named data sets here first.")] = None,
    device: Annotated[DeviceName | None, typer.Option(help="Train here: other runs, kept under NAME-DEVICE.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this method, by its name; repeatable.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only this data entry, by its name; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; repeatable.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Evaluate finished cells anew; nothing is retrained.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the cells and how far each is, and stop.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write tables and plots of result files; nothing is run.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="With --report: also into docs/results.md and README.md.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Run a grid of methods, data, families and seeds, two runs side by side. Run it again to go on after any stop.

    \b
    harmony experiment experiments/smoke.toml                    a grid in seconds, on embedded images
    harmony experiment experiments/main.toml --data-dir ~/data   hours: CIFAR in its binary layout lies there
    harmony experiment experiments/main.toml --list              what is done, and what is left
    harmony experiment experiments/main.toml --only HARMONY --seed 0
    harmony experiment --report results/experiment-*.json        tables and plots
    harmony experiment --report --publish results/experiment-*.json

    A finished run is never run twice, not even where only a result file is left of it, this grid's or another's in the
    same folder; an unfinished one goes on from its last state, and changed settings make another run. A run that fails
    is named, the others go on, and the exit code is 1.
    """
    if report:
        _write_report(files, out or Path("runs/experiments/report"), publish)
        return
    require("train")
    from harmony.bench.experiment import (
        cells_of,
        choose,
        collect,
        load_grid,
        reopen,
        restore,
        run_cells,
        standing,
        unfinished,
        write_experiment,
    )
    from harmony.bench.experiment.results import ExperimentResult
    from harmony.bench.experiment.summary import routing
    from harmony.bench.host import Watch
    from harmony.bench.result_files import read_result

    grid = load_grid(_one(files, publish))
    if device is not None:
        # Its runs are others, so they have a result file of their own.
        grid = grid.model_copy(update={"name": f"{grid.name}-{device}", "base": grid.base | {"device": device}})
    home, target = out or Path("runs/experiments") / grid.name, results / f"experiment-{grid.name}.json"
    plan = cells_of(grid)
    cells = choose(plan, methods=only or (), data=data or (), seeds=seed or ())
    for known in sorted(results.glob("experiment-*.json"), key=lambda path: (path != target, path)):
        restore(read_result(known, ExperimentResult), plan, home)
    if list_:
        _list(cells, home, as_json)
        return
    if again:
        reopen(cells, home)
    watch = Watch()
    waiting = unfinished(cells, home)
    with _progress(waiting, routing(grid)) as follow:
        run_cells(waiting, home, jobs=jobs, commit=watch.commit, data_dir=data_dir, on_event=follow)
    outcome = collect(grid, home, watch)
    write_experiment(target, outcome)
    if as_json:
        typer.echo(target.read_text(encoding="utf-8"), nl=False)
    else:
        _print(outcome, target)
    if any(standing(cell, home) != "done" for cell in cells):
        raise typer.Exit(1)


def _one(files: Sequence[Path], publish: bool) -> Path:
    from harmony.core.errors import ConfigError

    if len(files) > 1:
        raise ConfigError("one grid at a time", where=files[1], mend="leave the others away, or add --report")
    if publish:
        raise ConfigError("publishes result files", where="--publish", mend="add --report, and name the files")
    return files[0]


def _write_report(files: Sequence[Path], folder: Path, publish: bool) -> None:
    require("train", "bench")
    from harmony.bench.experiment.published import publish as publish_all
    from harmony.bench.experiment.published import save_report
    from harmony.bench.experiment.results import ExperimentResult
    from harmony.bench.result_files import read_result

    results = [read_result(path, ExperimentResult) for path in files]
    if publish:
        publish_all(results, Path("docs/results.md"), Path("README.md"))
    save_report(results, folder)
    typer.echo(f"report: {folder / 'report.md'}")


def _list(cells: Sequence[Cell], home: Path, as_json: bool) -> None:
    from harmony.bench.experiment import folder_of, standing
    from harmony.cli.output import print_json, print_table

    columns = ("method", "data", "split", "family", "seed", "rounds", "state")
    rows = [
        (cell.method, cell.data, cell.split, cell.family, cell.seed, cell.config.rounds, standing(cell, home))
        for cell in cells
    ]
    if as_json:
        print_json(
            [
                dict(zip(columns, row, strict=True)) | {"folder": folder_of(cell, home).name}
                for cell, row in zip(cells, rows, strict=True)
            ]
        )
    else:
        print_table(f"{len(cells)} cells in {home}", columns, rows)


@contextmanager
def _progress(cells: Sequence[Cell], field: str) -> Iterator[Callable[[Event], None]]:
    """On stderr: all cells in rounds, so that the time left is known early; below, the runs that are going on.

    field: of the curve of accuracies that is shown of a finished one.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    unlike = {cell.key: cell for cell in cells}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    display = Progress(*columns, console=Console(stderr=True), speed_estimate_period=900)
    rounds = dict.fromkeys(unlike, 0)
    ended: list[Event] = []
    tasks: dict[str, TaskID] = {}

    def follow(event: Event) -> None:
        key = event.cell.key
        if event.progress is not None:
            if key not in tasks:
                tasks[key] = display.add_task(event.cell.label, total=event.progress.rounds, count="")
            rounds[key] = event.progress.done
            count = f"{event.progress.done}/{event.progress.rounds} rounds"
            display.update(tasks[key], completed=event.progress.done, count=count)
        else:
            ended.append(event)
            rounds[key] = event.cell.config.rounds
            display.console.print(_line(event, len(ended), len(unlike), field), highlight=False, soft_wrap=True)
            if key in tasks:
                display.remove_task(tasks.pop(key))
        display.update(total, completed=sum(rounds.values()), count=f"{len(ended)}/{len(unlike)} cells")

    with display:
        total = display.add_task("all", total=sum(cell.config.rounds for cell in unlike.values()), count="")
        yield follow


def _line(event: Event, done: int, total: int, field: str) -> str:
    head = f"{done}/{total} {event.cell.label}: "
    if event.result is None:
        return head + (event.error or "")
    curve = {one["rho"]: one[field] for one in event.result.evaluation["mean"]}
    ends = ", ".join(f"{100 * curve[rho]:.1f} % at ρ {rho:g}" for rho in sorted({min(curve), max(curve)}))
    return f"{head}{ends}, {event.result.cpu_seconds:.0f} s"


def _print(outcome: ExperimentResult, target: Path) -> None:
    from harmony.bench.experiment.summary import places
    from harmony.bench.experiment.tables import accuracy
    from harmony.cli.output import print_table

    for one in outcome.failed:
        typer.echo(f"failed: {one.method}, {one.data}, {one.family}, seed {one.seed}: {one.error}", err=True)
    for place in places(outcome):
        title, columns, rows = accuracy(outcome, place, ("low", "high", "server_ood", "auroc"))
        print_table(title, columns, [[text.replace("**", "") for text in row] for row in rows])
    typer.echo(f"{target}: {len(outcome.cells)} of {outcome.planned} cells")
