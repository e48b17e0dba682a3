"""`harmony export`: bundles for devices and for the cloud out of a trained run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from harmony.cli.extras import require
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from harmony.export.report import ExportReport, Format, OnEvent
    from harmony.export.training import Trainable


def export(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder of harmony train, or a checkpoint.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Bundles go to DIR/client-KKK and DIR/cloud.")],
    client: Annotated[str, typer.Option(metavar="K[,K…]|all|none", help="Whose front ends.")] = "all",
    formats: Annotated[str, typer.Option("--format", help="onnx, executorch, or both.")] = "onnx,executorch",
    jobs: Annotated[int, typer.Option(help="Processes that lower networks; 0: as many as pay, at most 2.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Where the run's named data set lies.")] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Check parity on noise, where the run's data cannot be had.")
    ] = False,
    sign: Annotated[
        list[Path] | None, typer.Option(metavar="KEY", help="Sign every bundle (see harmony keygen); repeatable.")
    ] = None,
    tar: Annotated[
        bool, typer.Option("--tar", help="DIR/client-KKK.tar and DIR/cloud.tar instead of folders.")
    ] = False,
    trainable: Annotated[
        str, typer.Option(metavar="none|head|front-end", help="What devices may personalise; see harmony personalize.")
    ] = "head",
    precision: Annotated[
        Literal["fp32", "int8"],
        typer.Option(help="Of front ends; int8 is calibrated on a client's training images."),
    ] = "fp32",
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="With int8: of test images answered as by fp32, or refused. Default: 0.99."),
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="PACKAGE:FUNCTION", help="Instead of RUN: a front end of your own.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --module: its state_dict, as .safetensors.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="With --module: images that set the exits, and check parity.")
    ] = "fashion-mnist-mini",
    own: Annotated[
        str | None, typer.Option(metavar="CLASS[,CLASS…]", help="With --module: what it knows; default: every class.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="MEAN…/STD…", help="With --module: per channel, of values in 0…1; default: the data's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Export a run's front ends and back end, each checked against PyTorch on real test images.

    \b
    harmony export runs/first --out bundles/                            every client, ONNX and ExecuTorch, and the cloud
    harmony export runs/first --out bundles/ --client 3 --format onnx   one device, ONNX alone
    harmony export runs/first --out bundles/ --tar --sign release.key   one signed file a device, always the same bytes
    harmony export runs/first --out small/ --precision int8             half the bytes, if it goes on answering the same
    harmony export runs/first --out bundles/ --trainable front-end      the device may learn all of it, not heads alone
    harmony export runs/first --out bundles/ --json                     sizes, parity errors and times, for scripts
    harmony export --module mine.nets:front_end --weights mine.safetensors --data mine.npz --own cat,dog --out bundles/
                                                                        a network of your own: docs/own-front-end.md

    Interrupted? Run it again: bundles that are whole are kept.
    """
    require("export")
    from harmony.core.signing_keys import read_secret
    from harmony.export import MIN_AGREEMENT, export_own, export_run, own_module

    keys = [read_secret(path) for path in sign or ()]
    chosen = cast("list[Format]", [one.strip() for one in formats.split(",") if one.strip()])
    with _progress_bar() as on_event:
        if module is not None:
            if precision != "fp32":
                raise ConfigError("--module is exported in fp32", where="--precision", mend="leave it away")
            if run is not None or tar:
                raise ConfigError("--module stands instead of RUN, and writes folders", mend="harmony bundle pack")
            job = own_module(
                module, weights, data, own=own, scale=scale, data_dir=data_dir, trainable=cast("Trainable", trainable)
            )
            reports = export_own(job, out, formats=chosen, keys=keys, index=_one(client), on_event=on_event)
        elif run is None:
            raise ConfigError("nothing to export", mend="name a RUN, or a --module")
        else:
            reports = export_run(
                run,
                out,
                clients=_clients(client),
                formats=chosen,
                jobs=jobs or _jobs(),
                data_dir=data_dir,
                noise=noise,
                keys=keys,
                tar=tar,
                trainable=cast("Trainable", trainable),
                precision=precision,
                min_agreement=MIN_AGREEMENT if min_agreement is None else min_agreement,
                on_event=on_event,
            )
    _print(reports, as_json=as_json)


def _one(client: str) -> int:
    """The number of a device whose front end comes alone: 0 unless one is named."""
    indices = _clients(client) or [0]
    if len(indices) > 1:
        raise ConfigError("a module is one device's", where="--client", mend="name one")
    return indices[0]


def _clients(text: str) -> list[int] | None:
    if text.strip() in ("all", "none"):
        return None if text.strip() == "all" else []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and len(part) < 7 for part in parts):
        raise ConfigError(f"'{text}' names no clients", where="--client", mend="write 3, or 0,2,5, or all, or none")
    return [int(part) for part in parts]


def _jobs() -> int:
    import os

    return min(2, len(os.sched_getaffinity(0)))


@contextmanager
def _progress_bar() -> Iterator[OnEvent]:
    """A bar on stderr; nothing there if stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("export"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as display:
        bar = display.add_task("loading", total=None)
        yield lambda what, done, total: display.update(bar, description=what, completed=done, total=total)


def _print(reports: list[ExportReport], *, as_json: bool) -> None:
    from dataclasses import asdict

    from harmony.cli.output import print_json, print_table

    if as_json:
        print_json([asdict(report) | {"bundle": str(report.bundle)} for report in reports])
        return
    columns = ("bundle", "architecture", "parameters", "KiB", "largest error", "agreement", "delegated", "seconds")
    print_table("Export", columns, [_row(report) for report in reports])


def _row(report: ExportReport) -> tuple[Any, ...]:
    name, network = str(report.bundle), (report.architecture or "back end").rpartition(".")[2]
    if report.kept:
        return name, network, f"{report.parameters:,}", "kept", "", "", "", ""
    sizes = " + ".join(f"{sum(one.files.values()) / 1024:.0f}" for one in report.engines)
    errors = " / ".join(f"{one.max_error:.1e}" for one in report.engines)
    shares = " / ".join(f"{one.delegated:.0%}" for one in report.engines if one.delegated is not None)
    agreement = " / ".join(f"{one.agreement:.1%}" for one in report.engines if one.agreement is not None)
    return name, network, f"{report.parameters:,}", sizes, errors, agreement, shares, f"{report.seconds:.1f}"
