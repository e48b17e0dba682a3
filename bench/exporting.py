"""What clients of one architecture save each other: a run exported in one go beside every client exported by itself.

Lowering a front end to a runtime takes seconds; filling a client's weights into what was lowered takes milliseconds
(see `harmony.export.template`). In one go an architecture is lowered once; by itself each client is lowered by a
process that has lowered nothing yet. Both ways are the export that users call, parity checks included, in one process
that is warm, so that what the exporters take at their first call is in neither; they take turns, and CPU time counts.
The cloud's bundle is there already.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from harmony.bench.host import Watch
from harmony.bench.results import Count, Host, Ratio, Summary, Versioned
from harmony.bench.statistics import ratio, summarise
from harmony.core.checkpoint import ClientRecord, checkpoint_folder, open_checkpoint
from harmony.core.errors import ConfigError
from harmony.core.sealed import MANIFEST, hash_file
from harmony.core.spec import Frozen
from harmony.export import export_run
from harmony.export.lowering import Lowering, lowering_anew
from harmony.export.report import FORMATS, Format, check_formats

OnTurn = Callable[[str, int, int], None]
"""(what is done, turns done, of how many)."""


class ExportSettings(Frozen):
    """What is measured. clients: so many, the first; None: all of the run."""

    run: Path
    clients: Annotated[int, Field(ge=1)] | None = None
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = FORMATS
    rounds: Annotated[int, Field(ge=1)] = 3


class ExportCost(Frozen):
    """One way to export all clients, in seconds over rounds. lowering_s: the part of cpu_s that lowering took."""

    cpu_s: Summary
    wall_s: Summary
    lowering_s: Summary


class Lowered(Frozen):
    """How often an architecture was lowered in a round. clients: that have it; cpu_s: of one lowering."""

    architecture: str
    format: Format
    clients: Count
    together: Count
    apart: Count
    cpu_s: Summary


class ExportBench(Versioned):
    """The result file of `harmony bench export`. checkpoint: SHA-256 of its manifest; together, apart: all clients in
    one go, and each by itself; ratio: CPU time of the second over that of the first, a round each."""

    FORMAT: ClassVar[str] = "harmony-bench-export"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-export"] = "harmony-bench-export"
    format_version: Literal[1] = 1
    harmony_version: str
    settings: ExportSettings
    host: Host
    checkpoint: str
    clients: Count
    together: ExportCost
    apart: ExportCost
    ratio: Ratio
    lowered: tuple[Lowered, ...]


class _Turn(NamedTuple):
    """One way, gone once."""

    cpu_s: float
    wall_s: float
    lowerings: tuple[Lowering, ...]


def bench_export(settings: ExportSettings, on_turn: OnTurn = lambda what, done, total: None) -> ExportBench:
    """Measure one run; some seconds a client, format and round. The errors of `harmony.export.export_run`."""
    formats, folder, watch = check_formats(settings.formats), checkpoint_folder(settings.run), Watch()
    clients = _chosen(settings, open_checkpoint(folder).clients)
    indices, turns = [one.index for one in clients], 2 * settings.rounds
    ways = {"together": [indices], "apart": [[one] for one in indices]}
    found: dict[str, list[_Turn]] = {way: [] for way in ways}
    torch.set_num_threads(1)  # threads that wait for work spin, which is CPU time too
    with TemporaryDirectory(prefix="harmony-bench-export-") as place:
        on_turn("warming up", 0, turns)
        _export(settings.run, [indices[:1]], formats, Path(place))
        for index in range(settings.rounds):
            for turn, way in enumerate(list(ways)[:: -1 if index % 2 else 1]):
                on_turn(way, 2 * index + turn, turns)
                found[way].append(_export(settings.run, ways[way], formats, Path(place)))
    pairs = zip(found["apart"], found["together"], strict=True)
    return ExportBench(
        harmony_version=version("harmony-sfl"), settings=settings, host=watch.host(),
        checkpoint=hash_file(folder / MANIFEST), clients=len(clients),
        together=_cost(found["together"]), apart=_cost(found["apart"]),
        ratio=ratio([apart.cpu_s / together.cpu_s for apart, together in pairs]),
        lowered=_lowered(found["together"], found["apart"], clients),
    )  # fmt: skip


def _chosen(settings: ExportSettings, clients: Sequence[ClientRecord]) -> Sequence[ClientRecord]:
    count = settings.clients or len(clients)
    if count > len(clients):
        problem = f"the run has {len(clients)} clients, not {count}"
        raise ConfigError(problem, where=settings.run, mend="ask for fewer with --clients")
    return clients[:count]


def _export(run: Path, groups: Sequence[Sequence[int]], formats: Sequence[Format], out: Path) -> _Turn:
    """Export every group of clients by itself. Their bundles are removed again; the cloud's stays."""
    lowerings: list[Lowering] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for clients in groups:
        with lowering_anew() as lowered:
            export_run(run, out, clients=clients, formats=formats, noise=True)
        lowerings += lowered
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    for bundle in out.glob("client-*"):
        shutil.rmtree(bundle)
    return _Turn(cpu, wall, tuple(lowerings))


def _cost(turns: Sequence[_Turn]) -> ExportCost:
    return ExportCost(
        cpu_s=summarise([one.cpu_s for one in turns]),
        wall_s=summarise([one.wall_s for one in turns]),
        lowering_s=summarise([sum(lowering.cpu_s for lowering in one.lowerings) for one in turns]),
    )


def _lowered(together: Sequence[_Turn], apart: Sequence[_Turn], clients: Sequence[ClientRecord]) -> tuple[Lowered, ...]:
    """A row for each architecture and format, in the order of their first lowering. Every round lowers the same."""
    counts = [Counter((one.architecture, one.format) for one in turns[0].lowerings) for turns in (together, apart)]
    seconds: dict[tuple[str, Format], list[float]] = {}
    for one in (lowering for turn in (*together, *apart) for lowering in turn.lowerings):
        seconds.setdefault((one.architecture, one.format), []).append(one.cpu_s)
    held = Counter(str(client.architecture) for client in clients)
    return tuple(
        Lowered(
            architecture=key[0], format=key[1], clients=held[key[0]], together=counts[0][key], apart=counts[1][key],
            cpu_s=summarise(cpu_s),
        )
        for key, cpu_s in seconds.items()
    )  # fmt: skip
