"""`harmony keys`: API keys of a registry."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony.cli.registry import AsJson, Store, Where, open_registry, who
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from harmony.cloud.registry.keys import Key

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""API keys in a registry: only their SHA-256 is kept. Services follow every change within a second or two.

    \b
    export HARMONY_REGISTRY=registry/
    harmony keys create phones --rate 50 --inflight 8 --expires 90d
    harmony keys rotate phones --overlap 24h
    harmony keys revoke phones
    harmony keys list
    """,
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list and the audit log.")],
    *,
    registry: Where = None,
    store: Store = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, read (metadata, metrics), admin (load, unload, audit); repeatable. Default: infer."),
    ] = None,
    expires: Annotated[str, typer.Option(help="Life, such as 90d, 12h, 30m; or never.")] = "never",
    rate: Annotated[float | None, typer.Option(help="Most infer requests a second.")] = None,
    inflight: Annotated[int | None, typer.Option(help="Most infer requests under way at once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once.

    \b
    harmony keys create phones --rate 50 --inflight 8 --expires 90d
    harmony keys create prometheus --scope read
    harmony keys create release --scope admin --scope read --json
    """
    from harmony.cloud.registry.keys import KeyLimits, require_name, scopes_of

    limits = KeyLimits(scopes_of(scope or ["infer"]), _life(expires), rate, inflight)
    limits.require_meant()
    require_name(name)  # before a registry is made for it
    with open_registry(registry, store, create=True) as opened:
        _announce(*opened.keys.create(name, limits, who=who()), as_json=as_json)


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(help="The name that the key was made with.")],
    registry: Where = None,
    store: Store = None,
    overlap: Annotated[str, typer.Option(help="How long the old key still counts, such as 24h.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a new key of the same name, scopes, limits and life, and print it; the old one ends after the overlap.

    \b
    harmony keys rotate phones --overlap 7d
    """
    seconds = _life(overlap)
    if seconds is None:
        raise ConfigError("the old key has to end", where="--overlap", mend="write 7d, 24h or 0")
    with open_registry(registry, store) as opened:
        _announce(*opened.keys.rotate(name, overlap=seconds, who=who()), as_json=as_json)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME|ID", help="Every key of a name, or the one of an id.")],
    registry: Where = None,
    store: Store = None,
) -> None:
    """End a key at once.

    \b
    harmony keys revoke phones
    """
    with open_registry(registry, store) as opened:
        ended = opened.keys.revoke(name, who=who())
    sys.stdout.write("".join(f"revoked {key.name} ({key.id})\n" for key in ended))


@app.command("list")
def show(registry: Where = None, store: Store = None, as_json: AsJson = False) -> None:
    """Every key, without its secret.

    \b
    harmony keys list --registry registry/ --json
    """
    from harmony.cli.output import print_json, print_table

    with open_registry(registry, store) as opened:
        keys = [_shown(key) for key in opened.keys.all()]
    if as_json:
        print_json(keys)
        return
    columns = ("name", "id", "state", "scopes", "expires", "rate", "inflight")
    rows = [(*(key[one] for one in columns[:3]), " ".join(key["scopes"]), *map(_cell, _limits(key))) for key in keys]
    print_table("Keys", columns, rows)


def _limits(key: dict[str, Any]) -> list[Any]:
    return [key["expires"], key["rate"], key["inflight"]]


def _cell(value: object) -> str:
    return "–" if value is None else str(value)


def _shown(key: Key) -> dict[str, Any]:
    from harmony.cloud.registry.audit import iso

    times = {one: None if (at := getattr(key, one)) is None else iso(at) for one in ("created", "expires", "revoked")}
    return {**key.model_dump(), **times, "state": key.state}


def _announce(key: Key, secret: str, *, as_json: bool) -> None:
    from harmony.cli.output import print_json

    if as_json:
        print_json({**_shown(key), "key": secret})
    else:
        sys.stdout.write(f"{key.name} ({key.id}), {' '.join(key.scopes)}\nkey, shown this once: {secret}\n")


def _life(text: str) -> float | None:
    """Seconds of `90d`, `12h`, `30m`, `45s`; None for `never`; 0 for 0."""
    if text == "never":
        return None
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None or (not match[2] and int(match[1])):
        raise ConfigError(f"'{text}' is no span of time", mend="write 90d, 12h, 30m, 45s or never")
    return float(int(match[1]) * _SECONDS.get(match[2], 1))
