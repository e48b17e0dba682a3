"""`harmony train`: a federation, from images to a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.core.config import TrainConfig
    from harmony.train import Progress as Round

# Those of harmony.core.config, which is not imported for --help alone.
MethodName = Literal["harmony", "splitgp", "local", "lg_fedavg", "heterofl", "fedproto", "fedtgp", "fedgh"]
DeviceName = Literal["cpu", "cuda"]


def train(
    *,
    out: Annotated[Path, typer.Option(help="The run folder to make, or with --resume to go on in.")] = Path(
        "runs/train"
    ),
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; options below win over it.")
    ] = None,
    method: Annotated[MethodName | None, typer.Option(help="Default: harmony.")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="See `harmony data --help`.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients. Default: 8.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes a client. Default: 3.")] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAMILY-wWIDTH-dDEPTH",
            help="Front end of the family resnet, mobilenet or patch; repeatable, dealt to the clients in turn.",
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of `steps` batches a client.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a client and step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate at the start.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same numbers.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads.")] = None,
    device: Annotated[DeviceName | None, typer.Option(help="Where rounds are computed. Default: cpu.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other field, in TOML; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill; same numbers as unbroken.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the whole config and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Train front ends of several architectures, with early exits, and one back end.

    \b
    harmony train --out runs/first                                   embedded images, 8 clients, 4 architectures
    harmony train --out runs/gp --method splitgp                     a rival, with the same budget
    harmony train --out runs/c10 --data cifar10 --clients 20 --arch resnet-w16-d1 --arch mobilenet-w24-d2
    harmony train --out runs/sh --set partition.kind='"shards"' --set partition.shards_per_client=2
    harmony train --out runs/bf16 --set precision='"bfloat16"'        faster where the processor has AMX
    harmony train --out runs/gpu --device cuda                       on an NVIDIA GPU, with a CUDA build of torch
    harmony train --print-config > mine.toml; harmony train --config mine.toml --out runs/mine
    harmony train --out runs/first --resume                          after a kill or a power cut
    """
    require("train")
    from harmony.core.config import load_config, make_config, merged
    from harmony.train import resumed_config
    from harmony.train import train as run

    given = {
        "method": method,
        "seed": seed,
        "rounds": rounds,
        "batch": batch,
        "learning_rate": learning_rate,
        "threads": threads,
        "device": device,
        "architectures": arch or None,
        "data": {"name": data, "folder": None if data_dir is None else str(data_dir)},
        "partition": {"clients": clients, "classes": classes},
    }
    options = merged(_given(given), _assignments(set_ or []))
    if resume and not options and config is None:
        settings = resumed_config(out)
    else:
        settings = make_config(options) if config is None else load_config(config, options)
    if print_config:
        _print_config(settings)
        return
    with _progress_bar(settings) as advance:
        checkpoint = run(settings, out, resume=resume, on_progress=advance)
    _report(settings, checkpoint, as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: no None, no empty table."""
    nested = {key: _given(value) if isinstance(value, dict) else value for key, value in options.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def _assignments(texts: list[str]) -> dict[str, Any]:
    import tomllib

    from harmony.core.config import merged
    from harmony.core.errors import ConfigError

    result: dict[str, Any] = {}
    for text in texts:
        try:
            result = merged(result, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            mend = "write KEY=VALUE as in TOML, for example exits.offload=0.05"
            raise ConfigError(f"'{text}' is not an assignment: {error}", where="--set", mend=mend) from None
    return result


@contextmanager
def _progress_bar(settings: TrainConfig) -> Iterator[Any]:
    """One bar on stderr, with the losses of the last round beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    display = Progress(*columns, TextColumn("[dim]{task.fields[losses]}"), console=Console(stderr=True))
    bar = display.add_task(f"{settings.method}, rounds", total=settings.rounds, losses="")

    def advance(progress: Round) -> None:
        display.start()  # not before the data are known to be good, so that a mistake is one line
        losses = "  ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
        display.update(bar, completed=progress.done, losses=losses)

    try:
        yield advance
    finally:
        if display.live.is_started:
            display.stop()


def _print_config(settings: TrainConfig) -> None:
    import tomli_w

    sys.stdout.write(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))


def _report(settings: TrainConfig, checkpoint: Path, as_json: bool) -> None:
    from harmony.cli.output import print_json, print_table
    from harmony.core.checkpoint import open_checkpoint

    manifest = open_checkpoint(checkpoint)
    if as_json:
        clients = [one.model_dump(mode="json") for one in manifest.clients]
        print_json(
            {"checkpoint": str(checkpoint), "method": settings.method, "round": manifest.round, "clients": clients}
        )
        return
    rows = (
        (
            one.index,
            one.architecture,
            ", ".join(one.classes.names[label] for label in one.classes.own),
            one.train_images,
        )
        for one in manifest.clients
    )
    print_table(
        f"{checkpoint}: {settings.method}, {manifest.round} rounds", ("client", "architecture", "holds", "images"), rows
    )
