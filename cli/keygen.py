"""`harmony keygen`: a pair of keys that signs bundles, or the key of class tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def keygen(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="NAME.key and NAME.pub are written.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="NAME.tokens instead: from it follows which token stands for a class.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Make an Ed25519 key: NAME.key signs, and stays where it is; NAME.pub goes to every device that shall trust it.

    \b
    harmony keygen release                                        release.key, for nobody but you, and release.pub
    harmony export runs/first --out bundles/ --sign release.key
    harmony verify bundles/client-000 --trust release.pub         refused unless release.key signed it
    harmony keygen federation --tokens                            federation.tokens: for clients, never for the cloud
    harmony train --set tokens.key_file=federation.tokens --out runs/private

    A key that is there already is never overwritten. Keep a copy of NAME.key: who loses it has to give every device
    another NAME.pub.
    """
    from harmony.cli.output import print_json
    from harmony.core.signing_keys import make_key
    from harmony.core.tokens import make_token_key

    if tokens:
        path = Path(f"{name}.tokens")
        make_token_key(path)
        if as_json:
            print_json({"tokens": str(path)})
        else:
            sys.stdout.write(f"{path}: for every client of a federation, and for nobody else\n")
        return
    key = make_key(name)
    if as_json:
        print_json({"id": key.id, "secret": f"{name}.key", "public": f"{name}.pub", "line": key.line})
    else:
        sys.stdout.write(f"key {key.id}: {name}.key signs, {name}.pub is trusted\n")
