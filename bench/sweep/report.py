"""report.html of a sweep: one file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from harmony.bench.figures import ENGINE_NAMES, method_name, milliseconds
from harmony.bench.page import Figure, Section, Table, Tile, write_page
from harmony.bench.sweep import plots
from harmony.bench.sweep.calibrate import spread
from harmony.bench.sweep.combine import Case, Combiner, Latency, bounds_of, cases
from harmony.bench.sweep.report_changes import changes_section
from harmony.bench.sweep.schema import SHIPPED, SweepResult
from harmony.bench.text import percent

WORDS = frozenset({
    "until", "regime", "architecture", "beyond noise",
    "engine", "precision", "answer by", "source", "core", "rule", "method", "device", "link", "model",
    "runtime", "date",
})  # fmt: skip
TIERS = {
    "virtual-time": "virtual time (CPU time of this host × a calibrated factor)",
    "arm-instructions": "Arm instructions (counted under emulation)",
    "constrained": "real constraints",
    "phone": "a real phone",
}


_FOLLOWING = (
    "Exit, following: the device asks the cloud only while its last inputs look unlike its own; fixed: whenever an "
    "input does."
)


def write_report(path: Path, result: SweepResult, *, before: SweepResult | None = None) -> None:
    """Write the page, whole or not at all. before: an earlier sweep of the same tier, whose changes come first."""
    device, rho = result.devices[0], max(result.settings.rhos)
    first = result.units[0]
    link = result.links[min(1, len(result.links) - 1)]
    regime = first.costs[0].regime
    shown = [
        one for one in cases(result, regime=regime) if (one.engine, one.precision) == (first.engine, first.precision)
    ]
    view = View(result, shown, device=device.name, link=link.name, rho=rho, regime=regime)
    write_page(
        path,
        title="HARMONY sweep",
        lead=_lead(result),
        tiles=_tiles(view),
        sections=[
            *([] if before is None else [changes_section(before, result)]),
            _tradeoffs(view),
            _bytes(view),
            _rho(view),
            _latency(view),
            _memory(view),
            _calibration(result),
        ],
        facts=_facts(result),
        version=result.harmony_version,
        words=WORDS,
    )


class View:
    """The cases that the plots show: one engine, precision and regime; a device, a link and a ρ where one has room."""

    def __init__(
        self, result: SweepResult, shown: Sequence[Case], *, device: str, link: str, rho: float, regime: str
    ) -> None:
        self.result, self.cases = result, shown
        self.device, self.link, self.rho, self.regime = device, link, rho, regime

    def at(self, *, device: str | None = None, link: str | None = None, rho: float | None = None) -> list[Case]:
        """Of one device, link and ρ; those without a link are always in."""
        wanted = (device or self.device, link or self.link, self.rho if rho is None else rho)
        return [
            one
            for one in self.cases
            if (one.device, one.rho) == (wanted[0], wanted[2]) and one.link in {None, wanted[1]}
        ]

    @property
    def conditions(self) -> str:
        """What all figures of it share, in words."""
        unit = self.result.units[0]
        return f"{ENGINE_NAMES[unit.engine]} ({unit.runtime}), {unit.precision}, 1 thread, {self.regime}"


def _lead(result: SweepResult) -> str:
    bundles = {unit.name for unit in result.units}
    methods = " and ".join(sorted({method_name(unit.method) for unit in result.units}))
    engines = len({unit.engine for unit in result.units})
    return (
        f"{len(bundles)} device bundles of {methods} under {engines} engine{'s' if engines > 1 else ''}, each measured "
        f"once; thresholds, devices and links are combined from that by arithmetic. Times are {TIERS[result.tier]}."
    )


def _tiles(view: View) -> list[Tile]:
    tiles = []
    shipped = {(unit.name, unit.shipped.rule.name) for unit in view.result.units}
    here = [one for one in view.at() if (one.name, one.rule) in shipped]
    for method in sorted({one.method for one in here}, key=lambda name: name != "harmony"):
        mine = [one for one in here if one.method == method]
        accuracy = mean(one.accuracy.overall for one in mine)
        tiles.append(Tile(f"{percent(accuracy)} %", f"accuracy at ρ = {view.rho:g}, {method_name(method)}, as shipped"))
    first = min(here, key=lambda one: (one.method != "harmony", one.client))
    time, between = _range_ms(first.latency, "mean")
    tiles.append(Tile(time, f"({between}) mean answer of {first.name}, {view.device}, {view.link}"))
    tiles.append(Tile(f"{mean(one.sent_bytes for one in here):,.0f} B", "sent for an image, mean"))
    peak = max(one.peak_bytes for one in here) / 2**20
    return [*tiles, Tile(f"{peak:.1f} MiB", "peak memory of a device process")]


def _tradeoffs(view: View) -> Section:
    figures = [
        Figure(
            f"On {view.device} over {link.name}",
            f"{link.down_kbit / 1000:g} Mbit/s down, {link.up_kbit / 1000:g} up, {link.rtt_ms:g} ms round trip.",
            plots.tradeoff(
                plots.spots(view.at(link=link.name), plots.latency_ms),
                name=f"latency-{link.name}",
                cost="mean time to an answer (ms, log scale)",
                log=True,
            ),
        )
        for link in view.result.links
    ]
    figures += [
        Figure(
            f"On {device.name} over {view.link}",
            f"{device.title}: {device.core}.",
            plots.tradeoff(
                plots.spots(view.at(device=device.name), plots.latency_ms),
                name=f"latency-{device.name}",
                cost="mean time to an answer (ms, log scale)",
                log=True,
            ),
        )
        for device in view.result.devices
        if device.name != view.device
    ]
    return Section(
        "Accuracy for time",
        f"{view.conditions}. Mean over all clients at ρ = {view.rho:g}; accuracy is of images that no threshold was "
        f"chosen on. {_FOLLOWING} Every dot of a line is another share of own images that may be sent; thin bars: "
        "where the truth is to be expected.",
        figures,
        [_rules_table(view)],
    )


def _rules_table(view: View) -> Table:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in view.at():
        groups.setdefault((case.method, case.rule), []).append(case)
    rows = []
    for (method, rule), group in groups.items():
        means = [mean(one) for one in zip(*map(plots.latency_ms, group), strict=True)]
        rows.append([
            method_name(method), rule, percent(mean(one.accuracy.overall for one in group)),
            percent(mean(one.offloaded for one in group)), percent(mean(one.offload_id for one in group)),
            _range(means),
            f"{1000 * max(one.latency.p90_s for one in group):.3g}", f"{mean(one.sent_bytes for one in group):,.0f}",
        ])  # fmt: skip
    columns = [
        "method", "rule", "accuracy, %", "sent, %", "own sent, %", "mean, ms (range)", "p90, ms (worst client)",
        "bytes sent",
    ]  # fmt: skip
    return Table(f"Rules on {view.device} over {view.link} at ρ = {view.rho:g}", columns, rows)


def _bytes(view: View) -> Section:
    spots = plots.spots(view.at(), plots.sent_bytes)
    figure = Figure(
        f"For what is sent, at ρ = {view.rho:g}",
        "HTTP body and headers of what goes up, mean over all images, those that are answered on the device too.",
        plots.tradeoff(spots, name="bytes", cost="bytes sent for an image", log=False),
    )
    units = plots.one_of_each(view.result.units)
    rows = [
        [
            unit.architecture, ENGINE_NAMES[unit.engine], unit.precision, f"{unit.file_bytes / 1024:.0f}",
            unit.codec, f"{unit.frame_bytes:,}", f"{unit.request_bytes:,}", f"{unit.answer_bytes:,}",
            f"{unit.image_bytes:,}", *([f"{one / 1e6:.2f}" for one in unit.macs] if unit.macs else ["–", "–"]),
        ]
        for unit in units
    ]  # fmt: skip
    columns = [
        "architecture", "engine", "precision", "files, KiB", "codec", "feature, B", "request, B", "answer, B",
        "raw image, B", "MACs exit 1, M", "MACs exit 2, M",
    ]  # fmt: skip
    return Section("Accuracy for bytes", "", [figure], [Table("Sizes, first client of each kind", columns, rows)])


def _rho(view: View) -> Section:
    shipped = {*SHIPPED, "cloud-feature", "cloud-image"}
    mine = [
        one for one in view.cases if one.rule in shipped and one.device == view.device and one.link in {None, view.link}
    ]
    figures = [
        Figure(
            "As unfamiliar images come in",
            "Thresholds as shipped. Dotted: who answers alone.",
            plots.over_rho(mine),
        )
    ]
    if (least := min(view.result.settings.rhos)) < view.rho:
        figures.append(
            Figure(
                f"At ρ = {least:g}, for what is sent",
                "What a fixed threshold sends here, it sends in vain: nothing unfamiliar comes.",
                plots.tradeoff(
                    plots.spots(view.at(rho=least), plots.sent_bytes), name="bytes-least",
                    cost="bytes sent for an image", log=False,
                ),
            )
        )  # fmt: skip
    text = "ρ is how many images of other classes come for each own one. Mean over all clients."
    return Section("Accuracy over ρ", text, figures, [_rho_table(mine)])


def _rho_table(mine: Sequence[Case]) -> Table:
    groups: dict[tuple[str, str, float], list[Case]] = {}
    for case in mine:
        groups.setdefault((case.method, case.rule, case.rho), []).append(case)
    rows = [
        [
            method_name(method), rule, f"{rho:g}",
            *(percent(_mean_of(group, part)) for part in ("overall", "id", "ood")),
            *(percent(mean(values)) for values in zip(*((c.exit1, c.exit2, c.offloaded) for c in group), strict=True)),
        ]
        for (method, rule, rho), group in groups.items()
    ]  # fmt: skip
    columns = ["method", "rule", "ρ", "accuracy", "own", "other", "exit 1", "exit 2", "cloud"]
    return Table("Accuracy and where answers come from (%)", columns, rows)


def _mean_of(group: Sequence[Case], part: str) -> float | None:
    values = [getattr(one.accuracy, part) for one in group]
    return None if None in values else mean(values)


def _latency(view: View) -> Section:
    result, rows = view.result, []
    for unit in plots.one_of_each(result.units):
        for costs in unit.costs:
            for device in result.devices:
                combiner = Combiner(result, unit, costs.regime)
                for path, one in combiner.by_path(device, result.links).items():
                    rows.append([
                        unit.architecture, ENGINE_NAMES[unit.engine], unit.precision, costs.regime, device.name, path,
                        *(f"{1000 * value:.3g}" for value in (one.min_s, one.median_s, one.p90_s, one.p99_s)),
                        f"{1000 * one.median_low_s:.3g} … {1000 * one.median_high_s:.3g}",
                        f"{unit.first_cost * device.reference.ms:.3g}",
                    ])  # fmt: skip
    columns = [
        "architecture", "engine", "precision", "regime", "device", "answer by", "min", "median", "p90", "p99",
        "median between", "first answer",
    ]  # fmt: skip
    figure = Figure(
        f"By the exit that is taken, on {view.device}",
        "First client of each architecture. Dot: prediction; bar: where the truth is to be expected.",
        plots.path_latencies(result),
    )
    text = "The spread between percentiles is this host's, not a phone's; the range beside the median is what matters."
    return Section("Latency by exit", text, [figure], [Table("Predicted latency (ms)", columns, rows)])


def _memory(view: View) -> Section:
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    result = view.result
    for unit in result.units:
        mix = next(one for one in unit.shipped.mixes if one.rho == view.rho)
        key: tuple[str, str, str, str] = (unit.method, unit.architecture, unit.engine, unit.precision)
        groups.setdefault(key, []).append(mix.accuracy.overall)
    figure = Figure(
        f"For memory, at ρ = {view.rho:g}",
        "One dot a method, architecture, engine and precision, thresholds as shipped. harmony-run is the device in "
        "C++; a Python process carries Python with it.",
        plots.memory(result, {key: mean(values) for key, values in groups.items()}),
    )
    rows = [
        [
            unit.architecture, ENGINE_NAMES[unit.engine], unit.runtime, unit.precision, f"{unit.parameters:,}",
            f"{unit.memory.peak_bytes / 2**20:.1f}", unit.memory.process,
        ]
        for unit in plots.one_of_each(result.units)
    ]  # fmt: skip
    columns = ["architecture", "engine", "runtime", "precision", "parameters", "peak, MiB", "of a process of"]
    return Section("Accuracy for memory", "", [figure], [Table("Peak memory", columns, rows)])


def _calibration(result: SweepResult) -> Section:
    rows = []
    for device in result.devices:
        row = device.reference
        for one in result.calibrations:
            factor = "–" if one.host_s is None else f"{row.ms / 1000 / one.host_s.median:.2f}"
            bounds = bounds_of(one, device, one.precision)
            rows.append([
                device.name, device.core, ENGINE_NAMES[one.engine], f"{row.ms:g}", row.engine, row.precision,
                str(row.threads), row.date or "not told", factor, f"{bounds.low:.2f} … {bounds.high:.2f}", row.source,
            ])  # fmt: skip
    columns = [
        "device", "core", "engine", "published, ms", "by", "in", "threads", "date", "k", "truth / prediction", "source",
    ]  # fmt: skip
    checks = [
        [
            check.device, check.model, ENGINE_NAMES[one.engine], f"{1000 * check.published_s:g}",
            f"{1000 * check.predicted_s:.1f}", f"{100 * check.error:+.0f} %",
        ]
        for one in result.calibrations
        for check in one.checks
    ]  # fmt: skip
    tables = [
        Table("Devices, and where their figures come from", columns, rows),
        Table(
            "Published figures that calibration has not seen",
            ["device", "model", "engine", "published, ms", "predicted, ms", "error"],
            checks,
        ),
    ]
    lows, highs = zip(*(spread(one.checks) for one in result.calibrations), strict=True)
    text = (
        "A device is what MobileNetV1-224 was published to take on it; k is that over what it takes here, in the same "
        f"engine. For other published models the truth lay between {min(lows):.2f} and {max(highs):.2f} of the "
        "prediction, and every range in this report says so."
    )
    figures = []
    if any(one.checks for one in result.calibrations):
        figures.append(
            Figure(
                "How far off it is", "One dot a device, the mean beside them.", plots.calibration(result.calibrations)
            )
        )
    return Section("Calibration", text, figures, tables)


def _range(values: Iterable[float]) -> str:
    value, low, high = values
    return f"{value:.3g} ({low:.3g} … {high:.3g})"


def _range_ms(latency: Latency, name: str) -> tuple[str, str]:
    value, low, high = (1000 * float(getattr(latency, f"{name}{part}_s")) for part in ("", "_low", "_high"))
    return milliseconds(value), f"{low:.2g} … {high:.2g}"


def _facts(result: SweepResult) -> dict[str, str]:
    host = result.host
    return {
        "tier": f"{result.tier}: {TIERS[result.tier]}",
        "host": f"{host.cpu}, {host.cores} cores, {host.memory_bytes / 2**30:.0f} GiB, {host.system}",
        "noise": f"steal {percent(host.steal)} %, load {host.load_before:.2f} before, {host.load_after:.2f} after",
        "software": ", ".join(f"{name} {release}" for name, release in host.versions.items()),
        "commit": host.commit or "not a checkout",
        **{bar.name: f"{bar.value:.2g} {bar.unit} (limit {bar.limit:g} {bar.unit})" for bar in result.speed},
        "took": f"{result.seconds:.0f} s for what was not kept from an earlier sweep",
        "runs": ", ".join(sorted({f"{unit.run} ({method_name(unit.method)})" for unit in result.units})),
        "cloud": "; ".join(
            f"{run}: {1000 * one.server_s:.2f} ms of CPU a request, {one.requests} requests"
            for run, one in result.clouds.items()
        )
        or "none",
        "settings": json.dumps(result.settings.model_dump(mode="json", exclude={"bundles"})),
    }
