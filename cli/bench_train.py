"""`harmony bench train`: how fast a federation trains on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.training import TrainingBench


def train(
    *,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="As for `harmony train`.")] = None,
    clients: Annotated[int, typer.Option(help="Number of clients, two shards each.")] = 50,
    batch: Annotated[int, typer.Option(help="Images a client and step.")] = 32,
    arch: Annotated[list[str] | None, typer.Option(help="Front-end architecture, repeatable.")] = None,
    steps: Annotated[int, typer.Option(help="Steps a round.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds that count.")] = 5,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the outcome here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as JSON.")] = False,
) -> None:
    """Measure training: client-batches per CPU-second, beside a plain loop over the clients with the same losses.

    \b
    harmony bench train                                   50 clients of 4 architectures, batches of 32
    harmony bench train --batch 4 --rounds 9              small batches gain most
    harmony bench train --config mine.toml --json
    """
    require("bench", "train")
    from harmony.bench.training import bench_training
    from harmony.cli.output import hand_over
    from harmony.core.config import load_config, make_config

    given = {
        "partition": {"kind": "shards", "clients": clients, "shards_per_client": 2},
        "batch": batch,
        "steps": steps,
        "rounds": rounds + 1,
    }
    if arch:
        given["architectures"] = arch
    settings = make_config(given) if config is None else load_config(config, {"rounds": rounds + 1})
    hand_over(lambda: bench_training(settings, rounds, _note), _print_table, out=out, as_json=as_json)


def _note(done: int, total: int) -> None:
    typer.echo(f"\rround {done} of {total}", err=True, nl=done == total)


def _print_table(result: TrainingBench) -> None:
    from harmony.cli.output import print_table

    config, ratio = result.config, result.ratio
    speeds = [("HARMONY", result.batched), ("plain loop", result.loop)]
    if (rough := result.bfloat16) is not None:
        name = f"HARMONY in bfloat16: {rough.ratio.median:.2f}×, losses differ by {rough.difference:.1e}"
        speeds.append((name, rough.speed))
    rows = [(name, f"{one.median:.1f}", f"{one.min:.1f}") for name, one in speeds]
    clients = config.partition.clients
    print_table(
        f"{clients} clients, {len(config.architectures)} architectures, batch {config.batch}: "
        f"{ratio.median:.2f}× the plain loop ({ratio.low:.2f} to {ratio.high:.2f} in {ratio.rounds} rounds); "
        f"losses differ by {result.difference:.1e} at most; peak {result.peak_bytes / 2**20:.0f} MiB",
        ("", "client-batches per CPU-second", "slowest round"),
        rows,
    )
    bound = result.bound
    typer.echo(
        f"a client-batch is {bound.flops / 1e9:.2f} GFLOP, and this machine multiplies {bound.peak / 1e9:.0f} GFLOP a "
        f"CPU-second in float32: no batching can pass {bound.ratio:.2f}× the plain loop here"
    )
