"""report.html: one file that needs nothing else, made from results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median

from harmony.bench import figures
from harmony.bench.curves import MethodCurves, curves_of
from harmony.bench.page import Figure, Section, Table, Tile, write_page
from harmony.bench.results import BenchResult, BundleResult
from harmony.bench.text import percent

_WORDS = frozenset({"holds", "profile", "answer by", "regime"})


def write_report(
    path: Path,
    title: str,
    result: BenchResult,
    *,
    curves: Mapping[str, MethodCurves] | None = None,
    lead: str = "",
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write the report to `path`, whole or not at all.

    curves: accuracy over ρ by method, None for what the bench itself measured; lead: one sentence under the title;
    provenance: facts beside those of the bench, such as the seed and the training config.
    """
    shown = dict(curves) if curves is not None else curves_of(result.bundles)
    write_page(
        path,
        title=title,
        lead=lead,
        tiles=_tiles(result, shown),
        sections=[_accuracy(shown), _answers(result), _bytes(result), *([_speed(result)] if result.speed else [])],
        facts=_facts(result) | dict(provenance or {}),
        version=result.harmony_version,
        words=_WORDS,
    )


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.3g}"


def _tiles(result: BenchResult, curves: Mapping[str, MethodCurves]) -> list[Tile]:
    bundles = result.bundles
    tiles = [
        Tile(
            f"{percent(method.mean[-1].accuracy.overall)} %",
            f"accuracy at ρ = {method.rhos[-1]:g}, {figures.method_name(name)}",
        )
        for name, method in sorted(curves.items(), key=lambda item: item[0] != "harmony")
    ]
    tiles.append(
        Tile(f"{percent(mean(one.hardest.cloud for one in bundles))} %", "of the images offloaded to the cloud")
    )
    local = [one.median_s for bundle in bundles for one in bundle.predictions if one.path != "cloud"]
    if local:
        tiles.append(Tile(figures.milliseconds(1000 * median(local)), "median answer on the device"))
    peak = max(one.process.peak_rss_bytes for one in bundles)
    return [*tiles, Tile(f"{peak / 1e6:.0f} MB", "peak memory of a device process")]


def _accuracy(curves: Mapping[str, MethodCurves]) -> Section:
    count = len(next(iter(curves.values())).clients)
    plots = []
    if any(len(method.rhos) > 1 for method in curves.values()):
        plots.append(
            Figure(
                "As unfamiliar images come in",
                f"What the system answers, from the device or the cloud. Line: mean over {count} clients; band: worst "
                "to best client.",
                figures.accuracy_by_rho(curves),
            )
        )
    rho = max(method.rhos[-1] for method in curves.values())
    plots.append(
        Figure(
            f"Who knows what, at ρ = {rho:g}",
            "Mean over clients. “Device alone” and “cloud alone” answer every image themselves; “perfect routing” "
            "sends exactly the images of other classes.",
            figures.accuracy_parts(curves),
        )
    )
    text = "ρ is the number of images of classes that a device does not hold, for each image of a class that it holds."
    return Section("Accuracy", text, plots, [_accuracy_table(curves)])


def _accuracy_table(curves: Mapping[str, MethodCurves]) -> Table:
    rows = [
        [
            figures.method_name(name),
            f"{point.rho:g}",
            *(percent(getattr(point.accuracy, part)) for part in figures.PARTS),
        ]
        for name, method in curves.items()
        for point in method.mean
    ]
    return Table("Mean accuracy over clients (%)", ["method", "ρ", *figures.PARTS.values()], rows)


def _answers(result: BenchResult) -> Section:
    rho = result.bundles[0].hardest.rho
    plots = [
        Figure(
            f"Who answered, at ρ = {rho:g}",
            "One row a device: client, architecture, and the share of its answers from each exit and the cloud (%).",
            figures.exit_shares(_first_engine(result)),
        )
    ]
    if any(one.predictions for one in result.bundles):
        plots.append(_latency_figure(result))
    text = (
        "A sample leaves at the first exit that is sure enough; what neither exit is sure of goes to the cloud as a "
        "feature. Links are virtual: each adds its round trip and the time of its bytes to what was measured here."
    )
    tables = [_devices_table(result, rho), _links_table(result), _timing_table(result)]
    return Section("Where answers come from, and what they cost", text, plots, tables)


def _devices_table(result: BenchResult, rho: float) -> Table:
    columns = ["device", "holds", "accuracy", "own", "other", "own, sent away", "other, kept", "degraded"]
    rows = [
        [
            _device(one),
            ", ".join(one.own_classes),
            *(percent(getattr(one.hardest.accuracy, part)) for part in ("overall", "id", "ood")),
            *(percent(share) for share in (one.hardest.offload_id, one.hardest.keep_ood, one.hardest.degraded)),
        ]
        for one in result.bundles
    ]
    return Table(f"Devices at ρ = {rho:g} (%)", columns, rows)


def _first_engine(result: BenchResult) -> list[BundleResult]:
    engine = result.bundles[0].engine
    return [one for one in result.bundles if one.engine == engine]


def _device(bundle: BundleResult) -> str:
    return f"{bundle.client} · {bundle.architecture} · {figures.ENGINE_NAMES[bundle.engine]}"


def _latency_figure(result: BenchResult) -> Figure:
    slowdown = result.settings.slowdown
    host = "of this host (k = 1)" if slowdown == 1 else f"{slowdown:g} × this host's"
    return Figure(
        "How long an answer takes",
        f"Virtual time: CPU time {host}, waiting for the cloud, and the link. Dot: median device; bar: fastest to "
        "slowest device.",
        figures.answer_latency(result),
    )


def _links_table(result: BenchResult) -> Table:
    rows = []
    for link in result.links:
        chosen = [one for bundle in result.bundles for one in bundle.predictions if one.link == link.name]
        values = [[one.median_s for one in chosen], [one.p90_s for one in chosen]]
        cold = [one.cold_median_s for one in chosen if one.cold_median_s is not None]
        cells = [_ms(median(value)) if value else "–" for value in [*values, cold]]
        rows.append([link.name, f"{link.rtt_ms:g}", f"{link.down_kbit:g} / {link.up_kbit:g}", *cells, link.source])
    columns = ["link", "RTT, ms", "down / up, kbit/s", "answer, ms", "p90, ms", "first (cold), ms", "profile"]
    return Table("Offloaded answers by link", columns, rows)


def _timing_table(result: BenchResult) -> Table:
    names = {"exit1": "exit 1", "exit2": "exit 2", "cloud": "cloud, loopback"}
    rows = [
        [
            _device(bundle),
            names[path.path],
            timing.conditions.regime,
            *(_ms(getattr(path.wall, part)) for part in ("min", "median", "p90", "p99")),
            _ms(path.cpu.median),
            _ms(path.bare.median if path.bare else None),
            f"{path.ratio.median:.2f} ({path.ratio.low:.2f} … {path.ratio.high:.2f})" if path.ratio else "–",
        ]
        for bundle in result.bundles
        for timing in bundle.timings
        for path in timing.paths
    ]
    columns = ["device", "answer by", "regime", "min", "median", "p90", "p99", "CPU", "bare engine", "ratio (rounds)"]
    return Table("Measured on this host (ms, wall clock; CPU: the thread's own time)", columns, rows)


def _bytes(result: BenchResult) -> Section:
    bundles = _first_engine(result)
    requests = [one.wire.request.median for one in bundles if one.wire.request]
    answers = [one.wire.answer.median for one in bundles if one.wire.answer]
    http = (
        f" An offload sends {median(requests):,.0f} and receives {median(answers):,.0f} bytes over HTTP, headers apart."
        if requests and answers
        else ""
    )
    plots = [
        Figure(
            "One sample on the wire",
            "The feature under each codec (the one in use stands out), beside the raw image, which never leaves the "
            f"device.{http}",
            figures.wire_bytes(bundles[0]),
        ),
        Figure("What is installed", "Engine files of each device.", figures.file_sizes(bundles)),
    ]
    columns = ["device", "parameters", "files, KiB", "peak memory, MB", "torch loaded", "CPU, s"]
    rows = [
        [
            _device(one),
            f"{one.parameters:,}",
            f"{one.file_bytes[one.engine] / 1024:.0f}",
            f"{one.process.peak_rss_bytes / 1e6:.1f}",
            "yes" if one.process.torch_loaded else "no",
            f"{one.process.cpu_s:.2f}",
        ]
        for one in result.bundles
    ]
    return Section(
        "Bytes and memory", "", plots, [Table("Device processes, each over its whole stream", columns, rows)]
    )


def _speed(result: BenchResult) -> Section:
    rows = [
        [
            bar.name,
            f"{bar.value:.3g} {bar.unit}".strip(),
            f"≤ {bar.limit:g} {bar.unit}".strip(),
            "met" if bar.met else "missed",
        ]
        for bar in result.speed
    ]
    return Section(
        "Against its limits", "", [], [Table("Measured beside the limit", ["what", "measured", "limit", ""], rows)]
    )


def _facts(result: BenchResult) -> dict[str, str]:
    host, settings = result.host, result.settings
    return {
        "host": f"{host.cpu}, {host.cores} cores (affinity {', '.join(map(str, host.affinity)) or 'unknown'}), "
        f"{host.memory_bytes / 2**30:.0f} GiB, {host.system}",
        "noise": f"steal {percent(host.steal)} %, load {host.load_before:.2f} before, {host.load_after:.2f} after",
        "software": ", ".join(f"{name} {version}" for name, version in host.versions.items())
        + f", Python {host.python}",
        "commit": host.commit or "not a checkout",
        "timing": f"{settings.rounds} rounds, device path and bare engine in turns; engines on 1 thread, "
        f"{' and '.join(sorted({one.conditions.precision for bundle in result.bundles for one in bundle.timings}))}; "
        f"regime {', '.join(settings.regimes)}",
        "data": ", ".join(sorted({one.dataset for one in result.bundles})),
        "runs": ", ".join(sorted({f"{one.run} ({figures.method_name(one.method)})" for one in result.bundles})),
        "settings": json.dumps(settings.model_dump(mode="json", exclude_none=True, exclude={"bundles"})),
    }
