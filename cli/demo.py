"""`harmony demo`: the whole story at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.demo import DemoEvent, DemoResult

TITLES = {
    "splitgp": "1  train SplitGP",
    "harmony": "   train HARMONY, same budget",
    "evaluate": "   evaluate both",
    "export": "2  export, check parity",
    "devices": "3  serve; run every device",
}


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same accuracies.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="A tiny federation, in seconds; ONNX only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="results.json on stdout instead of tables.")] = False,
) -> None:
    """Train SplitGP and HARMONY on embedded images, export, serve, run every device, and write a report.

    \b
    harmony demo                       the whole story, about three minutes on two cores
    harmony demo --fast                the same steps with a tiny federation, in seconds
    harmony demo --out runs/one --seed 1

    Nothing is downloaded. Ctrl-C stops everything that was started and leaves no half-written folder.
    """
    require("train", "export", "executorch", "cloud", "bench")
    from harmony.bench.demo import DemoSettings
    from harmony.bench.demo import demo as tell

    _interrupt_on_term()
    with _progress() as on_event:
        result = tell(DemoSettings(out=out, seed=seed, fast=fast), on_event)
    if as_json:
        from harmony.cli.output import print_json

        print_json(result.model_dump(mode="json"))
    else:
        _print(result, out)


def _interrupt_on_term() -> None:
    """SIGTERM ends like Ctrl-C: children are stopped and drafts removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def _progress() -> Iterator[Callable[[DemoEvent], None]]:
    """One bar a step, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:30}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as display:

        def follow(event: DemoEvent) -> None:
            if event.step not in tasks:
                tasks[event.step] = display.add_task(TITLES[event.step], detail="")
            finished = event.done == event.total
            detail = "" if finished else event.detail
            display.update(tasks[event.step], completed=event.done, total=event.total, detail=detail)

        yield follow


def _print(result: DemoResult, out: Path) -> None:
    from harmony.bench import accuracy_rows, summary_rows
    from harmony.cli.output import print_table

    for title, columns, rows in (accuracy_rows(result.curves), *summary_rows(result.bench)):
        print_table(title, columns, rows)
    typer.echo(f"report: {out / 'report.html'}")
