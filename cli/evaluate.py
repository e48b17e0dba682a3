"""`harmony evaluate`: accuracy over mixes of in- and out-of-distribution images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.train import BudgetCurve, Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or its checkpoint folder.")],
    *,
    data: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Default: what the run was trained on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Look for a named data set here first.")] = None,
    rho: Annotated[
        list[float] | None, typer.Option(help="OOD images for each ID image, repeatable. Default: 0, .2, … 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the mix.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the evaluation here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole evaluation as JSON.")] = False,
) -> None:
    """Evaluate a trained federation: devices alone, the cloud alone, both by the exits' thresholds, and by an oracle.

    \b
    harmony evaluate runs/first                      on the images that it was trained with
    harmony evaluate runs/first --rho 0 --rho 1      only the two ends
    harmony evaluate runs/first --json > first.json
    """
    require("train")
    from harmony.cli.output import print_json
    from harmony.core.checkpoint import checkpoint_folder, open_checkpoint
    from harmony.core.data import load
    from harmony.core.mix import RHOS
    from harmony.core.sealed import write_atomically
    from harmony.train import evaluate as judge

    folder = checkpoint_folder(run)
    trained_on = open_checkpoint(folder).config["data"]
    home = data_dir or (Path(trained_on["folder"]) if trained_on.get("folder") else None)
    result = judge(folder, load(data or trained_on["name"], data_dir=home), rhos=tuple(rho or RHOS), seed=seed)
    if out is not None:
        write_atomically(out, result.model_dump_json(indent=2).encode() + b"\n")
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _print_tables(result)


def _print_tables(result: Evaluation) -> None:
    from harmony.cli.output import percent, print_table

    columns = (
        "ρ",
        "overall",
        "adapt",
        "ID",
        "OOD",
        "device",
        "cloud",
        "oracle",
        "exit 1",
        "sent",
        "worst",
    )
    rows = (
        (
            f"{a.rho:g}",
            *map(percent, (a.overall, a.adaptive, a.id, a.ood, a.client_only, a.server_only, a.oracle)),
            *map(percent, (a.exit1, a.offload, worst)),
        )
        for a, worst in zip(result.mean, result.worst, strict=True)
    )
    print_table(f"{result.run} ({result.method}) on {result.dataset}: accuracy in %, mean over clients", columns, rows)
    if result.budgets:
        promises = (
            (f"{100 * one.budget:g}", *map(percent, (*one.adaptive, one.id_to_server, one.ood_to_client, *_word(one))))
            for one in result.budgets
        )
        print_table(
            "Had exit 2 promised to send at most this share of own images (exits.offload): adapt in %",
            ("promise", *(f"ρ {a.rho:g}" for a in result.mean), "ID sent", "OOD kept", "word", "ID answered"),
            promises,
        )
    gate = f"gate AUROC {percent(result.auroc)} %, FPR95 {percent(result.fpr95)} %"
    clients = (
        (
            one.client,
            one.architecture,
            *map(percent, (last.overall, last.id, last.ood, last.oracle, last.offload, one.auroc)),
        )
        for one in result.clients
        for last in one.curve[-1:]
    )
    print_table(
        f"Clients at ρ = {result.mean[-1].rho:g}; {gate}",
        ("client", "architecture", "overall", "ID", "OOD", "oracle", "sent", "AUROC"),
        clients,
    )


def _word(curve: BudgetCurve) -> tuple[float | None, float | None]:
    return (None if curve.word is None else curve.word[-1]), curve.id_by_server
