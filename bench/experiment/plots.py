"""The plots of a report, each from the result file alone, as matplotlib figures on white."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from harmony.bench.experiment.results import CellResult, ExperimentResult
from harmony.bench.experiment.summary import Line, Place, best_rival, lines, metrics, ours, places, routing
from harmony.train.diagnose import Diagnosis, Scatter

INK, MUTED, GRID = "#1c2430", "#5d6878", "#dfe3e8"
COLOURS = ("#0067a8", "#c2500a", "#00805c", "#8a5a9e", "#b58a00", "#b03060", "#4a7a8c", "#7a6a5a", "#33a0c0", "#8a9a2a")
"""Ours has the first; the others follow in the grid's order."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "harmony",  # the same figure gives the same bytes
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDE, HIGH = 4.4, 3.1
"""Inches of one panel."""
LINE = 0.2
"""Inches of a legend's line."""
Draw = Callable[[Axes, ExperimentResult, Sequence[Line], Mapping[str, str]], None]


def save_plots(result: ExperimentResult, folder: Path, kinds: Sequence[str] = ("svg", "png")) -> None:
    """Write every plot that the result has data for, as NAME-PLOT.svg and .png."""
    for name, draw in _plots(result).items():
        figure = draw()
        for kind in kinds:
            path = folder / f"{result.grid.name}-{name}.{kind}"
            with matplotlib.rc_context(_STYLE):
                figure.savefig(path, dpi=110, metadata={"Date": None} if kind == "svg" else None)


def plot_names(result: ExperimentResult) -> list[str]:
    """Names of the plots' files without ending."""
    return [f"{result.grid.name}-{name}" for name in _plots(result)]


def _plots(result: ExperimentResult) -> dict[str, Callable[[], Figure]]:
    """What there is data for."""
    here = {place: [line for line in lines(result, place) if line.cells] for place in places(result)}
    curved = list(here) if len(set(result.grid.rhos)) > 1 else []
    compared = [place for place in here if any(one.pairs for one in _afters(here[place]))]
    gated = [place for place in curved if any(one.gate for one in _afters(here[place]))]
    height = 1.2 + 0.42 * len(result.grid.methods)
    plots: dict[str, tuple[list[Place], Callable[[], Figure]]] = {
        "rho": (curved, lambda: _panels(result, curved, _accuracy_over_rho, legend=True)),
        "rounds": (curved, lambda: _panels(result, curved, _server_ood_over_rounds, legend=True)),
        "clients": (curved, lambda: _panels(result, curved, _clients, legend=True)),
        "gate": (gated, lambda: _panels(result, gated, _gate, legend=True)),
        "cka": (compared, lambda: _panels(result, compared, _cka, height=height)),
        "features": (compared, lambda: _scatters(result, compared)),
    }
    return {name: draw for name, (spots, draw) in plots.items() if spots}


def _panels(
    result: ExperimentResult, spots: Sequence[Place], draw: Draw, *, legend: bool = False, height: float = HIGH
) -> Figure:
    """One panel a place, two beside each other, one legend for all."""
    columns = min(2, len(spots))
    rows = -(-len(spots) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDE * columns, height * rows + (0.5 if legend else 0)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        colours = _colours(result)
        for axes, place in zip(grid.flat, spots, strict=False):
            axes.set_title(place.label)
            draw(axes, result, [line for line in lines(result, place) if line.cells], colours)
        for axes in list(grid.flat)[len(spots) :]:
            axes.set_visible(False)
        if legend:
            _legend(figure, list(grid.flat)[: len(spots)], colours)
    return figure


def _legend(figure: Figure, panels: Sequence[Axes], order: Iterable[str]) -> None:
    known: dict[str, Artist] = {}
    for axes in panels:
        known |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [name for name in order if name in known]
    handles = [known[name] for name in names]
    for columns in (3, 2, 1):
        legend = figure.legend(handles, names, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + LINE * max(0, rows - 3))  # three have room


def _colours(result: ExperimentResult) -> dict[str, str]:
    order = sorted(result.grid.methods, key=lambda method: method.role != "ours")
    return {method.name: COLOURS[index % len(COLOURS)] for index, method in enumerate(order)}


def _band(axes: Axes, line: Line, x: ArrayLike, rows: ArrayLike, colour: str) -> None:
    """Mean over seeds, and a band of one standard deviation on either side; a reference is dashed."""
    values = 100 * np.asarray(rows, dtype=np.float64)
    middle = values.mean(0)
    style = "--" if line.role == "reference" else "-"
    axes.plot(x, middle, style, color=colour, lw=2.2 if line.role == "ours" else 1.5, label=line.method)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, middle - spread, middle + spread, color=colour, alpha=0.15, lw=0)


def _accuracy_over_rho(axes: Axes, result: ExperimentResult, here: Sequence[Line], colours: Mapping[str, str]) -> None:
    for line in here:
        rows = [[one.get(routing(result.grid)) for one in cell.evaluation["mean"]] for cell in line.cells]
        _band(axes, line, sorted(result.grid.rhos), rows, colours[line.method])
    _name_axes(axes, "ρ: images of other classes for each own one", "accuracy (%)")


def _server_ood_over_rounds(
    axes: Axes, result: ExperimentResult, here: Sequence[Line], colours: Mapping[str, str]
) -> None:
    for line in here:
        cells = [cell for cell in line.cells if cell.midway]
        if cells:
            rounds = [look.round for look in cells[0].midway]
            rows = [[look.server_ood for look in cell.midway] for cell in cells]
            _band(axes, line, rounds, rows, colours[line.method])
    axes.set_ylim(bottom=0)
    _name_axes(axes, "round", "cloud on other classes (%)")


def _clients(axes: Axes, result: ExperimentResult, here: Sequence[Line], colours: Mapping[str, str]) -> None:
    """Clients' accuracies at the largest ρ, sorted, mean over seeds by rank: bars for ours, steps for the others."""
    for line in here:
        ranked = 100 * np.mean([sorted(cell.evaluation["clients"]["last"]["overall"]) for cell in line.cells], 0)
        places_ = np.arange(len(ranked))
        if line.role == "ours":
            axes.bar(places_, ranked, width=0.8, color=colours[line.method], alpha=0.35, label=line.method, lw=0)
        else:
            style = "--" if line.role == "reference" else "-"
            axes.step(places_, ranked, style, where="mid", color=colours[line.method], lw=1.5, label=line.method)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # nobody is half a client
    _name_axes(axes, "clients, worst to best", f"accuracy at ρ = {max(result.grid.rhos):g} (%)")


def _gate(axes: Axes, result: ExperimentResult, here: Sequence[Line], colours: Mapping[str, str]) -> None:
    axes.plot([0, 100], [0, 100], color=GRID, lw=1)
    for line in here:
        curves = [np.asarray(cell.after.gate) for cell in line.cells if cell.after and cell.after.gate]
        if curves:
            _band(axes, line, 100 * curves[0][:, 0], [curve[:, 1] for curve in curves], colours[line.method])
    _name_axes(axes, "other classes kept (%)", "own classes kept (%)")


def _cka(axes: Axes, result: ExperimentResult, here: Sequence[Line], colours: Mapping[str, str]) -> None:
    """Two bars a method: features at the cut and θ's embeddings; a tick where each was before training."""
    here = [line for line in here if any(one.pairs for one in _afters([line]))]
    for row, line in enumerate(here):
        for offset, name, shade in ((-0.2, "cka_cut", 0.45), (0.2, "cka_server", 1.0)):
            after = [value for one in _afters([line]) if (value := getattr(one, name)) is not None]
            before = [value for one in _befores([line]) if (value := getattr(one, name)) is not None]
            if not after:
                continue
            middle, start = float(np.mean(after)), float(np.mean(before)) if before else 0.0
            axes.barh(row + offset, middle, height=0.36, color=colours[line.method], alpha=shade)
            spot = (max(middle, start), row + offset)
            axes.annotate(f"{middle:.2f}", spot, (4, 0), textcoords="offset points", va="center", size=8)
            if before:
                axes.plot([start] * 2, [row + offset - 0.18, row + offset + 0.18], color=INK, lw=1.5)
    axes.set_yticks(range(len(here)), [line.method for line in here])
    axes.set_ylim(len(here) - 0.5, -0.5)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("CKA")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _afters(here: Sequence[Line]) -> list[Diagnosis]:
    return [cell.after for line in here for cell in line.cells if cell.after is not None]


def _befores(here: Sequence[Line]) -> list[Diagnosis]:
    return [cell.before for line in here for cell in line.cells if cell.before is not None]


def _scatters(result: ExperimentResult, spots: Sequence[Place]) -> Figure:
    """θ's embeddings on their principal plane, ours and the best rival's: by class, and by architecture."""
    first = {place.data: place for place in reversed(spots)}.values()  # of each data set; all would be a large file
    rows = [(place, line, scatter) for place in reversed(first) for line, scatter in _scattered(result, place)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2 * WIDE, HIGH * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), 2, squeeze=False)
        for (left, right), (place, line, scatter) in zip(grid, rows, strict=True):
            left.set_title(f"{line.method}: {place.label}, by class")
            right.set_title("the same, by architecture")
            _dots(left, scatter, scatter.label, None)
            _dots(right, scatter, scatter.architecture, scatter.architectures)
    return figure


def _scattered(result: ExperimentResult, place: Place) -> Iterator[tuple[Line, Scatter]]:
    here = lines(result, place)
    for line in (ours(here), best_rival(here, metrics(result)["high"])):
        cell: CellResult | None = line.cells[0] if line is not None and line.cells else None
        if line is not None and cell is not None and cell.after is not None and cell.after.scatter is not None:
            yield line, cell.after.scatter


def _dots(axes: Axes, scatter: Scatter, kinds: Sequence[int], names: Sequence[str] | None) -> None:
    of, x, y = np.asarray(kinds), np.asarray(scatter.x), np.asarray(scatter.y)
    palette = matplotlib.colormaps["tab10" if names else "tab20"]
    for kind in np.unique(of):
        name = names[kind] if names else None
        axes.plot(
            x[of == kind], y[of == kind], "o", ms=3, mew=0, alpha=0.7, color=palette(int(kind) % palette.N), label=name
        )
    if names:
        axes.legend(loc="best", fontsize=7.5, markerscale=1.6)
    axes.set_xticks([])
    axes.set_yticks([])


def _name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
