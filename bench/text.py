"""The results as a few small tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from harmony.bench.curves import MethodCurves
from harmony.bench.results import AnswerPath, BenchResult, BundleResult

TextTable = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def summary_rows(result: BenchResult) -> list[TextTable]:
    """(title, columns, rows) of: devices, links, bars."""
    rho = max(result.settings.rhos)
    columns = ("device", "accuracy", "own", "other", "cloud %", "exit 1 ms", "exit 2 ms", "KiB", "peak MB", "× bare")
    tables: list[TextTable] = [
        (f"Devices at ρ = {rho:g} (latency: median on this host)", columns, [_device(one) for one in result.bundles])
    ]
    links = [row for link in result.links if (row := _link(result, link.name))]
    if links:
        tables.append(("An answer by the cloud, in virtual time", ("link", "median ms", "p90 ms", "first ms"), links))
    bars = [
        (one.name, f"{one.value:.3g} {one.unit}", f"≤ {one.limit:g}", "met" if one.met else "missed")
        for one in result.speed
    ]
    return [*tables, ("Against its limits", ("what", "measured", "limit", ""), bars)]


def accuracy_rows(curves: Mapping[str, MethodCurves]) -> TextTable:
    """System accuracy by method and ρ."""
    rhos = next(iter(curves.values())).rhos
    rows = [(name, *(_percent(point.accuracy.overall) for point in one.mean)) for name, one in curves.items()]
    return "Accuracy (%), mean over clients", ("method", *(f"ρ {rho:g}" for rho in rhos)), rows


def _device(one: BundleResult) -> tuple[str, ...]:
    accuracy, ratio = one.hardest.accuracy, one.hot.ratio if one.hot else None
    return (
        f"{one.name} {one.architecture} {one.engine}",
        _percent(accuracy.overall),
        _percent(accuracy.id),
        _percent(accuracy.ood),
        _percent(one.hardest.cloud),
        _ms(one, "exit1"),
        _ms(one, "exit2"),
        f"{one.file_bytes[one.engine] / 1024:.0f}",
        f"{one.process.peak_rss_bytes / 1e6:.0f}",
        f"{ratio.median:.2f}" if ratio else "–",
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _ms(bundle: BundleResult, path: AnswerPath) -> str:
    timing = bundle.hot.path(path) if bundle.hot else None
    return f"{1000 * timing.wall.median:.3g}" if timing else "–"


def _link(result: BenchResult, name: str) -> tuple[str, ...] | None:
    found = [one for bundle in result.bundles for one in bundle.predictions if one.link == name]
    if not found:
        return None
    cold = [one.cold_median_s for one in found if one.cold_median_s is not None]
    columns = ([one.median_s for one in found], [one.p90_s for one in found], cold)
    return name, *(f"{1000 * median(column):.3g}" for column in columns)
