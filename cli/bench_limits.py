"""`harmony bench limits`: a bundle in the native runner, in a memory cgroup."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.limits import Outcome


def limits(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE…", help="Device bundles with an ExecuTorch program.")
    ],
    *,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="One limit, for example 16MiB; else the smallest is looked for.")
    ] = None,
    step: Annotated[str, typer.Option(metavar="SIZE", help="How close to come to the smallest.")] = "256KiB",
    as_json: Annotated[bool, typer.Option("--json", help="Every run as JSON.")] = False,
) -> None:
    """Hold the native runner to so much memory for real: does it answer, or does the kernel end it? Needs root.

    \b
    sudo harmony bench limits bundles/client-000 --memory 16MiB
    sudo harmony bench limits bundles/client-*                    the smallest limit of each

    Exit code 1 if a bundle does not answer under --memory.
    """
    require("bench")
    from harmony.bench.limits import run_limited, smallest
    from harmony.bench.quantities import size
    from harmony.cli.output import print_json

    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="harmony-limits-") as folder:
        for bundle in bundles:
            image = _image(bundle, Path(folder))
            if memory is not None:
                found.append(run_limited(bundle, image, int(size(memory, "--memory"))))
            else:
                runs = smallest(bundle, image, step=int(size(step, "--step")))
                found.append([one for one in runs if one.result == "answered"][-1])
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
    else:
        _print(found, smallest_=memory is None)
    if any(one.result != "answered" for one in found):
        raise typer.Exit(1)


def _image(bundle: Path, folder: Path) -> Path:
    """A grey one, as the runner reads it."""
    import numpy as np

    from harmony.core.bundle import open_device_bundle

    spec = open_device_bundle(bundle).image
    shape = (1, spec.height, spec.width, spec.channels)
    path = folder / "image.bin"
    path.write_bytes(
        (np.full(shape, 128, np.uint8) if spec.dtype == "uint8" else np.zeros(shape, np.float32)).tobytes()
    )
    return path


def _print(found: list[Outcome], *, smallest_: bool) -> None:
    from harmony.cli.output import print_table

    def mib(value: int | None) -> str:
        return "–" if value is None else f"{value / 2**20:.2f}"

    title = "The smallest limit under which each answers (MiB)" if smallest_ else "Under the limit (MiB)"
    rows = [(one.bundle, mib(one.limit_bytes), one.result, mib(one.charged_bytes), mib(one.peak_rss_bytes))
            for one in found]  # fmt: skip
    print_table(title, ("bundle", "limit", "result", "charged", "resident"), rows)
