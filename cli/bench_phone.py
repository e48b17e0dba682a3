"""`harmony bench phone`: bundles on a real phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.phone import PhoneRun


def phone(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Device bundles with a .pte program.")],
    *,
    runner: Annotated[Path, typer.Option(metavar="DIR", help="Folder with harmony-run, built for Android.")],
    images: Annotated[Path, typer.Option(metavar="FILE", help="Raw images, as harmony-run reads them.")],
    adb: Annotated[str | None, typer.Option(metavar="SERIAL", help="Of the phone, where there are several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that was read, as JSON.")] = False,
) -> None:
    """Run bundles on a phone over adb: microseconds by exit, peak memory, battery and heat before and after.

    \b
    harmony bench phone bundles/client-000 --runner phone/ --images images.bin
    harmony bench phone bundles/client-* --runner phone/ --images images.bin --adb 1A2B3C4D --json
    """
    require("bench")
    from importlib.metadata import version

    from harmony.bench.host import Watch
    from harmony.bench.phone import Phone, PhoneResult
    from harmony.cli.output import print_json

    found, watch = Phone.find(adb), Watch()
    runs = [found.run(bundle, runner, images) for bundle in bundles]
    if as_json:
        result = PhoneResult(harmony_version=version("harmony-sfl"), host=watch.host(), runs=tuple(runs))
        print_json(result.model_dump(mode="json"))
    else:
        _print(runs)


def _print(runs: list[PhoneRun]) -> None:
    from harmony.cli.output import print_table

    rows = [
        (run.bundle, place, one["images"], f"{one['total']:.0f}", f"{run.peak_kib / 1024:.1f}",
         f"{run.before.celsius} → {run.after.celsius}", f"{run.before.battery} → {run.after.battery}")
        for run in runs
        for place, one in run.times.items()
        if one["images"]
    ]  # fmt: skip
    columns = ("bundle", "left at", "images", "µs", "peak MiB", "°C", "battery %")
    print_table(f"On {runs[0].model} ({runs[0].serial})", columns, rows)
