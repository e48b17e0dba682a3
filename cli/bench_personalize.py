"""`harmony bench personalize`: what learning on the device costs, and what it brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.personal_results import Learning, PersonalBench


def personalize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A device bundle; it is copied, never changed.")],
    *,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="As for harmony personalize. Default: the bundle's own data set.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="CLASS[,CLASS…]", help="Without --data: which ones. Default: half are new.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Without --data: training images a class.")] = 60,
    back_end: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The cloud's bundle: what does a changed feature cost it?")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Decides which images are held out, and their order.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="The outcome.")] = Path("results/personalize.json"),
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as JSON instead of tables.")] = False,
) -> None:
    """Measure harmony personalize: CPU time a step by engine, memory, accuracy before and after, and the cloud's loss.

    \b
    harmony bench personalize bundles/client-000 --back-end bundles/cloud
    harmony bench personalize bundles/client-000 --data photos/ --rounds 9 --json
    harmony bench personalize bundles/client-000 --classes Coat,Bag,Sneaker --images 100

    For all of it, export with --format onnx,executorch --trainable front-end. Every run learns in a process of its own,
    on a copy of the bundle.
    """
    require("bench")
    from harmony.bench.personal import bench_personal
    from harmony.bench.personal_results import PersonalSettings
    from harmony.cli.output import hand_over

    names = None if classes is None else tuple(word.strip() for word in classes.split(","))
    settings = PersonalSettings(
        bundle=bundle, data=data, data_dir=data_dir, classes=names, images=images, back_end=back_end, rounds=rounds,
        seed=seed,
    )  # fmt: skip
    hand_over(lambda: bench_personal(settings, _note), _print, out=out, as_json=as_json)


def _note(what: str, done: int, total: int) -> None:
    typer.echo(f"{done + 1} of {total}: {what}", err=True)


def _print(result: PersonalBench) -> None:
    from harmony.cli.output import percent, print_table

    title = f"{result.architecture}, {result.parameters} weights: one step of 16 images"
    rows = [(str(one.way), f"{one.cpu_ms.median:.3f}", _range(one.cpu_ms.min, one.cpu_ms.p99)) for one in result.steps]
    print_table(title, ("", "CPU ms, median", "range"), rows)
    learnt = [
        (str(one.way), f"{one.cpu_s.median:.1f}", f"{one.peak_bytes.p99 / 2**20:.0f}", percent(one.before),
         percent(one.after), "yes" if one.adopted else "no")
        for one in result.learning
    ]  # fmt: skip
    print_table(
        f"From {', '.join(result.own_before)} to {', '.join(result.own_after)}: device alone, held-out images",
        ("", "CPU s", "peak MiB", "% before", "% after", "better"),
        learnt,
    )
    for one in result.learning:
        _print_cloud(one)
    for way, reason in result.skipped.items():
        typer.echo(f"{way}: {reason}")


def _print_cloud(one: Learning) -> None:
    from harmony.cli.output import percent, print_table

    if one.cloud is not None:
        cost = one.cloud
        rows = [
            ("the user's classes", percent(cost.own_before), percent(cost.own_after)),
            ("all others", percent(cost.other_before), percent(cost.other_after)),
        ]
        print_table(f"The cloud alone, by the features of {one.way}", ("test images of", "% before", "% after"), rows)


def _range(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"
