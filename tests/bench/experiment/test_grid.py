"""Grids: their cells, their mistakes, and which cells are the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from harmony.bench.experiment import Grid, cells_of, choose, folder_of, load_grid
from harmony.bench.experiment.folders import SETTINGS, claimed
from harmony.core.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[3]


def changed(settings: dict[str, Any], **updates: Any) -> dict[str, Any]:
    return settings | updates


def saved(settings: dict[str, Any], folder: Path) -> Path:
    path = folder / "grid.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


def test_every_cell_merges_base_data_family_and_method(grid: Grid) -> None:
    cells = cells_of(grid)
    assert len(cells) == 2 * (4 + 1)
    assert [cell.seed for cell in cells] == [0] * 5 + [1] * 5
    ablated = [cell for cell in cells if cell.method == "− simulation"]
    assert {cell.family for cell in ablated} == {"two widths"}
    assert not any(cell.config.harmony.simulate for cell in ablated)
    splitgp = next(cell for cell in cells if cell.method == "SplitGP")
    assert splitgp.config.architectures == ("resnet-w8-d1", "resnet-w16-d1")
    assert splitgp.config.exits.score == "entropy"  # the method's own default
    assert splitgp.config.exits.pass1 == 1.0
    assert splitgp.config.rounds == 2


def test_a_method_sets_something_for_one_data_set_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    more = [*settings["data"], settings["data"][0] | {"name": "other", "rounds": 5}]
    methods = [{"name": "A", "learning_rate": 0.1, "for_data": {"other": {"learning_rate": 0.2}}}]
    grid = load_grid(saved(changed(settings, data=more, methods=methods), tmp_path))
    rates = {cell.data: (cell.config.learning_rate, cell.config.rounds) for cell in cells_of(grid)}
    assert rates == {"few": (0.1, 2), "other": (0.2, 5)}


def test_equal_runs_are_one_whatever_they_are_called(grid: Grid) -> None:
    alike = [cell for cell in cells_of(grid) if cell.method == "alike" and cell.seed == 0]
    assert [cell.family for cell in alike] == ["two widths", "two families"]
    assert len({cell.key for cell in alike}) == 1
    assert len({cell.key for cell in cells_of(grid)}) == 2 * 4


@pytest.mark.parametrize(("optimizer", "runs"), [("adam", 1), ("muon", 2)])
def test_muons_rate_makes_another_run_of_those_that_muon_trains(
    optimizer: str, runs: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    methods = [{"name": f"{rate}", "muon_rate": rate, "optimizer": optimizer} for rate in (0.01, 0.02)]
    grid = load_grid(saved(changed(settings, methods=methods, seeds=[0]), tmp_path))
    assert len({cell.meaning for cell in cells_of(grid) if cell.family == "two widths"}) == runs


@pytest.mark.parametrize(
    ("updates", "said"),
    [
        ({"base": {"rounds": 0}}, "base: rounds: Input should be greater than or equal to 1"),
        ({"base": {"roundz": 1}}, "base: roundz: "),
        ({"base": {"seed": 1}}, "base: seed: belongs into the list of seeds"),
        ({"methods": [{"name": "A", "harmony": {"simulat": False}}]}, "methods 'A': harmony.simulat: "),
        ({"methods": [{"name": "A", "for_data": {"few": {"batch": 0}}}]}, "methods 'A': for_data 'few': batch: "),
        ({"methods": [{"name": "A", "for_data": {"nowhere": {}}}]}, "there is no 'nowhere', only few"),
        ({"methods": [{"name": "A", "only_families": ["none"]}]}, "there is no 'none', only two widths, two families"),
        ({"methods": [{"name": "A"}, {"name": "A"}]}, "methods: a name occurs twice"),
        ({"methods": [{"name": "A", "method": "magic"}]}, "methods 'A': method: "),
        (
            {"methods": [{"name": "A", "method": "splitgp", "exits": {"score": "own_mass"}}]},
            "data 'few', families 'two widths', methods 'A': ",
        ),
        ({"families": [{"name": "two widths", "architectures": ["res"]}]}, "families 'two widths': architectures: "),
        ({"data": [{"name": "D", "partition": {"kind": "shards"}}]}, "data 'D': partition"),
        ({"data": []}, "data: "),
        ({"seeds": [0, 0]}, "a seed occurs twice"),
        ({"seeds": [0.5]}, "seeds.0: "),
        ({"name": "no spaces"}, "name: "),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_names_the_file_and_the_place(
    settings: dict[str, Any], updates: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = saved(changed(settings, **updates), tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_grid(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)


def test_choosing_what_no_cell_has_says_what_there_is(grid: Grid) -> None:
    cells = cells_of(grid)
    assert {cell.method for cell in choose(cells, methods=["SplitGP"], seeds=[1])} == {"SplitGP"}
    with pytest.raises(ConfigError, match=r"--only: no cell has 'Splitgp' .*SplitGP"):
        choose(cells, methods=["Splitgp"])
    with pytest.raises(ConfigError, match="--seed: no cell has '7'"):
        choose(cells, seeds=[7])


def test_a_setting_that_came_later_leaves_the_folder_and_a_changed_default_does_not(grid: Grid, tmp_path: Path) -> None:
    cell = cells_of(grid)[0]
    with claimed(cell, tmp_path) as folder:
        pass
    assert folder == folder_of(cell, tmp_path) == tmp_path / cell.key
    older = folder.rename(tmp_path / "made-by-an-older-version-s0-0000000000")
    text = json.loads((older / SETTINGS).read_text())
    del text["config"]["back_end_width"]  # as if this setting had not existed then: its default is 32, the cell has 8
    (older / SETTINGS).write_text(json.dumps(text))
    assert folder_of(cell, tmp_path) == tmp_path / cell.key
    text["config"]["back_end_width"] = 8
    del text["config"]["exits"]  # the cell has all its defaults
    newer = older.rename(tmp_path / "made-by-another-version-s0-0000000000")
    (newer / SETTINGS).write_text(json.dumps(text))
    assert folder_of(cell, tmp_path) == newer
    text["config"]["splitgp"]["mixing"] = 0.9  # another method's
    third = newer.rename(tmp_path / "third-s0-0000000000")
    (third / SETTINGS).write_text(json.dumps(text))
    assert folder_of(cell, tmp_path) == third


def test_a_cell_is_worked_on_by_one_process(grid: Grid, tmp_path: Path) -> None:
    cell = cells_of(grid)[0]
    with claimed(cell, tmp_path), pytest.raises(RunError, match="another process"), claimed(cell, tmp_path):
        pass
    with claimed(cell, tmp_path):
        pass


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_of_the_repository_can_be_run(path: Path) -> None:
    grid = load_grid(path)
    assert grid.name == path.stem
    assert sum(method.role == "ours" for method in grid.methods) == 1
    assert all(cell.config.data.folder is None for cell in cells_of(grid))
