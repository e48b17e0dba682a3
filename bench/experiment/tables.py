"""The tables of a report, in Markdown and CSV, from the result file alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from statistics import mean
from typing import NamedTuple

from harmony.bench.experiment.results import ExperimentResult
from harmony.bench.experiment.summary import (
    Line,
    Metric,
    Place,
    at,
    best_rival,
    differences,
    lines,
    metrics,
    ours,
    places,
    routing,
)

MAIN = ("low", "high", "worst_low", "worst_high", "client_id", "server_id", "server_ood", "cpu", "sent_kb", "got_kb")
ROUTING = ("switched", "fused", "oracle", "auroc", "fpr95", "own_sent", "other_kept", "sent")
FIXED = ("fixed_low", "fixed_high", "worst_fixed_low", "worst_fixed_high")
GAPS = ("low", "high", "worst_low", "worst_high", "server_ood")
GATE_FIELDS = ("auroc", "fpr95", "overall0", "overall", "id_to_server")
LOST = ("low", "high", "client_id", "server_ood", "oracle", "auroc")


class Table(NamedTuple):
    """A table with its heading; the first column is left-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a Markdown table, without the heading."""
        head = [self.columns, ("---", *["---:"] * (len(self.columns) - 1))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (*head, *self.rows))


def accuracy(result: ExperimentResult, place: Place, keys: Sequence[str] = MAIN) -> Table:
    """One place: methods against metrics, the best of ours and the rivals in bold."""
    here = lines(result, place)
    shown = [metric for metric in _unlike(result, keys) if any(line.values(metric) for line in here)]
    rows = tuple((line.method, *_bold(line, here, shown), line.seeds) for line in here)
    return Table(place.label, ("method", *(metric.name for metric in shown), "seeds"), rows)


def _unlike(result: ExperimentResult, keys: Sequence[str]) -> list[Metric]:
    """The metrics of some keys, but the largest ρ's where it is the smallest one, too."""
    known, twice = metrics(result), {"high", "worst_high"} if len(set(result.grid.rhos)) == 1 else set()
    return [known[key] for key in keys if key not in twice]


def _bold(line: Line, here: Sequence[Line], shown: Sequence[Metric]) -> Iterator[str]:
    for metric in shown:
        text = metric.shown(line.values(metric))
        yield f"**{text}**" if _is_best(line, here, metric) else text


def _is_best(line: Line, here: Sequence[Line], metric: Metric) -> bool:
    if metric.best is None or line.role == "reference":
        return False
    means = {one.method: one.mean(metric) for one in here if one.role != "reference"}
    known = [round(metric.scale * value, metric.digits) for value in means.values() if value is not None]
    mine = means.get(line.method)
    return len(known) > 1 and mine is not None and round(metric.scale * mine, metric.digits) == metric.best(known)


def over_rho(result: ExperimentResult, place: Place) -> Table:
    """One place: device and cloud together at every ρ."""
    rhos = sorted(result.grid.rhos)
    columns = [Metric(f"ρ {rho:g}", at(index, routing(result.grid))) for index, rho in enumerate(rhos)]
    here = lines(result, place)
    rows = tuple((line.method, *_bold(line, here, columns), line.seeds) for line in here)
    return Table(place.label, ("method", *(metric.name for metric in columns), "seeds"), rows)


def gaps(result: ExperimentResult) -> Table | None:
    """Ours minus the best rival, in points, paired by seed, at every place; None without ours or a rival."""
    shown = _unlike(result, GAPS)
    rows = []
    for place in places(result):
        here = lines(result, place)
        mine = ours(here)
        if mine is not None and best_rival(here, shown[0]) is not None:
            rows.append((place.label, *(_gap(mine, here, metric) for metric in shown)))
    return Table("", ("", *(metric.name for metric in shown)), tuple(rows)) if rows else None


def _gap(mine: Line, here: Sequence[Line], metric: Metric) -> str:
    rival = best_rival(here, metric)
    values = [] if rival is None else differences(mine, rival, metric)
    return f"{_signed(metric, values)} ({rival.method})" if rival is not None and values else "–"


def ablation(result: ExperimentResult, place: Place) -> Table | None:
    """What is lost or won without a part: the whole method, then differences to it in points, paired by seed."""
    here, known = lines(result, place), metrics(result)
    whole, parts = ours(here), [line for line in here if line.role == "ablation"]
    if whole is None or not parts:
        return None
    shown = [known[key] for key in LOST]
    rows = [(whole.method, *(metric.shown(whole.values(metric)) for metric in shown), whole.seeds)]
    for part in parts:
        rows.append((part.method, *(_signed(metric, differences(part, whole, metric)) for metric in shown), part.seeds))
    return Table(place.label, ("", *(metric.name for metric in shown), "seeds"), tuple(rows))


def _signed(metric: Metric, values: Sequence[float]) -> str:
    text = metric.shown(values).removeprefix("-")
    return f"{_sign(mean(values))}{text}" if values else text


def _sign(value: float) -> str:
    return "+" if value >= 0 else "−"


def representation(result: ExperimentResult, place: Place) -> Table | None:
    """CKA between architectures before and after training, and the probe; None where nothing was compared."""
    rows = []
    for line in lines(result, place):
        before = [cell.before for cell in line.cells if cell.before and cell.before.pairs]
        after = [cell.after for cell in line.cells if cell.after and cell.after.pairs]
        if after:
            figures = [
                [getattr(one, name) for one in both] for name in ("cka_cut", "cka_server") for both in (before, after)
            ]
            probes = [one.probe for one in after if one.probe is not None]
            chance = f"{100 * (after[0].chance or 0):.1f}"
            cka = Metric("", lambda cell: None, scale=1, digits=2)
            rows.append((line.method, *map(cka.shown, figures), Metric("", lambda cell: None).shown(probes), chance))
    columns = ("method", "cut, before", "cut, after", "cloud, before", "cloud, after", "probe", "chance")
    return Table(place.label, columns, tuple(rows)) if rows else None


def gates(result: ExperimentResult, place: Place) -> Table | None:
    """Every exit gate on the same checkpoints of ours; None where none was judged."""
    line = ours(lines(result, place))
    judged = [cell.gates for cell in line.cells if cell.gates] if line is not None else []
    if not judged:
        return None
    of = Metric("", lambda cell: None)
    rows = []
    for name in dict.fromkeys(one.name for cell in judged for one in cell):
        found = [one for cell in judged for one in cell if one.name == name]
        figures = [[getattr(one, field) for one in found] for field in GATE_FIELDS]
        rows.append((name, *map(of.shown, figures), f"{len(found)}"))
    low, high = metrics(result)["fixed_low"].name, metrics(result)["fixed_high"].name
    return Table(place.label, ("gate", "AUROC", "FPR95", low, high, "own sent", "seeds"), tuple(rows))


def budgets(result: ExperimentResult, place: Place) -> Table | None:
    """Ours, had its devices promised to send another share of own images; None where that was not counted."""
    line = ours(lines(result, place))
    counted = [cell.evaluation["budgets"] for cell in line.cells if cell.evaluation.get("budgets")] if line else []
    if not counted or len(set(result.grid.rhos)) == 1:
        return None
    of, rows = Metric("", lambda cell: None), []
    for same in zip(*counted, strict=True):
        figures = [*zip(*(one["adaptive"] for one in same), strict=True)]
        shares = [[one[name] for one in same if one[name] is not None] for name in ("id_to_server", "ood_to_client")]
        ends = [[one["word"][end] for one in same if one.get("word")] for end in (0, -1)]
        answered = [one["id_by_server"] for one in same if one.get("word")]
        shown = map(of.shown, (*figures, *shares, *ends, answered))
        rows.append((f"{100 * same[0]['budget']:g} %", *shown, f"{len(same)}"))
    rhos = [f"ρ {rho:g}" for rho in sorted(result.grid.rhos)]
    words = (f"{rhos[0]}, word", f"{rhos[-1]}, word", "own answered")
    return Table(place.label, ("promise", *rhos, "own sent", "other kept", *words, "seeds"), tuple(rows))


def beside_published(result: ExperimentResult, *, whole: bool = False) -> Table | None:
    """Accuracy at the smallest ρ, a column a data entry, published figures first; None if the grid names none.

    whole: only methods of ours that miss no seed anywhere.
    """
    grid, low = result.grid, metrics(result)["low"]
    if not grid.published:
        return None
    names = [data.name for data in grid.data]
    rows = [
        (other.name, *(f"{other.accuracy[name]:.2f}" if name in other.accuracy else "–" for name in names))
        for other in grid.published
    ]
    for method, split, family in product(grid.methods, grid.splits, grid.families):
        spots = [Place(name, split.name, family.name) for name in names]
        found = [next((one for one in lines(result, spot) if one.method == method.name), None) for spot in spots]
        if whole and not all(line is not None and line.whole for line in found):
            continue
        label = ", ".join([f"{method.name}, here", *(one.name for one in (split, family) if one.name != "all")])
        rows.append((label, *(_with_seeds(line, low) for line in found)))
    return Table("Beside published figures", ("method", *names), tuple(rows))


def _with_seeds(line: Line | None, metric: Metric) -> str:
    if line is None or not line.cells:
        return "–"
    text = metric.shown(line.values(metric))
    return text if len(line.cells) == line.planned else f"{text} ({line.seeds} seeds)"


def to_csv(result: ExperimentResult) -> str:
    """One row a cell and ρ, with every field of its mean curve; an empty cell is a value that does not exist."""
    rows = list(_csv_rows(result))
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_rows(result: ExperimentResult) -> Iterable[dict[str, object]]:
    for cell in result.cells:
        evaluation = cell.evaluation
        for curve, worst in zip(evaluation["mean"], evaluation["worst"], strict=True):
            yield {
                **{name: getattr(cell, name) for name in ("data", "split", "family", "method", "role", "seed")},
                **curve,
                "worst_tenth": worst,
                **{name: value for name, value in evaluation.items() if isinstance(value, int | float | None)},
                "cpu_seconds": cell.cpu_seconds,
                "wall_seconds": cell.wall_seconds,
            }
