"""`harmony bench export`: what clients of one architecture save each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.exporting import ExportBench


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of harmony train, or a checkpoint.")],
    *,
    clients: Annotated[int | None, typer.Option(min=1, help="So many, the first. Default: all.")] = None,
    formats: Annotated[str, typer.Option("--format", help="onnx, executorch, or both.")] = "onnx,executorch",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="The outcome.")] = Path("results/bench-export.json"),
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as JSON instead of tables.")] = False,
) -> None:
    """Measure harmony export: all clients in one go, where an architecture is lowered once, beside each by itself.

    \b
    harmony bench export runs/first                                   every client, ONNX and ExecuTorch
    harmony bench export runs/first --clients 4 --format onnx --rounds 1

    Both ways take turns in one process: CPU time, wall clock, and how often each architecture was lowered. Takes
    seconds a client, format and round; the bundles are not kept.
    """
    require("bench", "export")
    from harmony.bench.exporting import ExportSettings, bench_export
    from harmony.cli.bench import validated
    from harmony.cli.output import hand_over

    words = tuple(word.strip() for word in formats.split(",") if word.strip())
    settings = validated(ExportSettings, {"run": run, "clients": clients, "formats": words, "rounds": rounds})
    hand_over(lambda: bench_export(settings, _note), _print, out=out, as_json=as_json)


def _note(what: str, done: int, total: int) -> None:
    typer.echo(f"{done} of {total} done: {what} …", err=True)


def _print(result: ExportBench) -> None:
    from harmony.cli.output import print_table

    one = result.ratio
    costs = [
        (name, f"{cost.cpu_s.median:.1f}", f"{cost.lowering_s.median:.1f}", f"{cost.wall_s.median:.1f}")
        for name, cost in (("all in one go", result.together), ("each by itself", result.apart))
    ]
    title = f"{result.clients} clients, {' and '.join(result.settings.formats)}"
    print_table(title, ("seconds", "CPU", "of it lowering", "wall"), costs)
    rows = [
        (f"{row.architecture}, {row.format}", row.clients, row.together, row.apart, f"{row.cpu_s.median:.2f}")
        for row in result.lowered
    ]
    print_table("Times lowered", ("", "clients", "in one go", "each by itself", "CPU s, one"), rows)
    spread = f"{one.low:.2f} to {one.high:.2f} in {one.rounds} rounds"
    typer.echo(f"each by itself takes {one.median:.2f} × the CPU time of all in one go ({spread})")
