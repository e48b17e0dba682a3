"""The figures that the README publishes: written between two marks from a demo's result file, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from harmony.bench.curves import CurvePoint
from harmony.bench.demo import DemoResult
from harmony.bench.text import accuracy_rows, percent, summary_rows
from harmony.core.errors import ConfigError
from harmony.core.sealed import write_atomically

BEGIN, END = "<!-- figures: begin (written by `make figures`) -->", "<!-- figures: end -->"
TEXT = """\
## What the demo shows

{clients} devices of {architectures} architectures, each holding {own} classes of the embedded images; both methods were
given {rounds} rounds of {steps} steps of {batch} images a device. ρ is the number of images of other classes for each
image of an own class. Accuracy of device and cloud together in %, mean over devices, last round, seed {seed}:

{accuracy}

At ρ = {rho:g}, apart for own and other classes, for device and cloud alone, and for a routing that makes no mistake:

{apart}

SplitGP can average only within an architecture, so its cloud does not learn to read a class through an architecture
whose devices lack it. HARMONY pays for the classes that it gains with some of the own ones: a tenth of those goes to
the cloud as well. One seed of a small data set shows that the machinery works, not how good the method is.

What a device takes here: {median_ms} ms for the median local answer, {wire} bytes for a feature on the wire (the
request with everything around it; the raw image has {image}), {files} KiB of ONNX files (median device). Against the
limits that the project set itself, worst device each:

{limits}

Measured on {cpu}, {cores} cores, commit {commit}, by `make figures`; settings, versions and every figure
are in [results/demo.json](results/demo.json)."""


def publish(result: DemoResult, readme: Path) -> None:
    """Rewrite the block between the marks. ConfigError if the file has not both of them."""
    head, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"has no '{BEGIN}' … '{END}'", where=readme, mend="put both marks where the figures belong")
    write_atomically(readme, f"{head}{BEGIN}\n\n{block(result)}\n\n{END}{tail}".encode())


def block(result: DemoResult) -> str:
    """The Markdown between the marks."""
    config, host, bundles = result.configs["harmony"], result.bench.host, result.bench.bundles
    hottest = {name: curves.mean[-1] for name, curves in result.curves.items()}
    local = [one.hot.path(path) for one in bundles if one.hot for path in ("exit1", "exit2")]
    sent = [one.wire.request.median for one in bundles if one.wire.request]
    _, columns, rows = accuracy_rows(result.curves)
    limits = summary_rows(result.bench)[-1]
    return TEXT.format(
        clients=config["partition"]["clients"],
        architectures=len(set(config["architectures"])),
        own=", ".join(sorted({str(len(one.own_classes)) for one in bundles})),
        rounds=config["rounds"],
        steps=config["steps"],
        batch=config["batch"],
        seed=result.seed,
        accuracy=_table(columns, rows),
        rho=next(iter(hottest.values())).rho,
        apart=_apart(hottest),
        median_ms=f"{1000 * median(path.wall.median for path in local if path):.2g}",
        wire=f"{median(sent):.0f}" if sent else "no",
        image=f"{bundles[0].wire.image_bytes}",
        files=f"{median(one.file_bytes['onnxruntime'] for one in bundles) / 1024:.0f}",
        limits=_table(limits[1], limits[2]),
        cpu=host.cpu,
        cores=host.cores,
        commit=host.commit,
    )


def _apart(points: dict[str, CurvePoint]) -> str:
    columns = ("method", "own", "other", "device alone", "cloud alone", "perfect routing")
    rows = []
    for name, point in points.items():
        one = point.accuracy
        rows.append((name, *map(percent, (one.id, one.ood, one.client, one.server, one.oracle))))
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
