"""The figures that the README publishes: written between two marks from demos' result files, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median, stdev

from harmony.bench.demo import DemoResult
from harmony.bench.text import summary_rows
from harmony.core.errors import ConfigError
from harmony.core.sealed import write_atomically

BEGIN, END = "<!-- figures: begin (written by `make figures`) -->", "<!-- figures: end -->"
NAMES = {"splitgp": "SplitGP", "harmony": "HARMONY"}
TEXT = """\
## What the demo shows

{clients} devices of {architectures} architectures, each holding {own} classes of the embedded images; both methods were
given {rounds} rounds of {steps} steps of {batch} images a device. ρ is the number of images of other classes for each
image of an own class. Accuracy of device and cloud together in %, mean over devices, then mean ± standard deviation
over the seeds {seeds}, last round:

{accuracy}

At ρ = {rho:g}, apart for own and other classes, for device and cloud alone, and for a routing that makes no mistake:

{apart}

SplitGP can average only within an architecture, so its cloud does not learn to read a class through an architecture
whose devices lack it. HARMONY pays for the classes that it gains with some of the own ones: {budget} % of those may go
to the cloud as well, and a good gate sends just those that the cloud, too, takes for others. A small data set and few
rounds show that the machinery works, not how good the method can be.

What a device takes here (seed {seed}): {median_ms} ms for the median local answer, {wire} bytes for a feature on the
wire (the request with everything around it; the raw image has {image}), {files} KiB of ONNX files (median device).
Against the limits that the project set itself, worst device each:

{limits}

Measured on {cpu}, {cores} cores, commit {commit}, by `make figures`; settings, versions and every figure
are in [results/](results/)."""


def publish(results: Sequence[DemoResult], readme: Path) -> None:
    """Rewrite the block between the marks, from demos that differ in nothing but their seeds.

    ConfigError if the file has not both marks, or the demos are not of one kind.
    """
    _require_alike(results)
    rewrite(readme, BEGIN, END, block(results))


def rewrite(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a file. ConfigError if it has not both."""
    head, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise ConfigError(f"has no '{begin}' … '{end}'", where=path, mend="put both marks where the figures belong")
    write_atomically(path, f"{head}{begin}\n\n{text}\n\n{end}{tail}".encode())


def _require_alike(results: Sequence[DemoResult]) -> None:
    if len({result.seed for result in results}) < len(results) or not results:
        raise ConfigError("the results need a seed each, and there must be one", where="results")
    kinds = {str([config | {"seed": None} for config in result.configs.values()]) for result in results}
    if len(kinds) > 1 or any(result.fast for result in results):
        raise ConfigError("the results are not of one kind of demo", where="results", mend="run `make figures`")


def block(results: Sequence[DemoResult]) -> str:
    """The Markdown between the marks: accuracy of all results, costs of the first."""
    result = results[0]
    config, host, bundles = result.configs["harmony"], result.bench.host, result.bench.bundles
    local = [one.hot.path(path) for one in bundles if one.hot for path in ("exit1", "exit2")]
    sent = [one.wire.request.median for one in bundles if one.wire.request]
    limits = summary_rows(result.bench)[-1]
    return TEXT.format(
        clients=config["partition"]["clients"],
        architectures=len(set(config["architectures"])),
        own=", ".join(sorted({str(len(one.own_classes)) for one in bundles})),
        rounds=config["rounds"],
        steps=config["steps"],
        batch=config["batch"],
        budget=f"{100 * config['exits']['offload']:g}",
        seeds=", ".join(str(one.seed) for one in results),
        seed=result.seed,
        accuracy=_over_rho(results),
        rho=result.curves["harmony"].rhos[-1],
        apart=_apart(results),
        median_ms=f"{1000 * median(path.wall.median for path in local if path):.2g}",
        wire=f"{median(sent):.0f}" if sent else "no",
        image=f"{bundles[0].wire.image_bytes}",
        files=f"{median(one.file_bytes['onnxruntime'] for one in bundles) / 1024:.0f}",
        limits=markdown_table(limits[1], limits[2]),
        cpu=host.cpu,
        cores=host.cores,
        commit=host.commit,
    )


def _over_rho(results: Sequence[DemoResult]) -> str:
    rhos = results[0].curves["harmony"].rhos
    columns = ("method", *(f"ρ {rho:g}" for rho in rhos))
    return markdown_table(
        columns, [(NAMES[name], *(_spread(results, name, at, "overall") for at in range(len(rhos)))) for name in NAMES]
    )


def _apart(results: Sequence[DemoResult]) -> str:
    columns = ("method", "own", "other", "device alone", "cloud alone", "perfect routing")
    parts = ("id", "ood", "client", "server", "oracle")
    return markdown_table(
        columns, [(NAMES[name], *(_spread(results, name, -1, part) for part in parts)) for name in NAMES]
    )


def _spread(results: Sequence[DemoResult], method: str, at: int, part: str) -> str:
    """mean ± sample standard deviation over the results, in %."""
    values = [100 * getattr(one.curves[method].mean[at].accuracy, part) for one in results]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is left-aligned, the others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
