"""`harmony bundle`: a bundle as one file and back, and signatures for bundles that were exported without."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harmony.cli.trust import Trusted, read_trust

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""A bundle as one file, and back; signatures.

    \b
    harmony bundle pack bundles/client-000                     bundles/client-000.tar, always the same bytes
    harmony bundle unpack client-000.tar --trust release.pub   the folder client-000, checked before it is written
    harmony bundle sign bundles/* --key release.key
    """,
)


@app.command()
def pack(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Folders of device or cloud bundles.")],
    *,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; beside the folder by default.")] = None,
    trust: Trusted = None,
) -> None:
    """Write each bundle as BUNDLE.tar, which harmony verify, inspect and infer read as it is.

    \b
    harmony bundle pack bundles/client-*
    harmony bundle pack bundles/client-000 --out releases/
    """
    from harmony.core.archive import pack as write
    from harmony.core.bundle import open_bundle

    keys = read_trust(trust)
    for bundle in bundles:
        place = (out or bundle.absolute().parent) / f"{bundle.absolute().name}.tar"
        open_bundle(bundle, keys)
        write(bundle, place)
        sys.stdout.write(f"{place}\n")


@app.command()
def unpack(
    tars: Annotated[list[Path], typer.Argument(metavar="TAR…", help="What pack, or export --tar, wrote.")],
    *,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; beside the .tar by default.")] = None,
    trust: Trusted = None,
) -> None:
    """Write each .tar as a folder, if it holds a whole bundle, and nothing else.

    \b
    harmony bundle unpack client-000.tar
    harmony bundle unpack releases/*.tar --out bundles/ --trust release.pub
    """
    from harmony.core.archive import unpack as write
    from harmony.core.bundle import open_bundle

    keys = read_trust(trust)
    for tar in tars:
        place = (out or tar.parent) / tar.stem
        open_bundle(tar, keys)
        write(tar, place)
        sys.stdout.write(f"{place}\n")


@app.command()
def sign(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Folders of device or cloud bundles.")],
    *,
    key: Annotated[list[Path], typer.Option(metavar="KEY", help="A NAME.key of harmony keygen; repeatable.")],
) -> None:
    """Sign bundles that are there, beside the signatures that they have: perhaps where the key lies, not where they
    were made.

    \b
    harmony bundle sign bundles/client-* bundles/cloud --key release.key
    """
    from harmony.core.bundle import open_bundle
    from harmony.core.errors import ConfigError
    from harmony.core.sealed import sign_sealed
    from harmony.core.signing_keys import read_secret

    keys = [read_secret(one) for one in key]
    for bundle in bundles:
        if not bundle.is_dir():
            raise ConfigError("is no folder", where=bundle, mend="unpack a .tar, sign the folder, and pack it again")
        made = sign_sealed(bundle, type(open_bundle(bundle)), keys)
        sys.stdout.write(f"{bundle}: signed by {', '.join(made.by)}\n")
