"""Experiments: a grid of training runs, resumable cell by cell, and the tables and plots made of them.

grid      the TOML file and its cells        cell      one run, from training to its result
pool      cells side by side                 collect   finished cells → results/experiment-NAME.json
"""

from harmony.bench.experiment.cell import reopen, standing
from harmony.bench.experiment.collect import collect, write_experiment
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
    "load_grid",
    "reopen",
    "run_cells",
    "standing",
    "write_experiment",
]
