"""`harmony native`: the native core, built ahead, or for another machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""ExecuTorch without Python: libharmony.so (C API) and harmony-run.

    \b
    harmony native build                        into the cache, where --engine native finds it
    harmony native build --out phone/           a folder that can be carried to another machine
    phone/harmony-run bundles/client-000 images.npy
    """,
)


@app.callback()
def _group() -> None:
    """One command for now, but by its name."""


@app.command()
def build(
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder with everything that the binaries need.")
    ] = None,
    target: Annotated[
        Literal["host", "aarch64"], typer.Option(help="For which machine; others than this need --out.")
    ] = ("host"),
    executorch: Annotated[
        Path | None,
        typer.Option(metavar="WHEEL", help="The executorch to link, as .whl or folder; else the installed."),
    ] = None,
) -> None:
    """Build the native core: once, some ten seconds; --engine native does it by itself when it is first used.

    \b
    harmony native build
    harmony native build --out linux/
    harmony native build --out phone/ --target aarch64 --executorch executorch-1.5.1-…_aarch64.whl

    Needs CMake, make and a C++17 compiler (Debian: apt install cmake make g++, for aarch64 g++-aarch64-linux-gnu).
    A device without a compiler is given such a folder, and HARMONY_NATIVE names it there.
    """
    from harmony.core.errors import ConfigError
    from harmony.device.native_build import build_standalone, ensure_native

    if out is None:
        if target != "host" or executorch is not None:
            raise ConfigError("is needed for another machine or executorch", where="--out", mend="--out DIR")
        sys.stdout.write(f"{ensure_native()}\n")
        return
    build_standalone(out, target, executorch)
    sys.stdout.write(f"{out}\n")
