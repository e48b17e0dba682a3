"""All finished cells of a grid in one file."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from harmony.bench.experiment.folders import RESULT, claimed, finished, folder_of, noted_error, unfinished, write_json
from harmony.bench.experiment.grid import Cell, Grid, cells_of, meaning_of
from harmony.bench.experiment.results import CellResult, ExperimentResult, FailedCell, rounded
from harmony.bench.host import Watch
from harmony.core.config import recorded_config
from harmony.core.errors import ConfigError, HarmonyError
from harmony.core.sealed import write_atomically
from harmony.train.diagnose import Diagnosis


def collect(grid: Grid, home: Path, watch: Watch) -> ExperimentResult:
    """The cells that are finished below `home`, whoever ran them, and how the last attempt at others failed.

    watch: started before the cells, so that the file says how quiet the machine was.
    """
    cells, failed = [], []
    plan = cells_of(grid)
    for cell in plan:
        try:
            result, error = finished(cell, home), noted_error(cell, home)
        except HarmonyError as damage:
            result, error = None, f"{type(damage).__name__}: {damage}"
        if result is not None:
            cells.append(_slim(result, grid))
        elif error is not None:
            names = {"data": cell.data, "split": cell.split, "family": cell.family, "method": cell.method}
            failed.append(FailedCell(**names, seed=cell.seed, folder=folder_of(cell, home).name, error=error))
    return ExperimentResult(
        harmony_version=importlib.metadata.version("harmony-sfl"),
        grid=grid,
        host=watch.host(),
        planned=len(plan),
        failed=tuple(failed),
        cells=tuple(cells),
    )


def restore(published: ExperimentResult, cells: Sequence[Cell], home: Path) -> int:
    """Take finished cells over from a result file, this grid's or another's, where `home` has none: how many.

    So a grid goes on although its folders are gone, a new result file never holds less than the old one, and what two
    grids ask alike is run once. What was not kept in the file, the trained networks above all, stays gone.
    """
    by_meaning = dict(_meanings(published))
    taken = [(cell, by_meaning[cell.meaning]) for cell in unfinished(cells, home) if cell.meaning in by_meaning]
    for cell, result in taken:
        with claimed(cell, home) as folder:
            write_json(folder / RESULT, result)
    return len(taken)


def _meanings(published: ExperimentResult) -> Iterator[tuple[str, CellResult]]:
    """What each cell was trained with, by the settings beside its numbers: the grid's defaults may be others today."""
    looks = {_names(cell): cell.looks for cell in cells_of(published.grid)}
    for one in published.cells:
        with suppress(ConfigError):  # trained with settings that this version no longer has
            trained_by = one.processor or published.host.cpu
            noted = one.model_copy(update={"processor": trained_by})
            yield meaning_of(recorded_config(one.config), looks[_names(one)]), noted


def _names(one: Cell | CellResult) -> tuple[object, ...]:
    return one.data, one.split, one.family, one.method, one.seed


def _slim(result: CellResult, grid: Grid) -> CellResult:
    """Plots of single points show the first seed; of the others they would only weigh."""
    if result.seed == grid.seeds[0]:
        return result
    bare = {name: one.model_copy(update={"scatter": None}) for name, one in _diagnoses(result).items()}
    return result.model_copy(update=bare)


def _diagnoses(result: CellResult) -> dict[str, Diagnosis]:
    both = {"before": result.before, "after": result.after}
    return {name: one for name, one in both.items() if one is not None}


def write_experiment(path: Path, result: ExperimentResult) -> None:
    """Write the result file, one cell a line, so that a new cell is one new line in its history."""
    value = rounded(result.model_dump(mode="json"))
    cells = value.pop("cells")
    lines = ",\n".join(json.dumps(cell, separators=(",", ":"), allow_nan=False, ensure_ascii=False) for cell in cells)
    head = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)[:-2]  # without the closing brace
    write_atomically(path, f'{head},\n "cells": [\n{lines}\n]}}\n'.encode())
