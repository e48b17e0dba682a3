"""The plots of a sweep, each from results alone. Colour tells the method, the mark tells who answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harmony.bench import svg
from harmony.bench.figures import ENGINE_NAMES, method_name
from harmony.bench.sweep.choices import pareto
from harmony.bench.sweep.combine import Case, Combiner
from harmony.bench.sweep.compare import CostChange
from harmony.bench.sweep.schema import Calibration, Strategy, SweepResult, Unit

MARKS: dict[Strategy, str] = {
    "following": "o",
    "fallback": "v",
    "device": "^",
    "cloud-feature": "D",
    "cloud-image": "s",
}
LINES: dict[Strategy, str] = {"following": "-", "fallback": "--"}
"""Of those whose dots are budgets."""
STRATEGIES: dict[Strategy, str] = {
    "following": "exit, following",
    "fallback": "exit, fixed",
    "device": "device alone",
    "cloud-feature": "cloud, feature",
    "cloud-image": "cloud, image",
}


class Spot(NamedTuple):
    """Means over all clients. cost: with its range; accuracy: share."""

    method: str
    strategy: Strategy
    rule: str
    cost: float
    low: float
    high: float
    accuracy: float


CostOf = Callable[[Case], tuple[float, float, float]]


def latency_ms(case: Case) -> tuple[float, float, float]:
    """Mean latency in ms with its range."""
    one = case.latency
    return 1000 * one.mean_s, 1000 * one.mean_low_s, 1000 * one.mean_high_s


def sent_bytes(case: Case) -> tuple[float, float, float]:
    """Bytes to the cloud, mean over all images."""
    return (case.sent_bytes,) * 3


def spots(cases: Iterable[Case], cost: CostOf) -> list[Spot]:
    """One a method and rule."""
    groups: dict[tuple[str, Strategy, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.method, case.strategy, case.rule), []).append(case)
    found = []
    for (method, strategy, rule), group in groups.items():
        costs = list(zip(*map(cost, group), strict=True))
        accuracy = mean(one.accuracy.overall for one in group)
        cost_, low, high = (mean(column) for column in costs)
        found.append(Spot(method, strategy, rule, cost_, low, high, accuracy))
    return found


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """HARMONY always has the first colour."""
    order = sorted(dict.fromkeys(methods), key=lambda name: name != "harmony")
    return {name: svg.METHODS[min(index, len(svg.METHODS) - 1)] for index, name in enumerate(order)}


def tradeoff(found: Sequence[Spot], *, name: str, cost: str, log: bool) -> str:
    """Accuracy against a cost: a line a method over its budgets, marks for the rest, and the Pareto front behind."""
    colours = method_colours(one.method for one in found)
    with svg.drawing(290) as (figure, axes):
        front = [found[index] for index in pareto([(one.cost, one.accuracy) for one in found])]
        axes.plot(
            [one.cost for one in front], [100 * one.accuracy for one in front], color=svg.GRID, lw=7, alpha=0.8,
            solid_capstyle="round", drawstyle="steps-post", zorder=0,
        )  # fmt: skip
        for method, colour in colours.items():
            for strategy in reversed(MARKS):
                mine = [one for one in found if (one.method, one.strategy) == (method, strategy)]
                _series(axes, mine, colour, strategy)
        if log:
            svg.log_scale(axes)
        axes.margins(y=0.13)
        _name_methods(axes, found, colours)
        axes.set_xlabel(cost)
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        _legend(axes, {one.strategy for one in found})
        return svg.to_svg(figure, name, f"Accuracy against {cost}, by method and by who answers, with the Pareto front")


def _series(axes: Axes, mine: Sequence[Spot], colour: str, strategy: Strategy) -> None:
    ordered = sorted(mine, key=lambda one: one.cost)
    for one in ordered:
        axes.plot([one.low, one.high], [100 * one.accuracy] * 2, color=colour, lw=1, alpha=0.3)
    costs, accuracies = [one.cost for one in ordered], [100 * one.accuracy for one in ordered]
    following = strategy == "following"
    axes.plot(
        costs, accuracies, MARKS[strategy], ls=LINES.get(strategy, ""), lw=1.8 if following else 1, ms=5.5,
        color=colour, alpha=1 if following else 0.85,
    )  # fmt: skip


def _name_methods(axes: Axes, found: Sequence[Spot], colours: Mapping[str, str]) -> None:
    for method, colour in colours.items():
        mine = [one for one in found if one.method == method and one.strategy in LINES]
        if not mine:
            continue
        top = max(mine, key=lambda one: one.accuracy)
        middle = axes.transAxes.inverted().transform(axes.transData.transform((top.cost, 100 * top.accuracy)))
        right = bool(middle[0] > 0.5)  # a name is written where there is room for it
        axes.annotate(
            method_name(method), (top.cost, 100 * top.accuracy), (-8 if right else 8, 8), textcoords="offset points",
            ha="right" if right else "left", color=colour, weight="bold",
        )  # fmt: skip


def _legend(axes: Axes, shown: set[Strategy]) -> None:
    marks = [
        Line2D([], [], color=svg.MUTED, marker=MARKS[name], ls=LINES.get(name, ""), ms=5.5, label=label)
        for name, label in STRATEGIES.items()
        if name in shown
    ]
    marks.append(Line2D([], [], color=svg.GRID, lw=7, label="best for its cost"))
    axes.legend(
        handles=marks, loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3, frameon=False, fontsize=10.5,
        handletextpad=0.5, columnspacing=1.2, borderpad=0.1, labelspacing=0.3,
    )  # fmt: skip


def over_rho(cases: Iterable[Case]) -> str:
    """Accuracy over ρ with the thresholds as shipped: a line a method and strategy."""
    groups: dict[tuple[str, Strategy], dict[float, list[float]]] = {}
    for case in cases:
        rows = groups.setdefault((case.method, case.strategy), {})
        rows.setdefault(case.rho, []).append(case.accuracy.overall)
    colours = method_colours(method for method, _ in groups)
    with svg.drawing(290) as (figure, axes):
        for (method, strategy), rows in groups.items():
            rhos = sorted(rows)
            best = next((one for one in LINES if (method, one) in groups), None)
            axes.plot(
                rhos, [100 * mean(rows[rho]) for rho in rhos], marker=MARKS[strategy], color=colours[method],
                ms=5.5, lw=2.2 if strategy == best else 1, ls=LINES.get(strategy, ":"),
            )  # fmt: skip
            if strategy == best:
                axes.annotate(
                    method_name(method), (rhos[-1], 100 * mean(rows[rhos[-1]])), (8, 0), textcoords="offset points",
                    va="center", color=colours[method], weight="bold",
                )  # fmt: skip
        axes.set_xlabel("ρ: images of other classes for each own one")
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        _legend(axes, {strategy for _, strategy in groups})
        axes.get_legend().legend_handles[-1].set_visible(False)  # type: ignore[union-attr]
        axes.get_legend().texts[-1].set_visible(False)  # type: ignore[union-attr]
        return svg.to_svg(figure, "over-rho", "Accuracy over ρ by method and by who answers")


def memory(result: SweepResult, accuracy_of: Mapping[tuple[str, str, str, str], float]) -> str:
    """Peak memory of a device process against the system's accuracy: a mark an engine and precision, a colour a method.

    accuracy_of: by method, architecture, engine and precision.
    """
    kinds = list(dict.fromkeys((unit.engine, unit.precision) for unit in result.units))
    marks: dict[tuple[str, str], str] = {kind: "oP^Ds"[index % 5] for index, kind in enumerate(kinds)}
    colours = method_colours(unit.method for unit in result.units)
    peaks: dict[tuple[str, str, str, str], float] = {}
    for unit in result.units:
        key: tuple[str, str, str, str] = (unit.method, unit.architecture, unit.engine, unit.precision)
        peaks[key] = max(peaks.get(key, 0.0), unit.memory.peak_bytes / 2**20)
    with svg.drawing(270) as (figure, axes):
        for key, peak in peaks.items():
            method, _, engine, precision = key
            axes.plot(peak, 100 * accuracy_of[key], marks[engine, precision], ms=8, color=colours[method], alpha=0.85)
        wide = max(peaks.values()) > 3 * min(peaks.values())
        if wide:
            svg.log_scale(axes)
        axes.margins(x=0.12, y=0.15)
        axes.set_xlabel(f"peak memory of a device process (MiB{', log scale' if wide else ''})")
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="both")
        axes.spines["left"].set_visible(False)
        handles = [
            Line2D([], [], color=svg.MUTED, marker=marks[kind], ls="", ms=7, label=_runtime(result, *kind))
            for kind in kinds
        ]
        handles += [Line2D([], [], color=colour, lw=5, label=method_name(name)) for name, colour in colours.items()]
        axes.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, frameon=False, fontsize=10.5
        )
        return svg.to_svg(figure, "memory", "Accuracy against peak memory, by engine and method")


def _runtime(result: SweepResult, engine: str, precision: str) -> str:
    unit = next(one for one in result.units if (one.engine, one.precision) == (engine, precision))
    return f"{ENGINE_NAMES[unit.engine]} {precision}, {unit.memory.process}"


def path_latencies(result: SweepResult, device_index: int = 0) -> str:
    """Median latency by architecture, engine and exit on one device, with its range. Log scale."""
    device = result.devices[device_index]
    rows = []
    for unit in one_of_each(result.units):
        latencies = Combiner(result, unit, unit.costs[0].regime).by_path(device, ())
        rows.append((_unit_name(unit), latencies))
    with svg.drawing(76 + 34 * len(rows)) as (figure, axes):
        for y, (_, latencies) in enumerate(rows):
            for shift, (path, colour) in enumerate((("exit 1", svg.EXIT1), ("exit 2", svg.EXIT2))):
                one, at = latencies[path], y + 0.3 * (shift - 0.5)
                axes.plot(
                    [1000 * one.median_low_s, 1000 * one.median_high_s], [at, at], color=colour, lw=5, alpha=0.45,
                    solid_capstyle="round",
                )  # fmt: skip
                axes.plot(1000 * one.median_s, at, "o", ms=7, color=colour)
                axes.annotate(
                    f"{1000 * one.median_s:.2g}", (1000 * one.median_high_s, at), (7, 0), textcoords="offset points",
                    va="center", size=9.5,
                )  # fmt: skip
                if y == 0:
                    axes.annotate(
                        path, (1000 * one.median_s, -0.45), (0, 7), textcoords="offset points", ha="center",
                        size=10.5, color=svg.MUTED,
                    )  # fmt: skip
        svg.log_scale(axes)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -1.1)
        axes.margins(x=0.14)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(f"median on {device.name} (ms, log scale)")
        return svg.to_svg(figure, "paths", f"Latency by exit on {device.name}, by architecture and engine")


def one_of_each(units: Iterable[Unit]) -> list[Unit]:
    """The first unit of each architecture, engine and precision."""
    found: dict[tuple[str, str, str], Unit] = {}
    for unit in units:
        found.setdefault((unit.architecture, unit.engine, unit.precision), unit)
    return sorted(found.values(), key=lambda one: (one.engine, one.precision, one.architecture))


def _unit_name(unit: Unit) -> str:
    precision = "" if unit.precision == "fp32" else f" {unit.precision}"
    return f"{unit.architecture}\n{ENGINE_NAMES[unit.engine]}{precision}"


def calibration(calibrations: Sequence[Calibration]) -> str:
    """How far off the same way of predicting is for models that calibration has not seen."""
    colours = (svg.EXIT1, svg.CLOUD, svg.EXIT2)
    models = list(dict.fromkeys(check.model for one in calibrations for check in one.checks))
    with svg.drawing(84 + 40 * len(models)) as (figure, axes):
        for index, one in enumerate(calibrations):
            for y, model in enumerate(models):
                errors = [100 * check.error for check in one.checks if check.model == model]
                at = y + 0.26 * (index - (len(calibrations) - 1) / 2)
                axes.plot(errors, [at] * len(errors), "o", ms=6, color=colours[index % 3], alpha=0.8)
                axes.annotate(
                    f"{mean(errors):+.0f} %",
                    (max(errors), at),
                    (8, 0),
                    textcoords="offset points",
                    va="center",
                    size=10,
                )
        axes.axvline(0, color=svg.INK, lw=1)
        axes.set_yticks(range(len(models)), [name.replace("mobilenet-", "MobileNet ") for name in models])
        axes.set_ylim(len(models) - 0.4, -0.6)
        axes.margins(x=0.18)
        axes.set_xlabel("predicted over published, less one (%)")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        handles = [
            Line2D([], [], color=colours[index % 3], marker="o", ls="", ms=6, label=ENGINE_NAMES[one.engine])
            for index, one in enumerate(calibrations)
        ]
        axes.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3, frameon=False, fontsize=10.5
        )
        return svg.to_svg(figure, "calibration", "Error of predictions for published models, by engine")


def changes(found: Sequence[CostChange]) -> str:
    """Cost after over before, a row an engine and path."""
    rows = list(dict.fromkeys((one.unit.engine, one.path) for one in found))
    names = {"exit1": "to exit 1", "exit2": "to exit 2", "send": "to the frame"}
    with svg.drawing(70 + 30 * len(rows)) as (figure, axes):
        axes.axvline(1, color=svg.INK, lw=1)
        for y, key in enumerate(rows):
            for one in (one for one in found if (one.unit.engine, one.path) == key):
                face = svg.METHODS[0] if one.apart else "none"
                axes.plot(one.ratio, y, "o", ms=7, color=svg.METHODS[0], markerfacecolor=face, alpha=0.8)
        axes.set_yticks(range(len(rows)), [f"{ENGINE_NAMES[engine]}, {names[path]}" for engine, path in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.9), max(high, 1.1))
        axes.set_xlabel("cost, after over before")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        return svg.to_svg(figure, "changes", "Cost after over before, by engine and path")
