"""`harmony personalize`: a bundle learns from the user's own images, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harmony.cli.trust import Trusted, read_trust
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from harmony.device.personal import Outcome, Plan
    from harmony.device.personal.learning import OnStep


def personalize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A device bundle, a folder or a .tar.")],
    *,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Images as DIR/CLASS/*.png (.jpg, .npy); or ROOT/train/…, an .npz."),
    ] = None,
    what: Annotated[
        Literal["head", "front-end"], typer.Option(help="What learns: the heads; or everything but the gates.")
    ] = "head",
    engine: Annotated[
        Literal["onnx", "executorch"],
        typer.Option(help="What trains the heads; a front end is trained in ONNX Runtime."),
    ] = "onnx",
    epochs: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Passes over the images. Default: heads 40, front end 10.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="Adam's rate at the start. Default: heads 4e-3, front end 1e-3."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which images are held out, and their order.")] = 0,
    max_seconds: Annotated[float | None, typer.Option(metavar="S", help="Stop learning after this long.")] = None,
    max_memory: Annotated[float | None, typer.Option(metavar="MIB", help="Give up above this much memory.")] = None,
    back_end: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The cloud's bundle: what does a changed feature cost it?")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(metavar="KEY", help="Sign the new version (see harmony keygen); repeatable.")
    ] = None,
    trust: Trusted = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Back to the version before this one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Let a bundle learn from the user's own images. Nothing leaves the device, and no torch is needed.

    \b
    harmony personalize bundles/client-000 --data photos/                   heads, on photos/CLASS/*.png
    harmony personalize bundles/client-000 --data photos/ --max-seconds 60 --max-memory 200
    harmony personalize bundles/client-000 --data photos/ --what front-end --back-end bundles/cloud
    harmony personalize bundles/client-000 --data photos/ --key device.key  the new version signed by this device
    harmony personalize bundles/client-000 --rollback                       back to the version before

    The classes of the images become the bundle's own classes; images of others still go to the cloud. A fifth of each
    class is held out. The new version is put into use, in one moment, only if the device alone is right on more of
    those; the old one is kept beside it.
    """
    if rollback:
        _roll_back(bundle, data, trust, as_json=as_json)
        return
    if data is None:
        raise ConfigError("is missing", where="--data", mend="name the folder with the images, or give --rollback")
    from harmony.core.signing_keys import read_secret
    from harmony.device.personal import Budget, Wish
    from harmony.device.personal import personalize as learn
    from harmony.device.personal.lesson import FRONT_END_PLAN, HEAD_PLAN

    budget = Budget(max_seconds, max_memory)
    wish = Wish(
        what=what,
        engine="onnxruntime" if engine == "onnx" else "executorch",
        heads=_plan(HEAD_PLAN, epochs, rate, seed, asked=what == "head"),
        front_end=_plan(FRONT_END_PLAN, epochs, rate, seed, asked=what == "front-end"),
        keys=[read_secret(one) for one in key or ()],
        back_end=back_end,
        trust=read_trust(trust),
    )
    with _progress_bar() as on_step:
        outcome = learn(bundle, data, wish, budget, on_step)
    _print(outcome, as_json=as_json)


def _plan(usual: Plan, epochs: int | None, rate: float | None, seed: int, *, asked: bool) -> Plan:
    """The usual plan, changed by the options if it is this that they are about."""
    if not asked:
        return usual._replace(seed=seed)
    return usual._replace(epochs=epochs or usual.epochs, rate=rate or usual.rate, seed=seed)


def _roll_back(bundle: Path, data: str | None, trust: list[Path] | None, *, as_json: bool) -> None:
    if data is not None:
        raise ConfigError("learns nothing", where="--rollback", mend="leave --data out")
    from harmony.cli.output import print_json
    from harmony.device.personal import roll_back
    from harmony.device.personal.versions import version_of

    manifest = roll_back(bundle, read_trust(trust))
    version, own = version_of(manifest), [manifest.classes.names[label] for label in manifest.classes.own]
    if as_json:
        print_json({"bundle": str(bundle), "version": version, "own": own})
    else:
        typer.echo(f"{bundle}: version {version} is in use again; own classes: {', '.join(own)}")


@contextmanager
def _progress_bar() -> Iterator[OnStep]:
    """A bar on stderr; nothing there if stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as display:
        bar = display.add_task("loading", total=None)
        yield lambda what, done, total: display.update(bar, description=what, completed=done, total=total)


def _print(outcome: Outcome, *, as_json: bool) -> None:
    from harmony.cli.output import print_json, print_table

    if as_json:
        print_json(_document(outcome))
        return
    typer.echo(f"{outcome.bundle}: {outcome.words}")
    print_table("On held-out images", ("fact", "before", "after"), _rows(outcome))
    for line in _notes(outcome):
        typer.echo(line)


def _document(outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    told = asdict(outcome) | {"bundle": str(outcome.bundle)}
    told["exits"] = [one.model_dump(mode="json") for one in outcome.exits]
    for name in ("moved", "moved_others"):
        moved = getattr(outcome, name)
        told[name] = None if moved is None else moved._asdict()
    return told


def _rows(outcome: Outcome) -> list[tuple[object, ...]]:
    from harmony.cli.output import percent

    rows: list[tuple[object, ...]] = [
        ("own classes", len(outcome.own_before), len(outcome.own_after)),
        ("device alone, % right", percent(outcome.before), percent(outcome.after)),
    ]
    if outcome.cloud is not None:
        rows.append(("cloud alone, % right", percent(outcome.cloud.before), percent(outcome.cloud.after)))
    return rows


def _notes(outcome: Outcome) -> Iterator[str]:
    yield f"own classes {'now' if outcome.adopted else 'would be'}: {', '.join(outcome.own_after)}"
    megabytes = outcome.peak_bytes / 1e6
    yield (
        f"{outcome.train_images} images in {outcome.steps} steps: {outcome.learning_s:.1f} s of learning, "
        f"{outcome.seconds:.1f} s in all, {megabytes:.0f} MB at the peak"
    )
    if outcome.moved is not None and outcome.moved_others is not None:
        own, others = outcome.moved, outcome.moved_others
        yield (
            f"features moved by {own.relative:.0%} of their length on held-out images (cosine {own.cosine:.3f}), by "
            f"{others.relative:.0%} on the test vectors' ({others.cosine:.3f}): the cloud reads the moved ones"
        )
    if not outcome.adopted:
        return
    if outcome.dropped:
        yield f"left out, since its program cannot be changed and checked here: {', '.join(outcome.dropped)}"
    if outcome.was_signed and not outcome.signed:
        yield "NOT SIGNED: the version before was; a device that asks for a signature refuses this one (add --key)"
