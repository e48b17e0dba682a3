"""`harmony join`: a new client, of any architecture, over the back end of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.train import ClientEvaluation, Evaluation, Joined, Newcomer

FIGURES = (
    *("device and cloud, ρ = 0", "device and cloud, ρ = 1", "  own classes", "  other classes"),
    *("device alone, own classes", "cloud alone, own classes", "cloud alone, other classes", "gate AUROC"),
)


def join(
    run: Annotated[Path, typer.Argument(help="A finished run, or its checkpoint folder. It stays as it is.")],
    *,
    arch: Annotated[
        str, typer.Option(metavar="FAMILY-wWIDTH-dDEPTH", help="The new front end; the run need not have its family.")
    ],
    classes: Annotated[
        str,
        typer.Option(metavar="COUNT|LABEL,…", help="How many classes, drawn by the seed; or which, by label or name."),
    ] = "3",
    images: Annotated[
        int | None,
        typer.Option(help="Training images of the new client, over all its classes. Default: all there are."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Default: what the run was trained on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    out: Annotated[Path, typer.Option(help="The checkpoint folder to make: the run's clients and the new one.")] = Path(
        "runs/joined"
    ),
    steps: Annotated[int, typer.Option(min=0, help="Batches of 64 images that the front end learns from.")] = 600,
    learning_rate: Annotated[float, typer.Option("--lr", min=1e-6, max=10, help="Learning rate at the start.")] = 4e-3,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed gives the same numbers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The client and everybody's accuracy as JSON.")] = False,
) -> None:
    """Let a new client join a finished run, and report its accuracy beside that of the run's clients.

    Its front end learns to speak the run's features from the run's front ends, on the new client's images alone. The
    back end stays as it is, so the cloud need not be told.

    \b
    harmony join runs/first --arch patch-w16-d1                            a family that the run did not have
    harmony join runs/first --arch resnet-w8-d1 --classes 0,4,7 --images 300 --out runs/small
    harmony join runs/first --arch mobilenet-w32-d2 --classes Bag,Shirt --data mine.npz
    harmony evaluate runs/joined; harmony export runs/joined --client 8     as with any checkpoint
    """
    require("train")
    from harmony.core.checkpoint import checkpoint_folder, open_checkpoint
    from harmony.core.data import load
    from harmony.core.spec import Architecture
    from harmony.train import Newcomer, evaluate, own_labels
    from harmony.train import join as let_join

    folder = checkpoint_folder(run)
    manifest = open_checkpoint(folder)
    trained_on = manifest.config["data"]
    home = data_dir or (Path(trained_on["folder"]) if trained_on.get("folder") else None)
    newcomer = Newcomer(
        architecture=Architecture.parse(arch),
        own=own_labels(classes, manifest.clients[0].classes.names, seed),
        images=images,
        steps=steps,
        rate=learning_rate,
        seed=seed,
    )
    dataset = load(data or trained_on["name"], data_dir=home)
    with _progress_bar(newcomer) as advance:
        joined = let_join(folder, newcomer, dataset, out, on_step=advance)
    result = evaluate(joined.checkpoint, dataset, rhos=(0, 1))
    _report(joined, result, as_json)


@contextmanager
def _progress_bar(newcomer: Newcomer) -> Iterator[Any]:
    """One bar on stderr, with the loss beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    display = Progress(*columns, TextColumn("[dim]{task.fields[loss]}"), console=Console(stderr=True))
    bar = display.add_task(f"{newcomer.architecture}, batches", total=newcomer.steps, loss="")

    def advance(done: int, loss: float) -> None:
        display.start()  # not before the data are known to be good, so that a mistake is one line
        display.update(bar, completed=done, loss=f"loss {loss:.3f}")

    try:
        yield advance
    finally:
        if display.live.is_started:
            display.stop()


def _report(joined: Joined, result: Evaluation, as_json: bool) -> None:
    from harmony.cli.output import print_json, print_table

    if as_json:
        begun = None if joined.begun is None else str(joined.begun)
        client = joined.client.model_dump(mode="json")
        evaluation = result.model_dump(mode="json")
        told = {"checkpoint": str(joined.checkpoint), "client": client, "begun_with": begun, "evaluation": evaluation}
        print_json(told)
        return
    *old, new = result.clients
    record = joined.client
    holds = ", ".join(record.classes.names[label] for label in record.classes.own)
    begun = f"slices of {joined.begun}" if joined.begun else "random weights"
    title = (
        f"{joined.checkpoint}: client {record.index}, {record.architecture}, holds {holds} in {record.train_images} "
        f"images, began with {begun}; accuracy in %"
    )
    columns = ("", f"client {new.client}", f"mean of the run's {len(old)}")
    print_table(title, columns, list(zip(FIGURES, _figures([new]), _figures(old), strict=True)))


def _figures(clients: list[ClientEvaluation]) -> list[str]:
    """Means over some clients, in the order of FIGURES."""
    from statistics import mean

    from harmony.cli.output import percent

    def average(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    first, last = [one.curve[0] for one in clients], [one.curve[-1] for one in clients]
    figures: list[list[float | None]] = [
        [one.overall for one in first],
        [one.overall for one in last],
        [one.id for one in last],
        [one.ood for one in last],
        [one.client_id for one in last],
        [one.server_id for one in last],
        [one.server_ood for one in last],
        [one.auroc for one in clients],
    ]
    return [percent(average(figure)) for figure in figures]
