"""Experiments: a grid of training runs, resumable cell by cell, and the tables and plots made of them.

grid      the TOML file and its cells        cell      one run, from training to its result
folders   where a cell lies, how far it is   pool      cells side by side
collect   finished cells → one result file   summary   cells → methods over seeds
tables    Markdown and CSV                   plots     matplotlib
published the report, docs/results.md and the README's tables
"""

from harmony.bench.experiment.collect import collect, restore, write_experiment
from harmony.bench.experiment.folders import folder_of, reopen, standing, unfinished
from harmony.bench.experiment.grid import Cell, Grid, cells_of, choose, load_grid
from harmony.bench.experiment.pool import Event, run_cells
from harmony.bench.experiment.results import CellResult, ExperimentResult

__all__ = [
    "Cell",
    "CellResult",
    "Event",
    "ExperimentResult",
    "Grid",
    "cells_of",
    "choose",
    "collect",
    "folder_of",
    "load_grid",
    "reopen",
    "restore",
    "run_cells",
    "standing",
    "unfinished",
    "write_experiment",
]
