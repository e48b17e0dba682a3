"""A grid's cells put in order: place by place, method by method, over the seeds. Shares of 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, NamedTuple

from harmony.bench.experiment.grid import Grid, Role
from harmony.bench.experiment.results import CellResult, ExperimentResult


class Place(NamedTuple):
    """Where methods are compared: data, how they are split, which architectures the clients have."""

    data: str
    split: str
    family: str

    @property
    def label(self) -> str:
        """In words; an axis with one nameless entry is left out."""
        return ", ".join(name for name in self if name != "all")


@dataclass(frozen=True)
class Line:
    """A method at a place: its finished cells, one a seed, of `planned`."""

    method: str
    role: Role
    planned: int
    cells: tuple[CellResult, ...]

    def values(self, metric: Metric) -> list[float]:
        """One a seed; seeds without it are left out."""
        return [value for cell in self.cells if (value := metric.of(cell)) is not None]

    def mean(self, metric: Metric) -> float | None:
        """Mean over the seeds, None without one."""
        values = self.values(metric)
        return mean(values) if values else None

    @property
    def whole(self) -> bool:
        """Whether no seed is missing."""
        return len(self.cells) == self.planned

    @property
    def seeds(self) -> str:
        """How many seeds it rests on: `3`, or `2 of 3`."""
        return f"{self.planned}" if self.whole else f"{len(self.cells)} of {self.planned}"


@dataclass(frozen=True)
class Metric:
    """A number of a cell. best: whether more or less of it is better, None if neither; scale: for people, 100 for %;
    counted: found by arithmetic, so that seeds have nothing to spread."""

    name: str
    of: Callable[[CellResult], float | None]
    best: Callable[[list[float]], float] | None = max
    scale: float = 100
    digits: int = 1
    counted: bool = False

    def shown(self, values: Sequence[float]) -> str:
        """mean ± sample standard deviation over the seeds; a dash without any."""
        if not values:
            return "–"
        scaled = [self.scale * value for value in values]
        spread = f" ± {stdev(scaled):.{self.digits}f}" if len(scaled) > 1 and not self.counted else ""
        return f"{mean(scaled):.{self.digits}f}{spread}"


def at(end: int, name: str) -> Callable[[CellResult], float | None]:
    """A field of the mean curve: end 0 is the smallest ρ, −1 the largest."""
    return lambda cell: _number(cell.evaluation["mean"][end].get(name))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def routing(grid: Grid) -> str:
    """The field of a curve that stands for a method: thresholds that follow the stream, where streams differ."""
    return "adaptive" if len(set(grid.rhos)) > 1 else "overall"


def _worst(end: int, field: str) -> Callable[[CellResult], float | None]:
    name = {"overall": "worst", "adaptive": "worst_adaptive"}[field]
    return lambda cell: _number(cell.evaluation[name][end]) if cell.evaluation.get(name) else None


def _of_evaluation(name: str) -> Callable[[CellResult], float | None]:
    return lambda cell: _number(cell.evaluation.get(name))


def _traffic(name: str) -> Callable[[CellResult], float | None]:
    return lambda cell: None if cell.traffic is None else float(getattr(cell.traffic, name))


def metrics(result: ExperimentResult) -> dict[str, Metric]:
    """What tables show, by a short key, for the grid's smallest and largest ρ."""
    grid = result.grid
    low, high = f"ρ = {min(grid.rhos):g}", f"ρ = {max(grid.rhos):g}"
    return {
        "low": Metric(low, at(0, field := routing(grid))),
        "high": Metric(high, at(-1, field)),
        "worst_low": Metric(f"worst 10 %, {low}", _worst(0, field)),
        "worst_high": Metric(f"worst 10 %, {high}", _worst(-1, field)),
        "fixed_low": Metric(f"{low}, fixed", at(0, "overall")),
        "fixed_high": Metric(f"{high}, fixed", at(-1, "overall")),
        "worst_fixed_low": Metric(f"worst 10 %, {low}, fixed", _worst(0, "overall")),
        "worst_fixed_high": Metric(f"worst 10 %, {high}, fixed", _worst(-1, "overall")),
        "client_id": Metric("device, own", at(-1, "client_id")),
        "server_id": Metric("cloud, own", at(-1, "server_id")),
        "server_ood": Metric("cloud, other", at(-1, "server_ood")),
        "switched": Metric("cloud's word", at(-1, "switched")),
        "fused": Metric("fused", at(-1, "fused")),
        "oracle": Metric("perfect routing", at(-1, "oracle")),
        "auroc": Metric("AUROC", _of_evaluation("auroc")),
        "fpr95": Metric("FPR95", _of_evaluation("fpr95"), best=min),
        "own_sent": Metric("own sent", at(-1, "id_to_server"), best=None),
        "other_kept": Metric("other kept", at(-1, "ood_to_client"), best=None),
        "sent": Metric("sent", at(-1, "offload"), best=None),
        "sent_kb": Metric("kB sent", _traffic("sent"), best=None, scale=1e-3, counted=True),
        "got_kb": Metric("kB got", _traffic("got"), best=None, scale=1e-3, counted=True),
        "cpu": Metric("CPU s", lambda cell: cell.cpu_seconds, best=None, scale=1, digits=0),
    }


def places(result: ExperimentResult) -> tuple[Place, ...]:
    """The grid's places with a finished cell, in its order."""
    grid = result.grid
    known = {Place(cell.data, cell.split, cell.family) for cell in result.cells}
    order = (
        Place(data.name, split.name, family.name)
        for data in grid.data
        for split in grid.splits
        for family in grid.families
    )
    return tuple(place for place in order if place in known)


def lines(result: ExperimentResult, place: Place) -> tuple[Line, ...]:
    """The methods that the grid runs at a place, in its order; a line may have no cell yet."""
    grid = result.grid
    here = [cell for cell in result.cells if (cell.data, cell.split, cell.family) == place]
    return tuple(
        Line(
            method.name,
            method.role,
            len(grid.seeds),
            tuple(sorted((cell for cell in here if cell.method == method.name), key=lambda cell: cell.seed)),
        )
        for method in grid.methods
        if method.runs_on(place.data, place.family)
    )


def ours(lines: Sequence[Line]) -> Line | None:
    """The line that the others are compared with."""
    return next((line for line in lines if line.role == "ours" and line.cells), None)


def best_rival(lines: Sequence[Line], metric: Metric) -> Line | None:
    """The rival with the best mean; references and ablations are no rivals."""
    rivals = [line for line in lines if line.role == "rival" and line.values(metric)]
    return max(rivals, key=lambda line: line.mean(metric) or 0.0, default=None)


def differences(line: Line, other: Line, metric: Metric) -> list[float]:
    """`line` minus `other`, seed by seed, where both have one: seeds share data and initial weights."""
    theirs = {cell.seed: metric.of(cell) for cell in other.cells}
    pairs = [(metric.of(cell), theirs.get(cell.seed)) for cell in line.cells]
    return [mine - their for mine, their in pairs if mine is not None and their is not None]
