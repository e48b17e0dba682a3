"""Cells: what they hold, that they go on after a kill, and what becomes of one that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from harmony.bench.experiment import (
    Cell,
    Event,
    Grid,
    cells_of,
    collect,
    folder_of,
    load_grid,
    reopen,
    restore,
    run_cells,
    standing,
    unfinished,
    write_experiment,
)
from harmony.bench.experiment.cell import run_cell
from harmony.bench.experiment.folders import require_finished
from harmony.bench.experiment.results import ExperimentResult
from harmony.bench.host import Watch
from harmony.bench.result_files import read_result
from harmony.core.data import load
from harmony.core.errors import ArtifactCorrupt
from harmony.train import Progress, evaluate

# A cell in a process of its own that is killed after some rounds. argv: the grid, the folder, rounds.
KILLED = """
import os, signal, sys
from pathlib import Path
from harmony.bench.experiment import cells_of, load_grid
from harmony.bench.experiment.cell import run_cell
from harmony.bench.experiment.folders import require_finished

def die(progress):
    if progress.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

run_cell(cells_of(load_grid(Path(sys.argv[1])))[0], Path(sys.argv[2]), commit="first", on_progress=die)
"""


def cell_named(grid: Grid, method: str) -> Cell:
    return next(cell for cell in cells_of(grid) if cell.method == method)


def test_a_result_is_what_training_and_evaluating_alone_give(grid: Grid, ran: Path) -> None:
    cell = cell_named(grid, "SplitGP")
    folder, result = folder_of(cell, ran), require_finished(cell, ran)
    whole = evaluate(folder / "run/checkpoint", load(cell.config.data.name), rhos=cell.rhos, seed=0)
    for mine, theirs in zip(result.evaluation["mean"], whole.mean, strict=True):
        assert mine == pytest.approx(theirs.model_dump(mode="json"), abs=1e-5)
    overall = [one.curve[-1].overall for one in whole.clients]
    assert result.evaluation["clients"]["last"]["overall"] == pytest.approx(overall, abs=1e-5)
    assert result.commits == ("0123456789ab",)
    assert [look.round for look in result.midway] == [0, 1, 2]
    assert len(result.losses["server"]) == 2
    assert result.cpu_seconds > 0
    assert result.before is not None
    assert result.after is not None
    assert len(result.after.pairs) == 1
    assert not (folder / "run" / "state").exists()


def test_killed_and_resumed_gives_the_same_numbers(grid: Grid, grid_file: Path, ran: Path, tmp_path: Path) -> None:
    cell = cells_of(grid)[0]
    died = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, grid_file, tmp_path, "1"], check=False)
    assert died.returncode == -signal.SIGKILL
    assert standing(cell, tmp_path) == "round 1"
    result = run_cell(cell, tmp_path, commit="second")
    whole = require_finished(cell, ran)
    apart = {"cpu_seconds", "wall_seconds", "commits"}
    assert result.model_dump(exclude=apart) == whole.model_dump(exclude=apart)
    assert result.commits == ("first", "second")


def test_a_finished_cell_is_read_and_can_be_evaluated_again(grid: Grid, tmp_path: Path) -> None:
    cell = cell_named(grid, "SplitGP")
    first = run_cell(cell, tmp_path, commit="one")
    rounds: list[Progress] = []
    assert run_cell(cell, tmp_path, commit="two", on_progress=rounds.append).commits == ("one",)
    reopen([cell], tmp_path)
    assert standing(cell, tmp_path) == "round 2"
    second = run_cell(cell, tmp_path, commit="two", on_progress=rounds.append)
    assert not rounds  # nothing was trained
    assert second.commits == ("one", "two")
    assert second.evaluation == first.evaluation
    assert second.losses == first.losses
    assert second.midway == first.midway
    assert second.cpu_seconds == first.cpu_seconds
    (folder_of(cell, tmp_path) / "cell.json").write_text('{"data": ')
    with pytest.raises(ArtifactCorrupt, match="Invalid JSON"):
        run_cell(cell, tmp_path, commit="three")


def test_a_run_that_was_killed_before_it_began_is_begun(grid: Grid, ran: Path, tmp_path: Path) -> None:
    cell = cell_named(grid, "SplitGP")
    (tmp_path / cell.key / "run").mkdir(parents=True)
    assert run_cell(cell, tmp_path, commit=None).evaluation == require_finished(cell, ran).evaluation


@pytest.fixture
def broken(settings: dict[str, Any], tmp_path: Path) -> Grid:
    """One cell that can be run, after one whose data are not there and one that never ends by itself."""
    methods = [
        {"name": "lost", "data": {"name": "nowhere.npz"}},
        {"name": "endless", "rounds": 1_000_000},
        {"name": "whole", "role": "ours", "method": "splitgp"},
    ]
    changed = {"methods": methods, "families": settings["families"][:1], "seeds": [0], "diagnose": False}
    path = tmp_path / "broken.toml"
    path.write_text(tomli_w.dumps(settings | changed))
    return load_grid(path)


def test_one_that_fails_is_named_and_the_others_go_on(broken: Grid, tmp_path: Path) -> None:
    ends: dict[str, str | None] = {}
    rounds: dict[str, list[int]] = {}

    def kill_the_endless(event: Event) -> None:
        if event.progress is not None:
            rounds.setdefault(event.cell.method, []).append(event.progress.done)
        if event.progress is None:
            ends[event.cell.method] = event.error
        elif event.cell.method == "endless" and event.progress.done == 1:
            _kill_child(lambda command: b"spawn_main" in command)

    home = tmp_path / "runs"
    run_cells(cells_of(broken), home, jobs=1, commit=None, on_event=kill_the_endless)
    assert ends["whole"] is None
    assert rounds["whole"] == [0, 1, 2]
    assert "DataMissing: nowhere.npz: " in (ends["lost"] or "")
    assert "RunError: its process was ended by signal 9" in (ends["endless"] or "")
    outcome = collect(broken, home, Watch())
    assert [cell.method for cell in outcome.cells] == ["whole"]
    assert {failed.method: failed.error for failed in outcome.failed} == {
        name: error for name, error in ends.items() if error
    }
    assert standing(cell_named(broken, "lost"), home) == ends["lost"]
    assert [cell.method for cell in unfinished(cells_of(broken), home)] == ["lost", "endless"]


def _kill_child(chosen: Callable[[bytes], bool]) -> None:
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if chosen(Path(f"/proc/{child}/cmdline").read_bytes()):
            os.kill(int(child), signal.SIGKILL)


def test_an_error_of_ours_in_between_ends_the_workers(broken: Grid, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.progress is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells([cell_named(broken, "endless")], tmp_path / "runs", on_event=stop)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [one for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_the_result_file_holds_every_cell_and_can_be_read(grid: Grid, ran: Path, tmp_path: Path) -> None:
    result = collect(grid, ran, Watch())
    write_experiment(tmp_path / "results" / "experiment-tiny.json", result)
    text = (tmp_path / "results" / "experiment-tiny.json").read_text()
    found = read_result(tmp_path / "results" / "experiment-tiny.json", ExperimentResult)
    assert len(found.cells) == found.planned == 10
    assert found.grid == grid
    assert text.count('\n{"data":') == 10  # a line each
    assert {cell.seed for cell in found.cells if cell.after and cell.after.scatter} == {0}
    twins = [cell for cell in found.cells if cell.method == "alike" and cell.seed == 0]
    assert [cell.family for cell in twins] == ["two widths", "two families"]
    assert twins[0].evaluation == twins[1].evaluation
    assert {cell.config["exits"]["score"] for cell in found.cells} == {"own_mass", "entropy"}
    assert len(text) / 10 < 40_000


def test_a_result_file_gives_its_cells_back_to_a_grid_whose_folders_are_gone(
    grid: Grid, ran: Path, tmp_path: Path
) -> None:
    published, home = collect(grid, ran, Watch()), tmp_path / "anew"
    assert restore(published, cells_of(grid), home) > 0
    assert unfinished(cells_of(grid), home) == []
    assert restore(published, cells_of(grid), home) == 0
    again = collect(grid, home, Watch())
    assert [one.evaluation for one in again.cells] == [one.evaluation for one in published.cells]


def test_a_cell_says_which_processor_trained_it_wherever_it_is_collected(grid: Grid, ran: Path, tmp_path: Path) -> None:
    """The seconds of an earlier file are those of its machine, not of the one that writes the next."""
    here = collect(grid, ran, Watch())
    assert {one.processor for one in here.cells} == {here.host.cpu}
    old = [one.model_copy(update={"processor": None}) for one in here.cells]
    host = here.host.model_copy(update={"cpu": "Another"})
    restore(here.model_copy(update={"cells": tuple(old), "host": host}), cells_of(grid), tmp_path / "anew")
    assert {one.processor for one in collect(grid, tmp_path / "anew", Watch()).cells} == {"Another"}


def test_a_published_cell_of_other_settings_is_no_cell_of_this_grid(grid: Grid, ran: Path, tmp_path: Path) -> None:
    published = collect(grid, ran, Watch())
    changed = grid.model_copy(update={"base": grid.base | {"rounds": 3}})
    assert restore(published, cells_of(changed), tmp_path / "anew") == 0


def test_a_cell_published_under_another_default_is_not_taken_for_one_of_today(
    grid: Grid, ran: Path, tmp_path: Path
) -> None:
    """The grid is silent on the rate; the file says beside the numbers which one they were made with."""
    published = collect(grid, ran, Watch())
    old = [one.model_copy(update={"config": one.config | {"learning_rate": 0.123}}) for one in published.cells]
    assert restore(published.model_copy(update={"cells": tuple(old)}), cells_of(grid), tmp_path / "anew") == 0
