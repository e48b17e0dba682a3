"""A grid small enough to run in seconds, on a few real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tomli_w

from harmony.bench.experiment import Grid, cells_of, load_grid
from harmony.bench.experiment.cell import run_cell
from harmony.core.data import load


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training and 10 test images a class of the embedded data set, as a file that other processes can read."""
    whole = load("fashion-mnist-mini")
    arrays: dict[str, np.ndarray] = {}
    for part, x, y, count in (("train", whole.x_train, whole.y_train, 30), ("test", whole.x_test, whole.y_test, 10)):
        chosen = np.concatenate([np.flatnonzero(y == label)[:count] for label in range(whole.classes)])
        arrays |= {f"x_{part}": x[chosen], f"y_{part}": y[chosen]}
    path = tmp_path_factory.mktemp("images") / "few.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path


@pytest.fixture(scope="session")
def settings(images: Path) -> dict[str, object]:
    """The grid as plain tables: two seeds, one data set, two families, four methods."""
    return {
        "name": "tiny",
        "title": "Tiny",
        "seeds": [0, 1],
        "rhos": [0.0, 1.0],
        "evaluate_every": 1,
        "look_images": 80,
        "base": {
            "rounds": 2,
            "steps": 1,
            "batch": 4,
            "back_end_width": 8,
            "checkpoint_every": 1,
            "partition": {"kind": "classes", "clients": 4, "classes": 3},
            "harmony": {"personalize_epochs": 1},
        },
        "data": [{"name": "few", "data": {"name": str(images)}}],
        "families": [
            {"name": "two widths", "architectures": ["resnet-w8-d1", "resnet-w16-d1"]},
            {"name": "two families", "architectures": ["resnet-w8-d1", "mobilenet-w8-d1"]},
        ],
        "methods": [
            {"name": "HARMONY", "role": "ours", "method": "harmony", "only_families": ["two widths"]},
            {
                "name": "− simulation",
                "role": "ablation",
                "method": "harmony",
                "harmony": {"simulate": False},
                "only_families": ["two widths"],
            },
            {"name": "SplitGP", "method": "splitgp", "only_families": ["two widths"]},
            {"name": "alike", "role": "reference", "method": "splitgp", "architectures": ["resnet-w8-d1"]},
        ],
    }


@pytest.fixture(scope="session")
def grid_file(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid as a file."""
    path = tmp_path_factory.mktemp("grid") / "tiny.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


@pytest.fixture(scope="session")
def grid(grid_file: Path) -> Grid:
    """The grid."""
    return load_grid(grid_file)


@pytest.fixture(scope="session")
def ran(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every cell of the grid lies, finished."""
    home = tmp_path_factory.mktemp("runs")
    for cell in cells_of(grid):
        run_cell(cell, home, commit="0123456789ab")
    return home
