"""`harmony bench peers`: one front end in our engines and in other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.peers.results import PeersBench


def peers(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A device bundle of fp32 with ONNX files.")],
    *,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="That it was exported from: PyTorch itself takes part, too.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Install missing peers, each into an environment in the cache folder.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    count: Annotated[int, typer.Option(min=1, help="Images a round, by each exit.")] = 200,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="The outcome.")] = Path("results/peers.json"),
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as JSON instead of a table.")] = False,
) -> None:
    """Measure a front end in our engines and in ONNX Runtime, ExecuTorch, OpenVINO, ncnn, LiteRT and PyTorch.

    \b
    harmony bench peers bundles/client-000                              those that are installed here
    harmony bench peers bundles/client-000 --install --run runs/first   all of them

    Every runtime answers the same images in a process of its own, on one thread, in turns: CPU time by exit and until
    the first answer, and peak memory. One whose answers are not ours is not timed; one that is missing is named, with
    what to type.
    """
    require("bench")
    from harmony.bench.peers.results import PeersSettings
    from harmony.bench.peers.run import bench_peers
    from harmony.cli.output import hand_over

    settings = PeersSettings(bundle=bundle, run=run, install=install, rounds=rounds, count=count)
    hand_over(lambda: bench_peers(settings, _note), _print, out=out, as_json=as_json)


def _note(what: str, done: int, total: int) -> None:
    typer.echo(f"round {done} of {total}: {what}" if done else f"starting {what}", err=True)


def _print(result: PeersBench) -> None:
    from harmony.cli.output import print_table

    rows = [
        (one.name, f"{one.exit1_ms.median:.3f}", f"{one.exit2_ms.median:.3f}",
         f"{one.exit2_ms.min:.3f} to {one.exit2_ms.p99:.3f}", f"{one.start_cpu_s:.2f}", f"{one.peak_bytes / 2**20:.0f}",
         f"{one.difference:.0e}")
        for one in result.runtimes
    ]  # fmt: skip
    columns = ("CPU ms an image", "exit 1", "both exits", "range", "start, s", "peak MiB", "off by")
    print_table(f"{result.architecture}, {result.parameters} weights, {result.settings.rounds} rounds", columns, rows)
    for name, reason in result.skipped.items():
        typer.echo(f"not run: {name}: {reason}")
