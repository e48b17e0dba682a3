"""`harmony bench endurance`: whether a device's memory grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.endurance import EnduranceResult


def endurance(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Device bundles.")],
    *,
    engine: Annotated[Literal["onnxruntime", "native"], typer.Option(help="Who runs them.")] = "onnxruntime",
    answers: Annotated[int, typer.Option(min=10, help="Images to answer.")] = 100_000,
    openings: Annotated[int, typer.Option(min=10, help="Times to check and load the bundle.")] = 1000,
    fail_above: Annotated[float, typer.Option(metavar="PERCENT", min=0, help="Growth that is not accepted.")] = 2.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the outcome here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every reading as JSON.")] = False,
) -> None:
    """Answer many images and open the bundle many times, in a device process: does its memory grow?

    \b
    harmony bench endurance bundles/client-000
    harmony bench endurance bundles/client-000 --engine native --answers 1000000

    Exit code 1 if the resident memory grows by more than --fail-above in either, after half as many to warm up.
    """
    require("bench")
    from harmony.bench.endurance import EnduranceSettings, endure
    from harmony.cli.output import hand_over

    def note(bundle: Path) -> None:
        typer.echo(f"{bundle}: {answers} answers, {openings} openings …", err=True)

    settings = EnduranceSettings(bundles=tuple(bundles), engine=engine, answers=answers, openings=openings)
    result = hand_over(lambda: endure(settings, note), _print, out=out, as_json=as_json)
    if any(100 * one.growth > fail_above for one in result.bundles):
        raise typer.Exit(1)


def _print(result: EnduranceResult) -> None:
    from harmony.cli.output import print_table

    rows = [
        (each.bundle, f"{one.count} {what}", *(f"{one.resident_bytes[at] / 2**20:.2f}" for at in (0, -1)),
         f"{100 * one.growth:+.2f} %")
        for each in result.bundles
        for what, one in (("answers", each.answers), ("openings", each.openings))
    ]  # fmt: skip
    print_table("Resident memory (MiB)", ("bundle", "after", "warm", "at the end", "growth"), rows)
