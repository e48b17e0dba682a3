"""`--trust`: whose signature a bundle must have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harmony.core.signing import Trust

Trusted = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        metavar="PUB",
        envvar="HARMONY_TRUST",
        help="Refuse what none of these keys signed: a public key, a list, or a folder of them; repeatable.",
    ),
]


def read_trust(paths: list[Path] | None) -> Trust | None:
    """The keys at the paths; None if there are no paths. ConfigError for what holds none."""
    if not paths:
        return None
    from harmony.core.signing import Trust

    return Trust.read(paths)
