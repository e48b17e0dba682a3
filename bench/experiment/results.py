"""The schema of results/experiment-NAME.json. Shares of 1, times in seconds; None where there is nothing to measure."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from harmony.bench.experiment.grid import Grid, Role
from harmony.bench.results import Host, Versioned
from harmony.core.spec import Frozen
from harmony.train.diagnose import Diagnosis, Midway
from harmony.train.gates import GateJudgement
from harmony.train.traffic import Traffic

DIGITS = 5
"""Decimals of every measured float: accuracies of a test set need four."""
SETTINGS = ("config", "grid", "looks")


class CellResult(Frozen):
    """One finished training run.

    evaluation: what `harmony evaluate --json` gives, but `clients` are a few columns, with the values of one client
    after the other: architecture, auroc, and some accuracies at the first and the last ρ; losses: by term and round,
    means over clients; midway: looks at the models between rounds; before, after: features of the architectures
    compared, untrained and trained; cpu_seconds, wall_seconds: of training alone; processor: what trained it
    last, None where that was not noted yet and is the file's host's; gates: every exit gate judged, if the grid asks
    for it; traffic: None where it was not counted yet; commits: of the code that trained it (several, if it
    was resumed under another), and last of the code that evaluated it.
    """

    data: str
    split: str
    family: str
    method: str
    role: Role
    seed: Annotated[int, Field(ge=0)]
    folder: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    losses: dict[str, tuple[float, ...]]
    midway: tuple[Midway, ...]
    before: Diagnosis | None
    after: Diagnosis | None
    cpu_seconds: float
    wall_seconds: float
    processor: str | None = None
    gates: tuple[GateJudgement, ...] = ()
    traffic: Traffic | None = None
    harmony_version: str
    torch_version: str
    commits: tuple[str | None, ...]


class FailedCell(Frozen):
    """A cell that ended with an error, in one line."""

    data: str
    split: str
    family: str
    method: str
    seed: int
    folder: str
    error: str


class ExperimentResult(Versioned):
    """A grid's finished cells. planned: cells of the whole grid; failed: those whose last attempt ended in an error."""

    FORMAT: ClassVar[str] = "harmony-experiment"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-experiment"] = "harmony-experiment"
    format_version: Literal[1] = 1
    harmony_version: str
    grid: Grid
    host: Host
    planned: Annotated[int, Field(ge=1)]
    failed: tuple[FailedCell, ...]
    cells: tuple[CellResult, ...]


def rounded(value: Any) -> Any:
    """The same JSON value with floats of DIGITS decimals; settings stay as they are."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: one if key in SETTINGS else rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value
