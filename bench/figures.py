"""The plots of the report, each from results alone. Labels stand beside what they name, in place of legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes

from harmony.bench import svg
from harmony.bench.curves import MethodCurves
from harmony.bench.results import AnswerPath, BenchResult, BundleResult, Prediction

METHOD_NAMES = {"harmony": "HARMONY", "splitgp": "SplitGP"}
PARTS = {
    "overall": "system",
    "id": "own classes",
    "ood": "other classes",
    "client": "device alone",
    "server": "cloud alone",
    "oracle": "perfect routing",
}
"""Fields of Accuracy, in the words of the report."""
ENGINE_NAMES = {"onnxruntime": "ONNX", "executorch": "ExecuTorch"}


def method_name(method: str) -> str:
    """How the report writes a method."""
    return METHOD_NAMES.get(method, method)


def _method_colours(curves: Mapping[str, MethodCurves]) -> dict[str, str]:
    """HARMONY always has the first colour."""
    order = sorted(curves, key=lambda name: name != "harmony")
    return {name: svg.METHODS[min(index, len(svg.METHODS) - 1)] for index, name in enumerate(order)}


def accuracy_by_rho(curves: Mapping[str, MethodCurves]) -> str:
    """System accuracy against ρ: a line for the mean over clients, a band from the worst to the best client."""
    colours = _method_colours(curves)
    with svg.drawing(250) as (figure, axes):
        ends = []
        for name, method in curves.items():
            mean = [100 * point.accuracy.overall for point in method.mean]
            columns = list(
                zip(*([100 * p.accuracy.overall for p in one.points] for one in method.clients), strict=True)
            )
            axes.fill_between(
                method.rhos, [min(c) for c in columns], [max(c) for c in columns], color=colours[name], alpha=0.12, lw=0
            )
            axes.plot(method.rhos, mean, color=colours[name], lw=2.2, marker="o", ms=4.5)
            ends.append((method.rhos[-1], mean[-1], f"{method_name(name)} {mean[-1]:.1f}", colours[name]))
        _label_ends(axes, ends)
        axes.set_xlabel("ρ: images of other classes for each own one")
        axes.set_ylabel("accuracy (%)")
        axes.set_ylim(top=min(100.0, axes.get_ylim()[1]))
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        return svg.to_svg(figure, "accuracy", "System accuracy against the share of other classes, by method")


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names right of the lines' ends, pushed apart where lines end close together."""
    low, high = axes.get_ylim()
    gap, last = 0.075 * (high - low), float("-inf")
    for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
        last = max(y, last + gap)
        axes.annotate(text, (x, last), (8, 0), textcoords="offset points", color=colour, va="center", weight="bold")
    axes.margins(x=0.02)


def accuracy_parts(curves: Mapping[str, MethodCurves]) -> str:
    """Mean accuracy at the largest ρ, split by who was asked and about what: a dot a method, one row a part."""
    colours = _method_colours(curves)
    last = {name: method.mean[-1].accuracy for name, method in curves.items()}
    rows = [part for part in PARTS if all(getattr(one, part) is not None for one in last.values())]
    with svg.drawing(64 + 30 * len(rows)) as (figure, axes):
        for y, part in enumerate(rows):
            values = {name: 100 * getattr(one, part) for name, one in last.items()}
            axes.plot(
                [min(values.values()), max(values.values())], [y, y], color=svg.GRID, lw=5, solid_capstyle="round"
            )
            for name, value in values.items():
                axes.plot(value, y, "o", ms=9, color=colours[name])
                right = value >= max(values.values())
                axes.annotate(
                    f"{value:.1f}",
                    (value, y),
                    (9 if right else -9, 0),
                    textcoords="offset points",
                    va="center",
                    ha="left" if right else "right",
                    color=colours[name],
                    size=11,
                )
        _name_methods(axes, {name: 100 * getattr(one, rows[0]) for name, one in last.items()}, colours)
        axes.set_yticks(range(len(rows)), [PARTS[part] for part in rows])
        axes.set_ylim(len(rows) - 0.5, -0.9)
        axes.margins(x=0.2)
        axes.set_xlabel("accuracy (%)")
        _bare_rows(axes)
        return svg.to_svg(figure, "parts", "Accuracy by part of the system, by method")


def _name_methods(axes: Axes, values: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Methods' names over the dots of the first row, growing apart so that they cannot meet."""
    order = sorted(values, key=lambda name: values[name])
    for place, name in enumerate(order):
        first, last = place == 0, place == len(order) - 1
        side = "center" if first == last else "right" if first else "left"
        axes.annotate(
            method_name(name),
            (values[name], 0),
            ({"right": 5, "left": -5, "center": 0}[side], 11),
            textcoords="offset points",
            ha=side,
            color=colours[name],
            weight="bold",
        )


def exit_shares(bundles: Sequence[BundleResult]) -> str:
    """Where each device's answers came from over its hardest mix: one stacked bar a device, 100 % wide."""
    kinds = (
        ("exit1", "exit 1", svg.EXIT1, svg.ON_EXIT1),
        ("exit2", "exit 2", svg.EXIT2, svg.ON_EXIT2),
        ("cloud", "cloud", svg.CLOUD, svg.ON_CLOUD),
    )
    with svg.drawing(58 + 25 * len(bundles)) as (figure, axes):
        for y, bundle in enumerate(bundles):
            left = 0.0
            for field, name, colour, on in kinds:
                share = 100 * getattr(bundle.hardest, field)
                axes.barh(y, share, left=left, height=0.74, color=colour)
                if share >= 9:
                    axes.text(left + share / 2, y, f"{share:.0f}", color=on, ha="center", va="center", size=11)
                if y == 0:
                    axes.text(left + share / 2, -0.75, name, ha="center", color=svg.MUTED, size=11)
                left += share
        axes.set_yticks(range(len(bundles)), [_device_label(one) for one in bundles])
        axes.set_ylim(len(bundles) - 0.5, -1.2)
        axes.set_xlim(0, 100)
        axes.set_xlabel("answers (%)")
        _bare_rows(axes, grid=False)
        return svg.to_svg(figure, "exits", "Share of answers from exit 1, exit 2 and the cloud, by device")


def _device_label(bundle: BundleResult) -> str:
    return f"{bundle.client}  {bundle.architecture}"


def answer_latency(result: BenchResult) -> str:
    """Predicted latency of an answer by the way it takes: median over devices, and the devices' range. Log scale."""
    rows = [(label, chosen) for label, chosen in _predicted(result) if chosen]
    with svg.drawing(60 + 27 * len(rows)) as (figure, axes):
        for y, (_, chosen) in enumerate(rows):
            values = [1000 * one.median_s for one in chosen]
            colour = svg.CLOUD if chosen[0].path == "cloud" else svg.EXIT1
            axes.plot([min(values), max(values)], [y, y], color=colour, lw=5, alpha=0.35, solid_capstyle="round")
            axes.plot(median(values), y, "o", ms=9, color=colour)
            axes.annotate(
                milliseconds(median(values)),
                (max(values), y),
                (10, 0),
                textcoords="offset points",
                va="center",
                size=11,
            )
        svg.log_scale(axes)
        axes.margins(x=0.2)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("median latency of an answer (ms, log scale)")
        _bare_rows(axes)
        return svg.to_svg(figure, "latency", "Latency of local answers and of answers by the cloud, by link")


def _predicted(result: BenchResult) -> list[tuple[str, list[Prediction]]]:
    predictions = [one for bundle in result.bundles for one in bundle.predictions]
    local: tuple[tuple[str, AnswerPath], ...] = (("exit 1", "exit1"), ("exit 2", "exit2"))
    rows = [(label, [one for one in predictions if one.path == path]) for label, path in local]
    return rows + [
        (f"cloud, {link.name}", [one for one in predictions if one.link == link.name]) for link in result.links
    ]


def milliseconds(value: float) -> str:
    """Three significant digits and the unit."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def wire_bytes(bundle: BundleResult) -> str:
    """Size of one feature frame by codec, beside the raw image: a bar each, the codec in use highlighted."""
    rows: list[tuple[str, int, str]] = [
        (one.codec, one.frame_bytes, svg.CLOUD if one.codec == bundle.wire.codec else svg.EXIT2)
        for one in bundle.wire.codecs
    ]
    rows.append(("raw image", bundle.wire.image_bytes, svg.GRID))
    with svg.drawing(56 + 28 * len(rows)) as (figure, axes):
        for y, (_, size, colour) in enumerate(rows):
            axes.barh(y, size, height=0.66, color=colour)
            axes.annotate(f"{size:,}", (size, y), (6, 0), textcoords="offset points", va="center", size=11)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        axes.set_xlabel("bytes of one sample")
        _bare_rows(axes)
        return svg.to_svg(figure, "wire", "Bytes of one feature on the wire, by codec")


def file_sizes(bundles: Sequence[BundleResult]) -> str:
    """Engine files of each device in KiB: one bar an engine."""
    engines = sorted({engine for one in bundles for engine in one.file_bytes}, reverse=True)
    colours = dict(zip(engines, (svg.EXIT1, svg.EXIT2), strict=False))
    height = 0.8 / len(engines)
    with svg.drawing(58 + (14 * len(engines) + 8) * len(bundles)) as (figure, axes):
        for y, bundle in enumerate(bundles):
            for index, engine in enumerate(engines):
                size = bundle.file_bytes.get(engine, 0) / 1024
                place = y + (index - (len(engines) - 1) / 2) * height
                axes.barh(place, size, height=0.92 * height, color=colours[engine])
                text = f"{size:.0f}  {ENGINE_NAMES[engine]}" if y == 0 else f"{size:.0f}"
                axes.annotate(text, (size, place), (5, 0), textcoords="offset points", va="center", size=10.5)
        axes.set_yticks(range(len(bundles)), [_device_label(one) for one in bundles])
        axes.set_ylim(len(bundles) - 0.5, -0.55)
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.set_xlabel("files of one device (KiB)")
        _bare_rows(axes)
        return svg.to_svg(figure, "files", "Size of the engine files by device")


def _bare_rows(axes: Axes, *, grid: bool = True) -> None:
    """Rows need no axis on the left and no ticks: their labels are enough."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if grid:
        axes.grid(axis="x")
