"""`harmony bench setup-arm`, `arm`, `compare`: exact instructions of the Arm kernels, and a gate between two counts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.arm.compare import Change
    from harmony.bench.arm.results import ArmResult, PathCount

Engine = Literal["executorch", "onnxruntime"]


def setup_arm() -> None:
    """Build what `harmony bench arm` runs on: emulator, Arm libraries, our counter. Once, some minutes, 130 MB.

    \b
    harmony bench setup-arm
    HARMONY_CACHE=/big/disk harmony bench setup-arm      elsewhere than in the user's cache

    Takes QEMU and the cross compiler from PATH, else from Debian's packages, unpacked into the cache without being
    root; ExecuTorch and ONNX Runtime for Arm from PyPI, by SHA-256. What is missing is named, with what brings it.
    """
    require("bench")
    from harmony.bench.arm.setup import setup_arm as build

    typer.echo(build(lambda text: typer.echo(f"{text} …", err=True)))


def arm(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Device bundles with ExecuTorch programs.")],
    *,
    core: Annotated[str | None, typer.Option(help="Whose kernels run: a53, a55, a72, a73, a75, a76 or x1.")] = None,
    device: Annotated[str | None, typer.Option(help="Predict its milliseconds: pixel, pixel-2 or pixel-3a.")] = None,
    engine: Annotated[Engine, typer.Option(help="onnxruntime: the bare engine, without milliseconds.")] = "executorch",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the record, for compare.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The record on stdout instead of a table.")] = False,
) -> None:
    """Count the Arm instructions of a device's answers, by where they leave: exact, the same in every run.

    \b
    harmony bench arm bundles/client-000 --device pixel-3a
    harmony bench arm bundles/client-* --core a53 --out before.json
    harmony bench arm bundles/client-000 --core a55 --engine onnxruntime --json

    Needs what `harmony bench setup-arm` built. No images are needed: an answer's cost depends on where it leaves.
    """
    require("bench")
    from harmony.bench.arm.cores import core_name
    from harmony.bench.arm.counting import count_bundles
    from harmony.cli.output import hand_over

    chosen = None if core is None else core_name(core)
    count = partial(count_bundles, bundles, core=chosen, device=device, engine=engine)
    hand_over(count, _print_counts, out=out, as_json=as_json)


def _print_counts(result: ArmResult) -> None:
    from harmony.cli.output import print_table

    last = f"ms on {result.device}" if result.device else "in the engine"  # both would not fit into 80 characters
    columns = ["bundle", "exit", "instructions", "first answer", last]
    rows = [
        [bundle.name, path.path, f"{path.instructions:,}", f"{path.first:,}", _last(path)]
        for bundle in result.bundles
        for path in bundle.paths
    ]
    one, precisions = result.bundles[0], sorted({bundle.precision for bundle in result.bundles})
    title = f"Kernels of {one.core}, {one.engine} {result.versions[one.engine]}, one thread, {' and '.join(precisions)}"
    print_table(title, columns, rows)
    if result.calibration:
        typer.echo(result.calibration)


def _last(path: PathCount) -> str:
    if path.predicted is None:
        return f"{path.engine / path.instructions:.1%}"
    return f"{path.predicted.ms:.3g} ({path.predicted.low:.3g} to {path.predicted.high:.3g})"


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.json", help="A record of `harmony bench arm --out`.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER.json", help="A later one of the same bundles.")],
    *,
    fail_above: Annotated[str, typer.Option(metavar="PERCENT", help="Growth that is not accepted.")] = "1%",
) -> None:
    """Say what changed between two counts, and end with 1 if anything grew by more than --fail-above.

    \b
    harmony bench compare before.json after.json --fail-above 1%

    Bundles are matched by name, engine, precision and core. One that only BEFORE has
    fails too: it may have grown.
    """
    require("bench")
    from harmony.bench.arm.compare import compare as between
    from harmony.bench.arm.compare import read_arm, read_share
    from harmony.cli.output import print_table

    share = read_share(fail_above)
    found = between(read_arm(before), read_arm(after))
    changed = [one for one in found.changes if one.growth]
    if changed:
        print_table("Instructions", ["bundle", "of", "before", "after", "growth"], map(_row, changed))
    else:
        typer.echo(f"nothing changed in {len(found.changes)} counts")
    for line in found.versions:
        typer.echo(f"also changed: {line}")
    for name in found.only_after:
        typer.echo(f"new: {name}")
    grown = found.grown(share)
    for one in grown:
        typer.echo(f"grew by {one.growth:.2%}, more than {share:.2%}: {one.bundle}, {one.what}", err=True)
    for name in found.only_before:
        typer.echo(f"gone: {name}", err=True)
    raise typer.Exit(1 if grown or found.only_before else 0)


def _row(change: Change) -> list[str]:
    return [change.bundle, change.what, f"{change.before:,}", f"{change.after:,}", f"{change.growth:+.2%}"]
