"""`harmony bench limits`: a bundle with so much memory, or so much of a CPU, for real."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.extras import require

if TYPE_CHECKING:
    from harmony.bench.host import Watch
    from harmony.bench.limits_results import CpuRun, MemoryRun
    from harmony.device.engine import EngineChoice

_BUSY = 1.5
"""Wall clock over CPU time of an answer, from which on others have a part in what is measured."""


def limits(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Device bundles.")],
    *,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="One limit, for example 16MiB; else the smallest is looked for.")
    ] = None,
    step: Annotated[str, typer.Option(metavar="SIZE", help="How close to come to the smallest.")] = "256KiB",
    cpu: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of one CPU, instead of memory, for example 0.25.")
    ] = None,
    engine: Annotated[
        Literal["native", "onnxruntime", "executorch"], typer.Option(help="With --cpu: what runs the front end.")
    ] = "native",
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON document.")] = False,
) -> None:
    """Hold a device process to so much memory, or so much of a CPU, for real. Needs root, and cgroups.

    \b
    sudo harmony bench limits bundles/client-000 --memory 16MiB   does it answer, or does the kernel end it?
    sudo harmony bench limits bundles/client-*                    the smallest limit of each
    sudo harmony bench limits bundles/client-000 --cpu 0.25       a quarter of a CPU

    Memory is the native runner's. A CPU quota is refused where it is not faithful: for answers of less than 5 ms, which
    run at full speed and then stall. Exit code 1 if a bundle does not answer under --memory.
    """
    require("bench")
    from harmony.core.errors import ConfigError

    if cpu is not None and memory is not None:
        raise ConfigError("is held apart from --memory", where="--cpu", mend="give one of them, then the other")
    if cpu is not None:
        _cpu(bundles, cpu, engine, as_json=as_json)
    else:
        _memory(bundles, memory, step, as_json=as_json)


def _memory(bundles: list[Path], memory: str | None, step: str, *, as_json: bool) -> None:
    from harmony.bench.host import Watch
    from harmony.bench.limits import run_limited, smallest
    from harmony.bench.quantities import size

    found: list[MemoryRun] = []
    close, watch = int(size(step, "--step")), Watch()
    limit = None if memory is None else int(size(memory, "--memory"))
    with tempfile.TemporaryDirectory(prefix="harmony-limits-") as folder:
        for bundle in bundles:
            image = _image(bundle, Path(folder))
            if limit is not None:
                found.append(run_limited(bundle, image, limit))
            else:
                runs = smallest(bundle, image, step=close)
                found.append([one for one in runs if one.result == "answered"][-1])
    if as_json:
        _print_json(watch, memory=found)
    else:
        _print_memory(found, smallest_=memory is None)
    if any(one.result != "answered" for one in found):
        raise typer.Exit(1)


def _cpu(bundles: list[Path], share: float, engine: EngineChoice, *, as_json: bool) -> None:
    from harmony.bench.host import Watch
    from harmony.bench.quota import run_with_share

    watch = Watch()
    found = [run_with_share(bundle, share, engine=engine) for bundle in bundles]
    if as_json:
        _print_json(watch, cpu=found)
    else:
        _print_cpu(found)


def _print_json(watch: Watch, *, memory: Sequence[MemoryRun] = (), cpu: Sequence[CpuRun] = ()) -> None:
    from importlib.metadata import version

    from harmony.bench.limits_results import LimitsResult
    from harmony.cli.output import print_json

    result = LimitsResult(
        harmony_version=version("harmony-sfl"), host=watch.host(), memory=tuple(memory), cpu=tuple(cpu)
    )
    print_json(result.model_dump(mode="json"))


def _image(bundle: Path, folder: Path) -> Path:
    """A grey one, as the runner reads it."""
    from harmony.bench.pictures import grey
    from harmony.core.bundle import open_device_bundle

    path = folder / "image.bin"
    path.write_bytes(grey(open_device_bundle(bundle).image).tobytes())
    return path


def _print_memory(found: list[MemoryRun], *, smallest_: bool) -> None:
    from harmony.cli.output import print_table

    def mib(value: int | None) -> str:
        return "–" if value is None else f"{value / 2**20:.2f}"

    title = "The smallest limit under which each answers (MiB)" if smallest_ else "Under the limit (MiB)"
    rows = [(one.bundle, mib(one.limit_bytes), one.result, mib(one.charged_bytes), mib(one.peak_rss_bytes))
            for one in found]  # fmt: skip
    print_table(title, ("bundle", "limit", "result", "charged", "resident"), rows)


def _print_cpu(found: list[CpuRun]) -> None:
    from harmony.cli.output import print_table

    first = found[0]
    title = (
        f"{first.share:g} of a CPU ({first.quota_us} µs of every {first.period_us}), cgroup v{first.version}, "
        f"{first.engine}, hot, 1 thread (ms)"
    )
    rows = [
        (
            Path(one.bundle).name, one.exit, f"{1000 * one.work.median:.2f}", f"{1000 * one.full.median:.2f}",
            f"{1000 * one.held.median:.1f}", f"{1000 * one.held.p90:.1f}", f"{1000 * one.held.p99:.1f}",
            f"{one.stretch.median:.2f} ({one.stretch.low:.2f} … {one.stretch.high:.2f})",
        )
        for one in found
    ]  # fmt: skip
    columns = ("bundle", "exit", "CPU", "full", "held p50", "p90", "p99", "held / (CPU / share)")
    print_table(title, columns, rows)
    for one in found:
        if (times := one.full.median / one.work.median) > _BUSY:
            typer.echo(f"{one.bundle}: the host is busy: without the quota an answer took {times:.1f} × its CPU time")
