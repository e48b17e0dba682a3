"""`harmony advise`: what to put on a device that nobody here has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.advise import Advice, Budget
    from harmony.bench.sweep.choices import Choice

_PROMISE = {"device": "exits.pass1", "fallback": "exits.offload", "following": "exits.offload"}
"""The field of the training's config that a rule's budget is."""


def advise(
    results: Annotated[Path, typer.Argument(metavar="SWEEP", help="What `harmony bench sweep` wrote.")],
    *,
    device: Annotated[str, typer.Option(help="A device class; an unknown one lists the known ones.")],
    link: Annotated[str | None, typer.Option(help="A network profile; without one, the cloud is not asked.")] = None,
    p90: Annotated[str | None, typer.Option(metavar="TIME", help="Of 90 % of answers, for example 30ms.")] = None,
    median: Annotated[str | None, typer.Option(metavar="TIME", help="Of half of the answers.")] = None,
    first: Annotated[str | None, typer.Option(metavar="TIME", help="Opening the bundle and one answer.")] = None,
    max_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Of the device process: 32MiB.")] = None,
    max_file: Annotated[str | None, typer.Option(metavar="SIZE", help="Of the engine's files.")] = None,
    max_sent: Annotated[str | None, typer.Option(metavar="SIZE", help="To the cloud, mean over images.")] = None,
    max_offload: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0, max=1, help="Of images to the cloud.")
    ] = None,
    rho: Annotated[float, typer.Option(help="Images of other classes for each own one, as swept.")] = 1.0,
    regime: Annotated[Literal["hot", "sparse"], typer.Option(help="Call after call, or with pauses.")] = "hot",
    sure: Annotated[bool, typer.Option("--sure", help="Hold the upper end of every range to the limit.")] = False,
    arm: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.json", help="Counts of `harmony bench arm --out`, in place of times; repeatable."),
    ] = None,
    images: Annotated[
        bool, typer.Option("--allow-images", help="Images themselves may be sent, not only features.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False,
) -> None:
    """Name the architecture, engine, precision and threshold with the best accuracy within a budget, and why the others
    fall out. Exit code 1 if nothing fits.

    \b
    harmony advise runs/sweep --device pixel-3a --link lte --p90 30ms --max-memory 32MiB
    harmony advise runs/sweep --device cortex-a53 --median 5ms          the device alone
    harmony advise runs/sweep --device pixel-2 --link wifi --p90 40ms --sure --json
    harmony advise runs/sweep --device pixel-3a --link lte --arm counts.json

    Devices and links need not be those of the sweep: everything is combined anew. Accuracies are of images that no
    threshold was chosen on. Counted instructions are far closer than times of another processor; each answer says
    which it is by.
    """
    require("bench")
    from harmony.bench.advise import Budget, Question
    from harmony.bench.advise import advise as answer
    from harmony.bench.arm.compare import read_arm
    from harmony.bench.quantities import seconds, size
    from harmony.bench.sweep.files import read_sweep
    from harmony.cli.output import print_json

    budget: Budget = Budget(
        p90_s=None if p90 is None else seconds(p90, "--p90"),
        median_s=None if median is None else seconds(median, "--median"),
        first_s=None if first is None else seconds(first, "--first"),
        memory=None if max_memory is None else size(max_memory, "--max-memory"),
        file=None if max_file is None else size(max_file, "--max-file"),
        sent=None if max_sent is None else size(max_sent, "--max-sent"),
        offload=max_offload,
    )
    question = Question(device=device, link=link, rho=rho, regime=regime, budget=budget, images=images, sure=sure)
    advice = answer(read_sweep(results), question, {path: read_arm(path) for path in arm or ()})
    if as_json:
        print_json(advice.model_dump(mode="json"))
    else:
        _print(advice)
    if advice.best is None:
        raise typer.Exit(1)


def _print(advice: Advice) -> None:
    question, best = advice.question, advice.best
    over = f" over {question.link}" if question.link else ""
    typer.echo(f"{question.device}{over}, ρ = {question.rho:g}, {question.regime}")
    for basis in advice.bases:
        typer.echo(f"{basis.tier}: {basis.calibration}")
    for line in advice.unused:
        typer.echo(f"not used: {line}")
    typer.echo()
    if best is None:
        typer.echo("nothing fits\n")
    else:
        typer.echo(
            f"take   {best.architecture} in {best.engine}, {best.precision}, trained by {best.method}: {best.rule}\n"
            f"gives  {100 * best.accuracy:.1f} % accuracy, {100 * best.offloaded:.0f} % of images to the cloud, "
            f"{100 * best.offload_id:.1f} % of own ones\n"
            f"costs  p90 {_range(best.p90)}, median {_range(best.median)}, by {best.tier}; "
            f"{best.peak_bytes / 2**20:.1f} MiB, {best.sent_bytes:.0f} B sent an image\n"
            f"score  exit 1 {_span(best.thresholds[0])}, exit 2 {_span(best.thresholds[1])}{_held(best)}\n"
            f"train  harmony train {' '.join(f'--arch {name}' for name in advice.architectures)}{_promise(best)}\n"
        )
    for one in advice.verdicts:
        what = f"{one.architecture} {one.engine} {one.precision}, {one.method}: {one.rule}"
        figures = f"{100 * one.choice.accuracy:5.1f} %  p90 {1000 * one.choice.p90.value:.3g} ms"
        tier = f" [{one.choice.tier}]" if len(advice.bases) > 1 else ""
        typer.echo(f"{'+' if one.fits else '-'} {figures:24} {what}{tier}\n    {one.reason}")


def _held(best: Choice) -> str:
    if best.strategy == "following":
        return " while the stream looks foreign, else nothing is sent"
    return " always: harmony infer --threshold fixed" if best.strategy == "fallback" else ""


def _promise(best: Choice) -> str:
    if best.budget is None or best.strategy not in _PROMISE:
        return ""
    return f" --set {_PROMISE[best.strategy]}={best.budget:g}"


def _range(time: object) -> str:
    from harmony.bench.sweep.choices import Ranged

    assert isinstance(time, Ranged)  # noqa: S101  (imported late, so that --help stays quick)
    return f"{1000 * time.value:.3g} ms ({1000 * time.low:.3g} … {1000 * time.high:.3g})"


def _span(values: tuple[float, float] | None) -> str:
    if values is None:
        return "–"
    low, high = values
    return f"≥ {low:.3g}" if low == high else f"≥ {low:.3g} … {high:.3g} (by client)"
