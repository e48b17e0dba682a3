"""`harmony`: the command's table of contents and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from harmony.cli import (
    advise,
    bench,
    bundle,
    data,
    demo,
    evaluate,
    experiment,
    export,
    figures,
    infer,
    inspect,
    join,
    keygen,
    keys,
    loadtest,
    native,
    personalize,
    registry,
    serve,
    train,
    verify,
)
from harmony.core.errors import HarmonyError

STORY = """On-device inference and training for hybrid split federated learning.

A device answers what it knows at an early exit; what it does not know goes to the cloud, as a feature, not an image.

\b
  harmony demo                                  the whole story at once, on embedded images
  harmony data                                  which client holds what
  harmony train --out runs/first                checkpoint: front ends of every client, one back end
  harmony evaluate runs/first                   accuracy over in- and out-of-distribution mixes
  harmony join runs/first --arch patch-w16-d1   a new client over the trained back end, of any architecture
  harmony export runs/first --out bundles/      bundles for devices (ONNX, ExecuTorch) and the cloud
  harmony verify bundles/client-000             is it whole, and does it answer as promised
  harmony inspect bundles/client-000            what is in it: classes, exits, files, operators, planned memory
  harmony keygen release                        a key that signs bundles, and one by which devices know them
  harmony bundle pack bundles/client-000        one file, always the same bytes; and back; sign
  harmony serve bundles/cloud                   the fallback over HTTP (Open Inference Protocol v2)
  harmony registry add bundles/cloud            versions of models that services follow, swapped while they serve
  harmony keys create phones                    who may ask a service, how often, for how long
  harmony loadtest http://127.0.0.1:8080        what it does under load
  harmony infer bundles/client-000 shoe.png     one answer, from the device or from the cloud
  harmony personalize BUNDLE --data photos/     it learns from the user's own images, on the device
  harmony native build --out phone/             the device without Python: harmony-run, libharmony.so
  harmony bench bundles/client-*                latency, accuracy, bytes, memory, and a report
  harmony bench sweep bundles/                  every threshold, engine, phone and link, from one measurement
  harmony advise runs/sweep --device pixel-3a   what to put on a phone within a budget, and why
  harmony bench train                           how fast training is, beside a plain loop over the clients

\b
  harmony experiment GRID.toml                  a grid of methods, data, families and seeds, resumable
  harmony figures                               the README's figures from result files
"""

app = typer.Typer(
    name="harmony",
    help=STORY,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("data")(data.show)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("join")(join.join)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("inspect")(inspect.inspect)
app.command("keygen")(keygen.keygen)
app.add_typer(bundle.app, name="bundle")
app.command("serve")(serve.serve)
app.command("loadtest")(loadtest.loadtest)
app.add_typer(registry.app, name="registry")
app.add_typer(keys.app, name="keys")
app.command("infer")(infer.infer)
app.command("personalize")(personalize.personalize)
app.add_typer(native.app, name="native")
app.add_typer(bench.app, name="bench")
app.command("advise")(advise.advise)
app.command("experiment")(experiment.experiment)
app.command("figures")(figures.figures)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"harmony {version('harmony-sfl')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version, and stop.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Run the command; a user's mistake is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except HarmonyError as error:
        sys.exit(_complain(f"{type(error).__name__}: {error}", error.exit_code))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        sys.exit(
            _complain(f"StorageError: {error.filename or 'disk'}: {error.strerror} (free or choose another folder)", 2)
        )
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))


def _complain(line: str, code: int) -> int:
    sys.stderr.write(f"harmony: {line}\n")
    return code


if __name__ == "__main__":
    main()
