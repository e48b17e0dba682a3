"""The results as a few small tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from harmony.bench.curves import MethodCurves
from harmony.bench.results import AnswerPath, Bar, BenchResult, BundleResult

TextTable = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def summary_rows(result: BenchResult) -> list[TextTable]:
    """(title, columns, rows) of: what devices know, what they cost, links, limits. At most 80 characters wide."""
    rho, several = max(result.settings.rhos), len(result.settings.engines) > 1
    names = [_name(one, several) for one in result.bundles]
    know = [(name, *_know(one)) for name, one in zip(names, result.bundles, strict=True)]
    cost = [(name, *_cost(one)) for name, one in zip(names, result.bundles, strict=True)]
    tables: list[TextTable] = [
        (f"What devices know at ρ = {rho:g} (%)", ("device", "system", "own", "other", "to cloud"), know),
        ("What they cost here (median)", ("device", "exit 1 ms", "exit 2 ms", "× bare", "KiB", "peak MB"), cost),
    ]
    links = [row for link in result.links if (row := _link(result, link.name))]
    if links:
        tables.append(("An answer by the cloud, virtual time", ("link", "median ms", "p90 ms", "first ms"), links))
    bars = [(one.name, f"{one.value:.3g}", f"≤ {one.limit:g}", one.unit, _verdict(one)) for one in result.speed]
    return [*tables, ("Against its limits", ("what", "measured", "limit", "unit", ""), bars)]


def _verdict(bar: Bar) -> str:
    return "met" if bar.met else "missed"


def accuracy_rows(curves: Mapping[str, MethodCurves]) -> TextTable:
    """System accuracy by method and ρ."""
    rhos = next(iter(curves.values())).rhos
    rows = [(name, *(percent(point.accuracy.overall) for point in one.mean)) for name, one in curves.items()]
    return "Accuracy (%), mean over clients", ("method", *(f"ρ {rho:g}" for rho in rhos)), rows


def _name(one: BundleResult, several: bool) -> str:
    return f"{one.name} {one.architecture}" + (f" {one.engine}" if several else "")


def _know(one: BundleResult) -> tuple[str, ...]:
    mix = one.hardest
    return tuple(map(percent, (mix.accuracy.overall, mix.accuracy.id, mix.accuracy.ood, mix.cloud)))


def _cost(one: BundleResult) -> tuple[str, ...]:
    ratio = one.hot.ratio if one.hot else None
    return (
        _ms(one, "exit1"),
        _ms(one, "exit2"),
        f"{ratio.median:.2f}" if ratio else "–",
        f"{one.file_bytes[one.engine] / 1024:.0f}",
        f"{one.process.peak_rss_bytes / 1e6:.0f}",
    )


def percent(share: float | None) -> str:
    """A share of 1 as percent with one digit; a dash where there is none."""
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
