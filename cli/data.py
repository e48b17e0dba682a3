"""`harmony data`: facts about a data set, and which client holds what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from harmony.core.data import Dataset
    from harmony.core.data.download import Progress
    from harmony.core.partition import Holding

Kind = Literal["shards", "dirichlet", "classes"]


def show(
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="fashion-mnist-mini (embedded), fashion-mnist, cifar10, cifar100, "
            "a folder ROOT/{train,test}/CLASS/*.png, or an .npz file.",
        ),
    ] = "fashion-mnist-mini",
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a named data set that is not there.")] = False,
    partition: Annotated[Kind, typer.Option(help="How images are shared out among clients.")] = "classes",
    clients: Annotated[int, typer.Option(help="Number of clients.")] = 8,
    classes: Annotated[int, typer.Option(help="Classes a client, for --partition classes.")] = 3,
    alpha: Annotated[float, typer.Option(help="Skew, small is skewed, for --partition dirichlet.")] = 0.1,
    shards: Annotated[int, typer.Option(help="Shards a client, for --partition shards.")] = 2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same partition.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Show a data set, and which client holds what.

    \b
    harmony data                                             the embedded images, 8 clients with 3 classes each
    harmony data --partition shards --clients 50             label-sorted shards, 2 a client
    harmony data --data cifar10 --download --partition dirichlet --alpha 0.1 --clients 20
    harmony data --data photos/ --clients 4 --classes 2      photos/{train,test}/CLASS/*.png or *.jpg
    harmony data --data windows.npz --json                   x_train, y_train, x_test, y_test

    Downloads go to the cache folder (HARMONY_CACHE), from the publisher or from HARMONY_DATA_MIRROR.
    """
    from harmony.core.data import load
    from harmony.core.partition import holdings, partition_spec
    from harmony.core.partition import partition as split

    own_fields: dict[str, dict[str, Any]] = {
        "shards": {"shards_per_client": shards},
        "dirichlet": {"alpha": alpha},
        "classes": {"classes": classes},
    }
    spec = partition_spec({"kind": partition, "clients": clients, **own_fields[partition]})
    with _progress_bar() as progress:
        dataset = load(data, data_dir=data_dir, download=download, progress=progress)
    splits = split(dataset.y_train, spec, classes=dataset.classes, seed=seed)
    rows = holdings(splits, dataset.y_train, dataset.class_names)
    _print(_facts(dataset), spec.model_dump() | {"seed": seed}, rows, as_json)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar on stderr for each file that is downloaded; nothing while nothing is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bars: dict[str, TaskID] = {}
    display = Progress(*columns, console=Console(stderr=True))

    def advance(name: str, held: int, total: int | None) -> None:
        display.start()
        if name not in bars:
            bars[name] = display.add_task(name, total=total)
        display.update(bars[name], completed=held, total=total)

    try:
        yield advance
    finally:
        if bars:
            display.stop()


def _facts(dataset: Dataset) -> dict[str, Any]:
    from harmony.core.data.sources import LICENCES

    spec = dataset.image_spec()
    return {
        "name": dataset.name,
        "licence": LICENCES.get(dataset.name, "your own data"),
        "image": str(spec),
        "mean": [round(value, 4) for value in spec.mean],
        "std": [round(value, 4) for value in spec.std],
        "train": len(dataset.y_train),
        "test": len(dataset.y_test),
        "classes": list(dataset.class_names),
    }


def _print(facts: dict[str, Any], spec: dict[str, Any], rows: tuple[Holding, ...], as_json: bool) -> None:
    from dataclasses import asdict

    from harmony.cli.output import print_json, print_table
    from harmony.core.partition import COLUMNS

    if as_json:
        print_json({"data": facts, "partition": spec, "clients": [asdict(row) for row in rows]})
        return
    print_table("Data", ("fact", "value"), [(key, _text(value)) for key, value in facts.items()])
    title = ", ".join(f"{key} {value}" for key, value in spec.items() if value is not None)
    print_table(f"Who holds what: {title}", COLUMNS, [row.cells for row in rows])


def _text(value: object) -> str:
    """A list as its length, if there is more than one line of it, and its beginning."""
    if not isinstance(value, list):
        return str(value)
    shown = ", ".join(map(str, value[:12]))
    return f"{shown}, … ({len(value)} in all)" if len(value) > 12 else shown
