"""`harmony registry`: versions of models, the names they go by, and who did what."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.trust import Trusted, read_trust
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from harmony.cloud.registry.catalogue import Registry
    from harmony.cloud.registry.rows import Version
    from harmony.core.signing import Trust

Where = Annotated[
    str | None,
    typer.Option(
        "--registry", metavar="URL", envvar="HARMONY_REGISTRY", help="A folder, sqlite:///FILE or postgresql://…"
    ),
]
Store = Annotated[
    Path | None, typer.Option("--store", envvar="HARMONY_STORE", help="Folder of the bundles, if it is another.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Versions of models in a registry that services follow (harmony serve --registry).

    \b
    export HARMONY_REGISTRY=registry/                      a folder, made by the first add
    harmony registry add bundles/cloud                     the next version, and the latest
    harmony registry add bundles/cloud --alias canary --share 0.1
    harmony registry alias backend latest 2                back to version 2, without a failed request
    harmony registry list
    harmony registry audit
    """,
)


def open_registry(
    where: str | None, store: Path | None, *, create: bool = False, trust: Trust | None = None
) -> Registry:
    """The registry that an option or the environment names."""
    from harmony.cloud.registry.catalogue import Registry
    from harmony.cloud.registry.location import locate

    if not where:
        raise ConfigError("name a registry", where="--registry", mend="or set HARMONY_REGISTRY")
    return Registry(locate(where, store), create=create, trust=trust)


def who() -> str:
    """This user, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return f"cli:{os.getuid()}"


@app.command()
def add(
    bundle: Annotated[Path, typer.Argument(help="A cloud bundle, or what harmony export wrote.")],
    *,
    registry: Where = None,
    store: Store = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Name that the version gets; repeatable. Without it: latest.")
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the model's traffic for these names, 0 to 1.")] = 0.0,
    trust: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Register a cloud bundle as the next version of its model, once it has passed every check of harmony serve.

    \b
    harmony registry add bundles/cloud --registry registry/
    harmony registry add bundles/cloud --alias canary --share 0.1
    harmony registry add bundles/cloud --trust release.pub
    """
    from harmony.cloud.models import find_bundles
    from harmony.cloud.registry.catalogue import check_names

    names = alias or ["latest"]
    check_names(names, share)
    folders = find_bundles(bundle)
    with open_registry(registry, store, create=True, trust=read_trust(trust)) as opened:
        made = [opened.register(one, names=names, share=share, who=who()) for one in folders]
    _show(made, as_json=as_json)


@app.command("list")
def show(registry: Where = None, store: Store = None, as_json: AsJson = False) -> None:
    """Every version, with its names.

    \b
    harmony registry list --registry registry/ --json
    """
    with open_registry(registry, store) as opened:
        _show(opened.versions(), as_json=as_json)


@app.command()
def alias(
    model: str,
    name: str,
    version: int,
    *,
    registry: Where = None,
    store: Store = None,
    share: Annotated[float, typer.Option(help="Share of the model's traffic, 0 to 1.")] = 0.0,
) -> None:
    """Point a name at a version. There is one of each name for each cut contract.

    \b
    harmony registry alias backend latest 2
    harmony registry alias backend canary 3 --share 0.1
    """
    with open_registry(registry, store) as opened:
        opened.alias(model, name, version, share=share, who=who())


@app.command()
def unalias(model: str, name: str, registry: Where = None, store: Store = None) -> None:
    """Take a name away. What no name points at is not served.

    \b
    harmony registry unalias backend canary
    """
    with open_registry(registry, store) as opened:
        opened.unalias(model, name, who=who())


@app.command()
def remove(model: str, version: int, registry: Where = None, store: Store = None) -> None:
    """Forget a version that no name points at, and delete its bundle.

    \b
    harmony registry remove backend 1
    """
    with open_registry(registry, store) as opened:
        opened.remove(model, version, who=who())


@app.command()
def load(model: str, registry: Where = None, store: Store = None) -> None:
    """Have every service serve the model again.

    \b
    harmony registry load backend
    """
    with open_registry(registry, store) as opened:
        opened.set_loaded(model, loaded=True, who=who())


@app.command()
def unload(model: str, registry: Where = None, store: Store = None) -> None:
    """Have every service stop serving the model.

    \b
    harmony registry unload backend
    """
    with open_registry(registry, store) as opened:
        opened.set_loaded(model, loaded=False, who=who())


@app.command()
def check(
    registry: Where = None,
    store: Store = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete bundles that no version has.")] = False,
    trust: Trusted = None,
) -> None:
    """Compare every byte of every bundle, and who signed it, with what was registered.

    \b
    harmony registry check --prune
    """
    with open_registry(registry, store, trust=read_trust(trust)) as opened:
        whole = opened.check()
        gone = opened.prune() if prune else []
    sys.stdout.write(f"{whole} versions are whole" + (f", {len(gone)} bundles deleted\n" if prune else "\n"))


@app.command()
def audit(
    registry: Where = None,
    store: Store = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who did what, the newest first.

    \b
    harmony registry audit --limit 10 --json
    """
    from harmony.cli.output import print_json, print_table
    from harmony.cloud.registry.audit import read_audit

    with open_registry(registry, store) as opened:
        entries = read_audit(opened.database, limit=limit)
    if as_json:
        print_json([one.model_dump() for one in entries])
        return
    rows = [(one.at, one.who, one.act, one.subject) for one in entries]
    print_table("Admin acts", ("when (UTC)", "who", "act", "subject"), rows)


def _show(versions: list[Version], *, as_json: bool) -> None:
    from harmony.cli.output import print_json, print_table

    if as_json:
        print_json([one.model_dump() for one in versions])
        return
    rows = [(one.model, one.version, ", ".join(one.aliases), one.cut, one.run, one.digest[:12]) for one in versions]
    print_table("Versions", ("model", "version", "names", "cut", "run", "bundle"), rows)
