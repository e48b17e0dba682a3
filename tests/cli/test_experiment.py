"""`harmony experiment`, as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from harmony.cli.main import main
from harmony.core.data import load

GRID = """
name = "tiny"
title = "Tiny"
seeds = [0, 1]
rhos = [0.0, 1.0]
look_images = 40
diagnose = false
[base]
rounds = 1
steps = 1
batch = 4
back_end_width = 8
partition = { kind = "classes", clients = 2, classes = 3 }
architectures = ["resnet-w8-d1"]
harmony.personalize_epochs = 0
[[data]]
name = "few"
data.name = "few.npz"
[[methods]]
name = "HARMONY"
role = "ours"
[[methods]]
name = "SplitGP"
method = "splitgp"
[[methods]]
name = "lost"
method = "splitgp"
data.name = "gone.npz"
"""


@pytest.fixture
def harmony(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a command line in a folder with the grid and a few images: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    whole = load("fashion-mnist-mini")
    train, test = (np.flatnonzero(y < 10)[::step] for y, step in ((whole.y_train, 20), (whole.y_test, 40)))
    np.savez(
        "few.npz",
        x_train=whole.x_train[train],
        y_train=whole.y_train[train],
        x_test=whole.x_test[test],
        y_test=whole.y_test[test],
    )
    Path("tiny.toml").write_text(GRID)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harmony", "experiment", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_grid_is_run_gone_on_with_and_reported(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harmony("tiny.toml", "--only", "SplitGP", "--only", "lost", "--seed", "0")
    assert code == 1  # one is lost
    assert "lost, few, seed 0: DataMissing: gone.npz" in " ".join(err.split())
    assert "1 of 6 cells" in out
    code, out, err = harmony("tiny.toml", "--only", "SplitGP", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [(cell["method"], cell["seed"]) for cell in told["cells"]] == [("SplitGP", 0), ("SplitGP", 1)]
    assert [one["error"].split(":")[0] for one in told["failed"]] == ["DataMissing"]
    assert "seed 0: " not in err  # it was finished already
    assert json.loads((tmp_path / "results/experiment-tiny.json").read_text()) == told
    code, out, _ = harmony("tiny.toml", "--list", "--json")
    standing = {(one["method"], one["seed"]): one["state"] for one in json.loads(out)}
    assert standing["SplitGP", 1] == "done"
    assert standing["HARMONY", 0] == "not begun"
    assert standing["lost", 0].startswith("DataMissing")
    code, out, err = harmony("--report", "results/experiment-tiny.json", "--out", "report")
    assert code == 0, err
    assert "DataMissing" in (tmp_path / "report/report.md").read_text()
    assert (tmp_path / "report/tiny-rho.png").stat().st_size > 1000


def test_what_another_grid_ran_already_is_not_run_again(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harmony("tiny.toml", "--only", "SplitGP", "--seed", "0")
    assert code == 0, err
    other = GRID.replace('name = "tiny"', 'name = "other"').replace('name = "SplitGP"', 'name = "Split, renamed"')
    Path("other.toml").write_text(other)
    code, out, err = harmony("other.toml", "--only", "Split, renamed", "--json")
    assert code == 0, err
    assert "seed 0: " not in err
    assert "seed 1: " in err
    there = json.loads((tmp_path / "results/experiment-tiny.json").read_text())
    taken, new = json.loads(out)["cells"]
    following = [f"{100 * one['adaptive']:.1f} % at ρ {one['rho']:g}" for one in new["evaluation"]["mean"]]
    assert ", ".join(following) in err  # what the tables show, too
    assert taken["method"] == "Split, renamed"
    assert taken["evaluation"] == there["cells"][0]["evaluation"]


def test_runs_on_another_device_leave_the_result_file_alone(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert harmony("tiny.toml", "--only", "SplitGP", "--seed", "0")[0] == 0
    before = (tmp_path / "results/experiment-tiny.json").read_bytes()
    code, out, err = harmony("tiny.toml", "--only", "HARMONY", "--seed", "0", "--device", "cpu", "--json")
    assert code == 0, err
    assert {cell["method"] for cell in json.loads(out)["cells"]} >= {"HARMONY"}
    assert (tmp_path / "results/experiment-tiny.json").read_bytes() == before
    assert (tmp_path / "results/experiment-tiny-cpu.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.toml"], "nowhere.toml: no such file"),
        (["tiny.toml", "other.toml"], "other.toml: one grid at a time"),
        (["tiny.toml", "--publish"], "--publish"),
        (["tiny.toml", "--only", "SplitPG"], "--only: no cell has 'SplitPG' (there are HARMONY, SplitGP, lost)"),
        (["--report", "nowhere.json"], "nowhere.json: no such result file"),
        (["--report", "tiny.toml"], "tiny.toml: is not JSON"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(harmony, arguments: list[str], said: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harmony(*arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()
