"""`harmony verify`: is a bundle whole, and does it answer as promised?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.trust import Trusted, read_trust

if TYPE_CHECKING:
    from harmony.device import VerifyReport


def verify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Device or cloud bundles.")],
    *,
    engine: Annotated[
        Literal["onnxruntime", "native", "executorch"] | None,
        typer.Option(help="Only this one; else all that are installed, but not native."),
    ] = None,
    trust: Trusted = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Check every byte of a bundle, and who signed it, then run its test vectors.

    \b
    harmony verify bundles/client-000
    harmony verify client-000.tar --trust release.pub
    harmony verify bundles/* --json
    harmony verify bundles/client-000 --engine executorch

    Exit code 0: every file is as it was sealed, and every engine answers within the bundle's tolerance.
    """
    from harmony.cli.output import print_json, print_table
    from harmony.device import verify as check

    keys = read_trust(trust)
    reports = [check(bundle, engine, keys) for bundle in bundles]
    if as_json:
        print_json([_document(report) for report in reports])
        return
    columns = ("bundle", "what", "files", "KiB", "engine", "vectors", "largest error")
    print_table("Whole, and true to their test vectors", columns, [row for one in reports for row in _rows(one)])
    for report in reports:
        typer.echo(f"{report.bundle.name}: {report.signature}")
    for reason in sorted({part.skipped for one in reports for part in one.engines if part.skipped}):
        typer.echo(f"not run: {reason}")


def _document(report: VerifyReport) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(report) | {"bundle": str(report.bundle)}


def _rows(report: VerifyReport) -> list[tuple[object, ...]]:
    what = report.kind.removeprefix("harmony-")
    return [
        (
            report.bundle.name, what, report.files, f"{report.bytes / 1024:.0f}", check.engine, report.vectors,
            "not run" if check.max_error is None else f"{check.max_error:.1e}",
        )
        for check in report.engines
    ]  # fmt: skip
